"""HTTP connections that threads do not share.

A connection pool that is shared by threads has a lock inside, and Ctrl-C can hit the main thread just when it holds
that lock: it then stays locked, and every other thread waits for ever, past all timeouts. So each exchange takes a pool
for itself and gives it back at its end; what an interrupt hits is not given back.
"""

import collections
import functools
import os
import ssl
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import httpx

T = TypeVar("T")


@functools.cache
def certificates() -> ssl.SSLContext:
    """Return the authorities to trust; to read them takes longer than a call, so all connections share them."""
    return httpx.create_ssl_context()


class Pool(Generic[T]):
    """Things of which each is used by one thread at a time, made when none is free.

    Needs no lock, since ``deque.pop`` and ``append`` are atomic. A forked child starts with an empty list: the sockets
    in it belong to the parent.

    Args:
        make: Makes another one.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._free: collections.deque[T] = collections.deque()
        self._pid = os.getpid()

    def take(self) -> T:
        """Return one that nobody else uses."""
        if self._pid != os.getpid():
            self._free, self._pid = collections.deque(), os.getpid()
        try:
            # The one that was given back last has the freshest connection.
            return self._free.pop()
        except IndexError:
            return self._make()

    def give(self, thing: T) -> None:
        """Give one back that may be used again."""
        self._free.append(thing)

    def drain(self) -> Iterator[T]:
        """Take out all that are free, to close them."""
        while self._free:
            yield self._free.pop()


class UnsharedTransport(httpx.BaseTransport):
    """Transport of an httpx client that threads share: every exchange has a connection pool of its own."""

    def __init__(self) -> None:
        self._pools = Pool(lambda: httpx.HTTPTransport(verify=certificates()))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; its pool is free again when the answer was read."""
        pool = self._pools.take()
        try:
            response = pool.handle_request(request)
        except httpx.TransportError:
            self._pools.give(pool)
            raise
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=_Returning(response, lambda: self._pools.give(pool)),
            extensions=response.extensions,
        )

    def close(self) -> None:
        """Close all pools that are free."""
        for pool in self._pools.drain():
            pool.close()


class _Returning(httpx.SyncByteStream):
    """The body of an answer; at its end something is given back, once."""

    def __init__(self, response: httpx.Response, give_back: Callable[[], None]) -> None:
        self._response = response
        self._give_back: Callable[[], None] | None = give_back

    def __iter__(self) -> Iterator[bytes]:
        assert isinstance(self._response.stream, httpx.SyncByteStream)  # noqa: S101 - for the type checker
        yield from self._response.stream

    def close(self) -> None:
        self._response.close()
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()
