# Made from _async/postgres.py by tools/unasync.py: change that one.
"""How calls reach the database without PostgREST: over connections to Postgres, or to a pooler before it.

A call is one statement and one round trip, in autocommit. Nothing depends on the session, so that a pooler in
transaction mode serves.
"""

import contextlib
import math
import select
import time
from typing import Any

import psycopg

from processors_v2._calls.call import Call
from processors_v2._sync.pool import Pool, close_with
from processors_v2._sync.transport import Transport
from processors_v2._transport import postgres

# To tell a server to give up a statement is a courtesy that must not take long.
_CANCEL_SECONDS = 1.0


class _Connection(psycopg.Connection[Any]):
    """A connection whose statements have a deadline, by ``time.monotonic``."""

    deadline = math.inf

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """Drive a statement, no longer than the deadline."""
        return super().wait(postgres.bounded(gen, self.deadline), *args, **kwargs)


class PostgresTransport(Transport):
    """Sends calls to Postgres; each of them has a connection for itself while it runs.

    Args:
        url: Connection URL.
        timeout: Seconds to wait for one answer.
        retry_for: Seconds in all for one call, repeats included.
    """

    def __init__(self, url: str, *, timeout: float, retry_for: float) -> None:
        super().__init__(url, timeout=timeout, retry_for=retry_for)
        self._parameters = postgres.parameters(url)
        self._connections: Pool[_Connection | None] = Pool(lambda: None)
        close_with(self, self._connections)

    def __repr__(self) -> str:
        return f"PostgresTransport({postgres.without_password(self._parameters)})"

    @property
    def host(self) -> str:
        """Host of the database, for messages."""
        return postgres.host_of(self._parameters)

    @property
    def place(self) -> str:
        """Which database it is, apart from others that this process has to do with."""
        return postgres.without_password(self._parameters)

    def close(self) -> None:
        """Close the connections that are not in use; a later call opens others."""
        for connection in self._connections.drain():
            if connection is not None:
                connection.close()

    def _exchange(self, call: Call[Any], seconds: float) -> Any:
        query, values = postgres.statement(call)
        deadline = time.monotonic() + seconds
        connection = self._connection(seconds)
        connection.deadline = deadline
        try:
            cursor = connection.execute(query, values)
            row = cursor.fetchone()
        except postgres.DeadlineError as error:
            _give_up(connection)
            raise postgres.no_answer(seconds) from error
        except psycopg.Error as error:
            self._give(connection)
            raise postgres.problem_of(error) from error
        except BaseException:
            # Ctrl-C or a cancelled task: nobody knows what the connection is busy with.
            connection.pgconn.finish()
            raise
        self._give(connection)
        return None if row is None else row[0]

    def _connection(self, seconds: float) -> _Connection:
        while (free := self._connections.take()) is not None:
            if _is_silent(free):
                return free
            free.pgconn.finish()
        try:
            return _Connection.connect(
                postgres.conninfo(self._parameters, seconds), autocommit=True, prepare_threshold=None
            )
        except psycopg.OperationalError as error:
            raise postgres.no_connection(error) from error

    def _give(self, connection: _Connection) -> None:
        if connection.closed:
            connection.pgconn.finish()
        else:
            self._connections.give(connection)


def _is_silent(connection: _Connection) -> bool:
    """Whether nothing has come from the server since the last answer: that would be its farewell."""
    if connection.closed:
        return False
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    return not poll.poll(0)


def _give_up(connection: _Connection) -> None:
    connection.deadline = time.monotonic() + _CANCEL_SECONDS
    with contextlib.suppress(psycopg.Error, OSError):
        connection.cancel_safe(timeout=_CANCEL_SECONDS)
    connection.pgconn.finish()
