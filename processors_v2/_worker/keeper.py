"""Keeper: the thread that renews the leases of everything that the worker holds, in one call."""

import logging
import random
import threading
import time

from processors_v2._calls import queue
from processors_v2._errors import StageTrackerError
from processors_v2._heart import over
from processors_v2._worker.desk import Desk

_logger = logging.getLogger("processors_v2")

_LONGEST_PAUSE = 1.0
_SHORTEST_CALL = 1.0
_SHORTEST_GUESS = 0.1


class Keeper:
    """Signs of life for runs that wait, that are running, and that wait to be reported.

    Args:
        desk: What the threads share.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._bell = threading.Event()
        self._every: float | None = None
        self._is_guess = False
        self._next = 0.0
        self._closed = False

    def expect(self, lease_seconds: float, *, now: bool) -> None:
        """Take note of runs with a lease of this length.

        Args:
            lease_seconds: The shortest of them; or what is left of it.
            now: Whether they were claimed some time ago, so that they need a sign of life soon.
        """
        # The shortest that was ever seen: a beat too many costs little. What is left of one may be nothing, and does
        # not tell how long it is: that the answer to the next beat does.
        every = max(lease_seconds / 3, _SHORTEST_GUESS) if now else lease_seconds / 3
        every = min(every, self._every or every)
        if now or self._every is None or every < self._every:
            due = time.monotonic() + (0 if now else every)
            self._next = due if self._every is None else min(self._next, due)
            self._is_guess = now and (self._is_guess or every != self._every)
            self._every = every
            self._bell.set()

    def close(self) -> None:
        """End."""
        self._closed = True
        self._bell.set()

    def run(self) -> None:
        """Be the thread."""
        while not self._closed:
            self._bell.clear()
            left = None if self._every is None else self._next - time.monotonic()
            if left is None or left > 0:
                self._bell.wait(left)
                continue
            self._beat()

    def _beat(self) -> None:
        assert self._every is not None  # noqa: S101 - for the type checker
        self._next = time.monotonic() + self._every
        held = self._desk.held
        runs = list(held.values())
        if not runs:
            return
        try:
            # No longer than the lease is worth waiting for.
            within = max(_SHORTEST_CALL, self._every)
            answer = self._desk.send(queue.heartbeat([run._identity() for run in runs]), retry=False, within=within)
        except StageTrackerError as problem:
            _logger.warning("the leases of %d runs were not renewed: %s; tried again", len(runs), problem)
            # A third of a long lease would be a long time to leave it alone.
            pause = random.uniform(0.5, 1) * min(self._every, _LONGEST_PAUSE)  # noqa: S311 - no secret
            self._next = time.monotonic() + pause
            return
        if self._is_guess and answer["alive"]:
            self._is_guess = False
            self._every = min(said["lease_ms"] for said in answer["alive"]) / 3000
            self._next = time.monotonic() + self._every
        for word in ("lost", "cancelled"):
            for said in answer[word]:
                run = held.get((said["document_id"], said["stage_name"], said["claim_id"]))
                # What is not held any more was closed by this worker itself.
                if run is not None and run._over is None:
                    run._over = over(run._identity(), cancelled=word == "cancelled")
                    if run._ending is None:
                        _logger.warning("%s", run._over)
