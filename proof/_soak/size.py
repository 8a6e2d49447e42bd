"""How long a soak is, and how much goes on in it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Size:
    """What is done, and for how long.

    Attributes:
        minutes: for which documents come in.
        workers: processes; every other one works through PostgREST, the rest over Postgres connections.
        documents_per_second: that come in, of eight stages each.
        kept: so many documents stay in the table; of the rest those that are done are deleted.
        delete_seconds: between two deletions.
        prune_seconds: between two calls of prune_runs, which takes what is older than that.
        reindex_share: of kept; when so many were deleted, the GIN index is built anew, which keeps their keys.
        settle_share: of the time, at its beginning, in which memory may grow.
        sizes_seconds: between two looks at the sizes of tables and indexes.
    """

    minutes: float = 60.0
    workers: int = 8
    documents_per_second: float = 4.0
    kept: int = 5000
    delete_seconds: float = 10.0
    prune_seconds: float = 60.0
    reindex_share: float = 0.5
    settle_share: float = 0.1
    sizes_seconds: float = 30.0

    @property
    def seconds(self) -> float:
        """The time for which documents come in."""
        return self.minutes * 60


FULL = Size()
SHORT = Size(minutes=2.0, kept=200, delete_seconds=5.0, prune_seconds=15.0, settle_share=0.3, sizes_seconds=10.0)
