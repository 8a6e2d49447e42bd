"""Supabase clients that talk to a bare PostgREST."""

from typing import Any

import httpx
import supabase

from processors_v2._transport.http import UnsharedTransport

_PREFIX = b"/rest/v1"
# As long as supabase-py itself waits by default.
_TIMEOUT_SECONDS = 120.0


def _strip(request: httpx.Request) -> None:
    """Take away the path prefix that only the gateway of a Supabase project knows."""
    path = request.url.raw_path
    if path.startswith(_PREFIX):
        request.url = request.url.copy_with(raw_path=path[len(_PREFIX) :] or b"/")


class _Transport(UnsharedTransport):
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        _strip(request)
        return super().handle_request(request)


class _ThreadTransport(httpx.HTTPTransport):
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        _strip(request)
        return super().handle_request(request)


class _AsyncPool(httpx.AsyncClient):
    """An HTTP client, with another for threads beside its event loop, which AsyncStageTracker sends heartbeats from."""

    def __init__(self, limits: httpx.Limits) -> None:
        super().__init__(transport=_AsyncTransport(limits=limits), timeout=_TIMEOUT_SECONDS)
        self.synchronous = httpx.Client(transport=_ThreadTransport(limits=limits), timeout=_TIMEOUT_SECONDS)


class _AsyncTransport(httpx.AsyncHTTPTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        _strip(request)
        return await super().handle_async_request(request)


def connect(url: str, key: str) -> tuple[supabase.Client, httpx.Client]:
    """Make a client, and give the connection pool under it, which the caller closes."""
    pool = httpx.Client(transport=_Transport(), timeout=_TIMEOUT_SECONDS)
    return supabase.create_client(url, key, options=supabase.ClientOptions(httpx_client=pool)), pool


async def connect_async(url: str, key: str) -> supabase.AsyncClient:
    """Make an async client.

    Its connections close after each call: nobody can close the pool of an event loop that has ended.
    """
    pool = _AsyncPool(httpx.Limits(max_keepalive_connections=0))
    options: Any = supabase.AsyncClientOptions(httpx_client=pool)
    return await supabase.acreate_client(url, key, options=options)
