"""Databases on which the tracker cannot work: each is told what to do, and left as it was."""

import contextlib
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from processors_v2.local import LocalStackError

Fresh = Callable[..., Any]

WAYS_OUT = {
    "id bigint": """
        alter table krai_core.documents rename column id to number;
        alter table krai_core.documents drop constraint documents_pkey;
        alter table krai_core.documents add id uuid primary key default gen_random_uuid()
        """,
    "no key": "alter table krai_core.documents add primary key (id)",
    "a key with nulls": "alter table krai_core.documents add primary key (id)",
    "no filename": "alter table krai_core.documents add column filename text generated always as (name) stored",
    "stage_status json": """
        alter table krai_core.documents alter column stage_status drop default,
            alter column stage_status type jsonb using stage_status::jsonb
        """,
    "stage_status text": """
        alter table krai_core.documents alter column stage_status drop default,
            alter column stage_status type jsonb using stage_status::jsonb
        """,
    "a name that is taken": "alter table krai_core.stages rename to old_stages",
}
REFUSALS = {
    "a view": (
        """
        create table krai_core.real_documents (id uuid primary key, filename text, stage_status jsonb);
        create view krai_core.documents as select * from krai_core.real_documents
        """,
        "documents is a view",
        "the name krai_core.documents to the table",
    ),
    "a partitioned table": (
        "create table krai_core.documents (id uuid primary key, filename text) partition by hash (id)",
        "documents is a partitioned table",
        "the name krai_core.documents to the table",
    ),
    "a materialized view": (
        "create materialized view krai_core.documents as select gen_random_uuid() as id, ''::text as filename",
        "documents is a materialized view",
        "the name krai_core.documents to the table",
    ),
    "id bigint": (
        "create table krai_core.documents (id bigint primary key, filename text)",
        "documents.id is of type bigint",
        "add `id uuid primary key default gen_random_uuid()`",
    ),
    "id text": (
        "create table krai_core.documents (id text primary key, filename text)",
        "documents.id is of type text",
        "add `id uuid primary key default gen_random_uuid()`",
    ),
    "no id": (
        "create table krai_core.documents (document_id uuid primary key, filename text)",
        "documents.id is missing",
        "add `id uuid primary key default gen_random_uuid()`",
    ),
    "no key": (
        "create table krai_core.documents (id uuid not null, filename text)",
        "documents.id is not a key",
        "alter table krai_core.documents add primary key (id)",
    ),
    "a key of two columns": (
        "create table krai_core.documents (id uuid, version integer, filename text, primary key (id, version))",
        "documents.id is not a key",
        "alter table krai_core.documents add primary key (id)",
    ),
    "a key with nulls": (
        "create table krai_core.documents (id uuid unique, filename text)",
        "documents.id is not a key",
        "alter table krai_core.documents add primary key (id)",
    ),
    "a partial key": (
        """
        create table krai_core.documents (id uuid not null, filename text);
        create unique index on krai_core.documents (id) where filename is not null
        """,
        "documents.id is not a key",
        "alter table krai_core.documents add primary key (id)",
    ),
    "no filename": (
        "create table krai_core.documents (id uuid primary key, name text)",
        "no column filename",
        "add column filename text generated always as",
    ),
    "stage_status json": (
        "create table krai_core.documents (id uuid primary key, filename text, stage_status json default '{}')",
        "stage_status is of type json, not jsonb",
        "alter column stage_status type jsonb using stage_status::jsonb",
    ),
    "stage_status text": (
        "create table krai_core.documents (id uuid primary key, filename text, stage_status text)",
        "stage_status is of type text, not jsonb",
        "alter column stage_status type jsonb using stage_status::jsonb",
    ),
    "a name that is taken": (
        """
        create table krai_core.documents (id uuid primary key, filename text);
        create table krai_core.stages (id integer primary key)
        """,
        "has a name that the tracker needs: stages",
        "Give it another name",
    ),
}


