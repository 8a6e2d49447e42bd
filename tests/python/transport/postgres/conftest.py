"""A tracker over Postgres, and a proxy before it that does wrong what it is told to."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker

CHUNK = 65536


@dataclass
class TcpProxy:
    """TCP before Postgres: passes bytes on, and counts.

    Attributes:
        fault: What to do with the next statement, once:
            cut     the connection ends before the statement reaches the server
            drop    the server does its work, and the connection ends before the answer is sent
            late    the server does its work, and the answer does not come
        turns: How often the client spoke after the server had.
        connections: How many were opened.
    """

    host: str
    target: int
    fault: str | None = None
    turns: int = 0
    connections: int = 0
    _open: list[socket.socket] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin to listen."""
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End all connections, and listen no more."""
        self._server.close()
        for connection in self._open:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            server = socket.create_connection((self.host, self.target))
            self._open += [client, server]
            link = Link(self, client, server)
            threading.Thread(target=link.upwards, daemon=True).start()
            threading.Thread(target=link.downwards, daemon=True).start()


class Link:
    """One connection."""

    def __init__(self, proxy: TcpProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._holds_back: str | None = None
        self._server_spoke = False

    def upwards(self) -> None:
        """From the client to the server."""
        while data := read_some(self._client):
            if self._server_spoke:
                self._server_spoke = False
                self._proxy.turns += 1
            # P(arse) begins a statement.
            if data[:1] == b"P" and self._proxy.fault:
                self._holds_back, self._proxy.fault = self._proxy.fault, None
                if self._holds_back == "cut":
                    break
            try:
                self._server.sendall(data)
            except OSError:
                break
        self._end()

    def downwards(self) -> None:
        """From the server to the client."""
        while data := read_some(self._server):
            if self._holds_back == "drop":
                break
            if self._holds_back == "late":
                continue
            self._server_spoke = True
            try:
                self._client.sendall(data)
            except OSError:
                break
        self._end()

    def _end(self) -> None:
        for connection in (self._client, self._server):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def read_some(connection: socket.socket) -> bytes:
    """What has come, or nothing at the end."""
    try:
        return connection.recv(CHUNK)
    except OSError:
        return b""


@pytest.fixture
def direct(local: LocalSupabase) -> StageTracker:
    """A tracker over Postgres."""
    return StageTracker.from_postgres(local.database_url)


@pytest.fixture
def wire(local: LocalSupabase) -> Iterator[TcpProxy]:
    """A proxy before Postgres."""
    parts = conninfo_to_dict(local.database_url)
    proxy = TcpProxy(str(parts["host"]), int(str(parts["port"])))
    yield proxy
    proxy.close()


@pytest.fixture
def through_wire(local: LocalSupabase, wire: TcpProxy) -> Callable[..., StageTracker]:
    """Make a tracker through the proxy."""
    return lambda **options: StageTracker.from_postgres(make_conninfo(local.database_url, port=wire.port), **options)


@pytest.fixture
def held(local: LocalSupabase, document: str) -> Iterator[str]:
    """A document whose row somebody else has locked."""
    with psycopg.connect(local.database_url) as connection:
        connection.execute("select from krai_core.documents where id = %s for update", [document])
        yield document


@pytest.fixture
def is_waiting(db: Any) -> Callable[[], bool]:
    """Whether a statement of a tracker still waits in the server."""
    sql = "select count(*) > 0 from pg_stat_activity where application_name = 'stage-tracker' and state = 'active'"
    return lambda: bool(db.one(sql))
