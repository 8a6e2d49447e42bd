"""A run in another process: what travels there, and what its handler can do over there."""

import asyncio
import logging
import pickle
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from processors_v2._calls import queue, runs
from processors_v2._calls.call import Call
from processors_v2._errors import ConfigurationError, DatabaseUnavailable, InvalidArgument, StageTrackerError
from processors_v2._heart import over
from processors_v2._sync.tracker import StageTracker
from processors_v2._worker import ending as _ending
from processors_v2._worker.context import RunContext
from processors_v2._worker.ending import Ending, Handler

T = TypeVar("T")

_logger = logging.getLogger("processors_v2")

# Seconds between two writes of progress of one run, and between two looks at whether it is over.
_INTERVAL = 0.25
_LOOK_EVERY = 1.0

# One tracker for each process and way to make it: a new one for each run would connect anew.
_trackers: dict[bytes, StageTracker] = {}


@dataclass(frozen=True, slots=True)
class Job:
    """A run as it travels to another process; plain values, no key of the project.

    Attributes:
        claimed: The run, as claim_stages gave it.
        claim_id: Its credential.
        handler: What to call there.
        child_tracker: The pickled callable that makes a tracker there; None: the handler has none.
    """

    claimed: dict[str, Any]
    claim_id: uuid.UUID
    handler: Handler
    child_tracker: bytes | None


def job_of(run: RunContext, handler: Handler, child_tracker: bytes | None) -> Job:
    """Return a run as a job."""
    names = ("document_id", "filename", "stage_name", "attempt", "max_attempts", "metadata")
    return Job({name: getattr(run, name) for name in names}, run.claim_id, handler, child_tracker)


def work(job: Job) -> Ending:
    """Do a job, in whatever process this is, and return how it ended."""
    link = ChildLink(job.child_tracker)
    run = RunContext(job.claimed, job.claim_id, str(job.claim_id), link)
    ending = _ending.perform(job.handler, run, asyncio.run)
    # What is left is written by the worker, with the end.
    ending.progress = run._progress if ending.outcome == "failed" else None
    return ending


class ChildLink:
    """What connects a run in another process to the database: a tracker that is made there, or nothing.

    Without a tracker metadata arrives with the end of the run, progress only where it failed, and the handler does not
    hear that its run is over; the worker keeps the lease alive all the same.

    Args:
        child_tracker: The pickled callable that makes it, or None.
    """

    def __init__(self, child_tracker: bytes | None) -> None:
        self._pickled = child_tracker
        self._next_look = 0.0

    def report(self, run: RunContext) -> None:
        """Write progress and metadata here and now, unless the last write was a moment ago."""
        now = time.monotonic()
        if self._pickled is None or now < run._next_write:
            return
        progress, metadata = run._take()
        call = runs.update_stage_progress(run.document_id, run.stage_name, progress, metadata, run.claim_id)
        try:
            self._tracker()._transport.send(call, retry=False)
        except DatabaseUnavailable as problem:
            _logger.warning("%r: progress was not written: %s; tried again", run, problem)
            run._put_back(progress, metadata)
        except InvalidArgument:
            raise
        except StageTrackerError as problem:
            run._over = problem
            raise
        run._next_write = time.monotonic() + _INTERVAL

    def look(self, run: RunContext) -> None:
        """Ask whether the run is over, unless the last look was a moment ago."""
        if self._pickled is None or time.monotonic() < self._next_look:
            return
        try:
            answer = self._tracker()._transport.send(queue.heartbeat([run._identity()]), retry=False)
        except DatabaseUnavailable as problem:
            _logger.warning("%r: whether the run is over is not known: %s; tried again", run, problem)
        else:
            if not answer["alive"]:
                run._over = over(run._identity(), cancelled=bool(answer["cancelled"]))
        self._next_look = time.monotonic() + _LOOK_EVERY

    def send(self, call: Call[T]) -> T:
        """Send a call through the tracker of this process.

        Raises:
            ConfigurationError: There is none.
        """
        return self._tracker()._transport.send(call)

    def _tracker(self) -> StageTracker:
        if self._pickled is None:
            raise ConfigurationError(
                "this handler runs in another process, which has no tracker",
                hint="Give StageWorker a child_tracker, such as StageTracker.from_env, that makes one there",
            )
        tracker = _trackers.get(self._pickled)
        if tracker is None:
            make: Callable[[], StageTracker] = pickle.loads(self._pickled)  # noqa: S301 - of our own worker
            tracker = _trackers.setdefault(self._pickled, make())
        return tracker
