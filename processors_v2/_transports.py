"""How calls reach the database: PostgREST over HTTP/1.1 clients of our own.

The client that was handed in gives URL and headers, read at each call, because a signed-in user's token changes under
way. Its own HTTP client is used only where somebody chose it (``ClientOptions(httpx_client=...)``): the default one
speaks HTTP/2, which has lost calls when shared by threads, and waits two minutes for an answer.
"""

import contextlib
import json
import logging
import random
import re
import time
import weakref
from collections.abc import Iterator
from typing import Any, TypeVar

import httpx
import supabase

from processors_v2._calls import Call
from processors_v2._errors import ConfigurationError, DatabaseUnavailable, StageTrackerError, from_answer
from processors_v2._http import FreeList, certificates

SCHEMA = "krai_core"

T = TypeVar("T")

_logger = logging.getLogger("processors_v2")

# PostgREST or Postgres refused before anything ran, or rolled everything back: any call may be sent again.
_NEVER_RAN = {"PGRST000", "PGRST002", "PGRST003", "53300", "40P01", "55P03", "57P03"}
# The connection broke under way: whether the call took effect is not known.
_MAY_HAVE_RUN = {"PGRST001", "57P01", "57P02"}
# Of the gateway before PostgREST, in HTML or in JSON of its own.
_GATEWAY = {502, 503, 504, 520, 521, 522, 523, 524}
_DATABASE_CODE = re.compile("[0-9A-Z]{5}|PGRST.*")
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)

_CHECK_URL = "Check that the URL is that of the Supabase project, without a path"
_FIRST_ERROR = 400

_FIRST_WAIT = 0.05
_LONGEST_WAIT = 2.0


class _TransientError(Exception):
    def __init__(self, reason: str, *, never_ran: bool) -> None:
        super().__init__(reason)
        self.never_ran = never_ran


