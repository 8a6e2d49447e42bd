"""The command that ends a stage by hand."""

from typing import Any

import pytest

from processors_v2.stage_tracker import StageTracker

pytestmark = pytest.mark.usefixtures("direct")


def test_a_stage_is_skipped(run: Any, db: Any, golden: Any) -> None:
    """skip keeps the reason."""
    document = db.document()
    done = run("skip", document, "image_processing", "--reason", "No images", "--json")
    assert done.code == 0, done.err
    golden("skip", done.out)
    assert db.stage(document, "image_processing")["metadata"] == {"reason": "No images"}


def test_a_completed_stage_is_not_skipped(run: Any, db: Any, tracker: StageTracker, golden: Any) -> None:
    """The answer is no, and so is the exit code."""
    document = db.document()
    tracker.complete_stage(document, "upload")
    done = run("skip", document, "upload", "--json")
    assert done.code == 1
    golden("skip_done", done.out)
    assert "completed already; nothing was changed" in run("skip", document, "upload").out
    assert db.stage(document, "upload")["status"] == "completed"
