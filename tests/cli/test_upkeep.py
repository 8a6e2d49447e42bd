"""Commands that clean up."""

import uuid
from typing import Any

import pytest

from processors_v2.stage_tracker import StageTracker

pytestmark = pytest.mark.usefixtures("direct")


def failed(db: Any, tracker: StageTracker, error: str = "R2 is away", count: int = 1) -> list[str]:
    """Make documents whose upload has failed."""
    made = [db.document() for _ in range(count)]
    for document in made:
        tracker.fail_stage(document, "upload", error)
    return made


def statuses(db: Any, documents: list[str], stage: str = "upload") -> list[str]:
    """The status of a stage of each document."""
    return [db.stage(document, stage)["status"] for document in documents]


def test_what_dead_workers_hold_comes_back(run: Any, db: Any, tracker: StageTracker, golden: Any) -> None:
    """reap brings a run back whose lease is over."""
    document = db.document()
    tracker.start_stage(document, "upload", claim_id=uuid.uuid4(), lease_seconds=0.001)
    golden("reap", run("reap", "--json").out)
    assert statuses(db, [document]) == ["pending"]


def test_old_history_is_pruned(run: Any, db: Any, tracker: StageTracker, golden: Any) -> None:
    """prune deletes superseded runs of that age, and says whether there are more; failed ones only when told so."""
    for document in failed(db, tracker, count=3):
        tracker.retry_stage(document, "upload")
        tracker.complete_stage(document, "upload")
    db.one(
        "update krai_core.stage_runs set finished_at = finished_at - interval '40 days' where finished_at is not null"
    )
    kept = run("prune", "--older-than", "30d", "--yes")
    assert "0 runs deleted" in kept.out
    first = run("prune", "--older-than", "30d", "--yes", "--with-failures", "--limit", "2", "--json")
    golden("prune", first.out)
    assert "There are more" in first.err
    assert "1 run deleted" in run("prune", "--older-than", "4w", "--yes", "--with-failures").out
