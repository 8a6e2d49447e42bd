"""The direct transport: what is different from PostgREST, and that nothing else is."""

import _thread
import asyncio
import gc
import multiprocessing
import pickle
import socket
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from processors_v2._calls import Call
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


@pytest.fixture
def direct(local: LocalSupabase) -> StageTracker:
    """A tracker over Postgres."""
    return StageTracker.from_postgres(local.database_url)


@pytest.fixture
def wire(local: LocalSupabase, tcp_proxy: Callable[[str, int], Any]) -> Iterator[Any]:
    """A proxy before Postgres."""
    parts = conninfo_to_dict(local.database_url)
    proxy = tcp_proxy(str(parts["host"]), int(parts["port"]))
    yield proxy
    proxy.close()


def by(local: LocalSupabase, proxy: Any, **options: Any) -> StageTracker:
    """A tracker through a proxy before Postgres."""
    return StageTracker.from_postgres(make_conninfo(local.database_url, port=proxy.port), **options)


def ask(sql: str) -> Call[Any]:
    """A call that is any query."""
    return Call("test", None, lambda answer: answer, repeatable=False, sql=sql)


def test_a_call_is_one_round_trip_on_a_pooled_connection(local: LocalSupabase, wire: Any, document: str) -> None:
    """Calls share a connection, and each of them asks once and is answered once."""
    tracker = by(local, wire)
    tracker.start_stage(document, "upload")
    before = wire.turns
    for number in range(10):
        tracker.update_progress(document, "upload", number)
        tracker.get_progress(document)
    assert wire.turns == before + 20
    assert wire.connections == 1


@pytest.mark.parametrize("fault", ["cut", "drop"])
def test_a_call_that_may_be_repeated_survives_a_fault(
    local: LocalSupabase, wire: Any, document: str, db: Any, fault: str
) -> None:
    """A repeatable call is sent again over another connection, and answers as if nothing had happened."""
    tracker = by(local, wire)
    tracker.get_progress(document)
    wire.fault = fault
    assert tracker.start_stage(document, "upload", claim_id=CLAIM) is True
    assert wire.connections == 2
    assert db.one("select count(*) from krai_core.stage_runs where document_id = %s and claim_id = %s", document, CLAIM)
    wire.fault = fault
    assert tracker.complete_stage(document, "upload", claim_id=CLAIM) is True


@pytest.mark.parametrize("fault", ["cut", "drop", "late"])
def test_a_call_that_may_have_run_is_not_repeated(
    local: LocalSupabase, wire: Any, document: str, db: Any, fault: str
) -> None:
    """A plain start whose answer did not come is sent once, and the error says that it may have happened."""
    tracker = by(local, wire, timeout=0.5)
    tracker.get_progress(document)
    wire.fault = fault
    with pytest.raises(DatabaseUnavailable, match="after 1 try. It is not known whether the call took effect"):
        tracker.start_stage(document, "upload")
    assert db.stage(document, "upload")["status"] == ("pending" if fault == "cut" else "processing")


def test_an_answer_that_does_not_come_is_not_waited_for(local: LocalSupabase, wire: Any, document: str) -> None:
    """After timeout seconds a repeatable call is sent again."""
    tracker = by(local, wire, timeout=0.5)
    wire.fault = "late"
    assert tracker.get_progress(document) == 0.0
    assert wire.fault is None


@pytest.fixture
def held(local: LocalSupabase, document: str) -> Iterator[str]:
    """A document whose row somebody else has locked."""
    with psycopg.connect(local.database_url) as connection:
        connection.execute("select from krai_core.documents where id = %s for update", [document])
        yield document


def is_waiting(db: Any) -> bool:
    """Whether a statement of a tracker still waits in the server."""
    return bool(
        db.one("select count(*) from pg_stat_activity where application_name = 'stage-tracker' and state = 'active'")
    )


def test_a_statement_that_was_given_up_is_cancelled(local: LocalSupabase, held: str, db: Any) -> None:
    """A call that waits for a lock ends after timeout seconds, and so does its statement in the server."""
    tracker = StageTracker.from_postgres(local.database_url, timeout=0.3, retry_for=0)
    with pytest.raises(DatabaseUnavailable, match=r"no answer within 0\.3 s"):
        tracker.start_stage(held, "upload")
    assert wait_until(lambda: not is_waiting(db), 20)


