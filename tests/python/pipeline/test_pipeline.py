"""The stages of the pipeline, through the tracker."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from processors_v2.errors import InvalidArgument
from processors_v2.stage_tracker import (
    StageTracker,
)


@pytest.fixture
def stage(tracker: StageTracker, db: Any) -> Iterator[str]:
    """A stage that was registered."""
    name = f"stage_{uuid.uuid4().hex[:12]}"
    assert tracker.register_stage(name, ["upload"], position=2, description="made by a test", actor="test") is True
    yield name
    db.drop_stage(name)


def test_a_stage_is_registered_and_changed(tracker: StageTracker, stage: str) -> None:
    """register_stage puts a stage in its place with its prerequisites, and changes what is given, nothing else."""
    tracker.register_stage(stage, lease_seconds=77, timeout_seconds=99, max_attempts=2, backoff_seconds=3, weight=1.5)
    listed = {one.name: one for one in tracker.list_stages()}
    made = listed[stage]
    assert (made.position, made.requires, made.description, made.changed_by) == (
        2, ("upload",), "made by a test", made.changed_by,
    )  # fmt: skip
    assert (made.lease_seconds, made.timeout_seconds, made.max_attempts, made.backoff_seconds, made.weight) == (
        77, 99, 2, 3, 1.5,
    )  # fmt: skip
    tracker.register_stage(stage, [])
    assert {one.name: one for one in tracker.list_stages()}[stage].requires == ()


def test_a_circle_is_refused(tracker: StageTracker, stage: str) -> None:
    """A stage that would wait for itself is refused, and so is a prerequisite that does not exist."""
    with pytest.raises(InvalidArgument):
        tracker.register_stage("upload", [stage])
    with pytest.raises(InvalidArgument):
        tracker.register_stage(stage, ["no_such_stage"])


def test_a_disabled_stage_is_in_no_list_of_a_document(tracker: StageTracker, stage: str, document: str) -> None:
    """disable_stage takes a stage out of what a document still has to do."""
    assert tracker.explain_stage(document, stage)["reason"] == "waits_for_stages"
    assert tracker.disable_stage(stage, actor="operator") is True
    assert tracker.explain_stage(document, stage)["reason"] == "disabled"
    tracker.register_stage(stage)
    assert tracker.explain_stage(document, stage)["enabled"] is True


def test_list_stages_is_the_pipeline_of_the_database(tracker: StageTracker) -> None:
    """list_stages gives the stages in order, frozen, with what they require."""
    stages = tracker.list_stages()
    assert [stage.name for stage in stages] == StageTracker.STAGES
    assert {stage.name: set(stage.requires) for stage in stages} == {
        "upload": set(),
        "text_extraction": {"upload"},
        "image_processing": {"upload"},
        "classification": {"text_extraction"},
        "metadata_extraction": {"text_extraction"},
        "storage": {"image_processing"},
        "embedding": {"text_extraction"},
        "search_indexing": {"embedding", "metadata_extraction", "classification"},
    }
    with pytest.raises(ValueError, match="frozen"):
        stages[0].name = "other"  # type: ignore[misc]
