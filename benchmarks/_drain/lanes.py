"""Lanes: those who claim and finish in batches, and can therefore take turns in one race."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

Claimed = TypeVar("Claimed")


class Lane(ABC, Generic[Claimed]):
    """A queue of no-op jobs, and one worker that drains it.

    Attributes:
        name: as it stands in the figures.
    """

    name: str

    @abstractmethod
    def fill(self, jobs: int) -> None:
        """Empty everything, and put in so many jobs."""

    @abstractmethod
    def claim(self, limit: int) -> Sequence[Claimed]:
        """Take at most so many jobs."""

    @abstractmethod
    def finish(self, claimed: Sequence[Claimed]) -> None:
        """Record them as done."""

    @abstractmethod
    def count_done(self) -> int:
        """Count what the database holds as done, as whoever uses the queue would."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    def drain(self, jobs: int, batch: int) -> float:
        """Drain so many jobs and return the seconds that took.

        Raises:
            RuntimeError: there were fewer.
        """
        begin = time.perf_counter()
        left = jobs
        while left > 0:
            claimed = self.claim(min(batch, left))
            if not claimed:
                raise RuntimeError(f"{self.name}: {left} of {jobs} jobs could not be claimed.")
            self.finish(claimed)
            left -= len(claimed)
        return time.perf_counter() - begin


def race(lanes: Sequence[Lane[object]], jobs: int, batch: int, turns: int) -> dict[str, float]:
    """Let every lane drain as many jobs, taking turns so that all meet the same noise.

    Args:
        lanes: who takes part.
        jobs: how many each drains; a multiple of turns.
        batch: how many it claims and finishes at once.
        turns: in how many parts.

    Returns:
        Jobs per second by name.

    Raises:
        RuntimeError: somebody has lost jobs.
    """
    for lane in lanes:
        lane.fill(jobs)
    seconds = dict.fromkeys((lane.name for lane in lanes), 0.0)
    for turn in range(turns):
        # Never one behind itself, whose data would still be in the caches; and of several, not always behind the same
        # one, whose pages may still have to be written.
        first = turn % len(lanes) if len(lanes) > 2 else 0
        for lane in [*lanes[first:], *lanes[:first]]:
            seconds[lane.name] += lane.drain(jobs // turns, batch)
    for lane in lanes:
        if lane.count_done() != jobs:
            raise RuntimeError(f"{lane.name}: only {lane.count_done()} of {jobs} jobs are done.")
    return {name: jobs / spent for name, spent in seconds.items()}
