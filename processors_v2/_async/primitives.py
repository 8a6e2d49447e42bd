"""What is no mere matter of words between asynchronous and synchronous code; _sync/primitives.py is its twin."""

import asyncio
import logging
import time
import weakref
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import Any, Generic, TypeVar, overload

import httpx

from processors_v2._http import certificates
from processors_v2._pulse import Pulse
from processors_v2._tracking import length_of, progress_of

T = TypeVar("T")

_logger = logging.getLogger("processors_v2")

IS_ASYNC = True

sleep = asyncio.sleep


class FreeList(Generic[T]):
    """Things of which each is used by one task at a time, made when none is free; each event loop has its own.

    Args:
        make: Makes another one.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._free: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, deque[T]] = weakref.WeakKeyDictionary()

    def _mine(self) -> deque[T]:
        loop = asyncio.get_running_loop()
        mine = self._free.get(loop)
        if mine is None:
            mine = self._free[loop] = deque()
            weakref.finalize(loop, _finish, mine)
        return mine

    def take(self) -> T:
        """Return one that nobody else uses."""
        mine = self._mine()
        # The one that was given back last has the freshest connection.
        return mine.pop() if mine else self._make()

    def give(self, thing: T) -> None:
        """Give one back that may be used again."""
        self._mine().append(thing)

    def all(self) -> list[deque[T]]:
        """Return what is free, by event loop."""
        return list(self._free.values())

    def drain(self) -> Iterator[T]:
        """Take out all that are free in this event loop, to close them."""
        mine = self._mine()
        while mine:
            yield mine.pop()


def new_http_client() -> httpx.AsyncClient:
    """Make an HTTP client."""
    # A redirect would carry the key to another host, and turn the call into a GET.
    return httpx.AsyncClient(http2=False, follow_redirects=False, verify=certificates())


def chosen_http_client(client: Any) -> httpx.AsyncClient | None:
    """Return the HTTP client that somebody chose for a supabase client, if any."""
    chosen = getattr(client.options, "httpx_client", None)
    return chosen if isinstance(chosen, httpx.AsyncClient) else None


def close_with(owner: object, free: FreeList[Any]) -> None:
    """Close what can be closed outside of its event loop when the owner is gone; the rest is for close()."""
    weakref.finalize(owner, _finish_all, free)


def _finish_all(free: FreeList[Any]) -> None:
    for things in free.all():
        _finish(things)


def _finish(things: Iterable[Any]) -> None:
    for thing in things:
        if hasattr(thing, "pgconn"):
            thing.pgconn.finish()


async def settle(pulse: Pulse) -> None:
    """Wait until nothing of a stopped pulse is on its way any more, while the event loop goes on."""
    if pulse.is_sending:
        await asyncio.to_thread(pulse.settle)


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


async def deliver(result: Any) -> None:
    """Wait for what an asynchronous callback returned."""
    await result


class Tracking:
    """The method ``track`` of a context."""

    def update_progress(self, progress: float | None, metadata: Any = None) -> None:
        """Report progress."""
        raise NotImplementedError

    @overload
    def track(self, iterable: Iterable[T], total: int | None = None, *, unit: str | None = None) -> Iterator[T]: ...

    @overload
    def track(
        self, iterable: AsyncIterable[T], total: int | None = None, *, unit: str | None = None
    ) -> AsyncIterator[T]: ...

    def track(
        self, iterable: Iterable[T] | AsyncIterable[T], total: int | None = None, *, unit: str | None = None
    ) -> Iterator[T] | AsyncIterator[T]:
        """Iterate and report the progress of it; ``async for`` over what is asynchronous, ``for`` over the rest.

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
        total = length_of(iterable) if total is None else total
        if isinstance(iterable, AsyncIterable):
            return self._track_async(iterable, total, unit)
        return self._track(iterable, total, unit)

    def _track(self, iterable: Iterable[T], total: int, unit: str | None) -> Iterator[T]:
        for done, item in enumerate(iterable, 1):
            yield item
            self.update_progress(*progress_of(done, total, unit))

    async def _track_async(self, iterable: AsyncIterable[T], total: int, unit: str | None) -> AsyncIterator[T]:
        done = 0
        async for item in iterable:
            done += 1
            yield item
            self.update_progress(*progress_of(done, total, unit))
