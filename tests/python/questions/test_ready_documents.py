"""Documents that are ready for a stage."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from processors_v2.stage_tracker import StageTracker


@pytest.fixture
def stage(tracker: StageTracker, db: Any) -> Iterator[str]:
    """A stage of the test's own, after which nothing comes, so that its queue has only what the test puts there."""
    name = f"stage_{uuid.uuid4().hex[:12]}"
    tracker.register_stage(name, [], max_attempts=3, backoff_seconds=0, lease_seconds=60)
    # Documents of other tests are none of its business.
    db.connection.execute(
        "update krai_core.documents set stage_status = stage_status || jsonb_build_object(%s::text,"
        ' \'{"status": "completed", "progress": 100, "metadata": {}}\'::jsonb)',
        [name],
    )
    while tracker.fill_ready_runs():
        pass
    yield name
    db.drop_stage(name)


def test_ready_documents_come_in_pages(
    tracker: StageTracker, documents: list[str], stage: str, db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """get_documents_ready_for goes through all pages in the order of the queue, claims nothing, and obeys its limit."""
    monkeypatch.setattr("processors_v2._sync.pages._PAGE", 2)
    rows = list(tracker.get_documents_ready_for(stage))
    assert [row["id"] for row in rows] == documents
    assert rows[0]["filename"]
    assert [row["id"] for row in tracker.get_documents_ready_for(stage, limit=1)] == documents[:1]
    assert [row["id"] for row in tracker.get_documents_ready_for(stage, limit=2)] == documents[:2]
    assert list(tracker.get_documents_ready_for(stage, limit=0)) == []
    assert {db.stage(document, stage)["status"] for document in documents} == {"pending"}
