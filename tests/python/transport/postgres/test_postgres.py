"""The direct transport: what is different from PostgREST, and that nothing else is."""

import asyncio
import gc
import multiprocessing
import pickle
import threading
import traceback
import uuid
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from processors_v2._calls.call import Call
from processors_v2._local.process import wait_until
from processors_v2.errors import (
    AccessDenied,
    ConfigurationError,
    DatabaseUnavailable,
    InvalidArgument,
    MigrationMissing,
    StageTrackerError,
)
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import AsyncStageTracker, StageContext, StageTracker

CLAIM = uuid.UUID("22222222-3333-4444-8555-666666666666")


def ask(sql: str) -> Call[Any]:
    """A call that is any query."""
    return Call("test", None, lambda answer: answer, repeatable=False, sql=sql)


def test_a_call_is_one_round_trip_on_a_pooled_connection(wire: Any, document: str, through_wire: Any) -> None:
    """Calls share a connection, and each of them asks once and is answered once."""
    tracker = through_wire()
    tracker.start_stage(document, "upload")
    before = wire.turns
    for number in range(10):
        tracker.update_progress(document, "upload", number)
        tracker.get_progress(document)
    assert wire.turns == before + 20
    assert wire.connections == 1


def test_text_of_all_kinds_arrives(direct: StageTracker, document: str, db: Any, monkeypatch: Any) -> None:
    """Emoji, quotes, percent signs, NUL and half surrogates arrive whatever PGCLIENTENCODING says."""
    monkeypatch.setenv("PGCLIENTENCODING", "latin1")
    direct.fail_stage(document, "storage", "📄 'quoted' %s \\ \0 \ud83d", {"%s": "{a,b}", "[1]": [[]]})
    stage = db.stage(document, "storage")
    assert stage["error"] == "📄 'quoted' %s \\ \ufffd \ufffd"
    assert stage["metadata"] == {"%s": "{a,b}", "[1]": [[]]}
    assert direct.retry_stage(document, "storage", actor="\0 nobody") is True


def test_commits_that_need_not_wait_do_not(direct: StageTracker, document: str, db: Any) -> None:
    """Progress commits without the disk, completion does not; and nothing of that stays with the connection."""
    db.connection.execute("create table public.seen (name text, value text)")
    db.connection.execute(
        "create function public.see() returns trigger language plpgsql security definer as $$ begin"
        " insert into public.seen values (new.stage_status -> 'upload' ->> 'status',"
        " current_setting('synchronous_commit')); return null; end $$"
    )
    db.connection.execute(
        "create trigger zz_see after update on krai_core.documents for each row execute function public.see()"
    )
    try:
        direct.start_stage(document, "upload")
        direct.update_progress(document, "upload", 5)
        direct.complete_stage(document, "upload")
        seen = db.connection.execute("select name, array_agg(distinct value) from public.seen group by 1").fetchall()
    finally:
        db.connection.execute("drop trigger zz_see on krai_core.documents; drop function public.see")
        db.connection.execute("drop table public.seen")
    assert dict(seen) == {"processing": ["off", "on"], "completed": ["on"]}
    left = "select jsonb_build_array(current_setting('synchronous_commit'), current_setting('request.path', true))"
    assert direct._transport.send(ask(left)) in (["on", ""], ["on", None])


