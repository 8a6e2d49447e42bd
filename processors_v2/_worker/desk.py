"""Desk: what the threads of a worker share: the runs that it holds, and how many have gone which way."""

import random
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from processors_v2._errors import (
    AccessDenied,
    ConfigurationError,
    MigrationMissing,
    SchemaNotExposed,
    StageCancelled,
)
from processors_v2._worker.context import Key, RunContext, Send

# Nothing that waiting would mend: a wrong key, a database without the functions.
HOPELESS = (AccessDenied, ConfigurationError, MigrationMissing, SchemaNotExposed)

_FIRST_PAUSE = 0.05


@dataclass
class Desk:
    """What the threads of a worker share.

    Attributes:
        send: How calls reach the database.
        held: The runs of this worker whose end the database has not confirmed yet, by document, stage and claim id.
        counts: Runs that were claimed, and what became of them.
    """

    send: Send
    counts: Counter[str]
    held: dict[Key, RunContext] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, found: Mapping[str, int]) -> None:
        """Add to the counts."""
        with self._lock:
            self.counts.update(found)

    def let_go(self, run: RunContext, outcome: str) -> None:
        """Forget a run that is over, and count it, once."""
        if self.held.pop(run._key(), None) is not None:
            self.count({outcome: 1})

    def drop(self, run: RunContext) -> None:
        """Forget a run that somebody else has ended."""
        self.let_go(run, "cancelled" if isinstance(run._over, StageCancelled) else "lost")


class Pauses:
    """Growing pauses with full jitter, so that a thousand workers do not come back in step.

    Args:
        longest: Seconds.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._tries = 0

    def next(self) -> float:
        """Return the seconds to wait before the next try."""
        # The exponent is bounded, as 2.0 ** 1024 is no float.
        most = min(self._longest, _FIRST_PAUSE * 2 ** min(self._tries, 30))
        self._tries += 1
        return random.uniform(0, most)  # noqa: S311 - no secret

    def reset(self) -> None:
        """Begin again with a short one."""
        self._tries = 0
