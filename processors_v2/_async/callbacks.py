"""What a callback returned; _sync/callbacks.py is the twin."""

from typing import Any


async def deliver(result: Any) -> None:
    """Wait for what an asynchronous callback returned."""
    await result
