"""What many documents cost: inserting them in one statement, and claiming while a million of them wait.

The inserts derive the ready run of each document. Beside them, in turns, the same statement runs on the same table
without any trigger. The claims are those of a worker with a Postgres connection; they go in turns to a database in
which 10,000 documents are ready and to one with 1,000,000. Between the rounds as many documents are added as were
claimed.

--only takes insert, claim.
"""

import statistics
import time
import uuid
from collections import defaultdict
from contextlib import ExitStack, closing
from typing import Any

import psycopg

from benchmarks._drain.floor import drop_triggers
from benchmarks._shared.bench import Bench
from processors_v2._calls import queue
from processors_v2._local import project
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker

PARTS = (("insert", "claim"),)

DOCUMENTS_A_SECOND = 20_000
TIMES_AT_MOST = 1.3

STAGE = "upload"
FEW, MANY = 10_000, 1_000_000
AT_ONCE = 100_000
# Batch, and how many claims of that batch in a round.
CLAIMS = {100: 10, 1: 40}
# No lease ends under way: an expired run would be claimed, too.
LEASE_SECONDS = 86_400

Connection = psycopg.Connection[Any]


def run(bench: Bench) -> None:
    """Measure both."""
    with LocalSupabase() as local:
        if bench.wants("insert", PARTS[0]):
            measure_inserts(bench, local)
        if bench.wants("claim", PARTS[0]):
            measure_claims(bench, local)


def new_database(local: LocalSupabase, name: str) -> Connection:
    """Create a database with our migrations and connect to it."""
    local.create_database(name)
    local.apply_to(name, project.migrations_folder())
    return psycopg.connect(local.url_of(name), autocommit=True)


def insert(connection: Connection, documents: int) -> float:
    """Insert so many documents in one statement and return the seconds."""
    begin = time.perf_counter()
    connection.execute(
        "insert into krai_core.documents (filename) select i || '.pdf' from generate_series(1, %s) i", [documents]
    )
    return time.perf_counter() - begin


def measure_inserts(bench: Bench, local: LocalSupabase) -> None:
    """Time inserts of two sizes, with and without triggers."""
    sizes = (2_000, 10_000) if bench.quick else (20_000, 100_000)
    rounds = 1 if bench.quick else 5
    with closing(new_database(local, "bulk_bare")) as bare, closing(new_database(local, "bulk_insert")) as ours:
        drop_triggers(bare)
        rates: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for size in bench.progress(sizes * rounds, "inserts"):
            pair = []
            for connection in (bare, ours):
                connection.execute("truncate krai_core.documents")
                pair.append(size / insert(connection, size))
            rates[size].append((pair[0], pair[1]))
            if count_ready(ours) != size:
                raise RuntimeError(f"After an insert of {size} documents {count_ready(ours)} runs are ready.")
    for size, pairs in rates.items():
        baseline, value = (statistics.median(column) for column in zip(*pairs, strict=True))
        bench.add(
            f"documents in one statement, {size:,}",
            value,
            "1/s",
            baseline,
            statistics.median(mine / theirs for theirs, mine in pairs),
            None if bench.quick else f"at least {DOCUMENTS_A_SECOND:,}/s",
            None if bench.quick else value >= DOCUMENTS_A_SECOND,
        )
    local.drop_database("bulk_bare")
    local.drop_database("bulk_insert")


def count_ready(connection: Connection) -> int:
    """Count the ready runs."""
    row = connection.execute("select count(*) from krai_core.stage_runs where status = 'ready'").fetchone()
    assert row is not None
    return int(row[0])


def measure_claims(bench: Bench, local: LocalSupabase) -> None:
    """Time claims beside a short and a long queue."""
    few, many = FEW, MANY // 10 if bench.quick else MANY
    rounds = 2 if bench.quick else 10
    with ExitStack() as connections:
        queues = {}
        for backlog in (few, many):
            connection = connections.enter_context(closing(new_database(local, f"bulk_{backlog}")))
            chunks = [AT_ONCE] * (backlog // AT_ONCE) or [backlog]
            for size in bench.progress(chunks, f"{backlog:,} documents"):
                insert(connection, size)
            queues[backlog] = connection
        trackers = {backlog: StageTracker.from_postgres(local.url_of(f"bulk_{backlog}")) for backlog in queues}
        times: dict[tuple[int, int], list[float]] = defaultdict(list)
        for number in bench.progress(range(rounds + 1), "claims"):
            for connection in queues.values():
                connection.execute("vacuum analyze krai_core.documents, krai_core.stage_runs")
            if number == 0:
                # What the inserts left to be written is not to be paid for by the claims.
                with psycopg.connect(local.admin_url, autocommit=True) as admin:
                    admin.execute("checkpoint")
            claim_in_turns(trackers, times)
            if number == 0:
                # Until here connections were opened and pages read for the first time.
                times.clear()
            for connection in queues.values():
                insert(connection, sum(batch * claims for batch, claims in CLAIMS.items()))
    for batch in CLAIMS:
        value, baseline = (statistics.median(times[backlog, batch]) for backlog in (many, few))
        bench.add(
            f"claim of {batch}, {many:,} ready beside {few:,}, median",
            value,
            "ms",
            baseline,
            value / baseline,
            None if bench.quick else f"at most {TIMES_AT_MOST} times",
            None if bench.quick else value / baseline <= TIMES_AT_MOST,
        )


def claim_in_turns(trackers: dict[int, StageTracker], times: dict[tuple[int, int], list[float]]) -> None:
    """Claim one round from every queue, and note the milliseconds by length of the queue and batch."""
    for batch, claims in CLAIMS.items():
        for turn in range(claims):
            for backlog in sorted(trackers, reverse=turn % 2 == 0):
                call = queue.claim_stages([STAGE], "bulk", batch, LEASE_SECONDS, uuid.uuid4())
                begin = time.perf_counter()
                # claim() would keep the runs alive, too.
                claimed = trackers[backlog]._transport.send(call)  # noqa: SLF001
                times[backlog, batch].append((time.perf_counter() - begin) * 1000)
                if len(claimed) != batch:
                    raise RuntimeError(f"{len(claimed)} of {batch} documents were claimed.")
