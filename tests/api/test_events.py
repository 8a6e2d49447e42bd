"""GET /status/{document_id}/events: first the state, then every change, from one reader of the database."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from processors_v2._api.hub import Hubs, arrive
from processors_v2._local.process import wait_until
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import AsyncStageTracker, StageTracker
from tests.api.conftest import LOOK_EVERY, app_of, following, in_loop, served, until


def names(event: dict[str, Any]) -> list[tuple[str, str]]:
    """What the changes of an event are, without times."""
    return [(change["stage_name"], change["change"]) for change in event["data"]["changes"]]


@pytest.fixture(scope="module", params=["asynchronous", "synchronous"])
def any_api(request: pytest.FixtureRequest, local: LocalSupabase, api: httpx.Client) -> Iterator[httpx.Client]:
    """The endpoints over each kind of tracker."""
    if request.param == "asynchronous":
        yield api
    else:
        with served(app_of(StageTracker(local.client()))) as client:
            yield client


def test_first_the_state_then_every_change(any_api: httpx.Client, tracker: StageTracker, document: str) -> None:
    """Each event has the changes since the one before, the same JSON as /status, and whether anything is open."""

    async def follow(client: httpx.AsyncClient) -> None:
        async with following(client, document) as events:
            first = await anext(events)
            assert (first["event"], names(first), first["data"]["is_open"]) == ("status", [], True)
            assert first["data"]["status"] == (await client.get(f"/status/{document}")).json()
            tracker.complete_stage(document, "upload")
            assert names(await anext(events)) == [("upload", "completed")]
            tracker.fail_stage(document, "text_extraction", "page 7 is damaged")
            third = await anext(events)
            assert set(third) == {"event", "id", "data"}
            assert set(third["data"]) == {"changes", "status", "is_open"}
            assert third["data"]["changes"][0]["error"] == "page 7 is damaged"
            assert third["data"]["status"] == (await client.get(f"/status/{document}")).json()

    in_loop(any_api, follow)


def test_a_listener_that_comes_back_is_told_what_it_missed(
    any_api: httpx.Client, tracker: StageTracker, document: str
) -> None:
    """Last-Event-ID has the first event tell what has changed since that one."""

    async def follow(client: httpx.AsyncClient) -> None:
        async with following(client, document) as events:
            mark = (await anext(events))["id"]
        tracker.start_stage(document, "upload")
        tracker.complete_stage(document, "upload")
        async with following(client, document, **{"Last-Event-ID": mark}) as events:
            missed = await anext(events)
            assert names(missed) == [("upload", "started"), ("upload", "completed")]
        async with following(client, document, **{"Last-Event-ID": missed["id"]}) as events:
            assert names(await anext(events)) == []

    in_loop(any_api, follow)


def test_an_id_that_no_event_had_is_422(api: httpx.Client, document: str) -> None:
    """The stream does not begin, and others are not disturbed."""
    answer = api.get(f"/status/{document}/events", headers={"Last-Event-ID": "yesterday"})
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid_documents")
    assert "yesterday" in answer.json()["detail"]


def test_a_stream_ends_when_its_document_is_deleted(any_api: httpx.Client, db: Any, document: str) -> None:
    """The last event is of type gone; whoever comes again gets 404."""

    async def follow(client: httpx.AsyncClient) -> None:
        async with following(client, document) as events:
            await anext(events)
            db.one("delete from krai_core.documents where id = %s returning 1", document)
            last = await anext(events)
            assert (last["event"], last["data"]["document_id"]) == ("gone", document)
            assert [event async for event in events] == []
        assert (await client.get(f"/status/{document}/events")).status_code == 404

    in_loop(any_api, follow)


def test_a_finished_document_is_followed_on(api: httpx.Client, tracker: StageTracker, document: str) -> None:
    """is_open is false and the stream stays, because somebody may retry or reset a stage."""
    tracker.cancel_document(document)

    async def follow(client: httpx.AsyncClient) -> None:
        async with following(client, document) as events:
            assert (await anext(events))["data"]["is_open"] is False
            tracker.reset_stage(document, "upload")
            event = await anext(events)
            assert (names(event), event["data"]["is_open"]) == ([("upload", "reset")], True)

    in_loop(api, follow)


def test_a_silent_stream_is_kept_open_by_comments(
    api: httpx.Client, document: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A comment goes out now and then, which proxies see and browsers pass over."""
    monkeypatch.setattr("sse_starlette.EventSourceResponse.DEFAULT_PING_INTERVAL", 0.01)

    async def follow(client: httpx.AsyncClient) -> None:
        async with following(client, document) as events:
            assert "event" in await anext(events)
            assert set(await anext(events)) == {"comment"}

    in_loop(api, follow)


