"""How calls reach the database: PostgREST over HTTP/1.1 clients of our own.

The HTTP client of the supabase client is used only where somebody chose it (``ClientOptions(httpx_client=...)``): the
default one speaks HTTP/2, which has lost calls when shared by threads, and waits two minutes for an answer.
"""

from typing import Any

import httpx

from processors_v2._async.pool import AsyncPool, chosen_http_client, close_with, new_http_client
from processors_v2._async.transport import AsyncTransport
from processors_v2._calls.call import Call
from processors_v2._transport import rest


class AsyncRestTransport(AsyncTransport):
    """Sends calls to PostgREST.

    Args:
        client: A supabase client.
        timeout: Seconds to wait for one answer.
        retry_for: Seconds in all for one call, repeats included.
    """

    def __init__(self, client: Any, *, timeout: float, retry_for: float) -> None:
        super().__init__(client, timeout=timeout, retry_for=retry_for)
        self._client = client
        # Not one client for all: see _http.
        self._clients = AsyncPool(new_http_client)
        close_with(self, self._clients)

    def __repr__(self) -> str:
        return f"AsyncRestTransport({self._client.rest_url})"

    @property
    def host(self) -> str:
        """Host of the database, for messages."""
        return rest.host_of(self._client)

    @property
    def place(self) -> str:
        """Which database it is, apart from others that this process has to do with."""
        return rest.url_of(self._client)

    async def close(self) -> None:
        """Close the connections that are not in use; a later call opens others."""
        for http in self._clients.drain():
            await http.aclose()

    async def _exchange(self, call: Call[Any], seconds: float) -> Any:
        response = None
        request = rest.request(self._client, call)
        chosen = chosen_http_client(self._client)
        http = chosen or self._clients.take()
        try:
            response = await http.request(**request, timeout=seconds)
        except rest.UNSENDABLE:
            pass
        except httpx.TransportError as error:
            self._give(http, chosen)
            raise rest.network_problem(error) from error
        # Not in a finally clause: what Ctrl-C or a cancelled task was busy with is not used again.
        self._give(http, chosen)
        if response is None:
            raise rest.unsendable()
        return rest.answer_of(response)

    def _give(self, http: httpx.AsyncClient, chosen: httpx.AsyncClient | None) -> None:
        if http is not chosen:
            self._clients.give(http)
