"""Helpers of the SQL tests: connections that call krai_core, documents in given states, what a refusal says."""

import datetime as dt
import decimal
import itertools
import json
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from processors_v2._local.project import migrations_folder
from processors_v2.local import LocalSupabase

# The modules beside the tests are no package: pytest imports tests by their paths.
sys.path.insert(0, str(Path(__file__).parent))

from truth import prove_derived

STAGES = [
    "upload",
    "text_extraction",
    "image_processing",
    "classification",
    "metadata_extraction",
    "storage",
    "embedding",
    "search_indexing",
]
KEYS = {"status", "started_at", "completed_at", "duration_seconds", "progress", "error", "metadata"}
_DATABASE_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Refusal:
    """An error of the tracker, in the parts that a caller sees."""

    sqlstate: str
    message: str
    detail: dict[str, Any]
    hint: str | None

    @property
    def word(self) -> str:
        """The word for machines."""
        return str(self.detail["error"])


class Sql:
    """One connection in autocommit, acting as one role."""

    def __init__(self, url: str, role: str | None = None) -> None:
        self.connection = psycopg.connect(url, autocommit=True)
        self.warnings: list[str] = []
        self.connection.add_notice_handler(self._keep_warning)
        self.connection.execute("set client_min_messages = warning")
        if role is not None:
            self.connection.execute(sql.SQL("set role {}").format(sql.Identifier(role)))

    def _keep_warning(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        self.warnings.append(diagnostic.message_primary or "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    @property
    def pid(self) -> int:
        """The server process of this connection."""
        return self.connection.info.backend_pid

    def run(self, query: str, *parameters: object) -> None:
        """Execute a statement."""
        self.connection.execute(query, [_adapted(value) for value in parameters] or None)

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        return self.connection.execute(query, [_adapted(value) for value in parameters] or None).fetchall()

    def value(self, query: str, *parameters: object) -> Any:
        """The one value that a query gives."""
        ((value,),) = self.rows(query, *parameters)
        return value

    def call(self, function: str, *arguments: object, **named: object) -> Any:
        """The answer of a function, of krai_core unless its schema is named."""
        function = function if "." in function else f"krai_core.{function}"
        places = ["%s"] * len(arguments) + [f"{name} => %s" for name in named]
        return self.value(f"select {function}({', '.join(places)})", *arguments, *named.values())

    def refused(self, function: str, *arguments: object, **named: object) -> Refusal:
        """The error with which a function of krai_core answers."""
        with pytest.raises(psycopg.Error) as caught:
            self.call(function, *arguments, **named)
        told = caught.value.diag
        return Refusal(
            told.sqlstate or "",
            told.message_primary or "",
            json.loads(told.message_detail or "{}"),
            told.message_hint,
        )

    def attempt(self, function: str, *arguments: object, **named: object) -> None:
        """Call a function of krai_core, which may refuse it as not fitting the state of the stage."""
        try:
            self.call(function, *arguments, **named)
        except psycopg.Error as refusal:
            if refusal.sqlstate != "PT409":
                raise

    def document(self, **columns: object) -> uuid.UUID:
        """Insert a document and return its id."""
        values = {"filename": "manual.pdf", **columns}
        made: uuid.UUID = self.value(
            f"insert into krai_core.documents ({', '.join(values)}) "
            f"values ({', '.join(['%s'] * len(values))}) returning id",
            *values.values(),
        )
        return made

    def edit(self, document: uuid.UUID, stage_status: object) -> None:
        """Write the whole column directly, as an old script does."""
        self.run("update krai_core.documents set stage_status = %s where id = %s", Jsonb(stage_status), document)

    def stage_status(self, document: uuid.UUID) -> Any:
        """The column, as it is stored."""
        return self.value("select stage_status from krai_core.documents where id = %s", document)

    def stage(self, document: uuid.UUID, stage: str) -> dict[str, Any]:
        """One stage, as it is stored."""
        stored: dict[str, Any] = self.stage_status(document)[stage]
        return stored

    def runs(self, document: uuid.UUID, stage: str) -> list[dict[str, Any]]:
        """The runs of a stage in order of opening, times as text."""
        return [
            run
            for (run,) in self.rows(
                "select to_jsonb(r) from krai_core.stage_runs r where document_id = %s and stage_name = %s order by id",
                document,
                stage,
            )
        ]

    def everything(self, document: uuid.UUID) -> tuple[Any, Any]:
        """The row with its version, and all its runs with theirs: equal only where nothing was written."""
        row = self.value(
            "select to_jsonb(d) || jsonb_build_object('xmin', d.xmin::text) from krai_core.documents d where id = %s",
            document,
        )
        runs = self.value(
            "select jsonb_agg(to_jsonb(r) || jsonb_build_object('xmin', r.xmin::text) order by r.id) "
            "from krai_core.stage_runs r where document_id = %s",
            document,
        )
        return row, runs

    def claim(self, stage: str | list[str] = "upload", limit: int = 1, **named: object) -> list[dict[str, Any]]:
        """What a worker called w gets; a list of stages is given in their order of preference."""
        name = stage if isinstance(stage, str) else json.dumps(stage)
        claimed: list[dict[str, Any]] = self.call("claim_stages", name, "w", limit, **named)
        return claimed

    def finish(self, *outcomes: dict[str, Any]) -> list[dict[str, Any]]:
        """The answers to outcomes, reported in one call."""
        answers: list[dict[str, Any]] = self.call("finish_stages", list(outcomes))
        return answers

    def done(self, document: uuid.UUID, *stages: str) -> None:
        """Complete stages without having started them."""
        for stage in stages:
            self.call("complete_stage", document, stage)

    def end_lease(self, document: uuid.UUID, stage: str) -> None:
        """Let the lease of the running run be over."""
        self.run(
            "update krai_core.stage_runs set lease_expires_at = clock_timestamp() - interval '1 s' "
            "where document_id = %s and stage_name = %s and status = 'running'",
            document,
            stage,
        )


def _adapted(value: object) -> object:
    if isinstance(value, dict | list):
        return Jsonb(value)
    # As a float it would be no numeric argument.
    return decimal.Decimal(str(value)) if isinstance(value, float) else value


def outcome_of(run: dict[str, Any], outcome: str, **further: object) -> dict[str, Any]:
    """What a worker reports of a run that it claimed."""
    ids = {name: run[name] for name in ("document_id", "stage_name", "claim_id")}
    return {**ids, "outcome": outcome, **further}


class InBackground(threading.Thread):
    """A call in a thread of its own, to wait in the database while the test goes on."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._outcome: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Do the work and keep what came of it."""
        try:
            self._outcome = self._work()
        except BaseException as error:  # noqa: BLE001 - handed on by outcome()
            self._error = error

    def outcome(self) -> Any:
        """What the work returned; raises what it raised."""
        self.join(30)
        assert not self.is_alive(), "still waiting in the database"
        if self._error is not None:
            raise self._error
        return self._outcome


@pytest.fixture(scope="session")
def service(local: LocalSupabase) -> Iterator[Sql]:
    """A connection as service_role, shared by all tests."""
    with Sql(local.database_url, "service_role") as connection:
        yield connection


@pytest.fixture(scope="session")
def owner(local: LocalSupabase) -> Iterator[Sql]:
    """A connection as postgres, the owner of the tables, shared by all tests."""
    with Sql(local.database_url) as connection:
        yield connection


@pytest.fixture(scope="session")
def bypass(local: LocalSupabase) -> Iterator[Sql]:
    """A connection as superuser on which no trigger fires, to store what triggers would repair."""
    with Sql(local.admin_url) as connection:
        connection.run("set session_replication_role = replica")
        yield connection


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of these tests."""
    config.addinivalue_line("markers", "triggers_off: writes documents while triggers are switched off")


def _prove_derived(connection: Sql, request: pytest.FixtureRequest) -> None:
    """All that is derived follows the truth, after every test that did not switch triggers off."""
    off = "bypass" in request.fixturenames or request.node.get_closest_marker("triggers_off") is not None
    prove_derived(connection, triggers_off=off)


@pytest.fixture(autouse=True)
def _shared_database(service: Sql, owner: Sql, request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test finds no document and no old warning, and leaves runs and statistics as the truth asks for."""
    if service.value("select exists (select from krai_core.documents)"):
        # Of tests of another folder, which came before in this process.
        _empty(owner)
    service.warnings.clear()
    owner.warnings.clear()
    yield
    try:
        if service.value("select exists (select from krai_core.documents)"):
            _prove_derived(service, request)
    except AssertionError:
        # The tests after this one are not to find what it left.
        owner.call("rebuild_statistics")
        raise
    finally:
        _empty(owner)


def _empty(owner: Sql) -> None:
    owner.run("delete from krai_core.documents")
    owner.run("delete from krai_core.stage_runs")


@pytest.fixture
def connect(local: LocalSupabase) -> Iterator[Callable[..., Sql]]:
    """Opens further connections, as service_role unless told, and closes them after the test."""
    opened: list[Sql] = []

    def open_one(role: str | None = "service_role", url: str | None = None) -> Sql:
        opened.append(Sql(url or local.database_url, role))
        return opened[-1]

    yield open_one
    for connection in opened:
        connection.connection.close()


@pytest.fixture
def outcome() -> Callable[..., dict[str, Any]]:
    """Makes what a worker reports: of a run that was claimed, its outcome, and what belongs to it."""
    return outcome_of


@pytest.fixture
def background() -> type[InBackground]:
    """Runs a call in a thread; outcome() waits for it."""
    return InBackground


@pytest.fixture
def until_waiting(owner: Sql) -> Callable[[Sql], None]:
    """Waits until a connection waits for a lock."""

    def wait(connection: Sql) -> None:
        deadline = time.monotonic() + 20
        while not owner.value(
            "select exists (select from pg_stat_activity where pid = %s and wait_event_type = 'Lock')",
            connection.pid,
        ):
            assert time.monotonic() < deadline, "the connection did not come to wait"
            time.sleep(0.001)

    return wait


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Any]:
    """Asks again until the answer is not empty, and returns it."""

    def wait(ask: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + 20
        while not (answer := ask()):
            assert time.monotonic() < deadline, "it did not come to pass"
            time.sleep(0.005)
        return answer

    return wait


@pytest.fixture(scope="session")
def template(local: LocalSupabase) -> Iterator[str]:
    """A migrated database to copy: nobody is connected to it."""
    name = "sql_template"
    local.create_database(name)
    local.apply_to(name, migrations_folder())
    yield name
    local.drop_database(name)


@pytest.fixture
def own_database(local: LocalSupabase, template: str) -> Iterator[str]:
    """A migrated database without documents, for this test alone: its name."""
    name = f"sql_{next(_DATABASE_NUMBERS)}"
    local.create_database(name, template)
    yield name
    local.drop_database(name)


@pytest.fixture
def alone(local: LocalSupabase, own_database: str, request: pytest.FixtureRequest) -> Iterator[Sql]:
    """A connection as postgres to a migrated database without documents, for this test alone."""
    with Sql(local.url_of(own_database)) as connection:
        yield connection
        _prove_derived(connection, request)


@pytest.fixture
def bring(service: Sql) -> Callable[..., None]:
    """Brings a stage of a document into a state by the calls of a processor."""

    def into(document: uuid.UUID, stage: str, state: str, claim: uuid.UUID | None = None) -> None:
        if state == "pending":
            return
        service.call("start_stage", document, stage, p_claim_id=claim)
        service.call("update_stage_progress", document, stage, 40, {"pages": 2, "kept": "yes"}, p_claim_id=claim)
        if state == "completed":
            service.call("complete_stage", document, stage, p_claim_id=claim)
        elif state == "failed":
            service.call("fail_stage", document, stage, "broken", p_claim_id=claim)
        elif state == "skipped":
            service.call("skip_stage", document, stage, "no need", p_claim_id=claim)

    return into


@pytest.fixture
def moment() -> Callable[[str], dt.datetime]:
    """Reads a time of the column: the one form in which it is written."""

    def read(text: str) -> dt.datetime:
        return dt.datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=dt.UTC)

    return read
