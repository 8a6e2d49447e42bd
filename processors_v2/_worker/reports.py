"""Reports: the thread that tells the database how runs ended and how far they are, many in one call.

What it could not deliver it keeps, and sends again until it is delivered. Meanwhile other threads claim and run, so
that the database and Python work at the same time.
"""

import collections
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from processors_v2._calls import queue
from processors_v2._errors import (
    DatabaseUnavailable,
    InvalidArgument,
    StageCancelled,
    StageLost,
    StageTrackerError,
    from_word,
)
from processors_v2._worker.context import RunContext
from processors_v2._worker.desk import HOPELESS, Desk, Pauses
from processors_v2._worker.ending import Ending

_logger = logging.getLogger("processors_v2")

# Seconds for which a run that has ended waits for company.
_TOGETHER = 0.05
# Seconds between two writes of progress of one run.
_INTERVAL = 0.25
_LONGEST_PAUSE = 2.0
_ENDS = {"completed", "failed", "skipped"}
# More than any number of runs that ended.
_NEVER = 1 << 60

Item = tuple[RunContext, dict[str, Any]]


class Reports:
    """What is to be told to the database, and the thread that does.

    Args:
        desk: What the threads share.
        batch: Outcomes in one call at most.
        delivered: Called after outcomes were delivered, which may have made other stages ready.
        fail: Called with an error that waiting would not mend.
        tell: Called with event, stage, document and status of each stage that was completed or failed; None: nobody.
    """

    def __init__(
        self,
        desk: Desk,
        batch: int,
        *,
        tell: Callable[[str, str, str, str], None] | None,
        delivered: Callable[[], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._desk = desk
        self._batch = batch
        self._delivered = delivered
        self._fail = fail
        self._tell = tell
        self._ended: collections.deque[RunContext] = collections.deque()
        # Runs of which something was reported that goes before the outcome.
        self._second: list[RunContext] = []
        self._reporting: dict[RunContext, None] = {}
        self._bell = threading.Event()
        self._alarm = _NEVER
        self._since: float | None = None
        self._is_urgent = False
        self._closed = False
        self._gave_up = threading.Event()

    def end(self, run: RunContext, ending: Ending) -> None:
        """Take the end of a run; returns at once."""
        if isinstance(run._over, StageLost):
            self._desk.drop(run)
            return
        run._ending = ending
        self._ended.append(run)
        # Whoever reaches the number wakes the thread, once.
        if len(self._ended) >= self._alarm:
            self._alarm = _NEVER
            self._bell.set()

    def hurry(self) -> None:
        """Say that nothing is running which would be worth waiting for."""
        self._is_urgent = True
        self._bell.set()

    def report(self, run: RunContext) -> None:
        """Take note that a run has progress or metadata to write."""
        if run not in self._reporting:
            self._reporting[run] = None
            self._bell.set()

    def close(self) -> None:
        """Deliver what there is, and end."""
        self._closed = True
        self._bell.set()

    def give_up(self) -> None:
        """End, whether everything is delivered or not."""
        self._gave_up.set()
        self.close()

    def run(self) -> None:
        """Be the thread."""
        while not self._gave_up.is_set():
            self._wait()
            if items := self._collect():
                self._deliver(items)
            elif self._closed:
                return

    def _wait(self) -> None:
        """Wait until something is to be sent."""
        while not (self._closed or self._second):
            self._bell.clear()
            now = time.monotonic()
            if self._ended and self._since is None:
                self._since = now
            if (self._ended and self._is_urgent) or len(self._ended) >= self._batch:
                return
            due = min(
                (run._next_write for run in list(self._reporting)),
                default=None,
            )
            if self._since is not None:
                due = self._since + _TOGETHER if due is None else min(due, self._since + _TOGETHER)
            if due is not None and due <= now:
                return
            self._alarm = self._batch if self._ended else 1
            # What came before the alarm was set did not ring.
            if len(self._ended) < self._alarm:
                self._bell.wait(None if due is None else due - now)
            self._alarm = _NEVER

    def _collect(self) -> list[Item]:
        self._since, self._is_urgent = None, False
        items: list[Item] = []
        first, self._second = self._second, []
        while len(items) < self._batch and (first or self._ended):
            run = first.pop() if first else self._ended.popleft()
            ending = run._ending
            assert ending is not None  # noqa: S101 - for the type checker
            self._reporting.pop(run, None)
            if (before := ending.before()) is not None:
                # One call takes one outcome of a run.
                items.append((run, _progress(run, *before)))
                self._second.append(run)
            else:
                items.append((run, ending.request(run)))
        self._second += first
        now = time.monotonic()
        for run in list(self._reporting):
            if len(items) >= self._batch:
                break
            if run._next_write <= now:
                # In this order: what is reported from here on is noted again.
                self._reporting.pop(run, None)
                run._next_write = now + _INTERVAL
                progress, metadata = run._take()
                if run._over is None and (metadata or progress is not None):
                    items.append((run, _progress(run, progress, metadata)))
        return items

    def _deliver(self, items: list[Item]) -> None:
        pauses = Pauses(_LONGEST_PAUSE)
        parts = [items]
        while parts:
            part = parts.pop()
            try:
                answers = self._desk.send(queue.finish_stages([outcome for _, outcome in part]), retry=False)
            except StageTrackerError as problem:
                _logger.warning("%d outcomes were not delivered: %s", len(part), problem)
                if isinstance(problem, InvalidArgument) and len(part) == 1:
                    self._refused(*part[0], problem)
                    continue
                if isinstance(problem, HOPELESS):
                    self._fail(problem)
                parts += [part] if isinstance(problem, (DatabaseUnavailable, *HOPELESS)) else _halves(part)
                if not isinstance(problem, InvalidArgument) and self._gave_up.wait(pauses.next()):
                    _logger.warning("%d outcomes are given up: their runs return to the queue", sum(map(len, parts)))
                    return
            else:
                pauses.reset()
                self._answered(part, answers)

    def _answered(self, part: list[Item], answers: list[dict[str, Any]]) -> None:
        found: Counter[str] = Counter()
        held = self._desk.held
        for (run, outcome), answer in zip(part, answers, strict=True):
            if not answer["ok"]:
                self._refused(run, outcome, from_word(answer))
            elif outcome["outcome"] != "progress" and held.pop(run._key(), None) is not None:
                found[outcome["outcome"]] += 1
        if found:
            self._desk.count(found)
            self._delivered()
        if self._tell is not None:
            for (run, outcome), answer in zip(part, answers, strict=True):
                if answer["ok"] and outcome["outcome"] in {"completed", "failed"}:
                    status = outcome["outcome"]
                    self._tell(f"stage_{status}", run.stage_name, run.document_id, status)

    def _refused(self, run: RunContext, outcome: dict[str, Any], problem: StageTrackerError) -> None:
        """Do what is left to do for a run whose outcome the database did not take."""
        ended_as = problem.details.get("status")
        if problem.error == "conflict" and ended_as in _ENDS and outcome["outcome"] != "progress":
            # The handler has ended it itself, with its claim: else it would be lost.
            self._desk.let_go(run, ended_as)
            return
        _logger.warning("%r: the outcome %s was refused: %s", run, outcome["outcome"], problem)
        ending = run._ending
        if outcome["outcome"] == "progress":
            if ending is None:
                # The handler hears it at its next call.
                run._over = problem
        elif isinstance(problem, StageLost) or problem.error in {"conflict", "unknown_document"} or ending is None:
            self._desk.let_go(run, "cancelled" if isinstance(problem, StageCancelled) else "lost")
        elif ending.outcome == "failed" and not ending.metadata:
            _logger.error("%r: the database takes no outcome of this run, which returns to the queue", run)
            self._desk.let_go(run, "lost")
        else:
            # Something in it that cannot be stored: a stage must not stay in processing for it.
            run._ending = Ending("failed", error=str(problem), retry=ending.retry)
            self._second.append(run)


def _halves(part: list[Item]) -> list[list[Item]]:
    """What may be too much at once, or hold one that spoils the others."""
    middle = (len(part) + 1) // 2
    return [half for half in (part[middle:], part[:middle]) if half]


def _progress(run: RunContext, progress: float | None, metadata: dict[str, Any]) -> dict[str, Any]:
    request: dict[str, Any] = {
        "document_id": run.document_id,
        "stage_name": run.stage_name,
        "claim_id": run._claim_text,
        "outcome": "progress",
    }
    if progress is not None:
        request["progress"] = progress
    if metadata:
        request["metadata"] = metadata
    return request
