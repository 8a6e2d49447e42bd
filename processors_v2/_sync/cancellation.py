"""Nobody cancels a thread, so that there is little to do; _async/cancellation.py is the twin."""

from typing import TypeVar

from processors_v2._pulse import Pulse

T = TypeVar("T")


def shielded(done: T, error: BaseException | None = None, *, seconds: float = 10.0) -> T:  # noqa: ARG001 - as its twin
    """Return the result: nobody cancels a thread."""
    return done


def is_cancelled(error: BaseException) -> bool:  # noqa: ARG001 - as its twin
    """Whether the task was cancelled, which a thread cannot be."""
    return False


def settle(pulse: Pulse) -> None:
    """Wait until nothing of a stopped pulse is on its way any more."""
    pulse.settle()
