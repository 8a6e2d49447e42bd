"""What a worker takes, how much of it at once, and when it asks."""

import asyncio
import itertools
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from processors_v2._calls import queue
from processors_v2._worker.desk import Desk
from processors_v2._worker.keeper import Keeper
from processors_v2.stage_tracker import StageTracker
from processors_v2.worker import RunContext, StageWorker

Documents = Callable[..., list[str]]
Work = Callable[..., StageWorker]


class Gauge:
    """A handler that counts how many of it run at once, by stage, and goes on when enough do."""

    def __init__(self, wanted: int) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.full = threading.Event()
        self.wanted = wanted
        self.lock = threading.Lock()

    def __call__(self, ctx: RunContext) -> None:
        """Count this one, and wait for the others."""
        with self.lock:
            self.now[ctx.stage_name] += 1
            self.most |= self.now
            if self.now.total() == self.wanted:
                self.full.set()
        self.full.wait(20)
        # For the next one to come too early, where it would.
        threading.Event().wait(0.002)
        with self.lock:
            self.now[ctx.stage_name] -= 1


def test_a_pipeline_runs_through_in_one_go(documents: Documents, work: Work, db: Any) -> None:
    """Stages that become ready by a stage's end are claimed by the same worker, which returns when all is done."""
    documents(30)
    worker = work(dict.fromkeys(StageTracker.STAGES, lambda _: None))
    assert worker.counts["completed"] == 30 * 8
    assert db.one("select count(*) from krai_core.documents where krai_core.get_current_stage(id) = 'completed'") == 30


def test_the_first_stage_is_preferred(documents: Documents, tracker: StageTracker, work: Work) -> None:
    """Stages are claimed in the order of the handlers."""
    order: list[str] = []
    for document in documents(6)[:3]:
        tracker.complete_stage(document, "upload")
    work({stage: lambda ctx: order.append(ctx.stage_name) for stage in ("text_extraction", "upload")}, concurrency=1)
    assert order == ["text_extraction"] * 3 + ["upload"] * 3 + ["text_extraction"] * 3


def test_no_more_handlers_run_at_once_than_allowed(documents: Documents, work: Work) -> None:
    """All places are used, and no more."""
    gauge = Gauge(3)
    documents(20)
    work({"upload": gauge}, concurrency=3)
    assert gauge.full.is_set()
    assert gauge.most["upload"] == 3


def test_no_more_coroutines_run_at_once_than_allowed(documents: Documents, work: Work) -> None:
    """The same for asynchronous handlers, which no number of threads limits."""
    now = most = 0

    async def handler(_: RunContext) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.002)
        now -= 1

    documents(100)
    work({"upload": handler}, concurrency=3)
    assert most == 3


def test_each_stage_may_have_a_limit_of_its_own(documents: Documents, tracker: StageTracker, work: Work) -> None:
    """A slow stage takes no place from another one."""
    for document in documents(40)[:20]:
        tracker.complete_stage(document, "upload")
    gauge = Gauge(5)
    work({"upload": gauge, "text_extraction": gauge}, concurrency={"upload": 4, "text_extraction": 1})
    assert gauge.full.is_set()
    assert gauge.most == {"upload": 4, "text_extraction": 1}


def test_long_work_is_not_hoarded(documents: Documents, tracker: StageTracker, run_beside: Any, soon: Any) -> None:
    """A worker whose handlers take long holds what it runs: the rest is left to other workers."""
    go_on, begun = threading.Event(), threading.Semaphore(0)

    def handler(_: RunContext) -> None:
        begun.release()
        go_on.wait(30)

    documents(50)
    with run_beside(StageWorker(tracker, {"upload": handler}, concurrency=2)) as worker:
        for _ in range(2):
            assert begun.acquire(timeout=20)
        other = StageWorker(tracker, {"upload": lambda _: None})
        other.run(until_empty=True)
        assert other.counts["completed"] == 48
        assert worker.counts["claimed"] == 2
        go_on.set()
        soon(lambda: worker.counts["completed"] == 2)


