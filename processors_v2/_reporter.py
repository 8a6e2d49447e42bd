"""Progress and heartbeats of one run, sent from a thread of its own.

The body of a context may report a value for each page of a document: here they are gathered, the first is written at
once, then at most one per interval, and the last one always, also while the body goes on with something else. The same
thread keeps the lease alive while the body reports nothing.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from processors_v2._errors import DatabaseUnavailable

_logger = logging.getLogger("processors_v2")

# The shortest lease that a stage can have is a second: before the first heartbeat has told how long this one is, beat
# as for that.
_FIRST_BEAT = 0.33
# Seconds, while the database is away: a third of a long lease would be a long time to leave it alone.
_TRY_AGAIN = 1.0


class Reporter:
    """The background writer of one run.

    Args:
        write: Stores progress (percent or None) and metadata; one try, no repeats.
        beat: Renews the lease; returns its length in seconds; one try.
        interval: Least time in seconds between two writes of progress.
        lease_seconds: Length of the lease where it is known already.
        name: Name of the thread.
    """

    def __init__(
        self,
        write: Callable[[float | None, Mapping[str, Any]], object],
        beat: Callable[[], float],
        *,
        interval: float,
        lease_seconds: float | None,
        name: str,
    ) -> None:
        self._write = write
        self._beat = beat
        self._interval = interval
        self._beat_every = _FIRST_BEAT if lease_seconds is None else lease_seconds / 3
        self._changed = threading.Condition()
        self._progress: float | None = None
        self._metadata: dict[str, Any] = {}
        self._dirty = False
        self._closed = False
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, progress: float | None, metadata: Mapping[str, Any]) -> None:
        """Take a value to write; returns at once. A later value takes the place of one that was not written yet.

        After close() nothing is taken any more.

        Raises:
            Exception: What went wrong in the background since the last call, most often a StageTrackerError.
        """
        with self._changed:
            if self._closed:
                return
            if self.error is not None:
                raise self.error
            if progress is not None:
                self._progress = progress
            if metadata:
                self._metadata.update(metadata)
            if not self._dirty:
                self._dirty = True
                self._changed.notify()

    def close(self) -> tuple[float | None, dict[str, Any]] | None:
        """End the thread and return what it did not write any more: progress and metadata, or None. May be repeated."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        return self._take()

    def _run(self) -> None:
        next_write = 0.0
        next_beat = time.monotonic() + self._beat_every
        while self._wait(next_write, next_beat):
            taken = self._take() if next_write <= time.monotonic() else None
            try:
                if taken:
                    self._write(*taken)
                else:
                    self._beat_every = self._beat() / 3
            except DatabaseUnavailable as problem:
                _logger.warning("%s: %s; tried again", self._thread.name, problem)
                if taken:
                    self._put_back(*taken)
                next_beat = next_write = time.monotonic() + min(self._beat_every, _TRY_AGAIN)
                continue
            except Exception as problem:  # noqa: BLE001 - raised again by the next call
                with self._changed:
                    self.error = problem
                return
            now = time.monotonic()
            # Both are signs of life that renew the lease.
            next_beat = now + self._beat_every
            next_write = now + self._interval

    def _wait(self, next_write: float, next_beat: float) -> bool:
        """Wait until something is due; False at the end."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                due = min(next_write, next_beat) if self._dirty else next_beat
                if due <= now:
                    return True
                self._changed.wait(due - now)
            return False

    def _take(self) -> tuple[float | None, dict[str, Any]] | None:
        with self._changed:
            if not self._dirty:
                return None
            taken = self._progress, self._metadata
            self._progress, self._metadata, self._dirty = None, {}, False
            return taken

    def _put_back(self, progress: float | None, metadata: Mapping[str, Any]) -> None:
        with self._changed:
            if self._progress is None:
                self._progress = progress
            self._metadata = {**metadata, **self._metadata}
            self._dirty = True
