"""The direct transport when the network, the server or the caller goes wrong."""

import _thread
import asyncio
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from processors_v2._calls.call import Call
from processors_v2._local.process import wait_until
from processors_v2.errors import (
    DatabaseUnavailable,
    StageTrackerError,
)
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import AsyncStageTracker, StageContext, StageTracker

CLAIM = uuid.UUID("22222222-3333-4444-8555-666666666666")


def ask(sql: str) -> Call[Any]:
    """A call that is any query."""
    return Call("test", None, lambda answer: answer, repeatable=False, sql=sql)


@pytest.mark.parametrize("fault", ["cut", "drop"])
def test_a_call_that_may_be_repeated_survives_a_fault(
    wire: Any, document: str, db: Any, fault: str, through_wire: Any
) -> None:
    """A repeatable call is sent again over another connection, and answers as if nothing had happened."""
    tracker = through_wire()
    tracker.get_progress(document)
    wire.fault = fault
    assert tracker.start_stage(document, "upload", claim_id=CLAIM) is True
    assert wire.connections == 2
    assert db.one("select count(*) from krai_core.stage_runs where document_id = %s and claim_id = %s", document, CLAIM)
    wire.fault = fault
    assert tracker.complete_stage(document, "upload", claim_id=CLAIM) is True


@pytest.mark.parametrize("fault", ["cut", "drop", "late"])
def test_a_call_that_may_have_run_is_not_repeated(
    wire: Any, document: str, db: Any, fault: str, through_wire: Any
) -> None:
    """A plain start whose answer did not come is sent once, and the error says that it may have happened."""
    tracker = through_wire(timeout=0.5)
    tracker.get_progress(document)
    wire.fault = fault
    with pytest.raises(DatabaseUnavailable, match="after 1 try. It is not known whether the call took effect"):
        tracker.start_stage(document, "upload")
    assert db.stage(document, "upload")["status"] == ("pending" if fault == "cut" else "processing")


def test_an_answer_that_does_not_come_is_not_waited_for(wire: Any, document: str, through_wire: Any) -> None:
    """After timeout seconds a repeatable call is sent again."""
    tracker = through_wire(timeout=0.5)
    wire.fault = "late"
    assert tracker.get_progress(document) == 0.0
    assert wire.fault is None


def test_a_statement_that_was_given_up_is_cancelled(local: LocalSupabase, held: str, is_waiting: Any) -> None:
    """A call that waits for a lock ends after timeout seconds, and so does its statement in the server."""
    tracker = StageTracker.from_postgres(local.database_url, timeout=0.3, retry_for=0)
    with pytest.raises(DatabaseUnavailable, match=r"no answer within 0\.3 s"):
        tracker.start_stage(held, "upload")
    assert wait_until(lambda: not is_waiting(), 20)


def test_an_asynchronous_statement_that_was_given_up_is_cancelled(
    local: LocalSupabase, held: str, is_waiting: Any
) -> None:
    """The same holds for a call that is awaited, and for one whose task is cancelled."""

    async def work() -> None:
        async with AsyncStageTracker.from_postgres(local.database_url, timeout=0.3, retry_for=0) as tracker:
            with pytest.raises(DatabaseUnavailable, match=r"no answer within 0\.3 s"):
                await tracker.start_stage(held, "upload")
        async with AsyncStageTracker.from_postgres(local.database_url) as tracker:
            task = asyncio.create_task(tracker.start_stage(held, "upload"))
            assert await asyncio.to_thread(wait_until, is_waiting, 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(work())
    assert wait_until(lambda: not is_waiting(), 20)


def test_an_interrupted_call_harms_no_other(direct: StageTracker, held: str, is_waiting: Any) -> None:
    """Ctrl-C ends a call that waits; its connection is not used again, and the next call works."""
    direct.get_progress(held)

    def interrupt() -> None:
        assert wait_until(is_waiting, 20)
        _thread.interrupt_main()

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        direct.start_stage(held, "upload")
    assert not direct._transport._connections._free  # type: ignore[attr-defined]
    assert direct.get_progress(held) == 0.0
    assert wait_until(lambda: not is_waiting(), 20)


def test_a_session_that_was_ended_while_idle_is_not_used(direct: StageTracker, document: str, db: Any) -> None:
    """After an idle connection was ended by the server, even a call that may not be repeated works at once."""
    pid = direct._transport.send(ask("select pg_backend_pid()"))
    assert db.one("select pg_terminate_backend(%s, 10000)", pid) is True
    assert direct.start_stage(document, "upload") is True


def test_a_session_that_is_ended_under_way(direct: StageTracker, held: str, db: Any, is_waiting: Any) -> None:
    """A statement that the server ended may have run: a call that must not run twice is not repeated."""

    def end() -> None:
        assert wait_until(is_waiting, 20)
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
