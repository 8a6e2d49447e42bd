"""What a finished document takes on disk, by table and index, once it was really processed."""

import uuid
from contextlib import closing
from typing import Any, TypeAlias

import psycopg

from benchmarks._scale.build import Progress, statement
from processors_v2._calls import queue
from processors_v2.stage_tracker import StageTracker

Connection: TypeAlias = psycopg.Connection[Any]

# The index that the first description of this system asks for, on the column that it asks for.
GIN = "idx_documents_stage_status"
COLUMN, COLUMN_STORED, COLUMN_AS_TEXT = "stage_status", "stage_status as stored", "stage_status as text"

# Documents between two vacuums, and runs in a claim.
WAVE, CLAIM = 250, 10
# What processors have to tell of a stage.
METADATA = {"text_extraction": {"pages_processed": 4386, "total_pages": 4386}, "embedding": {"chunks": 21907}}

OURS = """
select c.relname, case c.relkind when 'r' then pg_table_size(c.oid) else pg_relation_size(c.oid) end
from pg_class c
where c.relnamespace = 'krai_core'::regnamespace and c.relkind in ('r', 'i')
  and c.oid <> 'krai_core.documents'::regclass and (c.relname = %s or not exists (
      select from pg_index i where i.indexrelid = c.oid and i.indrelid = 'krai_core.documents'::regclass))
order by 2 desc, 1
"""
COLUMNS = """
select avg(pg_column_size(stage_status || '{}')), avg(pg_column_size(stage_status)),
    avg(octet_length(stage_status::text))
from krai_core.documents
"""


def process(url: str, connection: Connection, documents: int, progress: Progress) -> None:
    """Let documents go through all stages, in a few waves with a vacuum behind each, as autovacuum would come.

    Work takes long, so that each run is reported on its own; they are claimed ten at a time.

    Raises:
        RuntimeError: not all were finished.
    """
    connection.execute("alter table krai_core.documents add column body text, add column attributes jsonb")
    with closing(StageTracker.from_postgres(url)) as tracker:
        for first in progress(range(0, documents, WAVE), f"{documents:,} documents through all stages"):
            connection.execute(statement("insert"), {"after": first, "upto": min(first + WAVE, documents)})
            while work(tracker):
                pass
            connection.execute("vacuum analyze")
    connection.execute("select krai_private.fold_deltas()")
    connection.execute("vacuum")
    (done,) = connection.execute("select sum(completed_count) from krai_core.vw_stage_statistics").fetchall()[0]
    if done != documents * len(StageTracker.STAGES):
        raise RuntimeError(f"Of {documents} documents only {done} stages were completed.")


def work(tracker: StageTracker) -> int:
    """Claim, finish one by one, and return how many that were."""
    send = tracker._transport.send  # noqa: SLF001 (claim() would keep the runs alive, too)
    claimed = send(queue.claim_stages(StageTracker.STAGES, "worker-07", CLAIM, None, uuid.uuid4()))
    for run in claimed:
        key = {name: run[name] for name in ("document_id", "stage_name", "claim_id")}
        outcome = {**key, "outcome": "completed", "metadata": METADATA.get(run["stage_name"], {})}
        answers = send(queue.finish_stages([outcome]))
        if not answers[0]["ok"]:
            raise RuntimeError(f"A run could not be finished: {answers}")
    return len(claimed)


def of_tables(connection: Connection) -> dict[str, int]:
    """Return the bytes of every table and index of ours, tables with what they hold out of line."""
    return {name: int(size) for name, size in connection.execute(OURS, [GIN])}


def compact(connection: Connection) -> dict[str, int]:
    """The same once everything was written anew without a gap."""
    connection.execute("vacuum full")
    return of_tables(connection)


def of_column(connection: Connection) -> dict[str, float]:
    """Return the bytes that stage_status has on average."""
    (row,) = connection.execute(COLUMNS).fetchall()
    return dict(zip((COLUMN, COLUMN_STORED, COLUMN_AS_TEXT), map(float, row), strict=True))
