"""When a call is sent again, and for how long. No I/O.

A call that may be repeated is sent again until its time is over; any other only where it is certain that it never ran.
"""

import random
import time
from typing import Any

from processors_v2._calls.call import Call
from processors_v2._errors import ConfigurationError, DatabaseUnavailable, StageTrackerError

FIRST_WAIT = 0.05
LONGEST_WAIT = 2.0
_SHORTEST_TRY = 0.1

# The first sending of the same claim still runs: nothing has happened yet, and its answer is what the next one gets.
_COME_AGAIN = {"claim_in_progress"}


class TransientError(Exception):
    """Something that may be over at the next try.

    Args:
        reason: What happened, without any secret.
        never_ran: Whether it is certain that the call had no effect.
    """

    def __init__(self, reason: str, *, never_ran: bool) -> None:
        super().__init__(reason)
        self.never_ran = never_ran


class Attempts:
    """The tries of one call.

    Args:
        call: The request.
        retry: Whether it may be sent again at all.
        timeout: Seconds to wait for one answer.
        retry_for: Seconds in all, repeats included.
    """

    def __init__(self, call: Call[Any], *, retry: bool, timeout: float, retry_for: float) -> None:
        self._call = call
        self._retry = retry
        self._timeout = timeout
        self._retry_for = retry_for
        self._deadline = time.monotonic() + retry_for
        self._wait = FIRST_WAIT
        self._tries = 0

    def begin(self) -> float:
        """Count one more try; return the seconds it may take."""
        self._tries += 1
        if not self._retry_for:
            return self._timeout
        return max(min(self._timeout, self._deadline - time.monotonic()), _SHORTEST_TRY)

    def pause(self, problem: TransientError, host: str) -> float:
        """Return the seconds to wait before the next try.

        Raises:
            DatabaseUnavailable: There is none.
        """
        # Full jitter, so that a thousand workers do not come back in step.
        pause = random.uniform(0, self._wait)  # noqa: S311 - no secret
        self._wait = min(self._wait * 2, LONGEST_WAIT)
        may_repeat = self._retry and (self._call.repeatable or problem.never_ran)
        if may_repeat and time.monotonic() + pause < self._deadline:
            return pause
        times = "1 try" if self._tries == 1 else f"{self._tries} tries"
        may_have_run = not (self._call.repeatable or problem.never_ran)
        raise DatabaseUnavailable(
            f"{name_of(self._call)}: no answer from {host} ({problem}) after {times}",
            hint="It is not known whether the call took effect: look before you repeat it" if may_have_run else None,
        ) from problem.__cause__


def check_times(timeout: float, retry_for: float) -> None:
    """Raise ConfigurationError for times that make no sense."""
    if not timeout > 0 or not retry_for >= 0:
        raise ConfigurationError(f"timeout={timeout} must be above 0 and retry_for={retry_for} not below, in seconds")


def name_of(call: Call[Any]) -> str:
    """What to call a request in a message."""
    return call.path.partition("?")[0]


def answered(error: StageTrackerError) -> Exception:
    """Return what to raise for an error that the database answered: itself, or TransientError to come again."""
    if error.error in _COME_AGAIN:
        return TransientError(error.message, never_ran=True)
    return error
