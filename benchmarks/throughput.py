"""How many stage runs a second go through one Postgres, by the number of workers and by the batch.

Each worker claims a batch of runs that do nothing and reports them as completed, over and over. The workers are light
(pgbench over Postgres connections; bare HTTP through PostgREST), so that it is the database that is measured. Each
point stands beside a single worker with the same batch, measured in the same round; the figures are medians of the
rounds. All the while it is looked at what the sessions wait for.

direct and postgrest work at documents that are new. Beside them, for fewer numbers of workers: contended finishes
those first that have begun, so that workers meet at stages of one document; pooled is postgrest with 4 connections to
Postgres for all workers instead of 20; relaxed is direct with synchronous_commit off, so that no commit waits for the
disk.

Last comes the upkeep: how long it takes to vacuum finished documents, to build the GIN index anew, and to prune runs.

--only takes direct, postgrest, contended, pooled, relaxed, upkeep, and of the batches 1, 10, 100, 500:
--only direct,100
"""

import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial

import psycopg

from benchmarks._shared.bench import Bench
from benchmarks._throughput import upkeep
from benchmarks._throughput.clients import LAST_FIRST, Client, Direct, Rest
from benchmarks._throughput.point import PREPARE, Point, measure
from processors_v2.local import LocalSupabase

CLIENTS: dict[str, Callable[[LocalSupabase], Client]] = {
    "direct": Direct,
    "postgrest": Rest,
    "contended": partial(Direct, stages=LAST_FIRST),
    "pooled": partial(Rest, pool=4),
    "relaxed": partial(Direct, settings="-c synchronous_commit=off"),
}
BATCHES = {"1": 1, "10": 10, "100": 100, "500": 500}
PARTS = ((*CLIENTS, "upkeep"), tuple(BATCHES))

WORKERS = (1, 2, 4, 8, 16, 32, 64)
QUICK_WORKERS = (1, 8)
# What stands beside which, and with which batches.
BESIDE = {"contended": ("direct", (10, 100)), "pooled": ("postgrest", (10, 100)), "relaxed": ("direct", (1, 10))}
FEW_WORKERS = (1, 8, 64)
ROUNDS = 3
SECONDS = 2.0
# More than are done in that time, of one stage each.
DOCUMENTS = 20_000
QUICK_DOCUMENTS = 8_000
SETTINGS = {"max_connections": "120"}

Points = dict[tuple[str, int, int], list[Point]]


def run(bench: Bench) -> None:
    """Measure all points and the upkeep, and report."""
    clients = [name for name in CLIENTS if bench.wants(name, PARTS[0])]
    batches = [size for name, size in BATCHES.items() if bench.wants(name, PARTS[1])]
    counts, rounds, seconds = (QUICK_WORKERS, 1, 1.0) if bench.quick else (WORKERS, ROUNDS, SECONDS)
    documents = QUICK_DOCUMENTS if bench.quick else DOCUMENTS
    plan = [
        (name, batch, workers)
        for _, name, batch, workers in itertools.product(range(rounds), clients, batches, counts)
        if name not in BESIDE or (batch in BESIDE[name][1] and (bench.quick or workers in FEW_WORKERS))
    ]
    points: Points = defaultdict(list)
    with LocalSupabase(settings=SETTINGS) as local, psycopg.connect(local.database_url, autocommit=True) as connection:
        connection.execute(PREPARE)
        made = {name: CLIENTS[name](local) for name in clients}
        for name, batch, workers in bench.progress(plan, "points"):
            points[name, batch, workers].append(
                measure(
                    local,
                    connection,
                    made[name],
                    workers=workers,
                    batch=batch,
                    documents=min(documents, 5000 * batch) + workers * batch,
                    seconds=seconds,
                )
            )
        report(bench, points)
        if bench.wants("upkeep", PARTS[0]):
            upkeep.measure(bench, local)


def report(bench: Bench, points: Points) -> None:
    """Add the figures of each point, and what holds for all of them."""
    for name, batch, workers in points:
        one = min(count for _, _, count in points)
        compare(bench, f"{name}, batch {batch}, {workers} workers", points, (name, batch, workers), (name, batch, one))
    for name, batch, workers in points:
        other = BESIDE[name][0] if name in BESIDE else ""
        if (other, batch, workers) in points:
            what = f"{name} beside {other}, batch {batch}, {workers} workers"
            compare(bench, what, points, (name, batch, workers), (other, batch, workers))
    for name, workers in dict.fromkeys((name, workers) for name, _, workers in points):
        same = [point for key, each in points.items() if (key[0], key[2]) == (name, workers) for point in each]
        share = statistics.mean(point.row_waits for point in same)
        bench.add(f"{name}, {workers} workers, active sessions that wait for a row of another", 100 * share, "%")
    for name, batch in dict.fromkeys((name, batch) for name, batch, _ in points):
        same = [point for key, each in points.items() if key[:2] == (name, batch) for point in each]
        wal = statistics.median(point.wal_per_run for point in same)
        bench.add(f"{name}, batch {batch}, WAL of a run", wal, "bytes")
    for name, batch, workers in points:
        # Hardly depends on what else the machine does. PostgREST keeps its sessions.
        times = [1000 * point.server_seconds / point.runs for point in points[name, batch, workers]]
        if name not in {"postgrest", "pooled"}:
            what = f"{name}, batch {batch}, {workers} workers, processor time of a run in the database"
            bench.add(what, statistics.median(times), "ms")
    for name in dict.fromkeys(name for name, _, _ in points):
        report_client(bench, name, [point for key, each in points.items() if key[0] == name for point in each])


def compare(bench: Bench, what: str, points: Points, mine: tuple[str, int, int], theirs: tuple[str, int, int]) -> None:
    """Add a rate beside another of the same rounds."""
    pairs = list(zip(points[mine], points[theirs], strict=True))
    value, baseline = (statistics.median(point.rate for point in column) for column in zip(*pairs, strict=True))
    bench.add(what, value, "1/s", baseline, statistics.median(own.rate / other.rate for own, other in pairs))


def report_client(bench: Bench, name: str, points: list[Point]) -> None:
    """Add what the workers of one kind waited for, and what went wrong."""
    waits: Counter[str] = sum((point.waits for point in points), Counter())
    for event, count in waits.most_common(5):
        bench.add(f"{name}, active sessions: {event}", 100 * count / waits.total(), "%")
    for what, count in {
        "claims that did not fill their batch": sum(point.short for point in points),
        "outcomes refused": sum(point.refused for point in points),
        "deadlocks": max(point.deadlocks for point in points),
        "errors": sum(point.errors for point in points),
    }.items():
        bench.add(f"{name}, {what}", count, "", target="none", ok=count == 0)
    for said in dict.fromkeys(point.said for point in points if point.said):
        bench.say(f"{name}: {said}")
    if turned_away := sum(point.turned_away for point in points):
        bench.add(f"{name}, calls that found no connection free for ten seconds", turned_away, "")
    share = max(point.client_share for point in points)
    bench.add(f"{name}, most that the client itself took of one processor", 100 * share, "%")
