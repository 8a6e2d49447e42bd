"""How fast one worker drains 10,000 no-op stage runs, beside bare SQL and the peers, on one embedded Postgres.

The runs are those of 1,250 documents that go through all eight stages, each finish making the next ones ready.
The lanes drain in turns, so that all meet the same noise: the floor and the table of two columns (_drain/floor.py), and
the calls of the tracker in a plain loop, over a Postgres connection and through PostgREST, in batches of 1, 10, 100
and 500. StageWorker, and the peers with their own fast settings (_drain/peer_*.py), drain one after the other. What has
a target is measured in three rounds, and its ratio is the median of the rounds' ratios. The worker of the targets is
StageWorker, which claims and reports at the same time, each over a connection of its own; the plain loop has one.

--only takes some of floor, two_columns, direct, postgrest, worker, procrastinate, pgqueuer, dbos, and of the batches 1,
10, 100, 500: --only floor,direct,100
"""

import statistics
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

from benchmarks._drain import peers
from benchmarks._drain.floor import BareTable, Floor
from benchmarks._drain.lanes import Lane, race
from benchmarks._drain.ours import Ours
from benchmarks._shared.bench import Bench
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker

OURS: dict[str, Callable[[LocalSupabase], Ours]] = {"direct": Ours.direct, "postgrest": Ours.postgrest}
LANES: dict[str, Callable[[LocalSupabase], Lane[Any]]] = {"floor": Floor, "two_columns": BareTable, **OURS}
WHO = (*LANES, "worker", *dict.fromkeys(peer.package for peer in peers.PEERS))
BATCHES = {"100": 100, "1": 1, "10": 10, "500": 500}
PARTS = (WHO, tuple(BATCHES))

# The batch that has targets, and is run in every round.
MEASURED = 100
ROUNDS = 3
JOBS = 10_000
TURNS = 10

# Who, beside whom, and how many times as fast it has to be.
TARGETS = {
    ("StageWorker, direct", "floor"): 0.55,
    ("StageWorker, direct", "procrastinate"): 8.0,
    ("StageWorker, direct", "dbos"): 2.5,
    ("PostgREST", "direct"): 0.7,
}
BESIDE = (
    *TARGETS,
    ("direct", "floor"),
    ("direct", "procrastinate"),
    ("direct", "dbos"),
    ("StageWorker, PostgREST", "floor"),
    ("direct", "pgqueuer, durable"),
    ("direct", "pgqueuer, volatile"),
    ("two columns", "floor"),
)

# Jobs per second by name: of one race of the lanes, or of one peer.
Rates = dict[str, float]
Step = tuple[int, int, Callable[[], Rates]]


def run(bench: Bench) -> None:
    """Run all rounds, and report."""
    measured: dict[int, dict[int, Rates]] = defaultdict(lambda: defaultdict(dict))
    with LocalSupabase() as local, ExitStack() as open_lanes:
        lanes = {
            name: open_lanes.enter_context(closing(make(local)))
            for name, make in LANES.items()
            if bench.wants(name, WHO) or (name in OURS and bench.wants("worker", WHO))
        }
        for number, batch, step in bench.progress(plan(bench, local, lanes), "drains"):
            measured[batch][number].update(step())
    for batch in sorted(measured):
        report(bench, batch, list(measured[batch].values()))


def plan(bench: Bench, local: LocalSupabase, lanes: dict[str, Lane[Any]]) -> list[Step]:
    """List what is to be drained: the round, the batch, and how."""
    turns, rounds = (2, 1) if bench.quick else (TURNS, ROUNDS)
    racing = [lane for name, lane in lanes.items() if bench.wants(name, WHO)]
    steps: list[Step] = []
    for name, batch in BATCHES.items():
        if not bench.wants(name, BATCHES):
            continue
        # No batch is to hold two stages of one document, which the floor could not write.
        jobs = len(StageTracker.STAGES) * max(50, batch) if bench.quick else JOBS
        alone: list[Callable[[], Rates]] = []
        if batch == MEASURED:
            if bench.wants("worker", WHO):
                alone += [partial(drain_by_worker, lane, jobs) for lane in lanes.values() if isinstance(lane, Ours)]
            alone += [
                partial(drain_peer, bench, local, peer, jobs) for peer in peers.PEERS if bench.wants(peer.package, WHO)
            ]
        for number in range(rounds if batch == MEASURED else 1):
            if racing:
                steps.append((number, batch, partial(race, racing, jobs, batch, turns)))
            steps += [(number, batch, step) for step in alone]
    return steps


def drain_by_worker(lane: Ours, jobs: int) -> Rates:
    """Let a StageWorker drain."""
    return {f"StageWorker, {lane.name}": lane.drain_by_worker(jobs, MEASURED)}


def drain_peer(bench: Bench, local: LocalSupabase, peer: peers.Peer, jobs: int) -> Rates:
    """Let a peer drain; when it cannot, say so and go on without it."""
    try:
        drained = peers.drain(local, peer, jobs)
    except peers.PeerFailed as failure:
        bench.say(f"{peer.name} is left out: {failure}")
        return {}
    return {peer.name: drained.jobs / drained.seconds}


def report(bench: Bench, batch: int, rounds: list[Rates]) -> None:
    """Add the figures of one size of batches."""
    names = dict.fromkeys(name for rates in rounds for name in rates)
    peer_names = {peer.name for peer in peers.PEERS}
    for name in names:
        label = name if name in peer_names else f"{name}, batch {batch}"
        bench.add(label, statistics.median(rates[name] for rates in rounds if name in rates), "1/s")
    for who, other in BESIDE:
        pairs = [(rates[who], rates[other]) for rates in rounds if who in rates and other in rates]
        if not pairs:
            continue
        ratio = statistics.median(mine / theirs for mine, theirs in pairs)
        value, baseline = (statistics.median(column) for column in zip(*pairs, strict=True))
        wanted = TARGETS.get((who, other)) if batch == MEASURED and not bench.quick else None
        bench.add(
            f"{who} beside {other}, batch {batch}",
            value,
            "1/s",
            baseline,
            ratio,
            None if wanted is None else f"at least {wanted:g} times",
            None if wanted is None else ratio >= wanted,
        )
