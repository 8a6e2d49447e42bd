"""The database of the machines: calls as service_role, whose answers are tried, and what happens behind their back."""

import json
from decimal import Decimal
from typing import Any

import psycopg
from hypothesis import note
from psycopg.types.json import Jsonb

from proof._model.model import Json, Refused, Settings

# Warnings are for people; here every edit of a stage that is held would send one.
OPTIONS = "-c client_min_messages=error"


def as_json(value: Json) -> object:
    """A value for a column of type jsonb; None is its null."""
    return None if value is None else Jsonb(value)


def _adapted(value: object) -> object:
    if isinstance(value, dict | list):
        return Jsonb(value)
    if isinstance(value, tuple):
        return list(value)
    # As a float it would be no numeric argument.
    return Decimal(str(value)) if isinstance(value, float) else value


class Database:
    """Connections in autocommit, as service_role and as superuser. ``uses`` counts what was asked of them."""

    def __init__(self, url: str, admin_url: str) -> None:
        self.uses = 0
        self._service = psycopg.connect(url, autocommit=True, options=OPTIONS)
        self._service.execute("set role service_role")
        self._admin = psycopg.connect(admin_url, autocommit=True, options=OPTIONS)

    def close(self) -> None:
        """Close the connections."""
        self._service.close()
        self._admin.close()

    def call(self, function: str, *arguments: object, **named: object) -> Any:
        """The answer of a function of krai_core, or what it refuses the call with."""
        self.uses += 1
        places = [*["%s"] * len(arguments), *(f"{name} => %s" for name in named)]
        values = [_adapted(one) for one in (*arguments, *named.values())]
        try:
            row = self._service.execute(f"select krai_core.{function}({', '.join(places)})", values).fetchone()
        except psycopg.Error as error:
            detail = error.diag.message_detail or ""
            if not detail.startswith("{"):
                raise
            answer: Any = Refused(json.loads(detail)["error"])
        else:
            assert row is not None
            answer = row[0]
        note(f"    {function}({', '.join(map(str, (*arguments, *named.values())))}) = {answer!r}")
        return answer

    def write(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Do something behind the back of the functions, as superuser; returns rows where there are any."""
        self.uses += 1
        cursor = self._admin.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []

    def look(self, query: str) -> tuple[Any, ...]:
        """The one row of a query."""
        row = self._admin.execute(query).fetchone()
        assert row is not None
        return row

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        return self._admin.execute(query).fetchall()

    def prepare(self, pipeline: dict[str, Settings]) -> None:
        """Begin without documents, and with a pipeline of the stages that the migrations have seeded."""
        self._admin.execute("truncate krai_core.documents")
        wanted = [(*vars(one).values(), name) for name, one in pipeline.items()]
        with self._admin.transaction():
            self._admin.execute("delete from krai_core.stages where name <> all (%s)", [list(pipeline)])
            # Out of the way of each other first.
            self._admin.execute(
                "update krai_core.stages set position = position + 1000, enabled = true, paused = false"
            )
            for position, _, max_attempts, backoff, timeout, *_, name in wanted:
                self._admin.execute(
                    "update krai_core.stages set position = %s, max_attempts = %s, backoff_seconds = %s, "
                    "timeout_seconds = %s where name = %s",
                    [position, max_attempts, backoff, timeout, name],
                )
            self._admin.execute("delete from krai_core.stage_prerequisites")
            for name, one in pipeline.items():
                self._admin.execute(
                    "insert into krai_core.stage_prerequisites select %s, unnest(%s::text[])",
                    [name, list(one.requires)],
                )
        self.call("fill_ready_runs")
