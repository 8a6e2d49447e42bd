"""What bare SQL costs: the floor, and a job table of two columns.

The floor has the same documents and as many jobs: one for each stage of each document, stage by stage, in an order in
which no batch holds two jobs of one document.

Both work over psycopg 3 with prepared statements, one statement to claim and one to finish, each a transaction of its
own. The commit of a claim does not wait for the disk (synchronous_commit off), since a claim that a crash loses is
claimed again; that of a finish does. The tracker does the same.
"""

from collections.abc import Sequence
from typing import Any

import psycopg

from benchmarks._drain.lanes import Lane
from processors_v2._local import project
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker

JOBS = """
create table public.jobs (
    id bigint generated always as identity primary key{document},
    status text not null default 'ready'
);
create index jobs_ready on public.jobs (id) where status = 'ready';
"""

# In the statement itself, so that it lasts as long as the transaction; joined, because it would not be run otherwise.
UNHURRIED = "own as materialized (select set_config('synchronous_commit', 'off', true))"

FLOOR_CLAIM = f"""
with {UNHURRIED},
picked as (
    select j.id, j.document_id, j.stage from public.jobs j
    where j.status = 'ready' order by j.id limit %s for no key update skip locked
),
taken as (
    update public.jobs j set status = 'running' from picked where j.id = picked.id
)
update krai_core.documents d
set stage_status = d.stage_status || jsonb_build_object(picked.stage, jsonb_build_object(
    'status', 'processing',
    'started_at', to_char(statement_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    'completed_at', null, 'duration_seconds', null, 'progress', 0, 'error', null, 'metadata', '{{}}'::jsonb))
from picked cross join own
where d.id = picked.document_id
returning picked.id
"""
FLOOR_FINISH = """
with done as (
    update public.jobs j set status = 'completed' where j.id = any (%s) returning j.document_id, j.stage
)
update krai_core.documents d
set stage_status = d.stage_status || jsonb_build_object(done.stage, d.stage_status -> done.stage || jsonb_build_object(
    'status', 'completed',
    'completed_at', to_char(statement_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    'duration_seconds', round(extract(epoch from
        statement_timestamp() - (d.stage_status -> done.stage ->> 'started_at')::timestamptz), 3),
    'progress', 100, 'error', null))
from done
where d.id = done.document_id
"""

BARE_CLAIM = f"""
with {UNHURRIED},
picked as (
    select j.id from public.jobs j where j.status = 'ready' order by j.id limit %s for no key update skip locked
)
update public.jobs j set status = 'running' from picked cross join own where j.id = picked.id returning j.id
"""
BARE_FINISH = "update public.jobs set status = 'completed' where id = any (%s)"


def drop_triggers(connection: psycopg.Connection[Any]) -> None:
    """Leave documents as the migrations made it, but for the triggers."""
    for (trigger,) in connection.execute(
        "select tgname from pg_trigger where tgrelid = 'krai_core.documents'::regclass and not tgisinternal"
    ).fetchall():
        connection.execute(f'drop trigger "{trigger}" on krai_core.documents')


class BareTable(Lane[int]):
    """A job table of two columns, id and status, with an index on the ready ones."""

    name = "two columns"
    database = "drain_bare"
    _document = ""
    _claim, _finish = BARE_CLAIM, BARE_FINISH

    def __init__(self, local: LocalSupabase) -> None:
        local.create_database(self.database)
        self._prepare(local)
        self._connection = psycopg.connect(local.url_of(self.database), autocommit=True, prepare_threshold=0)
        # Never better than rows found by their keys, whatever the planner believes of the table as it is being drained.
        for method in ("hashjoin", "mergejoin", "seqscan"):
            self._connection.execute(f"set enable_{method} = off")

    def _prepare(self, local: LocalSupabase) -> None:
        with psycopg.connect(local.url_of(self.database), autocommit=True) as connection:
            connection.execute(JOBS.format(document=self._document))

    def fill(self, jobs: int) -> None:  # noqa: D102 (as in Lane, here and below)
        self._connection.execute("truncate public.jobs")
        self._connection.execute("insert into public.jobs select from generate_series(1, %s)", [jobs])
        self._connection.execute("vacuum analyze public.jobs")

    def claim(self, limit: int) -> Sequence[int]:  # noqa: D102
        return [row[0] for row in self._connection.execute(self._claim, [limit])]

    def finish(self, claimed: Sequence[int]) -> None:  # noqa: D102
        self._connection.execute(self._finish, [claimed])

    def count_done(self) -> int:  # noqa: D102
        return self._count("public.jobs where status = 'completed'")

    def _count(self, rows: str) -> int:
        row = self._connection.execute(f"select count(*) from {rows}").fetchone()
        assert row is not None
        return int(row[0])

    def close(self) -> None:  # noqa: D102
        self._connection.close()


class Floor(BareTable):
    """The same documents as the tracker's, claimed from a bare job table and written twice, with nothing derived."""

    name = "floor"
    database = "drain_floor"
    _document = ", document_id uuid not null, stage text not null"
    _claim, _finish = FLOOR_CLAIM, FLOOR_FINISH

    def _prepare(self, local: LocalSupabase) -> None:
        super()._prepare(local)
        local.apply_to(self.database, project.migrations_folder())
        with psycopg.connect(local.url_of(self.database), autocommit=True) as connection:
            drop_triggers(connection)

    def fill(self, jobs: int) -> None:
        """Empty everything, and put in documents with so many jobs in all."""
        self._connection.execute("truncate krai_core.documents, public.jobs")
        self._connection.execute(
            "insert into krai_core.documents (filename) select i || '.pdf' from generate_series(1, %s) i",
            [jobs // len(StageTracker.STAGES)],
        )
        self._connection.execute(
            "insert into public.jobs (document_id, stage) select d.id, s.name from krai_core.documents d"
            " cross join krai_core.stages s order by s.position, d.id"
        )
        self._connection.execute("vacuum analyze krai_core.documents, public.jobs")

    def count_done(self) -> int:
        """Count the stages that are completed."""
        return self._count("krai_core.vw_document_stages where status = 'completed'")
