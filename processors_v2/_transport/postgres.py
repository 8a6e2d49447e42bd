"""A call as one statement of SQL, and what an error of Postgres means. No I/O.

Everything here has to work through a pooler in transaction mode: no session state, no prepared statements.
"""

import json
import math
import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from processors_v2._calls.arguments import TextArray
from processors_v2._calls.call import Call
from processors_v2._errors import AccessDenied, ConfigurationError, InvalidArgument, from_answer
from processors_v2._transport.retries import TransientError, answered

T = TypeVar("T")

# Refused before anything ran, or all rolled back: too many connections, starting up, deadlock, lock timeout.
_NEVER_RAN = {"53300", "57P03", "40P01", "55P03"}
# The server was shut down or crashed under way.
_MAY_HAVE_RUN = {"57P01", "57P02", "57P05"}

_SERVER_ERROR = 500

_DENIED = "Connect as a role that may execute the functions of krai_core, such as postgres, the owner of the tables"

# Postgres may look away for ten seconds, a dead machine must not be waited for until TCP gives up.
_DEFAULTS = {
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "fallback_application_name": "stage-tracker",
    "client_encoding": "utf8",
}
# libpq takes one second as two.
_SHORTEST_CONNECT = 2

# Functions whose commit need not wait for the disk. They look at the path of the request, as PostgREST sets it, and
# only where theirs is the whole transaction, as here.
_NEED_NOT_WAIT = {"rpc/heartbeat", "rpc/update_stage_progress", "rpc/claim_stages"}


class DeadlineError(Exception):
    """No answer in time; no TimeoutError, which psycopg takes for a broken socket."""


def parameters(url: str) -> dict[str, str]:
    """Return the connection parameters of a URL, or of a string ``host=... user=...``.

    Raises:
        ConfigurationError: It is none; the message does not repeat it, since it may hold a password.
    """
    given = None
    if isinstance(url, str) and url.strip():
        try:
            given = conninfo_to_dict(url.strip())
        except psycopg.Error:
            # What libpq says may quote the password, so it is not even the context of what is raised.
            given = None
    if given is None or not all(port.isdigit() for port in str(given.get("port", "5432")).split(",")):
        raise ConfigurationError(
            "the URL of Postgres cannot be read",
            hint="Its form is postgresql://user:password@host:5432/database, with special characters in user and "
            "password percent-encoded",
        )
    return {**_DEFAULTS, **{name: str(value) for name, value in given.items() if value is not None}}


def without_password(params: dict[str, str]) -> str:
    """Return where a connection goes, without the password and whatever else may be secret."""
    user = f"{params['user']}@" if "user" in params else ""
    port = f":{params['port']}" if "port" in params else ""
    return f"postgresql://{user}{host_of(params)}{port}/{params.get('dbname', '')}"


def host_of(params: dict[str, str]) -> str:
    """Return the host, for messages."""
    return params.get("host") or params.get("hostaddr") or "the local socket"


def conninfo(params: dict[str, str], seconds: float) -> str:
    """Return the connection string for a connection that must be there within some seconds."""
    bound = {"connect_timeout": str(max(_SHORTEST_CONNECT, math.ceil(seconds)))}
    return make_conninfo("", **{**bound, **params})


def statement(call: Call[Any]) -> tuple[str, list[Any]]:
    """Return the SQL of a call, whose one value is the answer as JSON, and its values."""
    if call.arguments is None:
        return call.sql, list(call.values)
    function = call.path.removeprefix("rpc/")
    given = ", ".join(f"{name} => %s" for name in call.arguments)
    invoked = f"pg_catalog.to_jsonb(krai_core.{function}({given}))"
    values = [_value(value) for value in call.arguments.values()]
    if call.path not in _NEED_NOT_WAIT:
        return f"select {invoked}", values
    own = f"with own as materialized (select pg_catalog.set_config('request.path', '/{call.path}', true))"
    return f"{own} select {invoked} from own", values  # noqa: S608 - names of our own


def _value(value: Any) -> Any:
    """A value as text of no type, so that Postgres reads it as the type of the parameter, as PostgREST does."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, TextArray):
        return list(value)
    return json.dumps(value, allow_nan=False)


def problem_of(error: psycopg.Error) -> Exception:
    """Return what to raise for an error of a statement."""
    code = error.sqlstate
    if code is None:
        if isinstance(error, psycopg.DataError):
            return InvalidArgument(str(error))
        return TransientError(_reason(error), never_ran=False)
    if code in _NEVER_RAN:
        return TransientError(f"{code}: {error.diag.message_primary}", never_ran=True)
    if code in _MAY_HAVE_RUN or code.startswith("08"):
        return TransientError(f"{code}: {error.diag.message_primary}", never_ran=False)
    diag = error.diag
    body = {
        "code": code,
        "message": diag.message_primary,
        "details": diag.message_detail,
        "hint": diag.message_hint,
    }
    found = from_answer(_SERVER_ERROR, body)
    if isinstance(found, AccessDenied):
        found.hint = _DENIED
    return answered(found)


def no_connection(error: Exception) -> TransientError:
    """Return what a connection that did not come about means for the next try."""
    return TransientError(_reason(error), never_ran=True)


def no_answer(seconds: float) -> TransientError:
    """Return what a statement without an answer in time means for the next try."""
    return TransientError(f"no answer within {seconds:g} s", never_ran=False)


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())


def bounded(steps: Generator[T, Any, Any], deadline: float) -> Generator[T, Any, Any]:
    """Pass on the steps of a statement, which psycopg takes every tenth of a second at least, until a deadline.

    Raises:
        DeadlineError: The deadline of ``time.monotonic`` is over.
    """
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() >= deadline:
                raise DeadlineError
            wanted = steps.send(ready)
    except StopIteration as end:
        return end.value