class Questions:
    """What the endpoints ask PostgREST: the documents of each get_document_events."""

    def __init__(self, tracker: AsyncStageTracker) -> None:
        self.asked: list[set[str]] = []
        self.now = self.most_at_once = 0
        http = tracker.supabase.options.httpx_client  # type: ignore[union-attr]
        assert http is not None
        http.event_hooks = {"request": [self._begin], "response": [self._end]}

    async def _begin(self, request: httpx.Request) -> None:
        self.now += 1
        self.most_at_once = max(self.most_at_once, self.now)
        if request.url.path.endswith("/get_document_events"):
            self.asked.append(set(json.loads(request.content)["p_documents"]))

    async def _end(self, _: httpx.Response) -> None:
        self.now -= 1

    def forget(self) -> None:
        """Begin anew."""
        self.asked.clear()
        self.most_at_once = 0


def test_200_listeners_cost_the_database_one_reader(local: LocalSupabase, tracker: StageTracker, db: Any) -> None:
    """While 200 follow 20 documents, one question at a time goes out, for all documents; none when they have gone."""
    documents = [db.document() for _ in range(20)]
    own = AsyncStageTracker(asyncio.run(local.async_client()))
    questions = Questions(own)

    async def follow(client: httpx.AsyncClient) -> None:
        streams = [following(client, document) for document in documents for _ in range(10)]
        listeners = [await stream.__aenter__() for stream in streams]
        assert [names(await anext(events)) for events in listeners] == [[]] * 200
        questions.forget()
        for document in documents:
            tracker.start_stage(document, "upload")
            tracker.complete_stage(document, "upload")
        told: Counter[str] = Counter()

        async def hear(events: Any) -> None:
            changes = names(await anext(events))
            while len(changes) < 2:
                changes += names(await anext(events))
            assert changes == [("upload", "started"), ("upload", "completed")]
            told["both"] += 1

        await asyncio.gather(*(hear(events) for events in listeners))
        assert told == {"both": 200}
        questions.forget()
        await until(lambda: len(questions.asked) >= 5)
        assert questions.asked[:5] == [set(documents)] * 5
        assert questions.most_at_once == 1
        await asyncio.gather(*(stream.__aexit__(None, None, None) for stream in streams))

    with served(app_of(own)) as http:
        in_loop(http, follow)
        asyncio.run(asyncio.wait_for(_until_silent(questions), 30))


def test_streams_with_other_marks_are_told_their_own(api: httpx.Client, tracker: StageTracker, document: str) -> None:
    """Who comes in between hears nothing of before, who comes back hears all of it, and both the same afterwards."""

    async def follow(client: httpx.AsyncClient) -> None:
        async with following(client, document) as early:
            mark = (await anext(early))["id"]
            tracker.start_stage(document, "upload")
            async with (
                following(client, document) as late,
                following(client, document, **{"Last-Event-ID": mark}) as again,
            ):
                assert names(await anext(late)) == []
                assert names(await anext(again)) == [("upload", "started")]
                assert names(await anext(early)) == [("upload", "started")]
                tracker.complete_stage(document, "upload")
                for events in (early, late, again):
                    assert names(await anext(events)) == [("upload", "completed")]

    in_loop(api, follow)


