"""Claims: the thread that asks the database for work, and now and then looks after what others have left."""

import logging
import random
import re
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from processors_v2._calls import queue, upkeep
from processors_v2._errors import DatabaseUnavailable, InvalidArgument, StageTrackerError
from processors_v2._worker.context import Link, RunContext
from processors_v2._worker.desk import HOPELESS, Desk, Pauses
from processors_v2._worker.keeper import Keeper
from processors_v2._worker.lanes import Lane

_logger = logging.getLogger("processors_v2")

_LONGEST_PAUSE = 2.0
_SQLSTATE = re.compile("[0-9A-Z]{5}")
# What reap() looks at in one call.
_REAP_LIMIT = 1000
# Runs that ended and are not reported yet, in batches: beyond that the database is behind, and more work of no use.
_BEHIND = 4


class Claims:
    """Who asks for work.

    Args:
        desk: What the threads share.
        lanes: Where the runs go.
        keeper: Who renews their leases.
        link: For the runs.
        worker: Name of the worker.
        lease_seconds: Length of the lease; None: as the stage says.
        batch: The largest claim.
        idle_max: Seconds between two claims at most, while there is nothing to do.
        reap_seconds: Seconds between two looks at what others have left, about.
        empty: Called when nothing is ready here, where asked for; None: goes on.
        fail: Called with an error that waiting would not mend.
    """

    def __init__(
        self,
        desk: Desk,
        lanes: list[Lane],
        *,
        keeper: Keeper,
        link: Link,
        worker: str,
        lease_seconds: float | None,
        batch: int,
        idle_max: float,
        reap_seconds: float,
        empty: Callable[[], None] | None,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._desk = desk
        self._lanes = lanes
        self._keeper = keeper
        self._link = link
        self._worker = worker
        self._lease_seconds = lease_seconds
        self._batch = batch
        self._reap_seconds = reap_seconds
        self._empty = empty
        self._fail = fail
        self._most_held = sum(lane.places for lane in lanes) + _BEHIND * batch
        self._lane_of = {stage: lane for lane in lanes for stage in lane.stages}
        self._bell = threading.Event()
        self._closed = threading.Event()
        self._idle = Pauses(idle_max)
        self._is_idle = False
        self._was_answered = False
        self._next_reap = time.monotonic() + random.uniform(0, reap_seconds)  # noqa: S311 - no secret
        for lane in lanes:
            lane.when_room = self._bell.set

    def wake(self) -> None:
        """Ask again at once: something may have become ready."""
        self._is_idle = False
        self._bell.set()

    def close(self) -> None:
        """Ask for nothing more, and end."""
        self._closed.set()
        self._bell.set()

    def run(self) -> None:
        """Be the thread."""
        while not self._closed.is_set():
            self._bell.clear()
            if time.monotonic() >= self._next_reap:
                self._reap()
            # A worker that holds a lot and cannot report it takes no more.
            is_behind = len(self._desk.held) >= self._most_held
            rooms = [] if is_behind else [(lane, room) for lane in self._lanes if (room := lane.room())]
            if not rooms:
                self._sleep(None)
                continue
            holds_nothing = not self._desk.held
            if self._ask(rooms):
                continue
            if self._closed.is_set():
                return
            if self._empty is not None and holds_nothing and not self._reap():
                self._empty()
                return
            self._sleep(self._idle.next())

    def _ask(self, rooms: list[tuple[Lane, int]]) -> bool:
        """Claim for lanes that have room; return whether there was something."""
        if self._is_idle:
            # One question for all, as long as there is no answer.
            count = self._claim([stage for lane, _ in rooms for stage in lane.stages], min(room for _, room in rooms))
        else:
            count = sum(self._claim(lane.stages, room) for lane, room in rooms)
        self._is_idle = count == 0
        if count:
            self._idle.reset()
        return bool(count)

    def _claim(self, stages: list[str], limit: int) -> int:
        claim_id = uuid.uuid4()
        call = queue.claim_stages(stages, self._worker, min(limit, self._batch), self._lease_seconds, claim_id)
        pauses = Pauses(_LONGEST_PAUSE)
        answer = None
        tries = 0
        while answer is None:
            if self._closed.is_set():
                return 0
            tries += 1
            try:
                answer = self._desk.send(call, retry=False)
            except StageTrackerError as problem:
                if self._is_hopeless(problem):
                    self._fail(problem)
                    self._closed.set()
                    return 0
                # The same claim again: if it took effect, it answers the same.
                _logger.warning("no work could be claimed: %s; tried again", problem)
                self._closed.wait(pauses.next())
        self._was_answered = True
        if answer:
            self._hand_out(answer, claim_id, is_late=tries > 1)
        return len(answer)

    def _is_hopeless(self, problem: StageTrackerError) -> bool:
        """Whether there is no use in asking again."""
        # Where nothing of the tracker's has ever answered, it is the URL that is wrong and not the moment.
        is_database = isinstance(problem, DatabaseUnavailable) or _SQLSTATE.fullmatch(problem.code or "")
        return isinstance(problem, (InvalidArgument, *HOPELESS)) or not (self._was_answered or is_database)

    def _hand_out(self, claimed: list[dict[str, Any]], claim_id: uuid.UUID, *, is_late: bool) -> None:
        text = str(claim_id)
        runs = [RunContext(element, claim_id, text, self._link) for element in claimed]
        self._desk.count({"claimed": len(runs)})
        self._desk.held.update({run._key(): run for run in runs})
        self._keeper.expect(min(element["lease_ms"] for element in claimed) / 1000, now=is_late)
        if len(self._lanes) == 1:
            self._lanes[0].add(runs)
            return
        for lane in self._lanes:
            lane.add([run for run in runs if self._lane_of[run.stage_name] is lane])

    def _reap(self) -> bool:
        """Bring back what others have left; return whether there may be something to claim now."""
        self._next_reap = time.monotonic() + random.uniform(0.5, 1.5) * self._reap_seconds  # noqa: S311 - no secret
        try:
            found = self._desk.send(upkeep.reap(_REAP_LIMIT), retry=False)
        except StageTrackerError as problem:
            _logger.warning("reap: %s", problem)
            # Whether the queue is empty is not known.
            return True
        if any(found.values()):
            _logger.info("reap: %s", found)
            self._is_idle = False
            if max(found.values()) >= _REAP_LIMIT:
                self._next_reap = 0.0
        return any(count for word, count in found.items() if word != "failed")

    def _sleep(self, seconds: float | None) -> None:
        left = max(0.0, self._next_reap - time.monotonic())
        self._bell.wait(left if seconds is None else min(seconds, left))
