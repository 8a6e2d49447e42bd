"""What a callback returned; _async/callbacks.py is the twin."""

import asyncio
import logging
from typing import Any

_logger = logging.getLogger("processors_v2")

_deliveries: set[asyncio.Future[Any]] = set()


def deliver(result: Any) -> None:
    """Run what an asynchronous callback returned: in the event loop of this thread, else here and now."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(_awaited(result))
        return
    task = asyncio.ensure_future(result)
    # The loop itself holds tasks weakly.
    _deliveries.add(task)
    task.add_done_callback(_delivered)


def _delivered(task: asyncio.Future[Any]) -> None:
    _deliveries.discard(task)
    if not task.cancelled() and task.exception() is not None:
        _logger.error("websocket_callback failed", exc_info=task.exception())


async def _awaited(result: Any) -> None:
    await result