class RestTransport:
    """Sends calls to PostgREST; may be shared by threads.

    Args:
        client: Result of ``supabase.create_client``.
        timeout: Seconds to wait for one answer.
        retry_for: Seconds in all for one call, repeats included.
    """

    def __init__(self, client: supabase.Client | object, *, timeout: float, retry_for: float) -> None:
        if isinstance(client, supabase.AsyncClient):
            raise ConfigurationError(
                "StageTracker is synchronous and was given an AsyncClient",
                hint="Pass the result of supabase.create_client(url, key)",
            )
        if not isinstance(client, supabase.Client):
            raise ConfigurationError(
                f"StageTracker was given a {type(client).__name__}, not a supabase client",
                hint="Pass the result of supabase.create_client(url, key), or use StageTracker.from_env()",
            )
        if not timeout > 0 or not retry_for >= 0:
            raise ConfigurationError(
                f"timeout={timeout} must be above 0 and retry_for={retry_for} not below, in seconds"
            )
        self._client = client
        self._timeout = timeout
        self._retry_for = retry_for
        # Not one client for all threads: see _http.
        self._clients = FreeList(_new_client)
        weakref.finalize(self, _close, self._clients)

    def __repr__(self) -> str:
        return f"RestTransport({self._client.rest_url})"

    def send(self, call: Call[T], *, retry: bool = True) -> T:
        """Send a call and return its result.

        Args:
            call: The request.
            retry: Whether a call that may be repeated is, until ``retry_for`` is over.

        Raises:
            StageTrackerError: Whatever the database answers; DatabaseUnavailable where it does not.
        """
        deadline = time.monotonic() + self._retry_for
        wait = _FIRST_WAIT
        tries = 0
        while True:
            tries += 1
            try:
                answer = self._exchange(call, deadline)
                break
            except _TransientError as problem:
                # Full jitter, so that a thousand workers do not come back in step.
                pause = random.uniform(0, wait)  # noqa: S311 - no secret
                may_repeat = retry and (call.repeatable or problem.never_ran)
                if not may_repeat or time.monotonic() + pause >= deadline:
                    raise self._unavailable(call, problem, tries) from problem.__cause__
                _logger.debug("%s: %s, sent again in %.2f s", call.path, problem, pause)
            time.sleep(pause)
            wait = min(wait * 2, _LONGEST_WAIT)
        try:
            return call.parse(answer)
        except (LookupError, TypeError, ValueError) as error:
            raise StageTrackerError(
                f"{call.path.partition('?')[0]}: what {self._host()} answered is nothing of the stage tracker's",
                hint=_CHECK_URL,
            ) from error

    def _exchange(self, call: Call[Any], deadline: float) -> Any:
        headers = dict(self._client.options.headers)
        headers["Accept-Profile" if call.arguments is None else "Content-Profile"] = SCHEMA
        url = f"{str(self._client.rest_url).rstrip('/')}/{call.path}"
        timeout = max(min(self._timeout, deadline - time.monotonic()), 0.1) if self._retry_for else self._timeout
        response = None
        try:
            with self._http() as http:
                if call.arguments is None:
                    response = http.get(url, headers=headers, timeout=timeout)
                else:
                    headers["Content-Type"] = "application/json"
                    body = json.dumps(call.arguments, allow_nan=False, separators=(",", ":")).encode()
                    response = http.post(url, content=body, headers=headers, timeout=timeout)
        except (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError):
            # What these say may hold the key, so they are not even the context of what is raised.
            pass
        except httpx.TransportError as error:
            reason = f"{type(error).__name__} {error}".strip()
            raise _TransientError(reason, never_ran=isinstance(error, _NEVER_SENT)) from error
        if response is None:
            raise ConfigurationError(
                "the URL or the key of the supabase client cannot be sent",
                hint="Look for a line break, a space or a letter that does not belong there",
            )
        return _answer(response)

    def _unavailable(self, call: Call[Any], problem: _TransientError, tries: int) -> DatabaseUnavailable:
        times = "1 try" if tries == 1 else f"{tries} tries"
        may_have_run = not (call.repeatable or problem.never_ran)
        return DatabaseUnavailable(
            f"{call.path.partition('?')[0]}: no answer from {self._host()} ({problem}) after {times}",
            hint="It is not known whether the call took effect: look before you repeat it" if may_have_run else None,
        )

    def _host(self) -> str:
        return httpx.URL(str(self._client.rest_url)).host

    @contextlib.contextmanager
    def _http(self) -> Iterator[httpx.Client]:
        """Give a client that no other thread uses, unless somebody chose one for all."""
        chosen = getattr(self._client.options, "httpx_client", None)
        if isinstance(chosen, httpx.Client):
            yield chosen
            return
        http = self._clients.take()
        try:
            yield http
        except httpx.HTTPError:
            self._clients.give(http)
            raise
        self._clients.give(http)


def _new_client() -> httpx.Client:
    # A redirect would carry the key to another host, and turn the call into a GET.
    return httpx.Client(http2=False, follow_redirects=False, verify=certificates())


def _close(clients: FreeList[httpx.Client]) -> None:
    for http in clients.drain():
        http.close()


def _answer(response: httpx.Response) -> Any:
    try:
        body = response.json() if response.content else None
        is_json = True
    except ValueError:
        body, is_json = response.text, False
    if response.is_success and is_json:
        return body
    code = str((isinstance(body, dict) and body.get("code")) or response.status_code)
    if code in _NEVER_RAN:
        raise _TransientError(_reason(response, body), never_ran=True)
    is_gateway = response.status_code in _GATEWAY and not _DATABASE_CODE.fullmatch(code)
    if code in _MAY_HAVE_RUN or code.startswith("08") or is_gateway:
        raise _TransientError(_reason(response, body), never_ran=False)
    if not (isinstance(body, dict) and body.get("message")) or response.status_code < _FIRST_ERROR:
        raise StageTrackerError(
            f"{response.url.host} answered HTTP {response.status_code}, and not as PostgREST does",
            hint=_CHECK_URL,
            code=code,
        )
    raise from_answer(response.status_code, body)


def _reason(response: httpx.Response, body: object) -> str:
    if isinstance(body, dict):
        return f"HTTP {response.status_code} {body.get('code')}: {body.get('message')}"
    return f"HTTP {response.status_code}"
