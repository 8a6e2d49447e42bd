"""The tracker: documents that go through all of their stages, so that nearly every finish makes others ready.

Nothing is taken away from what the migrations make: row level security, the GIN index, the triggers, the history.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Any, Self

import psycopg

from benchmarks._drain.lanes import Lane
from processors_v2._calls import queue
from processors_v2._local import project
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker
from processors_v2.worker import RunContext, StageWorker

STAGES = StageTracker.STAGES
CONCURRENCY = 4


def fill(connection: psycopg.Connection[Any], documents: int) -> None:
    """Empty the tables, and insert so many documents in one statement."""
    connection.execute("truncate krai_core.documents")
    connection.execute(
        "insert into krai_core.documents (filename) select i || '.pdf' from generate_series(1, %s) i", [documents]
    )
    connection.execute("vacuum analyze krai_core.documents, krai_core.stage_runs")


def count_done(connection: psycopg.Connection[Any]) -> int:
    """Count the stages that are completed and have one run, completed as well."""
    row = connection.execute(
        """
        select count(*) from krai_core.vw_document_stages s
        where s.status = 'completed' and (
            select array_agg(r.status) = '{completed}' from krai_core.stage_runs r
            where r.document_id = s.document_id and r.stage_name = s.stage_name)
        """
    ).fetchone()
    assert row is not None
    return int(row[0])


def do_nothing(_: RunContext) -> None:
    """Handle a stage."""


class Ours(Lane[dict[str, Any]]):
    """The tracker's calls in a plain loop: claim_stages and finish_stages.

    Args:
        name: as it stands in the figures.
        tracker: with the transport that is measured.
        url: its database.
    """

    def __init__(self, name: str, tracker: StageTracker, url: str) -> None:
        self.name = name
        self._tracker = tracker
        self._send = tracker._transport.send  # noqa: SLF001 (claim() would keep the runs alive, too)
        self._connection = psycopg.connect(url, autocommit=True)

    @classmethod
    def direct(cls, local: LocalSupabase) -> Self:
        """Over a Postgres connection, in a database of its own."""
        local.create_database("drain_direct")
        local.apply_to("drain_direct", project.migrations_folder())
        url = local.url_of("drain_direct")
        return cls("direct", StageTracker.from_postgres(url), url)

    @classmethod
    def postgrest(cls, local: LocalSupabase) -> Self:
        """Through PostgREST, in the database of the stack."""
        return cls("PostgREST", StageTracker(local.client()), local.database_url)

    def fill(self, jobs: int) -> None:  # noqa: D102 (as in Lane, here and below)
        fill(self._connection, jobs // len(STAGES))

    def claim(self, limit: int) -> Sequence[dict[str, Any]]:  # noqa: D102
        return self._send(queue.claim_stages(STAGES, "drain", limit, None, uuid.uuid4()))

    def finish(self, claimed: Sequence[dict[str, Any]]) -> None:  # noqa: D102
        outcomes = [
            {**{name: run[name] for name in ("document_id", "stage_name", "claim_id")}, "outcome": "completed"}
            for run in claimed
        ]
        answers = self._send(queue.finish_stages(outcomes))
        if not all(answer["ok"] for answer in answers):
            raise RuntimeError(f"{self.name}: not all runs could be finished: {answers}")

    def count_done(self) -> int:  # noqa: D102
        return count_done(self._connection)

    def drain_by_worker(self, jobs: int, batch: int) -> float:
        """Drain so many jobs by a StageWorker with a handler that does nothing, and return jobs per second.

        Raises:
            RuntimeError: the worker did not do all of them.
        """
        self.fill(jobs)
        worker = StageWorker(self._tracker, dict.fromkeys(STAGES, do_nothing), concurrency=CONCURRENCY, batch=batch)
        begin = time.perf_counter()
        worker.run(until_empty=True)
        seconds = time.perf_counter() - begin
        if self.count_done() != jobs:
            raise RuntimeError(f"StageWorker, {self.name}: {self.count_done()} of {jobs} jobs are done.")
        return jobs / seconds

    def close(self) -> None:  # noqa: D102
        self._connection.close()
