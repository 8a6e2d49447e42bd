"""A run that somebody else has ended: its handler hears it, its outcome changes nothing, the worker goes on."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from processors_v2.errors import StageCancelled, StageLost
from processors_v2.stage_tracker import StageTracker
from processors_v2.worker import RunContext, StageWorker

Documents = Callable[..., list[str]]


class Listener:
    """A handler whose first run goes on until it hears that it is over; later ones return."""

    def __init__(self, hear: Callable[[RunContext], object]) -> None:
        self.hear = hear
        self.begun = threading.Event()
        self.heard: list[StageLost] = []

    def __call__(self, ctx: RunContext) -> None:
        """Listen, the first time."""
        if self.begun.is_set():
            return
        self.begun.set()
        for _ in range(2000):
            try:
                self.hear(ctx)
            except StageLost as error:
                self.heard.append(error)
                raise
            threading.Event().wait(0.01)


HEAR = {
    "raise_if_cancelled": lambda ctx: ctx.raise_if_cancelled(),
    "update_progress": lambda ctx: ctx.update_progress(50),
}


@pytest.mark.parametrize("how", HEAR)
def test_a_stage_that_was_reset_is_heard_of(
    documents: Documents, tracker: StageTracker, run_beside: Any, soon: Any, db: Any, how: str
) -> None:
    """A forced reset is heard as StageCancelled at the next call of ctx; the stage is then run anew."""
    handler = Listener(HEAR[how])
    (document,) = documents()
    with run_beside(StageWorker(tracker, {"upload": handler}, lease_seconds=1)) as worker:
        assert handler.begun.wait(20)
        tracker.reset_stage(document, "upload", force=True)
        soon(lambda: worker.counts["cancelled"] == 1)
        soon(lambda: db.stage(document, "upload")["status"] == "completed")
    assert isinstance(handler.heard[0], StageCancelled)


def test_a_stage_that_was_taken_over_is_heard_of(
    documents: Documents, tracker: StageTracker, rest: StageTracker, run_beside: Any, soon: Any, db: Any, caplog: Any
) -> None:
    """The old holder hears StageLost, is counted so and reports nothing more; what the new one wrote stays."""
    handler = Listener(HEAR["raise_if_cancelled"])
    (document,) = documents()
    # One place, so that it does not take the run over itself.
    with run_beside(StageWorker(tracker, {"upload": handler}, concurrency=1, lease_seconds=1)) as worker:
        assert handler.begun.wait(20)
        db.end_lease(document, "upload")
        rest.start_stage(document, "upload")
        rest.complete_stage(document, "upload", {"by": "the new one"})
        soon(lambda: worker.counts["lost"] == 1)
    assert type(handler.heard[0]) is StageLost
    assert db.stage(document, "upload")["metadata"] == {"by": "the new one"}
    assert "was refused" not in caplog.text


def test_a_late_outcome_is_refused_and_the_worker_goes_on(
    documents: Documents,
    tracker: StageTracker,
    rest: StageTracker,
    run_beside: Any,
    soon: Any,
    db: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever did not hear it reports an end that the database refuses: said, counted, and on to the next."""
    first, go_on = threading.Event(), threading.Event()

    def handler(_: RunContext) -> dict[str, str]:
        if not first.is_set():
            first.set()
            go_on.wait(30)
        return {"by": "the worker"}

    (document,) = documents()
    # One place, so that it does not take the run over itself.
    with run_beside(StageWorker(tracker, {"upload": handler}, concurrency=1, lease_seconds=600)) as worker:
        assert first.wait(20)
        db.end_lease(document, "upload")
        rest.start_stage(document, "upload")
        rest.complete_stage(document, "upload", {"by": "another"})
        go_on.set()
        soon(lambda: worker.counts["lost"] == 1)
        db.document()
        soon(lambda: worker.counts["completed"] == 1)
    assert db.stage(document, "upload")["metadata"] == {"by": "another"}
    assert "the outcome completed was refused" in caplog.text


