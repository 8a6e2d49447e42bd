"""Pruner: the thread that deletes old runs now and then, apart from the claims, which must not wait for it."""

import datetime as dt
import logging
import random
import threading
from collections.abc import Callable

from processors_v2._calls import upkeep
from processors_v2._errors import InvalidArgument, StageTrackerError
from processors_v2._worker.desk import HOPELESS, Desk

_logger = logging.getLogger("processors_v2")

# Runs in one call: few, so that no call takes long.
_LIMIT = 1000


class Pruner:
    """Who deletes runs that ended long ago and were superseded since.

    Args:
        desk: What the threads share.
        older_than: How long ago; None: nothing is deleted.
        every: Seconds between two looks, about.
        fail: Called with an error that waiting would not mend.
    """

    def __init__(
        self, desk: Desk, older_than: dt.timedelta | None, *, every: float, fail: Callable[[BaseException], None]
    ) -> None:
        self._desk = desk
        self._older_than = older_than
        self._every = every
        self._fail = fail
        self._closed = threading.Event()

    def close(self) -> None:
        """Delete nothing more, and end."""
        self._closed.set()

    def run(self) -> None:
        """Be the thread."""
        if self._older_than is None:
            return
        call = upkeep.prune_runs(self._older_than, _LIMIT, keep_failures=True)
        pause = random.uniform(0, self._every)  # noqa: S311 - no secret
        while not self._closed.wait(pause):
            pause = random.uniform(0.5, 1.5) * self._every  # noqa: S311 - no secret
            try:
                found = self._desk.send(call, retry=False)
            except StageTrackerError as problem:
                if isinstance(problem, (InvalidArgument, *HOPELESS)):
                    self._fail(problem)
                    return
                _logger.warning("prune_runs: %s; tried again", problem)
                continue
            if found["pruned"]:
                _logger.info("prune_runs: %s", found)
            if found["more"]:
                pause = 0.0
