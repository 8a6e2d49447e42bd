"""Databases as the field has them, on each Postgres version, and what is read of them before and after."""

import itertools
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pglast
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from processors_v2._local.project import migration_files, migrations_folder, newest_migrations, topic_of
from processors_v2.local import LocalSupabase
from tools.build_rollback import names

SQL = Path(__file__).parent / "sql"
DEBIAN = Path("/usr/lib/postgresql/15")
# The layers of which the databases before the migration are made, each on top of the one before.
LAYERS = {
    "empty": (),
    "field": ("field.sql",),
    "v1": ("field.sql", "v1.sql"),
    "v1_rows": ("field.sql", "v1.sql", "v1_rows.sql"),
}
_NUMBERS = itertools.count(1)
# The line above each source in a migration.
_SECTION = re.compile(r"^-- ======== (\S+) ========$", re.MULTILINE)


def statements_of(path: Path) -> list[str]:
    """The statements of a file."""
    return list(pglast.split(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Block:
    """What a migration commits at once: a transaction, or a statement outside of one.

    Attributes:
        path: The migration.
        start: How many statements of it come before.
        section: The source that stands in it, the last of several; in a file of one source its topic.
        statements: Its statements, begin and commit included.
    """

    path: Path
    start: int
    section: str
    statements: tuple[str, ...]

    @property
    def is_transaction(self) -> bool:
        """Whether it goes from begin to commit."""
        return self.statements[-1] == "commit"


def blocks_of(path: Path) -> list[Block]:
    """The blocks of a file, in their order."""
    found: list[Block] = []
    inside: list[str] = []
    text = path.read_text(encoding="utf-8")
    for number, place in enumerate(pglast.split(text, only_slices=True), start=1):
        inside.append(text[place])
        if inside[0] != "begin" or inside[-1] == "commit":
            section = _SECTION.findall(text, 0, place.stop)[-1:] or [topic_of(path)]
            found.append(Block(path, number - len(inside), section[0], tuple(inside)))
            inside = []
    assert not inside, f"{path.name} ends inside a transaction"
    return found


@dataclass
class Database:
    """One database of a server, with a connection of the role that migrates."""

    local: LocalSupabase
    name: str
    warnings: list[str] = field(default_factory=list)
    opened: list[psycopg.Connection[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.connection = self.connect()

    def connect(self, role: str = "postgres") -> psycopg.Connection[Any]:
        """Another connection, in autocommit, closed with the first; it notes the warnings that it hears."""
        connection = psycopg.connect(self.local.url_of(self.name, role), autocommit=True)
        connection.add_notice_handler(self._note)
        self.opened.append(connection)
        return connection

    def _note(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            self.warnings.append(f"{diagnostic.message_primary}\n{diagnostic.message_hint}")

    def run(self, *statements: str) -> None:
        """Execute statements one by one."""
        for statement in statements:
            self.connection.execute(statement)

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        return self.connection.execute(query, parameters or None).fetchall()

    def value(self, query: str, *parameters: Any) -> Any:
        """The one value of a query."""
        [(value,)] = self.rows(query, *parameters)
        return value

    def load(self, *names: str) -> None:
        """Run SQL files of the tests."""
        for name in names:
            self.connection.execute((SQL / name).read_bytes())

    def migrate(self, files: list[Path] | None = None) -> None:
        """Run the migrations in this process, statement by statement, as psql sends them."""
        for path in self.files() if files is None else files:
            self.run(*statements_of(path))

    def prepare_repair(self) -> None:
        """Run the migrations up to where the first document would be repaired."""
        repair = self.file("stage_tracker_repair")
        self.migrate([path for path in self.files() if path < repair])
        self.run(*blocks_of(repair)[0].statements)

    def repair(self, session: psycopg.Connection[Any] | None = None) -> None:
        """Repair the documents, with the functions as they are."""
        for block in blocks_of(self.file("stage_tracker_repair"))[1:]:
            for statement in block.statements:
                (session or self.connection).execute(statement)

    def move_helpers_back(self) -> None:
        """Bring a migrated database to the layout of before 0.1.1: helpers in krai_core, each by some name of then."""
        helpers = self.rows(
            "select 'view', relname from pg_class where relnamespace = 'krai_private'::regnamespace and relkind = 'v'"
            " union all select 'routine', proname from pg_proc where pronamespace = 'krai_private'::regnamespace"
            " order by 1 desc, 2 desc"
        )
        earlier = names()["leftover"]
        for (kind, name), new in zip(helpers, earlier, strict=False):
            self.run(
                f"alter {kind} krai_private.{name} rename to {new}",
                f"alter {kind} krai_private.{new} set schema krai_core",
            )
        # There are more of them than names; nothing hangs on those that are last by this order.
        self.run(*(f"drop {kind} krai_private.{name}" for kind, name in helpers[len(earlier) :]))
        self.run("drop schema krai_private")

    def stage_status(self, filename: str) -> Any:
        """The column of the document of that name."""
        return self.value("select stage_status from krai_core.documents where filename = %s", filename)

    def catalog(self) -> list[str]:
        """What there is, line by line, with definitions, privileges and comments, but without oids."""
        return [line for (line,) in self.rows((SQL / "catalog.sql").read_bytes().decode())]

    def contents(self, *without: str) -> dict[str, list[tuple[Any, ...]]]:
        """All rows of the tables, without some of the columns."""
        tables = self.rows(
            "select c.oid::regclass::text from pg_class c where c.relkind = 'r' and"
            " c.relnamespace::regnamespace::text ~ '^krai_' order by 1"
        )
        return {
            table: sorted(self.rows(f"select to_jsonb(t) - %s::text[] from {table} t", [*without]), key=str)
            for (table,) in tables
        }

    def comparable(self) -> dict[str, list[tuple[Any, ...]]]:
        """All rows, but for what is never the same in two databases: the number of a run, and when it was opened."""
        times = ["id", "available_at", "started_at", "heartbeat_at", "lease_expires_at"]
        # A stage that does not say when it ended is taken to have ended when the migration came to it.
        runs = self.rows(
            "select to_jsonb(t) - %s::text[] - case when t.finished_at > pg_postmaster_start_time()"
            " then 'finished_at' else '' end from krai_core.stage_runs t",
            times,
        )
        return self.contents() | {"krai_core.stage_runs": sorted(runs, key=str)}

    @staticmethod
    def files() -> list[Path]:
        """The migrations, in their order."""
        return migration_files(migrations_folder())

    @staticmethod
    def file(topic: str) -> Path:
        """The newest migration of a topic."""
        [path] = [path for path in newest_migrations() if topic_of(path) == topic]
        return path

    @staticmethod
    def statements(path: Path) -> list[str]:
        """The statements of a file."""
        return statements_of(path)

    @staticmethod
    def blocks(path: Path) -> list[Block]:
        """The blocks of a file."""
        return blocks_of(path)

    @staticmethod
    def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
        """Look until something is so, and return it."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, "it did not come to pass"
            time.sleep(0.002)
        return found

    def end_session(self, pid: int) -> None:
        """End a session of the server and wait until nothing is left of it."""
        self.run(f"select pg_terminate_backend({pid})")
        self.wait_for(lambda: not self.rows("select from pg_stat_activity where pid = %s", pid))

    def close(self) -> None:
        """Close all connections."""
        for connection in self.opened:
            connection.close()


class Server:
    """A running stack, and the databases made in it, each kind once and then copied."""

    def __init__(self, local: LocalSupabase, version: str) -> None:
        self.local = local
        self.version = version
        self._templates: set[str] = set()

    def template(self, kind: str, *, migrated: bool = False) -> str:
        """The name of a database of that kind, to be copied."""
        name = f"{kind}_migrated" if migrated else kind
        if name not in self._templates:
            self.local.create_database(name, self.template(kind) if migrated else None)
            database = Database(self.local, name)
            if migrated:
                self.local.apply_to(name, migrations_folder())
            else:
                database.load(*LAYERS[kind])
            database.close()
            self._templates.add(name)
        return name

    @contextmanager
    def copy(self, kind: str, *, migrated: bool = False) -> Iterator[Database]:
        """A fresh database of that kind, dropped afterwards."""
        name = f"test_{next(_NUMBERS)}"
        self.local.create_database(name, self.template(kind, migrated=migrated))
        database = Database(self.local, name)
        try:
            yield database
        finally:
            database.close()
            self.local.drop_database(name)


def _installation(version: str) -> int | Path:
    if version != "15":
        return int(version)
    if not (DEBIAN / "bin" / "initdb").exists():
        pytest.skip(f"there is no Postgres 15 in {DEBIAN}")
    return DEBIAN


@pytest.fixture(scope="session", params=["16", "18", "15"], ids=["pg16", "pg18", "pg15"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A stack without migrations for each Postgres version; what the disk keeps does not matter here."""
    settings = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
    with LocalSupabase(postgres=_installation(request.param), migrations=None, settings=settings) as local:  # type: ignore[arg-type]
        yield Server(local, request.param)


@pytest.fixture
def fresh(server: Server) -> Iterator[Callable[..., Database]]:
    """Makes fresh databases of a kind, as they are before the migration or (migrated=True) after."""
    opened: list[Any] = []

    def make(kind: str, *, migrated: bool = False) -> Database:
        manager = server.copy(kind, migrated=migrated)
        database = manager.__enter__()
        opened.append(manager)
        return database

    yield make
    for manager in reversed(opened):
        manager.__exit__(None, None, None)


@pytest.fixture
def bare(server: Server) -> Iterator[Database]:
    """An empty database that the tests of a server share: what they make in our schemas is dropped."""
    database = Database(server.local, server.template("empty"))
    database.run("create schema krai_core")
    yield database
    if database.connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
        database.run("rollback")
    database.run("drop schema krai_core cascade", "drop schema if exists krai_private cascade")
    database.close()


@pytest.fixture
def served(server: Server) -> Iterator[Database]:
    """The database of a server that PostgREST serves."""
    database = Database(server.local, str(conninfo_to_dict(server.local.database_url)["dbname"]))
    yield database
    database.close()


@pytest.fixture
def look(server: Server) -> Iterator[Callable[[str], Database]]:
    """Opens the migrated database of a kind, shared by all tests: what they write is rolled back."""
    opened: list[Database] = []

    def open_it(kind: str) -> Database:
        database = Database(server.local, server.template(kind, migrated=True))
        database.connection.execute("begin")
        opened.append(database)
        return database

    yield open_it
    for database in opened:
        database.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that asks for a block each block of each migration."""
    if "block" in metafunc.fixturenames:
        blocks = [block for path in migration_files(migrations_folder()) for block in blocks_of(path)]
        names = [f"{topic_of(block.path)}-{block.start}-{block.section}" for block in blocks]
        metafunc.parametrize("block", blocks, ids=names)
