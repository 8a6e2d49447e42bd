"""What the tests of the pages share: a migrated database of their own, and connections to it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from processors_v2._local.project import migrations_folder
from processors_v2.local import LocalSupabase

# The modules beside the tests are no package: pytest imports tests by their paths.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "sql")]

Connect = Callable[..., "psycopg.Connection[tuple[Any, ...]]"]


@pytest.fixture(scope="session")
def migrated(local: LocalSupabase) -> str:
    """Name of a migrated database to copy: nobody is connected to it."""
    name = "docs_template"
    local.create_database(name)
    local.apply_to(name, migrations_folder())
    return name


@pytest.fixture(scope="session")
def database_of(local: LocalSupabase, migrated: str) -> Callable[[str], str]:
    """Names the migrated database of a page or test module, made without documents when it is first asked for.

    They go with the stack: to drop one costs a checkpoint.
    """
    made: dict[str, str] = {}

    def of(owner: str) -> str:
        if owner not in made:
            made[owner] = f"docs_{len(made)}"
            local.create_database(made[owner], migrated)
        return made[owner]

    return of


@pytest.fixture
def connect(
    local: LocalSupabase, database_of: Callable[[str], str], request: pytest.FixtureRequest
) -> Iterator[Connect]:
    """Opens connections to the database of this module, or of a page, which act as a role; closes them."""
    with ExitStack() as opened:

        def connect_as(role: str = "service_role", owner: str = "") -> "psycopg.Connection[tuple[Any, ...]]":
            url = local.url_of(database_of(owner or request.module.__name__))
            connection = opened.enter_context(psycopg.connect(url, autocommit=True))
            connection.execute("set client_min_messages = error")
            connection.execute(sql.SQL("set role {}").format(sql.Identifier(role)))
            return connection

        yield connect_as
