"""One point of the curve: so many workers, each with so many runs at a time, for some seconds."""

from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psutil
import psycopg

from benchmarks._throughput.clients import Client, Direct
from benchmarks._throughput.waits import Waits
from processors_v2._local.process import wait_until
from processors_v2.local import LocalSupabase

# What they fill, the clients of both kinds alike.
PREPARE = """
create unlogged table public.short_claims (got integer not null);
create unlogged table public.refusals (runs integer not null);
grant insert on public.short_claims, public.refusals to service_role;
"""
_DONE = """
select count(*), extract(epoch from max(finished_at) - min(started_at))::float8,
    (select count(*) from krai_core.stage_runs where status = 'ready'),
    (select count(*) from public.short_claims), (select coalesce(sum(runs), 0) from public.refusals),
    (select deadlocks from pg_stat_database where datname = current_database()),
    pg_current_wal_insert_lsn() - %s::pg_lsn
from krai_core.stage_runs where status = 'completed'
"""
# Rows of others that have left room everywhere, as in tables that have been in use: those that were just made grow with
# every update, and whoever makes one grow is waited for.
_FILL = """
truncate krai_core.documents;
insert into krai_core.documents (filename) select i || '.pdf' from generate_series(1, 2 * {documents}) i;
delete from krai_core.documents where id < '80000000-0000-0000-0000-000000000000';
truncate public.short_claims, public.refusals;
"""
_ENDING_SECONDS = 10.0
# Of a row, or of a transaction that has it; the others are the server's own affairs.
_ROW_LOCKS = {"Lock transactionid", "Lock tuple"}


@dataclass(frozen=True)
class Point:
    """What was measured.

    Attributes:
        runs: completed, counted in the database.
        seconds: from the beginning of the first to the end of the last.
        client_share: of the time of one processor, for the client.
        waits: active sessions by what they wait for, over all samples.
        short: claims that did not fill their batch.
        refused: runs whose outcome was refused.
        deadlocks: since the server was started.
        wal: bytes that were written to it.
        errors: that the client met.
        said: the first of these.
        turned_away: how often the client had to ask again, because no connection was free.
        server_seconds: processor time of the sessions that have ended since, which are all those of direct clients.
    """

    runs: int
    seconds: float
    client_share: float
    waits: Counter[str]
    short: int
    refused: int
    deadlocks: int
    wal: int
    errors: int
    said: str
    turned_away: int = 0
    server_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Runs per second."""
        return self.runs / self.seconds

    @property
    def wal_per_run(self) -> float:
        """Bytes of WAL for a run."""
        return self.wal / self.runs

    @property
    def row_waits(self) -> float:
        """Share of the active sessions, over all samples, that waited for a row of somebody else."""
        return sum(self.waits[event] for event in _ROW_LOCKS) / max(1, self.waits.total())


def fill(connection: "psycopg.Connection[Any]", documents: int) -> None:
    """Empty the tables and put in about so many documents."""
    connection.execute(_FILL.format(documents=documents).encode())
    connection.execute("vacuum analyze krai_core.documents, krai_core.stage_runs")


def measure(
    local: LocalSupabase,
    connection: "psycopg.Connection[Any]",
    client: Client,
    *,
    workers: int,
    batch: int,
    documents: int,
    seconds: float,
) -> Point:
    """Fill the tables, let the client work, and count.

    Args:
        local: the stack.
        connection: of its owner, in autocommit.
        client: whose workers they are.
        workers: how many.
        batch: how many runs each claims and finishes at once.
        documents: how many there are to begin with, each with a ready run.
        seconds: for how long.

    Raises:
        RuntimeError: nothing was done, or the queue ran dry: that is no speed.
    """
    fill(connection, documents)
    row = connection.execute("select pg_current_wal_insert_lsn()").fetchone()
    assert row is not None
    begun_at = row[0]
    with closing(Waits(local.admin_url)) as waits:
        before, sessions = _ended(local)
        spent = client.work(workers, batch, seconds)
        # The last ones may still be on their way out; those of PostgREST stay.
        wait_until(lambda: _ended(local)[1] <= sessions, _ENDING_SECONDS if isinstance(client, Direct) else 0)
        server_seconds = _ended(local)[0] - before
    row = connection.execute(_DONE, [begun_at]).fetchone()
    assert row is not None
    runs, took, ready, short, refused, deadlocks, wal = row
    if not runs:
        raise RuntimeError(f"{workers} workers with batch {batch} did nothing: {spent.said}")
    if ready < batch:
        raise RuntimeError(f"{workers} workers with batch {batch} have left {ready} runs ready: the queue ran dry.")
    return Point(
        int(runs),
        float(took),
        spent.cpu_seconds / float(took),
        waits.seen,
        int(short),
        int(refused),
        int(deadlocks),
        int(wal),
        spent.errors,
        spent.said,
        spent.turned_away,
        server_seconds,
    )


def _ended(local: LocalSupabase) -> tuple[float, int]:
    """Return what the processes that have ended took of the processors so far, and how many there still are."""
    assert local._postgres is not None  # noqa: SLF001 - nobody else knows its process
    server = psutil.Process(local._postgres.pid)  # noqa: SLF001
    times = server.cpu_times()
    return float(times.children_user + times.children_system), len(server.children())
