"""Servers that go away under a worker: nothing is lost, nothing is done twice, and it goes on by itself."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker
from processors_v2.worker import RunContext, StageWorker

Documents = Callable[..., list[str]]


@pytest.fixture(scope="module")
def fragile() -> Iterator[LocalSupabase]:
    """A stack whose servers may be killed."""
    with LocalSupabase() as stack:
        yield stack


@pytest.fixture(params=["rest", "postgres"])
def tracker(request: pytest.FixtureRequest, fragile: LocalSupabase) -> StageTracker:
    """A tracker of that stack."""
    if request.param == "rest":
        return StageTracker(fragile.client())
    return StageTracker.from_postgres(fragile.database_url)


def fill(look_into: Any, stack: LocalSupabase, count: int) -> None:
    """Put so many documents into an empty table."""
    with look_into(stack) as database:
        database.connection.execute("delete from krai_core.documents")
        database.connection.execute(
            "insert into krai_core.documents (filename) select i || '.pdf' from generate_series(1, %s) i", [count]
        )


def ends(look_into: Any, stack: LocalSupabase) -> dict[str, int]:
    """How many stages upload there are, by status."""
    with look_into(stack) as database:
        rows = database.connection.execute(
            "select stage_status -> 'upload' ->> 'status', count(*) from krai_core.documents group by 1"
        ).fetchall()
        return dict(rows)


class Handler:
    """Counts how often each document was handled, and lets the test act at the hundredth."""

    def __init__(self) -> None:
        self.handled: Counter[str] = Counter()
        self.hundred = threading.Event()

    def __call__(self, ctx: RunContext) -> None:
        """Handle one."""
        self.handled[ctx.document_id] += 1
        threading.Event().wait(0.002)
        if self.handled.total() == 100:
            self.hundred.set()


@pytest.mark.parametrize("crash", ["postgrest", "postgres"])
def test_a_crash_under_load_costs_nothing(
    fragile: LocalSupabase, tracker: StageTracker, look_into: Any, run_beside: Any, soon: Any, crash: str
) -> None:
    """Everything is completed once, whatever was under way when the server was killed."""
    handler = Handler()
    fill(look_into, fragile, 1500)
    with run_beside(StageWorker(tracker, {"upload": handler}, batch=50)) as worker:
        assert handler.hundred.wait(30)
        if crash == "postgres":
            fragile.restart_postgres("immediate")
        else:
            fragile.kill_postgrest()
            fragile.restart_postgrest()
        soon(lambda: worker.counts["completed"] == 1500, 60)
    assert ends(look_into, fragile) == {"completed": 1500}
    # A claim that the crash took back may be handed out again; who held it is refused.
    assert set(handler.handled.values()) <= ({1, 2} if crash == "postgres" else {1})
    assert worker.counts["claimed"] == 1500 + worker.counts["lost"]


def test_outcomes_outlive_an_outage(fragile: LocalSupabase, look_into: Any, run_beside: Any, soon: Any) -> None:
    """What ended while the database was away is kept and delivered when it is back, without a further call."""
    begun, go_on, done = threading.Semaphore(0), threading.Event(), threading.Semaphore(0)

    def handler(_: RunContext) -> dict[str, bool]:
        begun.release()
        go_on.wait(30)
        done.release()
        return {"during the outage": True}

    fill(look_into, fragile, 3)
    with run_beside(StageWorker(StageTracker(fragile.client()), {"upload": handler})) as worker:
        for _ in range(3):
            assert begun.acquire(timeout=20)
        fragile.kill_postgrest()
        go_on.set()
        for _ in range(3):
            assert done.acquire(timeout=20)
        assert worker.counts["completed"] == 0
        fragile.restart_postgrest()
        soon(lambda: worker.counts["completed"] == 3)
    assert ends(look_into, fragile) == {"completed": 3}


def test_a_stop_during_an_outage_ends(fragile: LocalSupabase, look_into: Any, caplog: Any) -> None:
    """A worker that cannot deliver any more returns within its time, and says how much it could not deliver."""
    begun, go_on = threading.Event(), threading.Event()

    def handler(_: RunContext) -> None:
        begun.set()
        go_on.wait(30)

    fill(look_into, fragile, 1)
    worker = StageWorker(StageTracker(fragile.client()), {"upload": handler}, drain_seconds=0)
    thread = threading.Thread(target=worker.run)
    thread.start()
    assert begun.wait(20)
    fragile.kill_postgrest()
    worker.stop()
    thread.join(60)
    go_on.set()
    assert not thread.is_alive()
    assert "they return when their lease is over" in caplog.text
    fragile.restart_postgrest()


def test_answers_that_are_lost_after_the_work_was_done_burn_nothing(
    documents: Documents, through: StageTracker, proxy: Any, db: Any
) -> None:
    """Every third answer is dropped: each document is handled once and completed, in its first attempt."""
    handled: Counter[str] = Counter()

    def handler(ctx: RunContext) -> None:
        handled[ctx.document_id] += 1

    documents(300)
    proxy.faults = [None, None, "drop"] * 10_000
    worker = StageWorker(through, {"upload": handler}, batch=10)
    worker.run(until_empty=True)
    proxy.faults = []
    assert (worker.counts["claimed"], worker.counts["completed"]) == (300, 300)
    assert set(handled.values()) == {1}
    assert db.one("select max(attempt) from krai_core.stage_runs") == 1


def test_an_answer_that_spoils_a_batch_is_found_by_halves(
    documents: Documents, tracker: StageTracker, rest: StageTracker, db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One outcome that makes the database refuse the whole call ends as failed; the others are taken."""
    assert tracker
    send = rest._transport.send

    def spoiled(call: Any, **options: Any) -> Any:
        if call.path == "rpc/finish_stages":
            for outcome in call.arguments["p_outcomes"]:
                if outcome.get("metadata") == {"spoils": True}:
                    outcome["claim_id"] = "no claim id"
        return send(call, **options)

    monkeypatch.setattr(rest._transport, "send", spoiled)
    ids = documents(20)
    StageWorker(rest, {"upload": lambda ctx: {"spoils": True} if ctx.document_id == ids[7] else None}).run(
        until_empty=True
    )
    statuses = [db.stage(document, "upload")["status"] for document in ids]
    assert statuses == ["completed"] * 7 + ["failed"] + ["completed"] * 12
