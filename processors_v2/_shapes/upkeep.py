"""What is answered to schedulers."""

from typing import Required, TypedDict


class Reaped(TypedDict, total=False):
    """What reap did."""

    requeued: Required[int]
    """Runs whose lease or timeout was over, back in the queue."""
    failed: Required[int]
    """Such runs without an attempt left, whose stage is failed."""
    filled: Required[int]
    """Documents whose ready runs were brought to the pipeline as it is."""
    adopted: int
    """Stages in processing that nobody held, now with a lease."""


class Rebuilt(TypedDict, total=False):
    """What rebuild_ready_runs had to mend: runs."""

    added: Required[int]
    removed: Required[int]
    adopted: int


class RebuiltStatistics(TypedDict):
    """What rebuild_statistics had to mend: sums."""

    mended: int


class Pruned(TypedDict):
    """What prune_runs deleted."""

    pruned: int
    more: bool
    """Whether the limit cut it off: call it again."""


class Maintenance(TypedDict):
    """What schedule_maintenance did."""

    scheduled: bool
    jobs: list[str]
    """Names of the jobs of pg_cron."""
    message: str
