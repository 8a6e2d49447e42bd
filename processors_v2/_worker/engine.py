"""Engine: one run() of a worker, from its first claim to the last outcome."""

import datetime as dt
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from processors_v2._calls import queue as queue_calls
from processors_v2._calls.call import Call
from processors_v2._errors import ConfigurationError, StageLost, StageTrackerError
from processors_v2._sync.tracker import StageTracker
from processors_v2._worker.claims import Claims
from processors_v2._worker.context import RunContext
from processors_v2._worker.desk import HOPELESS, Desk, Pauses
from processors_v2._worker.ending import Ending, Handler, is_async
from processors_v2._worker.keeper import Keeper
from processors_v2._worker.lanes import Lane
from processors_v2._worker.processes import Processes
from processors_v2._worker.pruner import Pruner
from processors_v2._worker.remote import Remote
from processors_v2._worker.reports import Reports
from processors_v2._worker.starters import Loop, Pool, Threads

T = TypeVar("T")

_logger = logging.getLogger("processors_v2")

_LONGEST_PAUSE = 1.0
# Seconds for what is left to say to the database after the time of the handlers.
_LAST_WORDS = 5.0
_SHORTEST_CALL = 1.0
# Seconds for threads that have nothing more to do.
_TO_END = 1.0


class Starter(Protocol):
    """Where handlers run."""

    def start(self, run: RunContext) -> None:
        """Begin with a run."""

    def stop(self, seconds: float) -> None:
        """End, within some seconds."""


@dataclass(frozen=True)
class Plan:
    """What a worker is to do; see StageWorker, whose arguments these are."""

    handlers: dict[str, Handler]
    concurrency: int | dict[str, int]
    executor: Executor | str
    child_tracker: bytes | None
    name: str
    lease_seconds: float | None
    batch: int
    idle_max: float
    reap_seconds: float
    drain_seconds: float
    prune_older_than: dt.timedelta | None


