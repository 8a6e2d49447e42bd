"""A stack of its own, emptied before each test, because the examples look at all documents there are."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import supabase

from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker

# The modules beside the tests are no package: pytest imports tests by their paths.
sys.path.insert(0, str(Path(__file__).resolve().parent))

Sql = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture(scope="session")
def stack() -> Iterator[LocalSupabase]:
    """Postgres, PostgREST, all migrations."""
    with LocalSupabase() as running:
        yield running


@pytest.fixture(scope="session")
def connection(stack: LocalSupabase) -> "Iterator[psycopg.Connection[tuple[Any, ...]]]":
    """A connection as service_role."""
    with psycopg.connect(stack.admin_url, autocommit=True) as opened:
        opened.execute("set role service_role")
        yield opened


@pytest.fixture
def sql(connection: "psycopg.Connection[tuple[Any, ...]]") -> Sql:
    """Run a statement as service_role, the documents of earlier tests gone."""
    connection.execute("delete from krai_core.documents")

    def run(statement: str, *values: object) -> list[tuple[Any, ...]]:
        cursor = connection.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []

    return run


@pytest.fixture
def document(sql: Sql) -> str:
    """Id of the one document there is."""
    return str(sql("insert into krai_core.documents (filename) values ('manual.pdf') returning id")[0][0])


@pytest.fixture(scope="session")
def supabase_client(stack: LocalSupabase) -> supabase.Client:
    """The client of the examples that use the tracker."""
    return stack.client()


@pytest.fixture(scope="session")
def core_client(stack: LocalSupabase, supabase_client: supabase.Client) -> supabase.Client:
    """The client of the examples that read documents: its default schema is krai_core."""
    options = supabase.ClientOptions(schema="krai_core", httpx_client=supabase_client.options.httpx_client)
    return supabase.create_client(stack.url, stack.key(), options)


@pytest.fixture(scope="session")
def tracker(supabase_client: supabase.Client) -> StageTracker:
    """The tracker of the examples."""
    return StageTracker(supabase_client)
