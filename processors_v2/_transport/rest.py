"""PostgREST: how a call is asked over HTTP, and what an answer means. No I/O.

The client that was handed in gives URL and headers, read at each call, because a signed-in user's token changes under
way.
"""

import json
import re
from typing import Any

import httpx
import supabase

from processors_v2._calls.call import Call
from processors_v2._errors import AccessDenied, ConfigurationError, StageTrackerError, from_answer
from processors_v2._transport.retries import TransientError, answered

SCHEMA_NAME = "krai_core"
CHECK_URL = "Check that the URL is that of the Supabase project, without a path"

# What these say may hold the key, so they must not even be the context of what is raised for them.
UNSENDABLE = (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError)

# PostgREST or Postgres refused before anything ran, or rolled everything back: any call may be sent again.
_NEVER_RAN = {"PGRST000", "PGRST002", "PGRST003", "53300", "40P01", "55P03", "57P03"}
# The connection broke under way: whether the call took effect is not known.
_MAY_HAVE_RUN = {"PGRST001", "57P01", "57P02"}
# Of the gateway before PostgREST, in HTML or in JSON of its own.
_GATEWAY = {502, 503, 504, 520, 521, 522, 523, 524}
_DATABASE_CODE = re.compile("[0-9A-Z]{5}|PGRST.*")
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)

_FIRST_ERROR = 400
_UNAUTHORIZED = 401
# What servers say of headers that are too long for them, in words of their own: nginx and PostgREST 400, others 431.
_TOO_LONG = {400, 413, 414, 431}
# Characters; every server takes a header of twice that.
_USUAL_TOKEN = 4096


def check_client(client: object, wanted: type) -> None:
    """Raise ConfigurationError for what is no supabase client, or one of the other kind.

    Args:
        client: What a tracker was given.
        wanted: The kind of client that it needs, supabase.Client or supabase.AsyncClient.
    """
    is_async = wanted is supabase.AsyncClient
    tracker = "AsyncStageTracker" if is_async else "StageTracker"
    make = "await supabase.acreate_client(url, key)" if is_async else "supabase.create_client(url, key)"
    other = supabase.Client if is_async else supabase.AsyncClient
    if isinstance(client, other):
        kind, given = ("asynchronous", "a synchronous Client") if is_async else ("synchronous", "an AsyncClient")
        right = "StageTracker" if is_async else "AsyncStageTracker"
        raise ConfigurationError(
            f"{tracker} is {kind} and was given {given}", hint=f"Use {right} for it, or pass the result of {make}"
        )
    if not isinstance(client, wanted):
        raise ConfigurationError(
            f"{tracker} was given a {type(client).__name__}, not a supabase client",
            hint=f"Pass the result of {make}, or use {tracker}.from_env()",
        )


def url_of(client: Any) -> str:
    """Return the URL of PostgREST, without a slash at its end."""
    return str(client.rest_url).rstrip("/")


def host_of(client: Any) -> str:
    """Return the host, for messages."""
    return httpx.URL(url_of(client)).host


def request(client: Any, call: Call[Any]) -> dict[str, Any]:
    """Return method, url, headers and content for ``httpx.Client.request``."""
    headers = dict(client.options.headers)
    url = f"{url_of(client)}/{call.path}"
    if call.arguments is None:
        headers["Accept-Profile"] = SCHEMA_NAME
        return {"method": "GET", "url": url, "headers": headers}
    headers["Content-Profile"] = SCHEMA_NAME
    headers["Content-Type"] = "application/json"
    body = json.dumps(call.arguments, allow_nan=False, separators=(",", ":")).encode()
    return {"method": "POST", "url": url, "headers": headers, "content": body}


def network_problem(error: httpx.TransportError) -> TransientError:
    """Return what a failed exchange means for the next try."""
    return TransientError(f"{type(error).__name__} {error}".strip(), never_ran=isinstance(error, _NEVER_SENT))


def unsendable() -> ConfigurationError:
    """Return the error for a URL or a key that no request can carry."""
    return ConfigurationError(
        "the URL or the key of the supabase client cannot be sent",
        hint="Look for a line break, a space or a letter that does not belong there",
    )


def answer_of(response: httpx.Response) -> Any:
    """Return the decoded body of a good answer.

    Raises:
        TransientError: It may be better at the next try.
        StageTrackerError: It is an error, or nothing of PostgREST's.
    """
    try:
        body = response.json() if response.content else None
        is_json = True
    except ValueError:
        body, is_json = response.text, False
    if response.is_success and is_json:
        return body
    code = str((isinstance(body, dict) and body.get("code")) or response.status_code)
    if code in _NEVER_RAN:
        raise TransientError(_reason(response, body), never_ran=True)
    is_gateway = response.status_code in _GATEWAY and not _DATABASE_CODE.fullmatch(code)
    # What PostgREST says when Postgres is gone in the middle of a call: an error without code and words.
    is_broken = isinstance(body, dict) and body.get("code") == "" and not body.get("message")
    if code in _MAY_HAVE_RUN or code.startswith("08") or is_gateway or is_broken:
        raise TransientError(_reason(response, body), never_ran=False)
    if not (isinstance(body, dict) and body.get("message")) or response.status_code < _FIRST_ERROR:
        if response.status_code in _TOO_LONG:
            _refuse_long_token(response)
        raise StageTrackerError(
            f"{response.url.host} answered HTTP {response.status_code}, and not as PostgREST does",
            hint=CHECK_URL,
            code=code,
        )
    raise answered(from_answer(response.status_code, body))


def _refuse_long_token(response: httpx.Response) -> None:
    length = len(response.request.headers.get("Authorization", ""))
    if length > _USUAL_TOKEN:
        error = AccessDenied(
            f"{response.url.host} takes no token of {length} characters",
            hint="Keep its claims short, such as app_metadata",
            code=str(response.status_code),
        )
        error.http_status = _UNAUTHORIZED
        raise error


def _reason(response: httpx.Response, body: object) -> str:
    if isinstance(body, dict):
        return f"HTTP {response.status_code} {body.get('code')}: {body.get('message')}"
    return f"HTTP {response.status_code}"
