"""Connections that are in use once at a time; _sync/pool.py is the twin."""

import asyncio
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import httpx

from processors_v2._transport.http import certificates

T = TypeVar("T")


class AsyncPool(Generic[T]):
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


def close_with(owner: object, pool: AsyncPool[Any]) -> None:
    """Close what can be closed outside of its event loop when the owner is gone; the rest is for close()."""
    weakref.finalize(owner, _finish_all, pool)


def _finish_all(pool: AsyncPool[Any]) -> None:
    for things in pool.all():
        _finish(things)


def _finish(things: Iterable[Any]) -> None:
    for thing in things:
        if hasattr(thing, "pgconn"):
            thing.pgconn.finish()
