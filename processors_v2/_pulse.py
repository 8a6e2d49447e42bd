"""What the background thread of a tracker knows of one run: its lease, and progress that was not written yet.

Ctrl-C can hit the main thread anywhere, so the background thread never waits for a lock that it might leave locked: it
tries, and comes back.
"""

import os
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

Run = tuple[str, str, uuid.UUID]
"""Document id, stage name and claim id."""

Values = tuple[float | None, dict[str, Any]]
"""Progress and metadata."""

# The shortest lease that a stage can have is a second: before the first heartbeat has told how long this one is, beat
# as for that.
FIRST_BEAT = 0.33
# Seconds until a second look at what could not be written right now.
_LOOK_AGAIN = 0.01


class Keeper(Protocol):
    """Whose a pulse is."""

    def wake(self) -> None:
        """Look again at what is due."""

    def forget(self, pulse: "Pulse") -> None:
        """Send nothing more for it; takes no lock."""


class Pulse:
    """What the thread knows of one run.

    Args:
        heart: Whose it is.
        run: The run.
        interval: Least time in seconds between two writes of progress.
        lease_seconds: Length of the lease where it is known already.
        since: When the lease began, by ``time.monotonic``; None: now.

    Attributes:
        error: What went wrong in the background, which ends it; most often a StageLost.
        beat_every: Seconds between two signs of life.
    """

    def __init__(
        self, heart: Keeper, run: Run, *, interval: float, lease_seconds: float | None, since: float | None = None
    ) -> None:
        self.run = run
        self.interval = interval
        self.error: Exception | None = None
        self.beat_every = FIRST_BEAT if lease_seconds is None else lease_seconds / 3
        self.next_beat = (time.monotonic() if since is None else since) + self.beat_every
        self.next_write = 0.0
        self._heart = heart
        self._pid = os.getpid()
        self._values = threading.Lock()
        self._sending = threading.Lock()
        self._progress: float | None = None
        self._metadata: dict[str, Any] = {}
        self._dirty = False
        self._stopped = False

    def put(self, progress: float | None, metadata: Mapping[str, Any]) -> None:
        """Take a value to write; returns at once. A later value takes the place of one that was not written yet.

        After stop() nothing is taken any more.

        Raises:
            Exception: What went wrong in the background since the last call, most often a StageTrackerError.
        """
        if self._pid != os.getpid():
            # Of a forked child: the locks may have been copied while somebody held them.
            return
        with self._values:
            if self._stopped:
                return
            if self.error is not None:
                raise self.error
            if progress is not None:
                self._progress = progress
            if metadata:
                self._metadata.update(metadata)
            if self._dirty:
                return
            self._dirty = True
        self._heart.wake()

    def stop(self) -> None:
        """Send nothing more for this run; may be repeated."""
        if self._pid == os.getpid():
            with self._values:
                self._stopped = True
        self._heart.forget(self)

    def abandon(self) -> None:
        """Send nothing more; takes no lock, since the garbage collector may say so from wherever it is."""
        self._heart.forget(self)

    @property
    def is_sending(self) -> bool:
        """Whether a write of progress is under way."""
        return self._pid == os.getpid() and self._sending.locked()

    def settle(self) -> None:
        """Wait until no write of progress is under way."""
        if self.is_sending:
            with self._sending:
                pass

    def unwritten(self) -> Values | None:
        """Return progress and metadata that were not written, once; None where there is nothing."""
        if self._pid != os.getpid():
            return None
        with self._values:
            return self._take()

    def due(self) -> float:
        """When the thread has to do something for it."""
        return min(self.next_write, self.next_beat) if self._dirty else self.next_beat

    def is_write_due(self, now: float) -> bool:
        """Whether there is something to write by now."""
        return self._dirty and self.next_write <= now

    def begin_write(self, now: float) -> Values | None:
        """Return what is to be written now, if anything; end_write() has to follow."""
        if not self.is_write_due(now):
            return None
        # Whatever keeps it from being written now, there is no hurry to look again.
        self.next_write = now + _LOOK_AGAIN
        if not self._sending.acquire(blocking=False):
            return None
        values = None
        if self._values.acquire(blocking=False):
            try:
                values = None if self._stopped else self._take()
            finally:
                self._values.release()
        if values is None:
            self._sending.release()
        return values

    def end_write(self, left: Values | None = None) -> None:
        """Say that a write is over, and what of it has to be written again."""
        if left is not None:
            progress, metadata = left
            with self._values:
                if self._progress is None:
                    self._progress = progress
                self._metadata = {**metadata, **self._metadata}
                self._dirty = True
        self._sending.release()

    def alive(self, now: float, lease_seconds: float | None = None) -> None:
        """Count a sign of life."""
        if lease_seconds is not None:
            self.beat_every = lease_seconds / 3
        self.next_beat = now + self.beat_every

    def fail(self, error: Exception) -> None:
        """End it with an error, which the next call raises."""
        self.error = error
        self._heart.forget(self)

    def _take(self) -> Values | None:
        if not self._dirty:
            return None
        taken = self._progress, self._metadata
        self._progress, self._metadata, self._dirty = None, {}, False
        return taken
