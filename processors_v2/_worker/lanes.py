"""Lane: runs that wait for one of so many places."""

import collections
import contextlib
import threading
from collections.abc import Callable, Iterable

from processors_v2._worker.context import RunContext

# Seconds of work to have in hand beyond what is running: enough to ask for more meanwhile, too little to keep work from
# other workers.
_AHEAD = 0.5
_NEVER = -1


class Lane:
    """Runs of some stages, of which so many are handled at once, in the order of their claim.

    Args:
        stages: The stages, in order of preference.
        places: How many runs are handled at once.
        batch: The largest claim.
        start: Begins to handle a run, without waiting for anything.
    """

    def __init__(self, stages: list[str], places: int, batch: int, start: Callable[[RunContext], None]) -> None:
        self.stages = stages
        self.places = places
        self.running = 0
        self.when_room: Callable[[], None] = lambda: None
        self.when_empty: Callable[[], None] = lambda: None
        self._batch = batch
        self._start = start
        self._waiting: collections.deque[RunContext] = collections.deque()
        self._rest: collections.deque[RunContext] = collections.deque()
        self._put_aside: collections.deque[RunContext] = collections.deque()
        self._lock = threading.Lock()
        self._mean: float | None = None
        self._alarm = _NEVER
        self._closed = False

    def add(self, runs: Iterable[RunContext]) -> None:
        """Take runs, and begin with those that there are places for."""
        self._waiting.extend(runs)
        while True:
            with self._lock:
                if self._closed or self.running >= self.places or not self._waiting:
                    return
                try:
                    run = self._waiting.popleft()
                except IndexError:
                    return
                self.running += 1
            self._start(run)

    def next(self, seconds: float | None) -> RunContext | None:
        """Say that a run has ended, and return the one to handle in its place; None: the place is free now.

        Args:
            seconds: For how long it was handled; None: it was not.
        """
        if seconds is not None:
            # Threads may lose each other's share of it: it is an estimate anyway.
            self._mean = seconds if self._mean is None else self._mean + (seconds - self._mean) / 20
        try:
            # Without the lock, which is only needed where a place changes hands.
            run = self._waiting.popleft()
        except IndexError:
            with self._lock:
                if self._waiting and not self._closed:
                    return self._waiting.popleft()
                self.running -= 1
                is_empty = self.running == 0
            if self._alarm != _NEVER:
                self._ring()
            if is_empty:
                self.when_empty()
            return None
        if len(self._waiting) <= self._alarm:
            self._ring()
        return run

    def put_back(self, run: RunContext) -> None:
        """Take a run back that could not begin, to be released with those that were not begun with."""
        with self._lock:
            self._rest.append(run)
            self.running -= 1

    def room(self) -> int:
        """Return how many runs to claim for this lane; 0: none yet, ``when_room`` is called when it is time."""
        self._alarm = _NEVER
        # Twice, since the alarm may have been set too late to hear the last run that ended.
        return self._room() or self._room()

    def _room(self) -> int:
        ahead = 0 if self._mean is None else int(min(2 * self._batch, self.places * _AHEAD / max(self._mean, 1e-6)))
        free = self.places + ahead - self.running - len(self._waiting)
        # A batch or half of what is worked ahead at a time, unless places are empty.
        enough = 1 if self.running < self.places else max(1, min(self._batch, ahead // 2))
        if free >= enough:
            return min(free, self._batch)
        self._alarm = max(0, len(self._waiting) + free - enough)
        return 0

    def close(self) -> None:
        """Begin with no more runs."""
        with self._lock:
            self._closed = True
            # What waits is put aside, so that next() does not find it.
            self._waiting, self._put_aside = collections.deque(), self._waiting

    def give_up(self) -> list[RunContext]:
        """Return the runs that were not begun with, once; after close()."""
        given = []
        for runs in (self._rest, self._put_aside, self._waiting):
            # One by one: a thread may just be taking another.
            with contextlib.suppress(IndexError):
                while True:
                    given.append(runs.popleft())
        return given

    def _ring(self) -> None:
        self._alarm = _NEVER
        self.when_room()