def test_an_asynchronous_statement_that_was_given_up_is_cancelled(local: LocalSupabase, held: str, db: Any) -> None:
    """The same holds for a call that is awaited, and for one whose task is cancelled."""

    async def work() -> None:
        async with AsyncStageTracker.from_postgres(local.database_url, timeout=0.3, retry_for=0) as tracker:
            with pytest.raises(DatabaseUnavailable, match=r"no answer within 0\.3 s"):
                await tracker.start_stage(held, "upload")
        async with AsyncStageTracker.from_postgres(local.database_url) as tracker:
            task = asyncio.create_task(tracker.start_stage(held, "upload"))
            assert await asyncio.to_thread(wait_until, lambda: is_waiting(db), 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(work())
    assert wait_until(lambda: not is_waiting(db), 20)


def test_an_interrupted_call_harms_no_other(direct: StageTracker, held: str, db: Any) -> None:
    """Ctrl-C ends a call that waits; its connection is not used again, and the next call works."""
    direct.get_progress(held)

    def interrupt() -> None:
        assert wait_until(lambda: is_waiting(db), 20)
        _thread.interrupt_main()

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        direct.start_stage(held, "upload")
    assert direct.get_progress(held) == 0.0
    assert wait_until(lambda: not is_waiting(db), 20)


def test_a_session_that_was_ended_while_idle_is_not_used(direct: StageTracker, document: str, db: Any) -> None:
    """After an idle connection was ended by the server, even a call that may not be repeated works at once."""
    pid = direct._transport.send(ask("select pg_backend_pid()"))
    assert db.one("select pg_terminate_backend(%s, 10000)", pid) is True
    assert direct.start_stage(document, "upload") is True


def test_a_session_that_is_ended_under_way(direct: StageTracker, held: str, db: Any) -> None:
    """A statement that the server ended may have run: a call that must not run twice is not repeated."""

    def end() -> None:
        assert wait_until(lambda: is_waiting(db), 20)
        db.one("select pg_terminate_backend(pid) from pg_stat_activity"
               " where application_name = 'stage-tracker' and state = 'active'")  # fmt: skip

    threading.Thread(target=end, daemon=True).start()
    with pytest.raises(DatabaseUnavailable, match=r"57P01.*It is not known"):
        direct.start_stage(held, "upload")


RAISING = """
create sequence krai_core.raised;
grant usage on sequence krai_core.raised to postgres;
create function krai_core.raises(p_code text, p_times integer) returns integer language plpgsql as $$
begin
    if nextval('krai_core.raised') <= p_times then
        raise exception using errcode = p_code, message = 'on purpose';
    end if;
    return 1;
end $$;
"""


@pytest.fixture
def raises(db: Any) -> Iterator[Callable[..., Call[int]]]:
    """A function of krai_core that raises a code, so many times."""
    db.connection.execute(RAISING)

    def call(code: str, times: int = 1, *, repeatable: bool = False) -> Call[int]:
        return Call("rpc/raises", {"p_code": code, "p_times": times}, int, repeatable=repeatable)

    yield call
    db.connection.execute("drop function krai_core.raises; drop sequence krai_core.raised")


@pytest.mark.parametrize("code", ["53300", "57P03", "40P01", "55P03"])
def test_what_never_ran_is_repeated(direct: StageTracker, raises: Any, code: str) -> None:
    """A code that says that all was rolled back leads to another try of any call."""
    assert direct._transport.send(raises(code, 2)) == 1


@pytest.mark.parametrize("code", ["57P01", "57P02", "08006", "08P01"])
def test_what_may_have_run_is_repeated_where_that_is_safe(direct: StageTracker, raises: Any, code: str) -> None:
    """A code that leaves open whether the call ran leads to another try of a repeatable call alone."""
    with pytest.raises(DatabaseUnavailable, match=f"{code}: on purpose.*not known"):
        direct._transport.send(raises(code, 1))
    assert direct._transport.send(raises(code, 2, repeatable=True)) == 1


@pytest.mark.parametrize("code", ["P0001", "22012", "57014", "XX000"])
def test_other_errors_are_answers(direct: StageTracker, raises: Any, db: Any, code: str) -> None:
    """Any other code is raised at once, with its text."""
    with pytest.raises(StageTrackerError, match="on purpose") as caught:
        direct._transport.send(raises(code, 5, repeatable=True))
    assert caught.value.code == code
    assert db.one("select last_value from krai_core.raised") == 1


def test_a_claim_that_still_runs_is_asked_for_again(local: LocalSupabase, direct: StageTracker) -> None:
    """claim_in_progress is no answer: the claim is sent again until the first has ended."""
    claim, released = uuid.uuid4(), threading.Event()
    call: Any = Call(
        "rpc/claim_stages",
        {"p_stage_name": "upload", "p_worker": "w", "p_limit": 1, "p_claim_id": str(claim)},
        list,
        repeatable=True,
    )
    with psycopg.connect(local.database_url) as first:
        first.execute("select krai_core.claim_stages('upload', 'w', 1, null, %s)", [claim])

        def second() -> None:
            direct._transport.send(call)
            released.set()

        threading.Thread(target=second, daemon=True).start()
        assert not released.wait(0.3)
        first.rollback()
    assert released.wait(20)


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


def test_threads_have_connections_of_their_own(local: LocalSupabase, wire: Any, document: str, db: Any) -> None:
    """Every call of 16 threads takes effect, over no more connections than there are threads."""
    tracker = by(local, wire)
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
def test_a_forked_child_has_connections_of_its_own(local: LocalSupabase, wire: Any, document: str) -> None:
    """After a fork the child opens a connection of its own, and that of the parent goes on working."""
    tracker = by(local, wire)
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


def test_a_context_through_a_crash(look_into: Any) -> None:
    """A stage whose database crashes and recovers inside of the block is completed with all that was reported."""
    with LocalSupabase() as stack:
        with look_into(stack) as database:
            document = database.document()
        with StageContext(StageTracker.from_postgres(stack.database_url, retry_for=60), document, "upload") as ctx:
            ctx.update_progress(40, {"before": 1})
            with look_into(stack) as database:
                assert wait_until(lambda: database.stage(document, "upload")["progress"] == 40, 20)
            stack.restart_postgres("immediate")
            ctx.update_progress(60, {"after": 2})
        with look_into(stack) as database:
            stage = database.stage(document, "upload")
    assert (stage["status"], stage["metadata"]) == ("completed", {"before": 1, "after": 2})


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

ODD_URLS = [
    "",
    "   ",
    None,
    17,
    "https://x.supabase.co",
    f"postgresql://postgres:{SECRET}@localhost:54x2/postgres",
    f"postgresql://postgres:%zz{SECRET}@localhost/postgres",
    f"postgresql://postgres:{SECRET}@localhost/postgres?nonsense=1",
    f"host=localhost password={SECRET} 'unterminated",
]


@pytest.mark.parametrize("url", ODD_URLS, ids=range(len(ODD_URLS)))
def test_an_odd_url_is_refused_and_not_shown(url: Any) -> None:
    """What is no URL of Postgres is refused with its form, and nothing of a password is repeated."""
    with pytest.raises(ConfigurationError, match=r"cannot be read.*postgresql://user:password@host") as caught:
        StageTracker.from_postgres(url)
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown
    assert caught.value.__context__ is None
    with pytest.raises(ConfigurationError):
        AsyncStageTracker.from_postgres(url)


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


def test_what_nobody_listens_to_is_tried_for_as_long_as_is_asked(document: str) -> None:
    """A refused connection never ran anything: any call is tried again until its time is over."""
    tracker = StageTracker.from_postgres("postgresql://postgres@127.0.0.1:9/postgres", retry_for=0.3)
    with pytest.raises(DatabaseUnavailable, match=r"no answer from 127\.0\.0\.1 .*after [2-9]\d* tries"):
        tracker.start_stage(document, "upload")


def test_a_server_that_accepts_and_says_nothing_is_not_waited_for(silent: int, document: str) -> None:
    """A connection that is never answered ends, with DatabaseUnavailable."""
    tracker = StageTracker.from_postgres(f"postgresql://postgres@127.0.0.1:{silent}/postgres", timeout=0.2, retry_for=0)
    with pytest.raises(DatabaseUnavailable):
        tracker.start_stage(document, "upload")


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
