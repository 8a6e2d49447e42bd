"""A tracker over real PostgREST, documents to track, and a proxy before it that does wrong what it is told to."""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import psycopg
import pytest
import supabase

from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker


@dataclass
class Database:
    """What the tests look at behind the tracker's back, as superuser."""

    connection: "psycopg.Connection[tuple[Any, ...]]"

    def one(self, sql: str, *values: object) -> Any:
        """Run a query and return its one value, or None where there is no row."""
        row = self.connection.execute(sql, values).fetchone()
        return None if row is None else row[0]

    def document(self) -> str:
        """Insert a document and return its id."""
        return str(
            self.one("insert into krai_core.documents (filename) values (%s) returning id", f"{uuid.uuid4()}.pdf")
        )

    def stage(self, document: str, stage: str) -> dict[str, Any]:
        """Return the stored object of a stage."""
        stored: dict[str, Any] = self.one(
            "select stage_status -> %s from krai_core.documents where id = %s", stage, document
        )
        return stored

    def run(self, document: str, stage: str, column: str) -> Any:
        """Return a column of the last run of a stage that was begun."""
        return self.one(
            f"select {column} from krai_core.stage_runs where document_id = %s and stage_name = %s"
            " and status <> 'ready' order by id desc",
            document,
            stage,
        )

    def drop_stage(self, stage: str) -> None:
        """Take a stage that a test registered out of the pipeline, as if it had never been."""
        for table in ("stage_prerequisites", "stage_runs", "stages"):
            column = "name" if table == "stages" else "stage_name"
            self.connection.execute(f"delete from krai_core.{table} where {column} = %s", [stage])
        while self.one("select krai_core.fill_ready_runs()"):
            pass

    def end_lease(self, document: str, stage: str) -> None:
        """Let the lease of the running run be over, as if its holder had been silent for long."""
        self.one(
            "update krai_core.stage_runs set lease_expires_at = clock_timestamp() - interval '1 second'"
            " where document_id = %s and stage_name = %s and status = 'running' returning id",
            document,
            stage,
        )


@contextmanager
def connected(stack: LocalSupabase) -> Iterator[Database]:
    """Open a Database of a stack."""
    with psycopg.connect(stack.admin_url, autocommit=True) as connection:
        yield Database(connection)


@pytest.fixture(scope="session")
def look_into() -> Callable[[LocalSupabase], Any]:
    """Open a Database of a stack of the test's own."""
    return connected


@pytest.fixture(scope="session")
def db(local: LocalSupabase) -> Iterator[Database]:
    """The database of the session's stack."""
    with connected(local) as database:
        yield database


@pytest.fixture
def document(db: Database) -> str:
    """Id of a new document, all of its stages pending."""
    return db.document()


@pytest.fixture(scope="session", params=["rest", "postgres"])
def make_tracker(request: pytest.FixtureRequest, local: LocalSupabase) -> Callable[..., StageTracker]:
    """Make a tracker with all rights: what it goes through makes no difference."""
    if request.param == "rest":
        return lambda *arguments, **options: StageTracker(local.client(), *arguments, **options)
    return lambda *arguments, **options: StageTracker.from_postgres(local.database_url, *arguments, **options)


@pytest.fixture(scope="session")
def tracker(make_tracker: Callable[..., StageTracker]) -> StageTracker:
    """A tracker with all rights."""
    return make_tracker()


@pytest.fixture
def lone_stage(tracker: StageTracker, db: Any) -> Iterator[str]:
    """A stage of the test's own, after which nothing comes, so that its queue has only what the test puts there."""
    name = f"stage_{uuid.uuid4().hex[:12]}"
    tracker.register_stage(name, [], max_attempts=3, backoff_seconds=0, lease_seconds=60)
    # Documents of other tests are none of its business.
    db.connection.execute(
        "update krai_core.documents set stage_status = stage_status || jsonb_build_object(%s::text,"
        ' \'{"status": "completed", "progress": 100, "metadata": {}}\'::jsonb)',
        [name],
    )
    while tracker.fill_ready_runs():
        pass
    yield name
    db.drop_stage(name)


@pytest.fixture
def ready_documents(lone_stage: str, db: Any, tracker: StageTracker) -> list[str]:
    """Three documents that are ready for the stage, the oldest first."""
    assert lone_stage
    found = [db.document() for _ in range(3)]
    for document in found:
        tracker.set_priority(document, 5)
    return found


