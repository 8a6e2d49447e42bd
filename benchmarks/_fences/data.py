"""Fills a database set by set, with triggers off."""

from pathlib import Path
from typing import Any, TypeAlias

import psycopg

Connection: TypeAlias = psycopg.Connection[Any]

CLAIMED = 100


def statement(name: str) -> str:
    """Read a statement."""
    return (Path(__file__).parent / f"{name}.sql").read_text(encoding="utf-8")


def fill(connection: Connection, first: int, last: int) -> dict[str, str]:
    """Add documents with their runs, let a worker claim some, and return what there is to ask about, as SQL."""
    connection.execute("set session_replication_role = replica")
    connection.execute(statement("documents"), {"first": first, "last": last})
    connection.execute(statement("runs"))
    connection.execute("set session_replication_role = origin")
    connection.execute("select krai_core.rebuild_statistics(), krai_private.fold_deltas()")
    many = last - first > 1000
    connection.execute("delete from krai_core.stage_flow")
    hours, deltas = (720, 100) if many else (2, 2)
    for part in statement("figures").split(";\n"):
        if part.strip():
            connection.execute(part, {"hours": hours, "deltas": deltas})
    limit = CLAIMED if many else 4
    connection.execute(
        "select krai_core.claim_stages('[\"upload\", \"text_extraction\"]', 'worker-07', %s, 3600, gen_random_uuid())",
        [limit],
    )
    ((words,),) = connection.execute(statement("words")).fetchall()
    return words
