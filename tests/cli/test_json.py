"""--json prints one document: what the database answered."""

import json
import uuid
from typing import Any

import pytest

from processors_v2.stage_tracker import StageTracker

pytestmark = pytest.mark.usefixtures("direct")


@pytest.fixture(scope="module")
def scene(db: Any, tracker: StageTracker) -> dict[str, str]:
    """Documents of each kind, by a name for the test."""
    ids = {name: db.document(f"{name}.pdf") for name in ("done", "failed", "running", "waiting")}
    for document in ids.values():
        tracker.complete_stage(document, "upload", {"file_size": 81_543_210})
    for stage in ("text_extraction", "image_processing", "classification", "metadata_extraction", "storage"):
        tracker.skip_stage(ids["done"], stage, "Not wanted")
    for stage in ("embedding", "search_indexing"):
        tracker.complete_stage(ids["done"], stage)
    tracker.start_stage(ids["failed"], "text_extraction", worker="gpu-1")
    tracker.fail_stage(ids["failed"], "text_extraction", "page 7 of /inbox/7.pdf is damaged")
    tracker.start_stage(ids["running"], "text_extraction", claim_id=uuid.uuid4(), worker="gpu-2")
    tracker.update_progress(ids["running"], "text_extraction", 45.5, {"pages_processed": 2000})
    return ids


COMMANDS = {
    "status": "status {running}",
    "ls": "ls --stage text_extraction --status failed",
    "stats": "stats",
    "watch": "watch",
    "timeline": "timeline {failed}",
    "explain": "explain {done} image_processing",
    "forecast": "forecast",
    "retry_dry_run": "retry --stage text_extraction --error PAGE --since 1h --dry-run",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_what_it_was(run: Any, scene: dict[str, str], golden: Any, name: str) -> None:
    """One JSON document and nothing else on standard output, with the keys and values that scripts rely on."""
    done = run(*COMMANDS[name].format(**scene).split(), "--json")
    assert done.code == 0, done.err
    golden(name, done.out)


@pytest.mark.parametrize(
    ("command", "function"),
    [("status {failed}", "get_document_status"), ("timeline {failed}", "get_document_timeline")],
)
def test_json_is_the_answer_of_the_database(
    run: Any, db: Any, scene: dict[str, str], command: str, function: str
) -> None:
    """Nothing is added to it and nothing taken away."""
    printed = json.loads(run(*command.format(**scene).split(), "--json").out)
    assert printed == db.call(function, scene["failed"])


@pytest.mark.usefixtures("scene")
def test_json_keeps_every_letter(run: Any, db: Any) -> None:
    """Names of other alphabets come as they are."""
    document = db.document("Störung 故障.pdf")
    printed = run("ls", "--json").out
    db.one("delete from krai_core.documents where id = %s", document)
    assert "Störung 故障.pdf" in printed
    assert json.loads(printed)[0]["filename"] == "Störung 故障.pdf"
