"""tracker.watch: every change of a document, as it happens, once."""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import psycopg
import pytest

from processors_v2 import models
from processors_v2.errors import InvalidArgument, UnknownDocument
from processors_v2.local import LocalSupabase
from processors_v2.models import WatchEvent
from processors_v2.stage_tracker import AsyncStageTracker, StageTracker

EVERY = 0.01


def names(event: WatchEvent) -> list[tuple[str, str]]:
    """What the changes of an event are, without times."""
    return [(change["stage_name"], change["change"]) for change in event["changes"]]


@pytest.fixture(params=["rest", "postgres", "async rest", "async postgres"])
def watch(request: pytest.FixtureRequest, local: LocalSupabase) -> Iterator[Callable[..., Iterator[WatchEvent]]]:
    """Watch through each transport, with each class; an asynchronous watch is stepped by a loop of its own."""
    asynchronous, _, transport = request.param.rpartition(" ")
    loop = asyncio.new_event_loop()
    if not asynchronous:
        tracker = (
            StageTracker(local.client()) if transport == "rest" else StageTracker.from_postgres(local.database_url)
        )
        yield tracker.watch
        tracker.close()
    else:
        other = (
            AsyncStageTracker(loop.run_until_complete(local.async_client()))
            if transport == "rest"
            else AsyncStageTracker.from_postgres(local.database_url)
        )

        def stepped(*arguments: Any, **options: Any) -> Iterator[WatchEvent]:
            events = other.watch(*arguments, **options)
            try:
                while True:
                    yield loop.run_until_complete(anext(events))
            except StopAsyncIteration:
                return

        yield stepped
        loop.run_until_complete(other.close())
    loop.close()


def test_each_change_is_told_once_until_the_end(watch: Callable[..., Any], rest: StageTracker, document: str) -> None:
    """First where it stands, then what changed, also between two looks, and an end when nothing is open."""
    events = watch(document, every=EVERY)
    first = next(events)
    assert set(first) == set(get_type_hints(models.WatchEvent))
    assert (first["changes"], first["is_open"]) == ([], True)
    assert first["status"] == rest.get_document_status(document)
    rest.complete_stage(document, "upload")
    rest.start_stage(document, "text_extraction")
    rest.fail_stage(document, "text_extraction", "page 7 is damaged")
    second = next(events)
    assert names(second) == [("upload", "completed"), ("text_extraction", "started"), ("text_extraction", "failed")]
    assert [change["error"] for change in second["changes"]] == [None, None, "page 7 is damaged"]
    assert set(second["changes"][0]) == set(get_type_hints(models.StageChange))
    assert list(second["status"]["stage_status"]) == StageTracker.STAGES
    rest.retry_stage(document, "text_extraction")
    rest.start_stage(document, "text_extraction")
    rest.update_progress(document, "text_extraction", 50)
    third = next(events)
    assert names(third) == [("text_extraction", "reset"), ("text_extraction", "started")]
    rest.update_progress(document, "text_extraction", 75)
    fourth = next(events)
    assert (fourth["changes"], fourth["status"]["stage_status"]["text_extraction"]["progress"]) == ([], 75)
    for stage in StageTracker.STAGES[1:]:
        rest.complete_stage(document, stage)
    last = next(events)
    assert names(last) == [(stage, "completed") for stage in StageTracker.STAGES[1:]]
    assert (last["is_open"], last["status"]["status"]) == (False, "completed")
    assert list(events) == []


def test_a_document_that_waits_for_a_person_is_told_once(
    watch: Callable[..., Any], rest: StageTracker, document: str
) -> None:
    """Where nothing runs or may run the first event is the last one."""
    rest.fail_stage(document, "upload", "broken")
    [event] = watch(document, every=EVERY)
    assert (event["is_open"], event["status"]["error"]) == (False, "broken")


def test_a_watch_goes_on_behind_what_was_seen(watch: Callable[..., Any], rest: StageTracker, document: str) -> None:
    """after= tells at first what has changed since that event, which may be nothing."""
    mark = next(watch(document, every=EVERY))["id"]
    rest.start_stage(document, "upload")
    rest.complete_stage(document, "upload")
    missed = next(watch(document, every=EVERY, after=mark))
    assert names(missed) == [("upload", "started"), ("upload", "completed")]
    assert next(watch(document, every=EVERY, after=missed["id"]))["changes"] == []


def test_a_document_that_is_deleted_ends_the_watch(watch: Callable[..., Any], db: Any, document: str) -> None:
    """UnknownDocument is raised, as for one that never was."""
    events = watch(document, every=EVERY)
    next(events)
    db.one("delete from krai_core.documents where id = %s returning 1", document)
    with pytest.raises(UnknownDocument, match=f"there is no document {document}, or no longer") as caught:
        next(events)
    assert caught.value.document_id == document
    with pytest.raises(UnknownDocument):
        next(watch(str(uuid.uuid4())))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every": 0}, "every 0 is not a number of seconds"),
        ({"every": float("nan")}, "every nan is not a number of seconds"),
        ({"every": "1"}, "every '1' is not a number of seconds"),
        ({"after": "yesterday"}, '{"seen": "yesterday"}'),
        ({"after": ""}, '{"seen": ""}'),
    ],
)
def test_what_cannot_be_used_is_refused(watch: Callable[..., Any], document: str, options: Any, said: str) -> None:
    """The error names the value."""
    with pytest.raises(InvalidArgument) as caught:
        next(watch(document, **options))
    assert said in str(caught.value)


def test_an_id_that_is_none_is_refused(watch: Callable[..., Any]) -> None:
    """Nothing is asked."""
    with pytest.raises(InvalidArgument, match="'manual.pdf' is not a UUID"):
        next(watch("manual.pdf"))


def test_a_user_watches_what_the_policies_show(
    local: LocalSupabase, rest: StageTracker, db: Any, document: str
) -> None:
    """Through PostgREST a signed-in user follows his documents; others are unknown to him."""
    user, hidden = str(uuid.uuid4()), db.document()
    with psycopg.connect(local.admin_url, autocommit=True) as admin:
        admin.execute("grant select on krai_core.documents to authenticated")
        admin.execute(
            "create policy watched on krai_core.documents for select to authenticated"
            f" using (id = '{document}' and (select auth.uid()) = '{user}')"
        )
        try:
            tracker = StageTracker(local.client("authenticated", sub=user))
            events = tracker.watch(document, every=EVERY)
            assert next(events)["status"]["document_id"] == document
            rest.start_stage(document, "upload")
            assert names(next(events)) == [("upload", "started")]
            with pytest.raises(UnknownDocument, match="As a signed-in user, check that the policies"):
                next(tracker.watch(hidden))
        finally:
            admin.execute("drop policy watched on krai_core.documents")
            admin.execute("revoke select on krai_core.documents from authenticated")
