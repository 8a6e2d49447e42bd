"""A stack whose documents have owners, and the three ways in which it answers over HTTP."""

import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from processors_v2.local import LocalSupabase

# The modules beside the tests are no package: pytest imports tests by their paths.
TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "edge"), str(TESTS / "seed")]

from edge_servers import Gateway, programs, serve_function  # noqa: E402

OWNERS = """
alter table krai_core.documents add column owner uuid;
grant select on krai_core.documents to authenticated;
create policy own_documents on krai_core.documents for select to authenticated using (owner = (select auth.uid()));
"""


@dataclass(frozen=True)
class Way:
    """A way of serving.

    Attributes:
        name: What it is called.
        status: URL of the status of a document, with {} for its id.
        statistics: URL of the statistics.
        malformed: HTTP status for what is no id. PostgREST calls any value that it cannot read a bad request; the
            others say that the request was understood, and the id was not.
    """

    name: str
    status: str
    statistics: str
    malformed: int = 422

    @property
    def is_postgrest(self) -> bool:
        """Whether errors have the keys of PostgREST."""
        return self.name == "postgrest"

    def get_status(self, document: str, token: str | None) -> httpx.Response:
        """GET the status of a document."""
        return self._get(self.status.format(document), token)

    def get_statistics(self, token: str | None) -> httpx.Response:
        """GET the statistics."""
        return self._get(self.statistics, token)

    def _get(self, url: str, token: str | None) -> httpx.Response:
        headers = {"Accept-Profile": "krai_core"} if self.is_postgrest else {}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return httpx.get(url, headers=headers, timeout=30, trust_env=False)


@pytest.fixture(scope="session")
def stack() -> Iterator[LocalSupabase]:
    """Postgres, PostgREST, all migrations, and a policy that shows each user his own documents.

    As in a project, the schema that is meant where none is named is another one.
    """
    with LocalSupabase(schemas=("public", "krai_core")) as running:
        with psycopg.connect(running.database_url, autocommit=True) as owner:
            owner.execute(OWNERS)
        running.reload_schema()
        yield running


@pytest.fixture(scope="session")
def ways(stack: LocalSupabase) -> Iterator[dict[str, Way]]:
    """All ways, each as it is deployed: with the public key, and with no other."""
    gateway = Gateway({"/rest/v1": stack.url})
    environment = {"SUPABASE_URL": gateway.url, "SUPABASE_ANON_KEY": stack.key("anon")}
    with programs() as started:
        status = serve_function(started, "status", environment)
        stages = serve_function(started, "stages", environment)
        uvicorn = [sys.executable, "-m", "uvicorn", "processors_v2.api:app", "--host=127.0.0.1"]
        fastapi = started.start("fastapi", lambda port: [*uvicorn, f"--port={port}"], environment)
        rpc = f"{gateway.url}/rest/v1/rpc"
        yield {
            way.name: way
            for way in (
                Way("postgrest", f"{rpc}/get_document_status?p_document_id={{}}", f"{rpc}/get_stage_statistics", 400),
                Way("edge functions", f"{status}/status/{{}}", f"{stages}/stages/statistics"),
                Way("fastapi", f"{fastapi}/status/{{}}", f"{fastapi}/stages/statistics"),
            )
        }
    gateway.close()


@pytest.fixture(params=["postgrest", "edge functions", "fastapi"])
def way(request: pytest.FixtureRequest, ways: dict[str, Way]) -> Way:
    """One way after the other."""
    return ways[request.param]


class Database:
    """The database behind the ways, as whoever has all rights sees it."""

    def __init__(self, stack: LocalSupabase) -> None:
        self._url = stack.admin_url

    def run(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Run a statement on a connection of its own, because the server is restarted in between."""
        with psycopg.connect(self._url, autocommit=True) as connection:
            cursor = connection.execute(sql, values or None)
            return cursor.fetchall() if cursor.description else []

    def one(self, sql: str, *values: object) -> Any:
        """Run a query and return its one value."""
        ((value,),) = self.run(sql, *values)
        return value

    def document(self, owner: uuid.UUID | None = None) -> str:
        """Insert a document and return its id."""
        name = f"{uuid.uuid4()}.pdf"
        sql = "insert into krai_core.documents (filename, owner) values (%s, %s) returning id"
        return str(self.one(sql, name, owner))


@pytest.fixture(scope="session")
def db(stack: LocalSupabase) -> Database:
    """The database of the stack."""
    return Database(stack)