def test_a_listener_that_does_not_read_holds_up_nobody(local: LocalSupabase, tracker: StageTracker, db: Any) -> None:
    """It has one event waiting, whatever happens; others are told, and it hears all of it when it reads again."""
    document = db.document()

    async def follow() -> None:
        own = AsyncStageTracker(await local.async_client())
        hubs = Hubs(LOOK_EVERY)
        slow, quick = [await arrive(own, document, None) for _ in range(2)]
        with hubs.listening(own, slow), hubs.listening(own, quick):
            await quick.take()
            for stage in StageTracker.STAGES:
                await asyncio.to_thread(tracker.complete_stage, document, stage)
                event = await quick.take()
                assert event is not None
                assert f'"stage_name":"{stage}"'.encode() in event
            assert not slow.has_room
            first, second = await slow.take(), await slow.take()
            assert first is not None
            assert second is not None
            assert first.count(b'"change":') == 0
            assert second.count(b'"change":"completed"') == 8

    asyncio.run(asyncio.wait_for(follow(), 60))


def test_nothing_is_asked_for_a_client_that_has_gone(local: LocalSupabase, document: str) -> None:
    """A connection that is cut ends the stream and the looks."""
    own = AsyncStageTracker(asyncio.run(local.async_client()))
    questions = Questions(own)
    with served(app_of(own)) as http:
        url = http.base_url
        with socket.create_connection((url.host, url.port or 80)) as connection:
            connection.sendall(f"GET /status/{document}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert b"200 OK" in connection.recv(100)
            assert wait_until(lambda: len(questions.asked) >= 3, 30)
        asyncio.run(asyncio.wait_for(_until_silent(questions), 30))


async def _until_silent(questions: Questions) -> None:
    """Return when no question comes in ten times the pause between two."""
    while True:
        questions.forget()
        await asyncio.sleep(10 * LOOK_EVERY)
        if not questions.asked:
            return


def test_a_stream_ends_when_its_rights_do(
    local: LocalSupabase, document: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A token that has expired ends the streams of that tracker; whoever comes again gets 401."""
    key, own = local.key(), AsyncStageTracker(asyncio.run(local.async_client()))

    async def follow(client: httpx.AsyncClient) -> None:
        async with following(client, document) as events:
            await anext(events)
            own.supabase.options.headers["Authorization"] = f"Bearer {local.key(exp=1)}"  # type: ignore[union-attr]
            assert [event async for event in events] == []
        assert (await client.get(f"/status/{document}/events")).status_code == 401
        own.supabase.options.headers["Authorization"] = f"Bearer {key}"  # type: ignore[union-attr]
        async with following(client, document) as events:
            await anext(events)

    with served(app_of(own)) as http:
        in_loop(http, follow)
    assert "1 event streams end: JWT expired" in caplog.text
    assert key not in caplog.text


def test_more_documents_than_one_call_takes_are_all_told(
    local: LocalSupabase, db: Any, tracker: StageTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look is as many calls as it takes."""
    monkeypatch.setattr("processors_v2._api.hub._MOST_DOCUMENTS", 2)
    documents = [db.document() for _ in range(5)]

    async def follow() -> None:
        own = AsyncStageTracker(await local.async_client())
        hubs = Hubs(LOOK_EVERY)
        listeners = [await arrive(own, document, None) for document in documents]
        with ExitStack() as stack:
            for listener, document in zip(listeners, documents, strict=True):
                await listener.take()
                stack.enter_context(hubs.listening(own, listener))
                await asyncio.to_thread(tracker.start_stage, document, "upload")
            for listener in listeners:
                assert b"started" in (await asyncio.wait_for(listener.take(), 30) or b"")

    asyncio.run(asyncio.wait_for(follow(), 60))
