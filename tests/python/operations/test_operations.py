"""The calls of people and schedulers, through the tracker."""

import datetime as dt
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from processors_v2.errors import InvalidArgument, UnknownDocument, UnknownStage
from processors_v2.stage_tracker import StageTracker


@pytest.fixture
def stage(tracker: StageTracker, db: Any) -> Iterator[str]:
    """A stage that was registered."""
    name = f"stage_{uuid.uuid4().hex[:12]}"
    assert tracker.register_stage(name, ["upload"], position=2, description="made by a test", actor="test") is True
    yield name
    db.drop_stage(name)


def test_a_paused_stage_hands_out_nothing(tracker: StageTracker, stage: str, document: str) -> None:
    """pause_stage keeps a stage from being claimed until resume_stage."""
    tracker.complete_stage(document, "upload")
    tracker.set_priority(document, 7)
    assert tracker.pause_stage(stage, actor="operator") is True
    assert tracker.claim(stage) == []
    told = tracker.explain_stage(document, stage)
    assert (told["reason"], told["paused"]) == ("paused", True)
    assert tracker.resume_stage(stage, actor="operator") is True
    (run,) = tracker.claim(stage)
    assert run.document_id == document
    told = tracker.explain_stage(document, stage)
    assert (told["reason"], told["attempt"], told["worker"]) == ("running", 1, run._worker)
    run.release()


def test_priority_comes_first(tracker: StageTracker, stage: str, db: Any) -> None:
    """set_priority puts a document before older ones, also at stages that become ready later."""
    old, urgent = db.document(), db.document()
    assert tracker.set_priority(urgent, 500, actor="operator") is True
    for document in (old, urgent):
        tracker.complete_stage(document, "upload")
    assert tracker.explain_stage(urgent, stage)["place"] == 1
    (run,) = tracker.claim(stage)
    assert run.document_id == urgent
    run.release()
    tracker.set_priority(urgent, 0)


def test_a_document_is_cancelled(tracker: StageTracker, document: str, db: Any) -> None:
    """cancel_document skips all that is unfinished, with the reason, and leaves what is finished."""
    tracker.complete_stage(document, "upload")
    assert tracker.cancel_document(document, "not wanted", actor="operator") is True
    assert db.stage(document, "upload")["status"] == "completed"
    assert db.stage(document, "embedding")["status"] == "skipped"
    assert db.stage(document, "embedding")["metadata"]["reason"] == "not wanted"
    assert tracker.get_current_stage(document) == "completed"


def test_failed_stages_are_retried_by_filter(tracker: StageTracker, db: Any) -> None:
    """retry_failed brings back what failed with an error like this, since then; a dry run only tells."""
    word = uuid.uuid4().hex
    failed = [db.document() for _ in range(3)]
    since = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=1)
    for number, document in enumerate(failed):
        tracker.fail_stage(document, "storage", f"R2 is away {word if number else 'elsewhere'}")
    dry = tracker.retry_failed("storage", word, since, dry_run=True, actor="operator")
    assert (dry["count"], dry["more"], dry["dry_run"]) == (2, False, True)
    assert {run["document_id"] for run in dry["runs"]} == set(failed[1:])
    assert dry["runs"][0]["error"] == f"R2 is away {word}"
    assert tracker.retry_failed("storage", word, since + dt.timedelta(hours=1))["count"] == 0
    assert tracker.retry_failed("storage", word, since, 1)["more"] is True
    assert tracker.retry_failed(error=word)["count"] == 1
    assert [db.stage(document, "storage")["status"] for document in failed] == ["failed", "pending", "pending"]


def test_a_time_without_zone_is_refused(tracker: StageTracker) -> None:
    """What no two machines read the same is not sent."""
    with pytest.raises(InvalidArgument, match="time zone"):
        tracker.retry_failed(since=dt.datetime(2026, 1, 1))  # noqa: DTZ001 - what is refused


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        (lambda t: t.cancel_document(uuid.uuid4()), UnknownDocument),
        (lambda t: t.set_priority(uuid.uuid4(), 1), UnknownDocument),
        (lambda t: t.explain_stage(uuid.uuid4(), "upload"), UnknownDocument),
        (lambda t: t.pause_stage("ocr"), UnknownStage),
        (lambda t: t.resume_stage("ocr"), UnknownStage),
        (lambda t: t.disable_stage("ocr"), UnknownStage),
        (lambda t: t.retry_failed("ocr"), UnknownStage),
        (lambda t: list(t.get_documents_ready_for("ocr")), UnknownStage),
        (lambda t: t.get_next_document("ocr"), UnknownStage),
        (lambda t: t.reap(-1), InvalidArgument),
        (lambda t: t.register_stage("Not A Name"), InvalidArgument),
    ],
)
def test_what_does_not_exist_is_an_error(tracker: StageTracker, call: Any, kind: type) -> None:
    """Unknown documents and stages, and values out of range, raise the classes of the single calls."""
    with pytest.raises(kind):
        call(tracker)