class Engine:
    """One run() of a worker.

    Args:
        plan: What to do.
        tracker: Through which.
        counts: Where to count.
        inbox: Gets None when the worker is to stop, and errors that end it.
        until_empty: Whether to stop when nothing is ready.
    """

    def __init__(
        self,
        plan: Plan,
        tracker: StageTracker,
        counts: Counter[str],
        inbox: "queue.SimpleQueue[BaseException | None]",
        *,
        until_empty: bool,
    ) -> None:
        self.handlers = plan.handlers
        self._plan = plan
        self._inbox = inbox
        self._claimed = tracker._claims
        self._desk = Desk(tracker._transport.send, counts)
        self._drained = threading.Event()
        self._is_draining = False
        stages = list(plan.handlers)
        places = (
            {(stage,): plan.concurrency[stage] for stage in stages}
            if isinstance(plan.concurrency, dict)
            else {tuple(stages): plan.concurrency}
        )
        self._lanes = [Lane(list(names), count, plan.batch, self.start) for names, count in places.items()]
        self.lane_of = {stage: lane for lane in self._lanes for stage in lane.stages}
        self._keeper = Keeper(self._desk)
        tell = None if tracker.websocket_callback is None else tracker._notify
        self._reports = Reports(self._desk, plan.batch, tell=tell, delivered=self._delivered, fail=inbox.put)
        self._claims = Claims(
            self._desk,
            self._lanes,
            keeper=self._keeper,
            link=self,
            worker=plan.name,
            lease_seconds=plan.lease_seconds,
            batch=plan.batch,
            idle_max=plan.idle_max,
            reap_seconds=plan.reap_seconds,
            empty=(lambda: inbox.put(None)) if until_empty else None,
            fail=inbox.put,
        )
        self._pruner = Pruner(self._desk, plan.prune_older_than, every=plan.reap_seconds, fail=inbox.put)
        self._loop = Loop(self)
        self._parts = (self._claims, self._reports, self._keeper, self._pruner)
        self._starters = self._make_starters(sum(lane.places for lane in self._lanes))
        for lane in self._lanes:
            lane.when_empty = self._lane_empty

    def _make_starters(self, places: int) -> dict[str, Starter]:
        executor = self._plan.executor
        other: Starter
        if executor == "threads":
            other = Threads(self, places)
        elif isinstance(executor, ThreadPoolExecutor):
            other = Pool(self, executor)
        else:
            there = executor if isinstance(executor, Executor) else Processes()
            other = Remote(self, there, self._plan.child_tracker)
        is_here = not isinstance(other, Remote)
        return {
            stage: self._loop if is_here and is_async(handler) else other for stage, handler in self.handlers.items()
        }

    def run(self) -> None:
        """Claim, run and report until the inbox says to stop.

        Raises:
            BaseException: What the inbox says.
        """
        threads = {part: _thread(part.run, self._inbox) for part in self._parts}
        _logger.info("worker %s runs %s", self._plan.name, ", ".join(self.handlers))
        try:
            reason = self._inbox.get()
            self._drain(threads[self._claims], threads[self._reports])
        finally:
            # Also when a second signal interrupts what is above.
            self._claims.close()
            for lane in self._lanes:
                lane.close()
            self._reports.give_up()
            self._keeper.close()
            self._pruner.close()
            is_over = self._drained.is_set()
            for starter in {*self._starters.values(), self._loop}:
                starter.stop(_TO_END if is_over else 0.0)
            if is_over:
                for thread in threads.values():
                    thread.join(_TO_END)
            _logger.info("worker %s ends: %s", self._plan.name, dict(self._desk.counts))
        while reason is None and not self._inbox.empty():
            reason = self._inbox.get()
        if reason is not None:
            raise reason

    def _drain(self, claims: threading.Thread, reports: threading.Thread) -> None:
        """Claim no more, release what was not begun with, wait for the rest, and report it."""
        until = time.monotonic() + self._plan.drain_seconds
        last = until + _LAST_WORDS
        self._claims.close()
        self._pruner.close()
        for lane in self._lanes:
            lane.close()
        self._is_draining = True
        _logger.info("worker %s claims no more; what runs has %s s", self._plan.name, self._plan.drain_seconds)
        # A claim that is under way may bring some more to give back.
        claims.join(max(_TO_END, until - time.monotonic()))
        self._release(self._not_begun(), last)
        self._lane_empty()
        self._drained.wait(max(0.0, until - time.monotonic()))
        late = [run for run in list(self._desk.held.values()) if run._ending is None]
        for run in late:
            # Its handler hears it.
            run._over = run._over or _stopped(run)
        self._release([*self._not_begun(), *late], last)
        self._reports.close()
        reports.join(max(0.0, last - time.monotonic()))

    def _not_begun(self) -> list[RunContext]:
        return [run for lane in self._lanes for run in lane.give_up()]

    def _release(self, runs: list[RunContext], until: float) -> None:
        """Give runs back to the queue."""
        # From here on they count as what the database says, whatever their handlers say.
        asked = [run for run in runs if self._desk.held.pop(run._key(), None) is not None]
        pauses = Pauses(_LONGEST_PAUSE)
        while asked:
            try:
                answer = self._desk.send(
                    queue_calls.release_stages([run._identity() for run in asked]),
                    retry=False,
                    within=max(_SHORTEST_CALL, until - time.monotonic()),
                )
            except StageTrackerError as problem:
                _logger.warning("%d runs were not released: %s", len(asked), problem)
                pause = pauses.next()
                if time.monotonic() + pause < until and not isinstance(problem, HOPELESS):
                    time.sleep(pause)
                    continue
                _logger.warning("%d runs were not released: they return when their lease is over", len(asked))
                return
            self._desk.count({word: len(answer[word]) for word in ("released", "lost")})
            return

    def start(self, run: RunContext) -> None:
        """Begin with a run, wherever its handler runs."""
        following = self._still_held(run)
        if following is not None:
            self._starters[following.stage_name].start(following)

    def go_on(self, run: RunContext) -> RunContext | None:
        """Say that a run has ended, and return the one to take its place."""
        seconds = time.monotonic() - run._since
        return self._still_held(self.lane_of[run.stage_name].next(seconds))

    def _still_held(self, run: RunContext | None) -> RunContext | None:
        """Return the run, or the next one that was not lost while it waited."""
        while run is not None and isinstance(run._over, StageLost):
            self._desk.drop(run)
            run = self.lane_of[run.stage_name].next(None)
        return run

    def begin(self, run: RunContext) -> None:
        """Let what the handler does with the tracker itself, in this process, act for its run."""
        run._begin()
        self._claimed.remember(run.document_id, run.stage_name, run.claim_id)

    def end(self, run: RunContext, ending: Ending) -> None:
        """Take the end of a run."""
        self._claimed.forget(run.document_id, run.stage_name, run.claim_id)
        if ending.outcome == "failed" and run._over is None:
            _logger.warning(
                "stage %s of document %s failed, attempt %d of %d: %s",
                run.stage_name,
                run.document_id,
                run.attempt,
                run.max_attempts,
                ending.trace or ending.error,
            )
        self._reports.end(run, ending)

    def put_back(self, run: RunContext, error: Exception) -> None:
        """Take a run back that its executor did not take, and end the worker."""
        problem = ConfigurationError(
            f"the executor takes no more jobs: {type(error).__name__}: {error}",
            hint='It was shut down, or has lost its processes; executor="processes" replaces those that die',
        )
        problem.__cause__ = error
        self.lane_of[run.stage_name].put_back(run)
        self._inbox.put(problem)
        self._lane_empty()

    def is_mine(self, run: RunContext, starter: object) -> bool:
        """Whether the handler of a run runs there."""
        return self._starters[run.stage_name] is starter

    def wait_for(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the event loop and return its result."""
        return self._loop.wait_for(coroutine)

    def report(self, run: RunContext) -> None:
        """Take note that the run has progress or metadata to write."""
        self._reports.report(run)

    def look(self, run: RunContext) -> None:
        """Nothing: the keeper tells the runs that are over."""

    def send(self, call: Call[T]) -> T:
        """Send a call and return its result."""
        return self._desk.send(call)

    def _delivered(self) -> None:
        self._claims.wake()

    def _lane_empty(self) -> None:
        self._reports.hurry()
        if self._is_draining and not any(lane.running for lane in self._lanes):
            self._drained.set()


def _thread(target: Callable[[], None], inbox: "queue.SimpleQueue[BaseException | None]") -> threading.Thread:
    def guarded() -> None:
        try:
            target()
        except BaseException as error:  # noqa: BLE001 - raised by run()
            inbox.put(error)

    thread = threading.Thread(target=guarded, name=f"stage {target.__qualname__}", daemon=True)
    thread.start()
    return thread


def _stopped(run: RunContext) -> StageLost:
    return StageLost(
        f"the worker stops, and this run of stage {run.stage_name} of document {run.document_id} returns to the queue",
        hint="Stop this work and write nothing more for it",
        error="lease_lost",
        details={"document_id": run.document_id, "stage": run.stage_name},
    )
