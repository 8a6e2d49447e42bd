"""What a cancelled task must not leave half done; _sync/cancellation.py is the twin."""

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from processors_v2._pulse import Pulse

T = TypeVar("T")

_logger = logging.getLogger("processors_v2")


async def shielded(work: Coroutine[Any, Any, T], error: BaseException | None = None, *, seconds: float = 10.0) -> T:
    """Bring work to its end also when the task that waits for it is cancelled, within a bound.

    Args:
        work: What must not be left half done.
        error: What happened before: after a cancellation the bound begins at once.
        seconds: Longest time for which a cancelled task is held up.

    Raises:
        asyncio.CancelledError: The task was cancelled meanwhile.
    """
    task = asyncio.ensure_future(work)
    deadline = time.monotonic() + seconds if isinstance(error, asyncio.CancelledError) else None
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            _logger.error("the task was cancelled, and what it had to record was not recorded within %s s", seconds)
            task.cancel()
        try:
            await asyncio.wait({task}, timeout=None if left is None else max(left, 0.1))
        except asyncio.CancelledError as again:
            cancelled = again
            deadline = deadline or time.monotonic() + seconds
    if cancelled is not None:
        if not task.cancelled():
            task.exception()
        raise cancelled
    return task.result()


def is_cancelled(error: BaseException) -> bool:
    """Whether the task was cancelled."""
    return isinstance(error, asyncio.CancelledError)


async def settle(pulse: Pulse) -> None:
    """Wait until nothing of a stopped pulse is on its way any more, while the event loop goes on."""
    if pulse.is_sending:
        await asyncio.to_thread(pulse.settle)