def test_threads_have_connections_of_their_own(wire: Any, document: str, db: Any, through_wire: Any) -> None:
    """Every call of 16 threads takes effect, over no more connections than there are threads."""
    tracker = through_wire()
    tracker.start_stage(document, "upload")
    threads = [
        threading.Thread(target=tracker.update_progress, args=(document, "upload", None, {f"key{number}": number}))
        for number in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert db.stage(document, "upload")["metadata"] == {f"key{number}": number for number in range(16)}
    assert wire.connections <= 16


def _in_child(tracker: StageTracker, document: str, result: Any) -> None:
    result.put(tracker.complete_stage(document, "upload"))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_connections_of_its_own(wire: Any, document: str, through_wire: Any) -> None:
    """After a fork the child opens a connection of its own, and that of the parent goes on working."""
    tracker = through_wire()
    tracker.start_stage(document, "upload")
    fork = multiprocessing.get_context("fork")
    result = fork.SimpleQueue()
    child = fork.Process(target=_in_child, args=(tracker, document, result), daemon=True)
    child.start()
    assert result.get() is True
    child.join(20)
    assert wire.connections == 2
    assert tracker.get_current_stage(document) == "text_extraction"
    assert wire.connections == 2


def test_a_dropped_tracker_leaves_no_session(local: LocalSupabase, db: Any, document: str) -> None:
    """When nobody holds a tracker any more, or it was closed, its sessions in the server end."""
    sessions = "select count(*) from pg_stat_activity where application_name = %s"
    for end in ("closed", "dropped", "async"):
        name = f"test {end} {uuid.uuid4().hex[:8]}"
        url = make_conninfo(local.database_url, application_name=name)
        tracker: Any = StageTracker.from_postgres(url)
        if end == "async":
            tracker = AsyncStageTracker.from_postgres(url)
            asyncio.run(tracker.get_progress(document))
        else:
            tracker.get_progress(document)
            assert db.one(sessions, name) == 1
        if end == "closed":
            tracker.close()
        else:
            del tracker
            gc.collect()
        assert wait_until(lambda name=name: db.one(sessions, name) == 0, 20)


def test_functions_that_are_missing() -> None:
    """Where the migrations are not applied, calls say so."""
    with LocalSupabase(migrations=None) as stack:
        tracker = StageTracker.from_postgres(stack.database_url)
        for call in (lambda: tracker.start_stage(CLAIM, "upload"), tracker.list_stages):
            with pytest.raises(MigrationMissing, match="supabase db push"):
                call()


def test_a_role_that_may_not(local: LocalSupabase, document: str) -> None:
    """A role without rights is refused with the roles that have them."""
    tracker = StageTracker.from_postgres(local.url_of("postgres", "authenticator"))
    with pytest.raises(AccessDenied, match="Connect as a role"):
        tracker.start_stage(document, "upload")


SECRET = "p4ss:w@rd"


def test_times_have_a_range(local: LocalSupabase) -> None:
    """A timeout of nothing is refused here, too."""
    with pytest.raises(ConfigurationError, match="in seconds"):
        StageTracker.from_postgres(local.database_url, timeout=0)


def test_no_password_in_what_is_shown(local: LocalSupabase, document: str, caplog: pytest.LogCaptureFixture) -> None:
    """repr, pickles, messages, tracebacks and the log at its finest show where it goes, and no password."""
    password = str(conninfo_to_dict(local.database_url)["password"])
    good = StageTracker.from_postgres(local.database_url)
    nobody = StageTracker.from_postgres(make_conninfo(local.database_url, port=9), retry_for=0)
    wrong = StageTracker.from_postgres(make_conninfo(local.database_url, password=password[:-1]), retry_for=0)
    shown = [repr(good), repr(good._transport), repr(StageContext(good, document, "upload"))]
    assert "postgresql://postgres@127.0.0.1:" in shown[0]
    with caplog.at_level("DEBUG"):
        for tracker in (nobody, wrong):
            with pytest.raises(DatabaseUnavailable, match=r"127\.0\.0\.1") as caught:
                tracker.start_stage(document, "upload")
            shown += traceback.format_exception(caught.value)
            shown += [repr(caught.value), repr(vars(caught.value)), repr(pickle.dumps(caught.value))]
        with pytest.raises(StageTrackerError) as refused:
            good.start_stage(CLAIM, "upload")
        shown += traceback.format_exception(refused.value)
    text = "\n".join(shown) + caplog.text
    assert password[:-1] not in text


@pytest.mark.parametrize("kind", [StageTracker, AsyncStageTracker])
def test_a_tracker_is_not_pickled(local: LocalSupabase, kind: Any) -> None:
    """A tracker holds a password, which does not travel."""
    with pytest.raises(TypeError, match="holds a key and is not pickled"):
        pickle.dumps(kind.from_postgres(local.database_url))


def test_there_is_no_supabase_client(direct: StageTracker) -> None:
    """A tracker over Postgres has no supabase client."""
    assert direct.supabase is None


def test_odd_values_are_refused_by_the_database(direct: StageTracker, document: str) -> None:
    """A value of the wrong type raises InvalidArgument, as through PostgREST."""
    odd: Any = "many"
    with pytest.raises(InvalidArgument):
        direct.reap(odd)
    with pytest.raises(InvalidArgument):
        direct.start_stage(document, "upload", lease_seconds=odd)
