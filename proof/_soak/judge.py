"""What a soak has shown: each figure with its bound."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks._shared.bench import Result
from proof._soak.bloat import Relation
from proof._soak.crew import Done
from proof._soak.sampler import Sample
from proof._soak.size import Size

MEGABYTE = 1 << 20
# Of memory: whichever is more.
GROWTH_SHARE, GROWTH_BYTES = 0.10, 8 * MEGABYTE
# Deltas are folded when there are a thousand, by one at a time, while others add to them.
MOST_DELTAS = 4000
# A transaction of PostgREST is several messages, between which a sample may fall; nobody has to think for a second.
IDLE_SECONDS = 1.0
TIMES_AT_MOST = 2.0
# What is smaller has its working room: the list of what a GIN index has yet to sort in (up to 4 MB), dead rows between
# two rounds of autovacuum, pages that a queue has left.
ROOM_BYTES = 8 * MEGABYTE
# Not shown.
SMALL_BYTES = 64 * 1024


@dataclass(frozen=True)
class Evidence:
    """What there is to judge.

    Attributes:
        samples: of the time for which documents came in, and of the rest.
        workers: what they did.
        relations: the tables and indexes at the end.
        documents: that came in.
        deleted: of these.
        pruned: runs.
        reindexed: the GIN index, so many times.
        unended: stages that never ended.
        is_stuck: the work did not come to its end.
        rebuilt: what rebuild_ready_runs and rebuild_statistics had to mend, in all.
    """

    samples: Sequence[Sample]
    workers: Sequence[Done]
    relations: Sequence[Relation]
    documents: int
    deleted: int
    pruned: int
    reindexed: int
    unended: int
    is_stuck: bool
    rebuilt: int


def judge(size: Size, evidence: Evidence) -> list[Result]:
    """Return all figures; those with a bound say whether it was kept."""
    return [*_facts(size, evidence), *_memory(size, evidence), *_bloat(evidence), *_sessions(evidence), *_end(evidence)]


def _facts(size: Size, evidence: Evidence) -> list[Result]:
    counts = [worker.counts for worker in evidence.workers]
    runs = sum(count.get("claimed", 0) for count in counts)
    least = min((count.get("claimed", 0) for count in counts), default=0)
    return [
        Result("documents", evidence.documents, "", baseline=size.seconds * size.documents_per_second),
        Result("documents deleted when done", evidence.deleted, ""),
        Result("stage runs", runs, "", target="every worker had some", ok=least > 0),
        Result("stage runs a second", runs / size.seconds, "1/s"),
        Result("runs that failed", sum(count.get("failed", 0) for count in counts), ""),
        Result("runs that were skipped", sum(count.get("skipped", 0) for count in counts), ""),
        Result("runs pruned from the history", evidence.pruned, ""),
        Result("times that the GIN index was built anew", evidence.reindexed, ""),
        Result("samples", len(evidence.samples), ""),
    ]


def _memory(size: Size, evidence: Evidence) -> list[Result]:
    """The median of the last quarter beside that of the first, once a worker has settled."""
    settled = [
        sample["memory"]
        for sample in evidence.samples
        if size.seconds * size.settle_share <= sample["seconds"] <= size.seconds
    ]
    quarter = max(1, len(settled) // 4)
    results = []
    for name in sorted({name for memory in settled for name in memory}):
        series = [memory[name] for memory in settled if name in memory]
        first, last = statistics.median(series[:quarter]), statistics.median(series[-quarter:])
        bound = max(GROWTH_SHARE * first, GROWTH_BYTES)
        results.append(
            Result(
                f"memory of {name}, last quarter beside first",
                last / MEGABYTE,
                "MB",
                first / MEGABYTE,
                last / first,
                f"at most {bound / MEGABYTE:.0f} MB more",
                len(series) == len(settled) and last - first <= bound,
            )
        )
    return results


def _bloat(evidence: Evidence) -> list[Result]:
    results = []
    for relation in sorted(evidence.relations, key=lambda each: -each.used):
        if relation.used <= SMALL_BYTES:
            continue
        is_small = relation.used < ROOM_BYTES
        results.append(
            Result(
                f"{'index' if relation.is_index else 'table'} {relation.name}, beside freshly written",
                relation.used / 1024,
                "kB",
                relation.needed / 1024,
                relation.times,
                f"below {ROOM_BYTES // MEGABYTE} MB" if is_small else f"below {TIMES_AT_MOST:g} times",
                is_small or relation.times < TIMES_AT_MOST,
            )
        )
    used, needed = (sum(getattr(each, name) for each in evidence.relations) for name in ("used", "needed"))
    results.append(
        Result("all tables and indexes, beside freshly written", used / 1024, "kB", needed / 1024, used / needed)
    )
    return results


def _sessions(evidence: Evidence) -> list[Result]:
    samples = evidence.samples
    most = max(sample["deltas"] for sample in samples)
    idle = [sample for sample in samples if sample["idle_seconds"] >= IDLE_SECONDS]
    seen = sum(sample["idle_in_transaction"] > 0 for sample in samples)
    waits = sum(sample["lock_waits"] > 0 for sample in samples)
    return [
        Result("rows of stage_deltas, most", most, "", target=f"at most {MOST_DELTAS:,}", ok=most <= MOST_DELTAS),
        Result("rows of stage_deltas, median", statistics.median(sample["deltas"] for sample in samples), ""),
        Result("samples with a session idle in transaction for a second", len(idle), "", target="none", ok=not idle),
        Result("samples with a session between two messages of its transaction", seen, ""),
        Result("longest of these", max(float(sample["idle_seconds"]) for sample in samples), "s"),
        Result("longest transaction seen", max(float(sample["transaction_seconds"]) for sample in samples), "s"),
        Result("samples in which a session waits for a lock", waits, ""),
        Result("sessions, most", max(sample["sessions"] for sample in samples), ""),
        Result("deadlocks", samples[-1]["deadlocks"], "", target="none", ok=samples[-1]["deadlocks"] == 0),
    ]


def _end(evidence: Evidence) -> list[Result]:
    counts = [worker.counts for worker in evidence.workers]
    astray = sum(count.get(word, 0) for count in counts for word in ("lost", "cancelled", "released"))
    complaints = sum(worker.complaints for worker in evidence.workers)
    left = evidence.unended + evidence.is_stuck
    return [
        Result("stages that never ended", evidence.unended, "", target="none", ok=left == 0),
        Result("runs lost, cancelled or released", astray, "", target="none", ok=astray == 0),
        Result("complaints of workers", complaints, "", target="none", ok=complaints == 0),
        Result("mended by rebuilding at the end", evidence.rebuilt, "", target="nothing", ok=evidence.rebuilt == 0),
    ]