def test_a_document_that_was_deleted_under_way_disturbs_nobody(
    documents: Documents, tracker: StageTracker, run_beside: Any, soon: Any, db: Any
) -> None:
    """Its outcome is refused, those that are reported with it are taken."""
    both = threading.Barrier(3, timeout=30)

    def handler(_: RunContext) -> None:
        both.wait()
        both.wait()

    deleted, kept = documents(2)
    with run_beside(StageWorker(tracker, {"upload": handler}, concurrency=2)) as worker:
        both.wait()
        db.connection.execute("delete from krai_core.documents where id = %s", [deleted])
        both.wait()
        soon(lambda: worker.counts["lost"] + worker.counts["cancelled"] == 1 == worker.counts["completed"])
    assert db.stage(kept, "upload")["status"] == "completed"


def test_a_run_that_is_lost_while_it_waits_is_not_begun_with(
    documents: Documents, tracker: StageTracker, run_beside: Any, soon: Any, db: Any, caplog: Any
) -> None:
    """What was claimed ahead and taken over by somebody else before its turn never reaches a handler."""
    hold, go_on = threading.Event(), threading.Event()
    handled: list[str] = []

    def handler(ctx: RunContext) -> None:
        handled.append(ctx.document_id)
        if len(handled) == 20:
            hold.set()
            go_on.wait(30)

    documents(400)
    with run_beside(StageWorker(tracker, {"upload": handler}, concurrency=1, lease_seconds=1)) as worker:
        assert hold.wait(20)
        soon(lambda: db.one("select count(*) from krai_core.stage_runs where status = 'running'") > 100)
        waiting = db.one(
            "select document_id::text from krai_core.stage_runs"
            " where status = 'running' and document_id <> %s order by id desc",
            handled[-1],
        )
        tracker.reset_stage(waiting, "upload", force=True)
        tracker.complete_stage(waiting, "upload", {"by": "another"})
        # Its next sign of life tells the worker, which has heard it when it says so.
        soon(lambda: waiting in caplog.text)
        go_on.set()
        soon(lambda: worker.counts["completed"] == 399)
        soon(lambda: worker.counts["cancelled"] == 1)
    assert waiting not in handled
    assert len(set(handled)) == len(handled) == 399


def test_leases_of_all_that_is_held_are_renewed_in_one_call(
    documents: Documents, through: StageTracker, proxy: Any, run_beside: Any, soon: Any, db: Any
) -> None:
    """Runs outlast their lease many times over, with one heartbeat for all at a third of it, and no other call."""
    go_on = threading.Event()
    documents(10)
    worker = StageWorker(
        through, {"upload": lambda _: go_on.wait(60)}, concurrency=10, lease_seconds=1, reap_seconds=3600
    )
    with run_beside(worker):
        soon(lambda: worker.counts["claimed"] == 10)
        proxy.requests.clear()
        soon(lambda: proxy.requests.count("heartbeat") == 8)
        assert db.one("select count(*) from krai_core.stage_runs where lease_expires_at < clock_timestamp()") == 0
        assert set(proxy.requests) == {"heartbeat"}
        go_on.set()
        soon(lambda: worker.counts["completed"] == 10)


def test_a_worker_that_was_cut_off_comes_back(
    documents: Documents, through: StageTracker, tracker: StageTracker, proxy: Any, run_beside: Any, soon: Any, db: Any
) -> None:
    """Silent for longer than its lease, it is refused for what another did meanwhile, and carries on with new work."""
    begun, cut = threading.Semaphore(0), threading.Event()

    def handler(_: RunContext) -> dict[str, str]:
        begun.release()
        cut.wait(30)
        return {"by": "the one that was cut off"}

    both = documents(2)
    with run_beside(StageWorker(through, {"upload": handler}, concurrency=2, lease_seconds=1)) as worker:
        for _ in range(2):
            assert begun.acquire(timeout=20)
        proxy.faults = ["cut"] * 100_000
        try:
            over = "status = 'running' and lease_expires_at < clock_timestamp()"
            soon(lambda: db.one(f"select count(*) from krai_core.stage_runs where {over}") == 2)
            StageWorker(tracker, {"upload": lambda _: {"by": "another"}}).run(until_empty=True)
            cut.set()
            assert [db.stage(document, "upload")["metadata"] for document in both] == [{"by": "another"}] * 2
        finally:
            proxy.faults = []
        soon(lambda: worker.counts["lost"] == 2)
        db.document()
        soon(lambda: worker.counts["completed"] == 1)
    assert [db.stage(document, "upload")["metadata"] for document in both] == [{"by": "another"}] * 2
