"""Builds a big table set by set, as the writers would have left it, with the triggers switched off.

Every value follows from the number of the document, so that two builds of one size differ in their times only.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
from psycopg.types.json import Jsonb

from benchmarks._scale import mix

Connection: TypeAlias = psycopg.Connection[Any]
# Goes through the steps, with a description of them for people.
Progress: TypeAlias = Callable[[Sequence[Any], str], Iterator[Any]]

AT_ONCE = 5_000
# So many changes are not folded yet when a question is asked: nearly as many as there can be.
UNFOLDED = 900
FEWEST = 2_000
# Up to so many documents what is ready is compared with the truth.
CHECKED = 100_000


def statement(name: str) -> str:
    """Read a statement, or several without parameters, from the folder sql."""
    return (Path(__file__).parent / "sql" / f"{name}.sql").read_text(encoding="utf-8")


@contextmanager
def unguarded(url: str) -> Iterator[Connection]:
    """Connect as a superuser in whose session no trigger fires and no commit waits for the disk."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute("set synchronous_commit = off")
        yield connection


def build(connection: Connection, documents: int, progress: Progress) -> None:
    """Fill the tables of a database that has our migrations and no documents.

    Args:
        connection: see unguarded.
        documents: how many, 2,000 at least.
        progress: goes through the steps.

    Raises:
        ValueError: so few documents have not all of the patterns.
        RuntimeError: what was built is not what the writers would have left.
    """
    if documents < FEWEST:
        raise ValueError(f"{documents} documents are too few to be like a big table: build {FEWEST} at least.")
    connection.execute(statement("tools"))
    prepare_mix(connection)
    indexes = take_indexes(connection)
    running = min(mix.RUNNING_STAGES, documents // 20)
    numbers = {
        "now": connection.execute("select clock_timestamp()").fetchall()[0][0],
        "of": documents,
        "backlog": mix.BACKLOG_SHARE,
        "running": running,
        "step": int(documents * mix.BACKLOG_SHARE) // running,
        "errors": len(mix.ERRORS),
        "workers": mix.WORKERS,
    }
    for first in progress(range(1, documents + 1, AT_ONCE), f"{documents:,} documents"):
        connection.execute("truncate scale.planned")
        connection.execute(statement("plan"), {**numbers, "first": first, "last": min(first + AT_ONCE - 1, documents)})
        connection.execute("analyze scale.planned")
        connection.execute(statement("documents"))
        connection.execute(statement("runs"))
    # Minutes for a million, which the same statements fill.
    checks = [check_ready_runs] if documents <= CHECKED else []
    for step in progress([*indexes, ANALYZE, *checks, *FINISH], f"{documents:,} documents, what follows"):
        connection.execute(step) if isinstance(step, str) else step(connection)


def prepare_mix(connection: Connection) -> None:
    """Store the patterns and the errors."""
    low: dict[str, float] = {}
    with connection.cursor() as cursor:
        for pattern in mix.PATTERNS:
            begin = low.get(pattern.zone, 0.0)
            end = low[pattern.zone] = round(begin + pattern.share, 9)
            cursor.execute(
                "insert into scale.patterns values (%s, %s, %s, %s)", [pattern.zone, begin, end, pattern.states]
            )
        cursor.executemany("insert into scale.errors values (%s, %s)", list(enumerate(mix.ERRORS)))
    connection.execute(statement("steps"), {"seconds": Jsonb(mix.SECONDS)})


def take_indexes(connection: Connection) -> list[str]:
    """Drop the indexes that no constraint needs, and return the statements that make them anew."""
    found = connection.execute(
        """
        select format('drop index %s', i.indexrelid::regclass), pg_get_indexdef(i.indexrelid)
        from pg_index i
        where i.indrelid in ('krai_core.documents'::regclass, 'krai_core.stage_runs'::regclass)
          and not exists (select from pg_constraint c where c.conindid = i.indexrelid)
        """
    ).fetchall()
    for drop, _ in found:
        connection.execute(drop)
    return [create for _, create in found]


def check_ready_runs(connection: Connection) -> None:
    """Let the tracker compare what is ready with the truth."""
    (answer,) = connection.execute("select krai_core.rebuild_ready_runs()").fetchall()[0]
    if any(answer.values()):
        raise RuntimeError(
            f"What was built was not what the writers would have left: rebuild_ready_runs() said {answer}."
        )


def count(connection: Connection) -> None:
    """Have the figures follow from the rows, and leave some changes that are not folded."""
    connection.execute("select krai_core.rebuild_statistics()")
    connection.execute("select krai_private.fold_deltas()")
    connection.execute(statement("flow"))
    connection.execute(statement("deltas"), [UNFOLDED])


def bring_up_to_date(connection: Connection) -> None:
    """Let the running stages have begun just now, whenever the table was built."""
    begin_anew(connection)
    connection.execute(statement("started"))


def begin_anew(connection: Connection) -> None:
    """Let other runs take the places of the running ones, of which most would have ended since."""
    numbers = {"workers": mix.WORKERS, "stalled": mix.STALLED, "seconds": Jsonb(mix.SECONDS)}
    connection.execute(statement("running"), numbers)


ANALYZE = "analyze krai_core.documents, krai_core.stage_runs"
FINISH: tuple[str | Callable[[Connection], None], ...] = (
    count,
    "alter table krai_core.documents reset (autovacuum_enabled, toast.autovacuum_enabled)",
    "alter table krai_core.stage_runs reset (autovacuum_enabled)",
    "vacuum analyze",
    bring_up_to_date,
    "checkpoint",
)
