"""A short run of ``./dev proof soak``, and its judge on samples that are made up."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from proof._soak import bloat, soak
from proof._soak.crew import Done
from proof._soak.judge import MEGABYTE, Evidence, judge
from proof._soak.size import SHORT

# The names of workers, which each have a figure of their own.
WORKERS = [f"{lane} {number}" for number in range(1, 5) for lane in ("direct", "postgrest")]


@pytest.mark.timeout(400)
def test_two_minutes_of_steady_work_leave_nothing_behind(tmp_path: Path) -> None:
    """Every bound of the soak holds: memory, bloat, deltas, sessions, and all documents are done."""
    figures = {result.name: result for result in soak.run(SHORT, tmp_path / "samples.jsonl")}
    assert {name: result.value for name, result in figures.items() if result.ok is False} == {}
    assert [name for name in WORKERS if f"memory of {name}, last quarter beside first" not in figures] == []
    happened = (
        "runs that failed",
        "runs that were skipped",
        "documents deleted when done",
        "runs pruned from the history",
    )
    assert [name for name in happened if not figures[name].value] == []
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == figures["samples"].value > 60


def sample(second: int, **other: Any) -> dict[str, Any]:
    """Return a sample of a soak in which nothing is the matter."""
    quiet = {"deltas": 500, "idle_in_transaction": 0, "idle_seconds": 0, "lock_waits": 0, "transaction_seconds": 0}
    memory = {"direct 1": 60 * MEGABYTE, "postgrest 1": 60 * MEGABYTE}
    return {"seconds": second, "memory": memory, "sessions": 12, "deadlocks": 0, **quiet, **other}


GOOD = Evidence(
    samples=[sample(second) for second in range(1, 121)],
    workers=[Done("direct 1", {"claimed": 1900, "lost": 0, "released": 0, "cancelled": 0}, 0, [])],
    relations=[bloat.Relation("documents", is_index=False, used=19 * MEGABYTE, needed=10 * MEGABYTE)],
    documents=480,
    deleted=280,
    pruned=100,
    reindexed=2,
    unended=0,
    is_stuck=False,
    rebuilt=0,
)


def missed(**change: Any) -> list[str]:
    """Return the figures that miss their bounds when something is otherwise."""
    return [result.name for result in judge(SHORT, dataclasses.replace(GOOD, **change)) if result.ok is False]


def grown(second: int) -> dict[str, int]:
    """Return the memory of workers of which one grows by 16 MB in two minutes."""
    return {"direct 1": 60 * MEGABYTE + second * MEGABYTE // 7, "postgrest 1": 60 * MEGABYTE}


def gone(second: int) -> dict[str, int]:
    """Return the memory of workers of which one has died under way."""
    return {"direct 1": 60 * MEGABYTE} | ({} if second > 100 else {"postgrest 1": 60 * MEGABYTE})


def with_one(**other: Any) -> list[dict[str, Any]]:
    """Return good samples, and one in their midst in which something is the matter."""
    return [sample(second, **(other if second == 60 else {})) for second in range(1, 121)]


TABLE, INDEX = "table documents, beside freshly written", "index stage_runs_ready, beside freshly written"
RELATIONS = {
    "twice": bloat.Relation("documents", is_index=False, used=20 * MEGABYTE, needed=10 * MEGABYTE),
    "small": bloat.Relation("stage_runs_ready", is_index=True, used=7 * MEGABYTE, needed=8192),
    "queue": bloat.Relation("stage_runs_ready", is_index=True, used=9 * MEGABYTE, needed=8192),
}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({}, []),
        (
            {"samples": [sample(second, memory=grown(second)) for second in range(1, 121)]},
            ["memory of direct 1, last quarter beside first"],
        ),
        (
            {"samples": [sample(second, memory=gone(second)) for second in range(1, 121)]},
            ["memory of postgrest 1, last quarter beside first"],
        ),
        ({"samples": with_one(deltas=4001)}, ["rows of stage_deltas, most"]),
        ({"samples": with_one(idle_in_transaction=1, idle_seconds=0.4)}, []),
        (
            {"samples": with_one(idle_in_transaction=1, idle_seconds=1.0)},
            ["samples with a session idle in transaction for a second"],
        ),
        ({"samples": [*GOOD.samples, sample(121, deadlocks=1)]}, ["deadlocks"]),
        ({"relations": [RELATIONS["twice"]]}, [TABLE]),
        ({"relations": [RELATIONS["small"]]}, []),
        ({"relations": [RELATIONS["queue"]]}, [INDEX]),
        ({"unended": 1}, ["stages that never ended"]),
        ({"is_stuck": True}, ["stages that never ended"]),
        ({"rebuilt": 1}, ["mended by rebuilding at the end"]),
        ({"workers": [Done("direct 1", {"claimed": 5, "lost": 1}, 0, [])]}, ["runs lost, cancelled or released"]),
        ({"workers": [Done("direct 1", {"claimed": 5}, 1, ["trouble"])]}, ["complaints of workers"]),
        ({"workers": [Done("direct 1", {}, 1, ["exit code 1"])]}, ["stage runs", "complaints of workers"]),
    ],
)
def test_the_judge_sees_what_is_the_matter(change: dict[str, Any], names: list[str]) -> None:
    """Each bound is missed by what it is there for, and by nothing else."""
    assert missed(**change) == names
