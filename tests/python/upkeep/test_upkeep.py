"""Statistics that are rebuilt, runs that are pruned, and what pg_cron would do."""

import datetime as dt
import uuid
from typing import Any

import pytest

from processors_v2._calls.arguments import interval_of
from processors_v2.errors import InvalidArgument
from processors_v2.stage_tracker import StageTracker


def aged(tracker: StageTracker, db: Any, days: float) -> str:
    """A document whose upload failed once, was tried again with success, and that long ago."""
    document = str(db.document())
    for end in (tracker.complete_stage, tracker.complete_stage):
        tracker.start_stage(document, "upload")
        end(document, "upload")
    db.one(
        "with old as (update krai_core.stage_runs set finished_at = finished_at - %s * interval '1 day'"
        " where document_id = %s and finished_at is not null returning 1) select count(*) from old",
        days,
        document,
    )
    return document


def runs(db: Any, document: str) -> int:
    """How many closed runs of upload there are."""
    found: int = db.one(
        "select count(*) from krai_core.stage_runs where document_id = %s and stage_name = 'upload'"
        " and finished_at is not null",
        document,
    )
    return found


def test_old_runs_are_pruned_and_the_last_ones_stay(tracker: StageTracker, db: Any) -> None:
    """prune_runs deletes what is older than its age and was superseded, and says whether there is more."""
    old, young = aged(tracker, db, 40), aged(tracker, db, 20)
    found = tracker.prune_runs(dt.timedelta(days=30))
    assert (found["pruned"] >= 1, found["more"]) == (True, False)
    assert (runs(db, old), runs(db, young)) == (1, 2)


def test_pruning_is_bounded(tracker: StageTracker, db: Any) -> None:
    """No more than the limit goes at once."""
    tracker.prune_runs(dt.timedelta(days=10))
    documents = [aged(tracker, db, 20) for _ in range(2)]
    assert tracker.prune_runs(dt.timedelta(days=10), limit=1) == {"pruned": 1, "more": True}
    assert sorted(runs(db, document) for document in documents) == [1, 2]


def test_ready_runs_of_a_new_stage_are_filled_in_parts(tracker: StageTracker, db: Any) -> None:
    """fill_ready_runs looks at no more documents than it is told, goes on where it was, and returns 0 at the end."""
    document, stage = str(db.document()), f"stage_{uuid.uuid4().hex[:12]}"
    tracker.register_stage(stage, [])
    try:
        assert tracker.fill_ready_runs(1) == 1
        while tracker.fill_ready_runs():
            pass
        assert tracker.explain_stage(document, stage)["reason"] == "ready"
    finally:
        db.drop_stage(stage)


def test_failures_are_kept_unless_told_otherwise(tracker: StageTracker, document: str, db: Any) -> None:
    """keep_failures=False lets failed runs go, too."""
    tracker.fail_stage(document, "upload", "R2 is away")
    tracker.retry_stage(document, "upload")
    tracker.complete_stage(document, "upload")
    tracker.prune_runs(dt.timedelta(0))
    assert runs(db, document) == 2
    tracker.prune_runs(dt.timedelta(0), keep_failures=False)
    assert runs(db, document) == 1


@pytest.mark.parametrize("age", [dt.timedelta(days=-1), dt.timedelta(microseconds=-1), 30, "30 days", None])
def test_what_is_no_age_is_refused(tracker: StageTracker, age: Any) -> None:
    """An age is a timedelta of 0 or more."""
    with pytest.raises(InvalidArgument) as caught:
        tracker.prune_runs(age)
    assert caught.value.error == "invalid_age"
    if age is not None:
        with pytest.raises(InvalidArgument):
            tracker.schedule_maintenance(age)


@pytest.mark.parametrize(
    "age",
    [
        dt.timedelta(days=30),
        dt.timedelta(microseconds=1),
        dt.timedelta(days=-3, hours=5, microseconds=7),
        dt.timedelta(),
    ],
)
def test_an_age_is_the_same_in_the_database(db: Any, age: dt.timedelta) -> None:
    """What is sent is read as the same interval, to the microsecond."""
    assert db.one("select %s::interval", interval_of(age)) == age


def test_the_statistics_are_right(tracker: StageTracker, document: str) -> None:
    """rebuild_statistics finds nothing to mend."""
    tracker.start_stage(document, "upload")
    assert tracker.rebuild_statistics() == {"mended": 0}


def test_without_pg_cron_nothing_is_scheduled(tracker: StageTracker) -> None:
    """schedule_maintenance says so, and what to do."""
    found = tracker.schedule_maintenance(dt.timedelta(days=30), keep_failures=False)
    assert (found["scheduled"], found["jobs"]) == (False, [])
    assert "pg_cron" in found["message"]
    assert tracker.schedule_maintenance()["scheduled"] is False


def test_a_dead_workers_run_comes_back(tracker: StageTracker, document: str, db: Any) -> None:
    """reap brings back what nobody holds any more, and says how much that was."""
    tracker.start_stage(document, "upload", claim_id=uuid.uuid4())
    db.end_lease(document, "upload")
    assert tracker.reap()["requeued"] >= 1
    assert db.stage(document, "upload")["status"] == "pending"
    assert set(tracker.reap(5)) >= {"requeued", "failed", "filled"}


def test_the_queue_is_right(tracker: StageTracker, document: str) -> None:
    """rebuild_ready_runs finds nothing to mend."""
    assert document
    rebuilt = tracker.rebuild_ready_runs()
    assert (rebuilt["added"], rebuilt["removed"]) == (0, 0)
