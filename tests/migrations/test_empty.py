"""On an empty database."""

import re
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

STAGES = "upload text_extraction image_processing classification metadata_extraction storage embedding search_indexing"
REQUIRED = """
text_extraction upload
image_processing upload
classification text_extraction
metadata_extraction text_extraction
embedding text_extraction
storage image_processing
search_indexing embedding
search_indexing metadata_extraction
search_indexing classification
"""

Look = Callable[[str], Any]
Fresh = Callable[..., Any]


def test_the_eight_stages_are_there_in_their_order(look: Look) -> None:
    """An empty database gets the pipeline of eight stages, from upload to search_indexing."""
    found = look("empty").rows("select name, position from krai_core.stages order by position")
    assert found == [(name, place) for place, name in enumerate(STAGES.split(), start=1)]


def test_the_prerequisites_are_those_of_the_pipeline(look: Look) -> None:
    """What a stage waits for is seeded with the stages."""
    found = look("empty").rows("select stage_name, requires from krai_core.stage_prerequisites")
    assert sorted(found) == sorted(tuple(line.split()) for line in REQUIRED.strip().splitlines())


def test_a_minimal_documents_table_is_made(look: Look) -> None:
    """Where there is no krai_core.documents, a small one is made, with id, filename and the two legacy facts."""
    found = look("empty").rows(
        "select column_name, data_type, is_nullable from information_schema.columns"
        " where table_schema = 'krai_core' and table_name = 'documents' order by ordinal_position"
    )
    assert found == [
        ("id", "uuid", "NO"),
        ("filename", "text", "NO"),
        ("processing_status", "text", "YES"),
        ("created_at", "timestamp with time zone", "NO"),
        ("updated_at", "timestamp with time zone", "NO"),
        ("stage_status", "jsonb", "YES"),
    ]


def test_a_new_document_is_pending_in_every_stage(look: Look) -> None:
    """The column default holds the eight stages, each with the seven keys."""
    database = look("empty")
    database.run("insert into krai_core.documents (filename) values ('new.pdf')")
    pending = {
        "status": "pending",
        "started_at": None,
        "completed_at": None,
        "duration_seconds": None,
        "progress": 0,
        "error": None,
        "metadata": {},
    }
    assert database.stage_status("new.pdf") == dict.fromkeys(STAGES.split(), pending)


def test_the_index_is_there_and_valid(look: Look) -> None:
    """idx_documents_stage_status is a valid GIN index over the whole column."""
    found = look("empty").rows(
        "select pg_get_indexdef(indexrelid), indisvalid, indisready from pg_index"
        " where indexrelid = 'krai_core.idx_documents_stage_status'::regclass"
    )
    definition = "CREATE INDEX idx_documents_stage_status ON krai_core.documents USING gin (stage_status)"
    assert found == [(definition, True, True)]


def test_nobody_but_service_role_reaches_the_new_table(look: Look) -> None:
    """The documents table that we make is closed to anon and authenticated, and has row level security."""
    database = look("empty")
    assert database.value("select relrowsecurity from pg_class where oid = 'krai_core.documents'::regclass")
    found = database.rows(
        "select grantee, string_agg(privilege_type, ',' order by privilege_type)"
        " from information_schema.role_table_grants"
        " where table_schema = 'krai_core' and table_name = 'documents' and grantee <> 'postgres' group by 1"
    )
    assert found == [("service_role", "DELETE,INSERT,SELECT,UPDATE")]


def test_nothing_is_left_in_other_schemas(fresh: Fresh) -> None:
    """Everything that the migrations make lies in the schemas krai_core and krai_private."""
    database = fresh("empty")
    before = set(database.catalog())
    database.migrate()
    new = set(database.catalog()) - before
    assert [line for line in new if not re.match(r"[a-z]+ krai_(core|private)\b", line)] == []


def test_no_other_search_path_leads_astray(fresh: Fresh) -> None:
    """The migrations name everything in full: a search_path that puts other schemas first changes nothing."""
    database, plain = fresh("empty"), fresh("empty")
    plain.migrate()
    database.run(
        "create schema mine",
        "create table mine.documents (id bigint)",
        "create table mine.stages (id bigint)",
        "set search_path = mine, krai_core, public",
    )
    database.migrate()
    database.run("drop schema mine cascade", "reset search_path")
    assert database.catalog() == plain.catalog()


@pytest.mark.parametrize("server", ["16"], indirect=True)
def test_a_database_without_the_roles_of_supabase_is_told_so(fresh: Fresh) -> None:
    """The roles are looked for before anything is made, and the error names the one that is missing."""
    database = fresh("empty")
    statements = database.statements(database.files()[0])
    [check] = [statement for statement in statements if "roles of a Supabase database" in statement]
    assert not any(
        statement.startswith(("create", "alter", "grant")) for statement in statements[: statements.index(check)]
    )
    # A role belongs to the whole server, so that here another name is asked for.
    told = r"database are missing: nobody_of_that_name\..* create role"
    with pytest.raises(psycopg.errors.UndefinedObject, match=told):
        database.run(check.replace("'anon'", "'nobody_of_that_name'"))
