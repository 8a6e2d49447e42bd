"""``stage-tracker sql``: all migrations as one text, sent as one message."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from processors_v2._local.project import migrations_folder
from processors_v2._transport.version import SCHEMA_VERSION
from processors_v2.local import LocalSupabase

SQL = Path(__file__).parents[1] / "migrations" / "sql"
CATALOG = (SQL / "catalog.sql").read_bytes()
Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def text(run: Callable[..., Any]) -> bytes:
    """What the command prints."""
    done = run("sql")
    assert (done.code, done.err) == (0, "")
    printed: bytes = done.out.encode()
    return printed


@pytest.fixture
def bare(local: LocalSupabase) -> Iterator[Connection]:
    """An empty database with what Supabase puts in, as role postgres."""
    name = f"cli_sql_{uuid.uuid4().hex}"
    local.create_database(name)
    with psycopg.connect(local.url_of(name), autocommit=True) as connection:
        yield connection
    local.drop_database(name)


@pytest.fixture
def migrated(local: LocalSupabase, template: str) -> Iterator[Connection]:
    """What psql makes of the files, one by one, in an empty database."""
    with psycopg.connect(local.url_of(template), autocommit=True) as connection:
        yield connection


def send(connection: Connection, text: bytes) -> bytes | None:
    """Send a text as the editor does, as one message of the simple protocol, and return what it shows at the end."""
    answer = connection.pgconn.exec_(text)
    assert answer.status != psycopg.pq.ExecStatus.FATAL_ERROR, answer.error_message
    return answer.get_value(0, 0) if answer.ntuples else None


def catalog(connection: Connection) -> list[tuple[Any, ...]]:
    """Return what there is, line by line, with definitions, privileges and comments."""
    return connection.execute(CATALOG).fetchall()


def contents(connection: Connection) -> list[tuple[Any, ...]]:
    """Return where the documents stand, but for times of the migration itself."""
    return connection.execute(
        "select d.filename, e.key, e.value ->> 'status', e.value -> 'metadata', e.value -> 'error',"
        " (select array_agg(r.status order by r.id) from krai_core.stage_runs r"
        "  where r.document_id = d.id and r.stage_name = e.key)"
        " from krai_core.documents d, jsonb_each(d.stage_status) e order by 1, 2"
    ).fetchall()


def test_one_message_makes_what_the_migrations_make(local: LocalSupabase, bare: Connection, text: bytes) -> None:
    """Over an earlier tracker, catalog and documents are those that psql leaves; sent again, it changes nothing."""
    for name in ("field.sql", "v1.sql", "v1_rows.sql"):
        bare.execute((SQL / name).read_bytes())
    notices: list[str] = []
    bare.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
    for _ in range(2):
        assert send(bare, text) == f"stage tracker {SCHEMA_VERSION}".encode()
        by_message = (catalog(bare), contents(bare), bare.execute("show statement_timeout").fetchall())
    assert [notice for notice in notices if "transaction" in notice] == []
    local.apply_to(bare.info.dbname, migrations_folder())
    assert (catalog(bare), contents(bare), bare.execute("show statement_timeout").fetchall()) == by_message


def test_after_an_error_all_of_it_is_sent_again(bare: Connection, migrated: Connection, text: bytes) -> None:
    """What came before the error is there; the rest comes with the next message, also in a transaction around it."""
    bare.execute("create schema krai_core; create table krai_core.vw_stage_statistics (id integer)")
    assert bare.pgconn.exec_(text).status == psycopg.pq.ExecStatus.FATAL_ERROR
    bare.execute("rollback")
    assert bare.execute("select to_regclass('krai_core.stage_runs') is not null").fetchall() == [(True,)]
    bare.execute("drop table krai_core.vw_stage_statistics")
    send(bare, b"begin;\n" + text + b"commit;")
    assert catalog(bare) == catalog(migrated)