@pytest.fixture(scope="session")
def rest(local: LocalSupabase) -> StageTracker:
    """A tracker that goes through PostgREST."""
    return StageTracker(local.client())


@dataclass
class Proxy:
    """HTTP/1.1 before PostgREST: the gateway that knows /rest/v1, and the faults of a network.

    A fault is used up by one request:
        cut       the connection ends before anything reaches the server
        drop      the server does its work, and the connection ends before the answer is sent
        late      the server does its work, and the answer does not come
        html      502 with an HTML page, nothing reaches the server
        json      502 with the JSON of a gateway, nothing reaches the server
        page      200 with an HTML page
        redirect  307 to this proxy's /elsewhere
        (status, body)   that JSON answer, nothing reaches the server
    """

    upstream: str
    faults: list[str | tuple[int, object]] = field(default_factory=list)
    only: str = ""
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        """Begin to serve."""
        self.pool = httpx.Client(base_url=self.upstream, timeout=30)
        self.over = threading.Event()
        self.up()

    @property
    def url(self) -> str:
        """URL for create_client."""
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        """Listen, on the same port as before."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # headers and body in one packet

            def setup(self) -> None:
                super().setup()
                proxy.connections += 1

            def do_POST(self) -> None:
                proxy.handle(self)

            do_GET = do_POST  # noqa: N815 - so is it called there

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def down(self) -> None:
        """Refuse connections."""
        self.server.shutdown()
        self.server.server_close()

    def reset(self) -> None:
        """Behave, and forget."""
        self.over.set()
        self.over = threading.Event()
        self.faults, self.only, self.requests, self.headers, self.connections = [], "", [], [], 0

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a request, or not."""
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        path = request.path.removeprefix("/rest/v1")
        self.requests.append(path.removeprefix("/rpc/"))
        self.headers.append(dict(request.headers))
        fault = self.faults.pop(0) if self.faults and self.only in path else None
        over = self.over
        if fault in ("html", "page"):
            return self.answer(request, 502 if fault == "html" else 200, b"<html>Bad gateway</html>", "text/html")
        if fault == "json":
            return self.answer(
                request, 502, b'{"message": "An invalid response was received from the upstream server"}'
            )
        if fault == "redirect":
            return self.answer(request, 307, b"", location=f"{self.url}/elsewhere")
        if isinstance(fault, tuple):
            return self.answer(request, fault[0], httpx.Request("POST", "http://x", json=fault[1]).content)
        request.close_connection = fault is not None
        if fault == "cut":
            return None
        passed = {
            k: v for k, v in request.headers.items() if k.lower() not in ("host", "accept-encoding", "connection")
        }
        answer = self.pool.request(request.command, path, content=body, headers=passed)
        if fault == "late":
            over.wait(30)
        if fault is None:
            self.answer(request, answer.status_code, answer.content, answer.headers.get("content-type", ""))
        return None

    @staticmethod
    def answer(
        request: BaseHTTPRequestHandler, status: int, body: bytes, kind: str = "application/json", location: str = ""
    ) -> None:
        """Send an answer."""
        request.send_response(status)
        request.send_header("Content-Type", kind)
        if location:
            request.send_header("Location", location)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


@pytest.fixture(scope="session")
def running_proxy(local: LocalSupabase) -> Iterator[Proxy]:
    """The one proxy of the session."""
    proxy = Proxy(local.url)
    # The version of the database is asked for now, and not by the first test that counts requests.
    StageTracker(supabase.create_client(proxy.url, local.key())).list_stages()
    yield proxy
    proxy.reset()
    proxy.down()
    proxy.pool.close()


@pytest.fixture
def proxy(running_proxy: Proxy) -> Iterator[Proxy]:
    """A proxy that has not been told anything yet."""
    running_proxy.reset()
    yield running_proxy
    running_proxy.reset()


@pytest.fixture(scope="session")
def gateway_client(local: LocalSupabase, running_proxy: Proxy) -> supabase.Client:
    """A client as a hosted project gets it, without an HTTP client of its own, through the proxy."""
    return supabase.create_client(running_proxy.url, local.key())


@pytest.fixture
def through(proxy: Proxy, gateway_client: supabase.Client) -> StageTracker:
    """A tracker through the proxy."""
    assert proxy.url
    return StageTracker(gateway_client)