def test_a_free_place_is_filled_while_its_outcome_is_under_way(
    documents: Documents, rest: StageTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claims do not wait for reports: the database and the handlers work at the same time."""
    numbers, third = itertools.count(1), threading.Event()
    send = rest._transport.send

    def slow(call: Any, **options: Any) -> Any:
        if call.path == "rpc/finish_stages":
            assert third.wait(20)
        return send(call, **options)

    def handler(_: RunContext) -> None:
        number = next(numbers)
        if number == 1:
            third.wait(20)
        elif number == 2:
            # For the worker to have seen that there is no place.
            threading.Event().wait(0.2)
        else:
            third.set()

    monkeypatch.setattr(rest._transport, "send", slow)
    documents(3)
    worker = StageWorker(rest, {"upload": handler}, concurrency=2, reap_seconds=3600)
    worker.run(until_empty=True)
    assert worker.counts["completed"] == 3


def test_short_work_is_claimed_and_reported_many_at_a_time(
    documents: Documents, through: StageTracker, proxy: Any
) -> None:
    """A thousand stages that take no time need a few dozen calls."""
    documents(1000)
    worker = StageWorker(through, {"upload": lambda _: None}, concurrency=2)
    worker.run(until_empty=True)
    assert worker.counts["completed"] == 1000
    calls = Counter(proxy.requests)
    assert calls["claim_stages"] < 40
    assert calls["finish_stages"] < 40
    assert calls["heartbeat"] < 3


@pytest.mark.parametrize("batch", [1, 7])
def test_no_call_is_larger_than_a_batch(
    documents: Documents, tracker: StageTracker, work: Work, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Claims ask for, and reports hold, no more than that."""
    sizes: list[int] = []
    send = tracker._transport.send

    def noted(call: Any, **options: Any) -> Any:
        sizes.append(
            call.arguments.get("p_limit", 0) if "claim" in call.path else len(call.arguments.get("p_outcomes", []))
        )
        return send(call, **options)

    monkeypatch.setattr(tracker._transport, "send", noted)
    documents(40)
    assert work({"upload": lambda _: None}, batch=batch).counts["completed"] == 40
    assert max(sizes) <= batch


def test_until_empty_waits_for_what_runs_here(documents: Documents, work: Work, db: Any) -> None:
    """A worker with an empty queue that still runs a handler does not return, as the handler may make work."""
    documents()

    def handler(_: RunContext) -> None:
        if db.one("select count(*) from krai_core.documents") == 1:
            threading.Event().wait(0.3)
            db.document()

    assert work({"upload": handler}).counts["completed"] == 2


def test_until_empty_does_not_wait_for_others(documents: Documents, tracker: StageTracker, work: Work, db: Any) -> None:
    """What another worker holds, what is paused and what waits for its backoff is not waited for."""
    held, failed = documents(2)
    tracker.start_stage(held, "upload")

    def handler(_: RunContext) -> None:
        raise OSError

    assert work({"upload": handler}).counts["claimed"] == 1
    assert db.run(failed, "upload", "retry_at") is not None
    assert db.stage(held, "upload")["status"] == "processing"


def test_an_idle_worker_asks_less_and_less(
    documents: Documents, through: StageTracker, proxy: Any, run_beside: Any, soon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pauses grow up to idle_max and are drawn at random below it."""
    bounds: list[float] = []
    chance = SimpleNamespace(uniform=lambda _, most: bounds.append(most) or most / 100)
    monkeypatch.setattr("processors_v2._worker.desk.random", chance)
    documents()
    with run_beside(StageWorker(through, {"storage": lambda _: None}, idle_max=0.7)):
        soon(lambda: len(bounds) >= 8)
    assert bounds[:8] == [0.05, 0.1, 0.2, 0.4, 0.7, 0.7, 0.7, 0.7]
    assert proxy.requests.count("claim_stages") >= 8


def test_an_idle_worker_is_woken_by_its_own_outcomes(
    documents: Documents, through: StageTracker, proxy: Any, run_beside: Any, soon: Any, db: Any, monkeypatch: Any
) -> None:
    """What a stage makes ready is claimed at once, however long the worker would have paused."""
    monkeypatch.setattr("processors_v2._worker.desk.random", SimpleNamespace(uniform=lambda *_: 3600.0))
    go_on = threading.Event()
    (document,) = documents()
    handlers = {"upload": lambda _: go_on.wait(30) and None, "text_extraction": lambda _: None}
    with run_beside(StageWorker(through, handlers, concurrency=2, reap_seconds=3600)):
        soon(lambda: proxy.requests.count("claim_stages") == 2)
        go_on.set()
        soon(lambda: db.stage(document, "text_extraction")["status"] == "completed")


def test_what_a_dead_worker_held_is_taken(documents: Documents, tracker: StageTracker, work: Work, db: Any) -> None:
    """A run whose lease is over is claimed again, as the next attempt."""
    (document,) = documents()
    tracker.start_stage(document, "upload")
    db.end_lease(document, "upload")
    attempts: list[int] = []
    work({"upload": lambda ctx: attempts.append(ctx.attempt)})
    assert attempts == [2]


def test_ready_runs_that_a_new_stage_lacks_are_filled_in(documents: Documents, work: Work, db: Any) -> None:
    """Documents that are older than a stage are seen to before a worker says that nothing is ready."""
    documents(5)
    db.connection.execute("select krai_core.register_stage('thumbnails', p_position => 90)")
    try:
        assert work({"thumbnails": lambda _: None}).counts["completed"] == 5
    finally:
        db.connection.execute("delete from krai_core.documents")
        db.connection.execute("delete from krai_core.stages where name = 'thumbnails'")


def test_a_running_worker_looks_after_what_others_left(
    documents: Documents, tracker: StageTracker, db: Any, run_beside: Any, soon: Any
) -> None:
    """Also for stages that it does not work on itself, and while it has nothing to do."""
    (document,) = documents()
    tracker.start_stage(document, "upload")
    db.end_lease(document, "upload")
    with run_beside(StageWorker(tracker, {"storage": lambda _: None}, reap_seconds=0.2)):
        soon(lambda: db.stage(document, "upload")["status"] == "pending")


def test_a_claim_that_was_answered_late_does_not_make_the_worker_beat_without_pause(
    tracker: StageTracker, documents: Documents
) -> None:
    """What is left of a lease, which may be nothing, is not taken for its length: the next beat tells that."""
    documents(1)
    claim = uuid.uuid4()
    (claimed,) = tracker._transport.send(queue.claim_stages(["upload"], "me", 1, 60.0, claim))
    run = RunContext(claimed, claim, str(claim), SimpleNamespace())
    keeper = Keeper(Desk(tracker._transport.send, Counter(), {run._key(): run}))
    keeper.expect(0.0, now=True)
    assert keeper._every == 0.1
    keeper._beat()
    assert keeper._every == 20.0
    keeper.expect(3.0, now=False)
    keeper.expect(15.0, now=True)
    keeper._beat()
    assert keeper._every == 1.0
