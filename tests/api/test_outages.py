"""Postgres and PostgREST go and come back, under the endpoints and under event streams, on a stack of its own."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from processors_v2.errors import DatabaseUnavailable, StageConflict
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import AsyncStageTracker, StageTracker
from tests.api.conftest import app_of, following, in_loop, served, until
from tests.python.conftest import connected

CHANGES = """
select r.stage_name, e.change, krai_private.iso_time(e.at), r.attempt
from krai_core.stage_runs r
cross join lateral (values ('started', r.started_at), (r.status, r.finished_at), ('reset', r.reset_at)) e (change, at)
where r.document_id = %s and e.at is not null and (r.started_at is not null or e.change <> 'cancelled')
"""


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalSupabase]:
    """Postgres and PostgREST to restart."""
    with LocalSupabase() as running:
        yield running


@pytest.fixture
def document(stack: LocalSupabase) -> str:
    """Id of a new document."""
    with connected(stack) as database:
        return database.document()


@pytest.fixture(scope="module")
def api(stack: LocalSupabase) -> Iterator[httpx.Client]:
    """The endpoints of a tracker that does not wait for long."""
    with served(app_of(AsyncStageTracker(asyncio.run(stack.async_client()), retry_for=0.2))) as client:
        yield client


@pytest.mark.parametrize("kind", [StageTracker, AsyncStageTracker])
def test_while_the_database_is_away_the_answer_is_503(
    stack: LocalSupabase, document: str, kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With Retry-After and without a word about the inside, for each endpoint; then all is as before."""
    tracker = (
        kind(stack.client(), retry_for=0)
        if kind is StageTracker
        else kind(asyncio.run(stack.async_client()), retry_for=0)
    )
    paths = [f"/status/{document}", f"/status/{document}/events", "/stages/statistics"]
    with served(app_of(tracker)) as http:
        stack.kill_postgrest()
        try:
            answers = [http.get(path) for path in paths]
        finally:
            stack.restart_postgrest()
        assert [answer.status_code for answer in answers] == [503] * 3
        assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
        assert [answer.json() for answer in answers] == [
            {"detail": "the database cannot be asked now", "hint": "Try again later", "error": "unavailable"}
        ] * 3
        assert http.get(paths[0]).status_code == 200
    assert "no answer from 127.0.0.1" in caplog.text


def test_a_server_without_the_migrations_is_503(document: str, caplog: pytest.LogCaptureFixture) -> None:
    """What is wrong inside is for the log of the server."""
    with LocalSupabase(migrations=None, schemas=("public",)) as bare:
        with served(app_of(StageTracker(bare.client()))) as http:
            answer = http.get(f"/status/{document}")
    assert (answer.status_code, answer.json()["error"]) == (503, "unavailable")
    assert "Exposed schemas" in caplog.text


def test_after_an_outage_every_listener_is_told_where_its_document_stands(
    stack: LocalSupabase, api: httpx.Client, document: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A crash takes back what was not on disk yet, so what was heard last may not be true any more."""

    async def follow(client: httpx.AsyncClient) -> None:
        async with following(client, document) as events:
            first = await anext(events)
            stack.kill_postgrest()
            try:
                await until(lambda: "event streams wait for the database" in caplog.text)
            finally:
                stack.restart_postgrest()
            assert await anext(events) == first

    in_loop(api, follow)


def _work(stack: LocalSupabase, document: str, is_over: threading.Event) -> None:
    """Run stages of a document, fail and reset them, until told otherwise, whatever the database does meanwhile."""
    tracker, choice = StageTracker(stack.client(), retry_for=60), random.Random(document)
    while not is_over.is_set():
        stage = choice.choice(StageTracker.STAGES[:3])
        # Of a call that the crash interrupted it is not known whether it took effect, and the next one may not fit.
        with suppress(StageConflict, DatabaseUnavailable):
            tracker.reset_stage(document, stage, force=True)
            tracker.start_stage(document, stage)
            tracker.update_progress(document, stage, choice.randrange(100))
            choice.choice([tracker.complete_stage, lambda d, s: tracker.fail_stage(d, s, "broken")])(document, stage)


def test_a_stream_survives_a_restart_of_postgres_and_misses_nothing(
    stack: LocalSupabase, api: httpx.Client, document: str, caplog: pytest.LogCaptureFixture
) -> None:
    """On one connection a listener hears every change of before, during and after the crash, each once."""
    is_over = threading.Event()
    writer = threading.Thread(target=_work, args=(stack, document, is_over))
    told: list[dict[str, Any]] = []
    last: dict[str, Any] = {}

    async def listen(events: Any) -> None:
        async for event in events:
            if "data" in event:
                told.extend(event["data"]["changes"])
                last.update(event)

    async def follow(client: httpx.AsyncClient) -> None:
        async with following(client, document) as events:
            listening = asyncio.create_task(listen(events))
            await asyncio.to_thread(writer.start)
            await until(lambda: len(told) > 50)
            await asyncio.to_thread(stack.restart_postgres, "immediate")
            heard = len(told)
            await until(lambda: len(told) > heard + 50)
            is_over.set()
            await asyncio.to_thread(writer.join)
            expected = await asyncio.to_thread(history, stack, document)
            await until(lambda: len(told) >= len(expected))
            assert Counter(map(identity, told)) == Counter(expected)
            assert not listening.done()
            listening.cancel()

    in_loop(api, follow)
    assert last["data"]["status"] == api.get(f"/status/{document}").json()
    outages = caplog.text.count("event streams wait for the database")
    assert 1 <= outages == caplog.text.count("event streams go on")


def identity(change: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a change from others."""
    return change["stage_name"], change["change"], change["at"], change["attempt"]


def history(stack: LocalSupabase, document: str) -> list[tuple[Any, ...]]:
    """All changes of a document."""
    with connected(stack) as database:
        return database.connection.execute(CHANGES, [document]).fetchall()