@pytest.fixture(params=REFUSALS, ids=lambda name: name.replace(" ", "_"))
def refused(bare: Any, request: pytest.FixtureRequest) -> tuple[Any, str, str]:
    """A database on which the tracker cannot work, and parts of what it must be told."""
    setup, message, remedy = REFUSALS[request.param]
    bare.run(setup)
    return bare, message, remedy


def test_it_stops_with_a_sentence_and_leaves_nothing(refused: tuple[Any, str, str]) -> None:
    """The message itself says what is the matter and what to do, and the catalog is as before."""
    database, message, remedy = refused
    before = database.catalog()
    with pytest.raises(psycopg.Error) as caught:
        database.migrate()
    database.run("rollback")
    said = str(caught.value.diag.message_primary)
    assert [part for part in (message, remedy, "run the migration again") if part not in said] == []
    assert database.catalog() == before


@pytest.mark.parametrize("server", ["16"], indirect=True)
def test_files_that_are_run_all_the_same_leave_nothing(refused: tuple[Any, str, str]) -> None:
    """psql goes on after an error unless it is told otherwise: no later file puts anything into such a database."""
    database, *_ = refused
    before = database.catalog()
    for path in database.files():
        for statement in database.statements(path):
            with contextlib.suppress(psycopg.Error):
                database.run(statement)
        assert database.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert database.catalog() == before


@pytest.mark.parametrize("kind", WAYS_OUT)
@pytest.mark.parametrize("server", ["16"], indirect=True)
def test_the_way_out_that_is_told_is_one(bare: Any, kind: str) -> None:
    """After the statement of the message the migration goes through, and a document can be worked on."""
    bare.run(REFUSALS[kind][0], WAYS_OUT[kind])
    bare.migrate()
    rows = {
        "id bigint": "(number, filename) values (1, 'new.pdf')",
        "no filename": "(id, name) values (gen_random_uuid(), 'new.pdf')",
    }
    row = rows.get(kind, "(id, filename) values (gen_random_uuid(), 'new.pdf')")
    bare.run(f"insert into krai_core.documents {row}")
    document = bare.value("select id from krai_core.documents where filename = 'new.pdf'")
    assert bare.value("select krai_core.start_stage(%s, 'upload')", document) is True


def test_a_table_of_somebody_else_is_refused(fresh: Fresh) -> None:
    """Where the migration role may not alter documents, the owner is named and asked."""
    database = fresh("field")
    admin = database.connect("supabase_admin")
    admin.execute("alter table krai_core.documents owner to supabase_admin")
    before = database.catalog()
    with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
        database.migrate()
    database.run("rollback")
    assert "documents belongs to supabase_admin, and postgres may not change it" in str(caught.value)
    assert "alter table krai_core.documents owner to postgres" in str(caught.value)
    assert database.catalog() == before


def test_the_name_of_the_index_taken_by_another_table_is_told(fresh: Fresh) -> None:
    """A renamed table keeps the names of its indexes: that one would be taken for ours."""
    database = fresh("v1")
    database.run(
        "create table krai_core.documents_old (like krai_core.documents)",
        "drop index krai_core.idx_documents_stage_status",
        "create index idx_documents_stage_status on krai_core.documents_old using gin (stage_status)",
    )
    with pytest.raises(psycopg.errors.DuplicateTable, match=r"taken by an index of krai_core\.documents_old"):
        database.migrate()
    database.run("alter index krai_core.idx_documents_stage_status rename to old_index")
    database.migrate()
    query = "select indrelid::regclass::text from pg_index where indexrelid = to_regclass(%s)"
    assert database.value(query, "krai_core.idx_documents_stage_status") == "krai_core.documents"


def test_psql_stops_at_the_first_file_and_shows_the_sentence(bare: Any) -> None:
    """With ON_ERROR_STOP the sentence is the last thing that psql says."""
    bare.run(REFUSALS["id bigint"][0])
    with pytest.raises(LocalStackError, match=r"id is of type bigint(.|\n)*run the migration again") as caught:
        bare.local.apply_to(bare.name, bare.files())
    assert "_stage_tracker.sql" in str(caught.value)
