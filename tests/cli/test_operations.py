"""Commands that change something: what they do, what they ask before, and their exit codes."""

import datetime as dt
import json
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


def last_run(db: Any, document: str, column: str) -> Any:
    """A column of the last closed run of a document."""
    return db.one(
        f"select {column} from krai_core.stage_runs where document_id = %s and finished_at is not null"
        " order by id desc limit 1",
        document,
    )


def test_one_stage_is_retried(run: Any, db: Any, tracker: StageTracker, golden: Any) -> None:
    """retry DOC STAGE brings it back to pending, and keeps who asked for it."""
    (document,) = failed(db, tracker)
    done = run("retry", document, "upload", "--actor", "anna", "--json")
    assert done.code == 0, done.err
    golden("retry_one", done.out)
    assert statuses(db, [document]) == ["pending"]
    assert last_run(db, document, "actor") == "anna"


def test_the_login_name_is_the_actor(run: Any, db: Any, tracker: StageTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --actor it is kept who was logged in."""
    monkeypatch.setenv("LOGNAME", "operator-7")
    (document,) = failed(db, tracker)
    run("retry", document, "upload")
    assert last_run(db, document, "actor") == "operator-7"


def test_many_are_retried_by_stage_error_and_time(run: Any, db: Any, tracker: StageTracker, golden: Any) -> None:
    """Only what fits all filters is retried, and nothing by a dry run."""
    asked = failed(db, tracker, "OCR timeout", 2)
    others = failed(db, tracker, "disk is full", 1)
    options = ("--stage", "upload", "--error", "ocr TIME", "--since", "1h")
    dry = run("retry", *options, "--dry-run")
    assert (dry.code, dry.out.splitlines()[0]) == (0, "2 stages would be retried")
    assert "OCR timeout" in dry.out
    assert statuses(db, asked) == ["failed", "failed"]
    later = (dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)).isoformat()
    assert run("retry", "--error", "ocr", "--since", later, "--yes").out.startswith("0 stages retried")
    done = run("retry", *options, "--yes", "--json")
    assert done.code == 0, done.err
    golden("retry", done.out)
    assert statuses(db, [*asked, *others]) == ["pending", "pending", "failed"]


def test_what_is_beyond_the_limit_is_told(run: Any, db: Any, tracker: StageTracker) -> None:
    """retry says that there is more; the first twenty are shown, all of them in JSON."""
    made = failed(db, tracker, "beyond the limit", 23)
    done = run("retry", "--error", "beyond", "--limit", 22, "--dry-run")
    assert done.out.count("beyond the limit") == 20
    assert "The first 20 are listed; --json lists all." in done.err
    assert "There are more: run it again, or raise --limit." in done.err
    listed = json.loads(run("retry", "--error", "beyond", "--dry-run", "--json").out)["runs"]
    assert {one["document_id"] for one in listed} == set(made)


@pytest.mark.parametrize("command", [["retry"], ["prune", "--older-than", "30d"]])
def test_a_bulk_change_without_a_terminal_needs_yes(
    run: Any, db: Any, tracker: StageTracker, command: list[str]
) -> None:
    """Where nobody can be asked nothing is changed, and the message names --yes."""
    made = failed(db, tracker)
    done = run(*command)
    assert done.code == 2
    assert "pass --yes" in done.err
    assert done.out == ""
    assert statuses(db, made) == ["failed"]


@pytest.mark.parametrize(
    "arguments",
    [["{id}"], ["{id}", "upload", "--dry-run"], ["{id}", "upload", "--stage", "upload"], ["--since", "yesterday"],
     ["--since", "2026-01-01"], ["--limit", "0", "--yes"]],
)  # fmt: skip
def test_what_retry_cannot_read_changes_nothing(run: Any, db: Any, tracker: StageTracker, arguments: list[str]) -> None:
    """A document without a stage, filters beside a document, and times without a zone are wrong command lines."""
    (document,) = made = failed(db, tracker)
    done = run("retry", *(one.format(id=document) for one in arguments))
    assert (done.code, done.out) == (2, "")
    assert statuses(db, made) == ["failed"]


def test_a_stage_is_reset_with_all_that_depends_on_it(run: Any, db: Any, tracker: StageTracker, golden: Any) -> None:
    """reset --cascade goes along the pipeline; without it only the stage is run again."""
    document = db.document()
    for stage in ("upload", "text_extraction"):
        tracker.complete_stage(document, stage)
    assert run("reset", document, "upload").code == 0
    assert statuses(db, [document], "text_extraction") == ["completed"]
    done = run("reset", document, "upload", "--cascade", "--json")
    golden("reset", done.out)
    assert statuses(db, [document], "text_extraction") == ["pending"]


def test_running_work_is_taken_away_by_force_only(run: Any, db: Any, tracker: StageTracker) -> None:
    """reset of what runs is a conflict unless --force is given."""
    document = db.document()
    tracker.start_stage(document, "upload", claim_id=uuid.uuid4())
    refused = run("reset", document, "upload")
    assert (refused.code, refused.out) == (4, "")
    assert "processing" in refused.err
    assert run("reset", document, "upload", "--force").code == 0
    assert statuses(db, [document]) == ["pending"]


def test_a_document_is_cancelled(run: Any, db: Any, golden: Any) -> None:
    """cancel skips all that is not finished, with the reason."""
    document = db.document()
    done = run("cancel", document, "--reason", "Withdrawn", "--json")
    golden("cancel", done.out)
    assert db.stage(document, "storage")["metadata"] == {"reason": "Withdrawn"}
    assert statuses(db, [document]) == ["skipped"]


def test_a_stage_is_paused_and_resumed(run: Any, db: Any, golden: Any) -> None:
    """Nothing of a paused stage is handed out; explain says who paused it."""
    document = db.document()
    golden("pause", run("pause", "upload", "--actor", "anna", "--json").out)
    assert "the stage was paused by anna" in run("explain", document, "upload").out
    golden("resume", run("resume", "upload", "--json").out)
    assert "Ready for" in run("explain", document, "upload").out
