"""The command in this process, an environment without variables of others, and a gateway before PostgREST."""

import json
import re
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from processors_v2._local.project import migrations_folder
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker

# The modules beside the tests are no package: pytest imports tests by their paths.
sys.path.insert(0, str(Path(__file__).parent))


Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def folder(folder: Path) -> Path:
    """An empty working directory and environment for every test, whether it looks at it or not."""
    return folder


@pytest.fixture
def seen(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process, and return what it shows on a terminal of some columns."""

    def call(columns: int, *arguments: object) -> Any:
        for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": str(columns)}.items():
            monkeypatch.setenv(name, value)
        return run(*arguments)

    return call


@pytest.fixture
def imports() -> Iterator[None]:
    """What a command imports from the working directory is forgotten after the test."""
    path, modules = list(sys.path), dict(sys.modules)
    yield
    sys.path[:] = path
    for name in sys.modules.keys() - modules.keys():
        if name.startswith(("my_handlers", "broken")):
            del sys.modules[name]


@pytest.fixture(scope="session")
def template(local: LocalSupabase) -> str:
    """Name of a database with the migrations and no documents, which nobody is connected to."""
    name = "cli_template"
    local.create_database(name)
    local.apply_to(name, migrations_folder())
    return name


@pytest.fixture(scope="module")
def database(local: LocalSupabase, template: str) -> Iterator[str]:
    """URL of a database of this module's own, without documents at first."""
    name = f"cli_{uuid.uuid4().hex}"
    local.create_database(name, template)
    yield local.url_of(name)
    local.drop_database(name)


@pytest.fixture
def direct(database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same, as SUPABASE_DB_URL of this test."""
    monkeypatch.setenv("SUPABASE_DB_URL", database)
    return database


@dataclass
class Database:
    """Documents and what is stored of them."""

    connection: "psycopg.Connection[tuple[Any, ...]]"

    def one(self, sql: str, *values: object) -> Any:
        """Run a statement and return the one value that it gives, or None."""
        cursor = self.connection.execute(sql, values or None)
        row = cursor.fetchone() if cursor.description else None
        return None if row is None else row[0]

    def document(self, filename: str = "manual.pdf") -> str:
        """Insert a document and return its id."""
        return str(self.one("insert into krai_core.documents (filename) values (%s) returning id", filename))

    def call(self, function: str, *arguments: object) -> Any:
        """Call a function of krai_core and return its answer."""
        holes = ", ".join(["%s"] * len(arguments))
        return self.one(f"select krai_core.{function}({holes})", *arguments)

    def stage(self, document: str, stage: str) -> dict[str, Any]:
        """Return the stored object of a stage."""
        stored: dict[str, Any] = self.one(
            "select stage_status -> %s from krai_core.documents where id = %s", stage, document
        )
        return stored


@pytest.fixture(scope="module")
def db(database: str) -> Iterator[Database]:
    """The database of this module."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield Database(connection)


@pytest.fixture(scope="module")
def tracker(database: str) -> Iterator[StageTracker]:
    """A tracker of that database."""
    with StageTracker.from_postgres(database) as made:
        yield made


MEASURED = re.compile(r"seconds|duration$|_at$|per_hour|^(avg_|oldest_|hours|timestamp|utilisation|since$|p50$|p90$)")


def normal(value: Any, names: dict[str, str] | None = None, key: str = "") -> Any:
    """Return an answer without what differs from run to run: ids by their order, measured values by their kind."""
    names = {} if names is None else names
    if isinstance(value, dict):
        return {one: normal(inner, names, one) for one, inner in value.items()}
    if isinstance(value, list):
        return [normal(one, names, key) for one in value]
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", value):
        return names.setdefault(value, f"<id {len(names) + 1}>")
    if key in {"today", "one_more", "one_fewer"}:
        return "<number or null>"
    if value is not None and MEASURED.search(key):
        return f"<{'time' if isinstance(value, str) else 'number'}>"
    return value


@pytest.fixture(scope="session")
def golden() -> Callable[[str, str], None]:
    """Compare what a command printed with a file of this folder."""

    def compare(name: str, printed: str) -> None:
        file = Path(__file__).parent / "golden" / f"{name}.json"
        assert normal(json.loads(printed)) == json.loads(file.read_text(encoding="utf-8"))

    return compare


class _Gateway(BaseHTTPRequestHandler):
    """What stands before PostgREST in a project: it knows /rest/v1."""

    protocol_version = "HTTP/1.1"
    pool: httpx.Client

    def do_POST(self) -> None:
        """Pass a request on."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        dropped = ("host", "accept-encoding", "connection")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        answer = self.pool.request(self.command, self.path.removeprefix("/rest/v1"), content=body, headers=headers)
        self.send_response(answer.status_code)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST  # noqa: N815 - so is it called there

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture(scope="session")
def gateway(local: LocalSupabase) -> Iterator[str]:
    """SUPABASE_URL of the stack of the session, as a hosted project has it."""
    with httpx.Client(base_url=local.url, timeout=30) as pool:
        handler = type("Gateway", (_Gateway,), {"pool": pool})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        server.server_close()


@pytest.fixture
def project(gateway: str, local: LocalSupabase, monkeypatch: pytest.MonkeyPatch) -> LocalSupabase:
    """The stack of the session, as SUPABASE_URL and SUPABASE_SECRET_KEY."""
    monkeypatch.setenv("SUPABASE_URL", gateway)
    monkeypatch.setenv("SUPABASE_SECRET_KEY", local.key())
    return local
