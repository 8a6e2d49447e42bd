"""Edge Functions under real Deno, before them and behind them the gateway that a project has."""

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker

# The modules beside the tests are no package: pytest imports tests by their paths.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from edge_servers import PUBLISHABLE, Gateway, Programs, programs, serve_function


@pytest.fixture(scope="session")
def started() -> Iterator[Programs]:
    """Servers of these tests."""
    with programs() as running:
        yield running


@pytest.fixture(scope="session")
def running_gateway(local: LocalSupabase) -> Iterator[Gateway]:
    """The one gateway of the session."""
    gateway = Gateway({"/rest/v1": local.url})
    yield gateway
    gateway.close()


@pytest.fixture(scope="session")
def functions(started: Programs, running_gateway: Gateway) -> dict[str, str]:
    """URLs of both functions, which have the environment of a hosted project and are found behind the gateway, too."""
    environment = {
        "SUPABASE_URL": running_gateway.url,
        "SUPABASE_PUBLISHABLE_KEYS": f'{{"default": "{PUBLISHABLE}"}}',
        "SUPABASE_ANON_KEY": "a legacy key, which is not asked for where there is a new one",
    }
    urls = {name: serve_function(started, name, environment) for name in ("status", "stages")}
    running_gateway.targets |= {f"/functions/v1/{name}": f"{url}/{name}" for name, url in urls.items()}
    return urls


@pytest.fixture
def gateway(functions: dict[str, str], running_gateway: Gateway) -> Iterator[Gateway]:
    """The gateway before the functions and behind them, with nothing seen and no fault."""
    assert functions
    running_gateway.faults.clear()
    running_gateway.seen.clear()
    yield running_gateway
    running_gateway.faults.clear()


@pytest.fixture(scope="session")
def tracker(local: LocalSupabase) -> StageTracker:
    """A tracker with all rights."""
    return StageTracker(local.client())


@pytest.fixture(scope="session")
def connection(local: LocalSupabase) -> "Iterator[psycopg.Connection[tuple[Any, ...]]]":
    """A connection as superuser."""
    with psycopg.connect(local.admin_url, autocommit=True) as opened:
        yield opened


@pytest.fixture
def document(connection: "psycopg.Connection[tuple[Any, ...]]") -> str:
    """Id of a new document, all of its stages pending."""
    row = connection.execute(
        "insert into krai_core.documents (filename) values (%s) returning id", [f"{uuid.uuid4()}.pdf"]
    ).fetchone()
    assert row is not None
    return str(row[0])
