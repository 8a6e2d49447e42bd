"""What is no mere matter of words between synchronous and asynchronous code; _async/primitives.py is its twin."""

import asyncio
import logging
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import httpx

from processors_v2._http import FreeList, certificates
from processors_v2._pulse import Pulse
from processors_v2._tracking import length_of, progress_of

T = TypeVar("T")

__all__ = [
    "IS_ASYNC",
    "FreeList",
    "Tracking",
    "chosen_http_client",
    "close_with",
    "deliver",
    "is_cancelled",
    "new_http_client",
    "settle",
    "shielded",
    "sleep",
]

_logger = logging.getLogger("processors_v2")

IS_ASYNC = False


def sleep(seconds: float) -> None:
    """Pause this thread."""
    time.sleep(seconds)


def new_http_client() -> httpx.Client:
    """Make an HTTP client."""
    # A redirect would carry the key to another host, and turn the call into a GET.
    return httpx.Client(http2=False, follow_redirects=False, verify=certificates())


def chosen_http_client(client: Any) -> httpx.Client | None:
    """Return the HTTP client that somebody chose for a supabase client, if any.

    That of an AsyncClient belongs to its event loop; a thread beside it uses the one in its attribute ``synchronous``.
    """
    chosen = getattr(client.options, "httpx_client", None)
    chosen = getattr(chosen, "synchronous", chosen)
    return chosen if isinstance(chosen, httpx.Client) else None


def close_with(owner: object, free: FreeList[Any]) -> None:
    """Close what is in a free list when its owner is gone."""
    weakref.finalize(owner, _close, free)


def _close(free: FreeList[Any]) -> None:
    for thing in free.drain():
        thing.close()


def settle(pulse: Pulse) -> None:
    """Wait until nothing of a stopped pulse is on its way any more."""
    pulse.settle()


def shielded(done: T, error: BaseException | None = None, *, seconds: float = 10.0) -> T:  # noqa: ARG001 - as its twin
    """Return the result: nobody cancels a thread."""
    return done


def is_cancelled(error: BaseException) -> bool:  # noqa: ARG001 - as its twin
    """Whether the task was cancelled, which a thread cannot be."""
    return False


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


class Tracking:
    """The method ``track`` of a context."""

    def update_progress(self, progress: float | None, metadata: Any = None) -> None:
        """Report progress."""
        raise NotImplementedError

    def track(self, iterable: Iterable[T], total: int | None = None, *, unit: str | None = None) -> Iterator[T]:
        """Iterate and report the progress of it.

        Args:
            iterable: What to go through.
            total: Number of items; None: its len().
            unit: Plural name of an item, such as "pages": then metadata has pages_processed and total_pages.

        Yields:
            The items.

        Raises:
            InvalidArgument: No total, and the iterable has no len().
            StageLost: This run is over: stop the work.
        """
        return self._track(iterable, length_of(iterable) if total is None else total, unit)

    def _track(self, iterable: Iterable[T], total: int, unit: str | None) -> Iterator[T]:
        for done, item in enumerate(iterable, 1):
            yield item
            self.update_progress(*progress_of(done, total, unit))
