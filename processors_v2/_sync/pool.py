"""Connections that are in use once at a time; _async/pool.py is the twin."""

import weakref
from typing import Any

import httpx

from processors_v2._transport.http import Pool, certificates

__all__ = ["Pool", "chosen_http_client", "close_with", "new_http_client"]


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


def close_with(owner: object, pool: Pool[Any]) -> None:
    """Close what is in a pool when its owner is gone."""
    weakref.finalize(owner, _close, pool)


def _close(pool: Pool[Any]) -> None:
    for thing in pool.drain():
        thing.close()
