"""get_document_timeline: all runs of a document, in the order in which they were opened."""

import uuid
from collections.abc import Callable

KEYS = {
    "stage_name", "status", "attempt", "ready_at", "started_at", "finished_at", "wait_seconds", "work_seconds",
    "progress", "error", "retry_at", "reset_at", "worker", "actor",
}  # fmt: skip


def test_every_run_is_told_in_order(alone) -> None:
    """A failed attempt, a lost one, a released one and what runs now: each with its number, none left out."""
    alone.run("update krai_core.stages set backoff_seconds = 0")
    document = alone.document(filename="service manual.pdf")
    (run,) = alone.claim()
    alone.finish(
        {key: run[key] for key in ("document_id", "stage_name", "claim_id")}
        | {"outcome": "failed", "error": "OCR engine timeout", "retry": True}
    )
    alone.call("release_stages", alone.claim())
    alone.claim()
    alone.end_lease(document, "upload")
    alone.claim()
    told = alone.call("get_document_timeline", document)
    assert set(told) == {"document_id", "filename", "runs"}
    assert (told["document_id"], told["filename"]) == (str(document), "service manual.pdf")
    assert all(set(one) == KEYS for one in told["runs"])
    assert [(one["stage_name"], one["status"], one["attempt"]) for one in told["runs"]] == [
        ("upload", "failed", 1),
        ("upload", "released", 2),
        ("upload", "lost", 2),
        ("upload", "running", 3),
    ]
    failed, _, lost, running = told["runs"]
    assert (failed["error"], failed["worker"]) == ("OCR engine timeout", "w")
    assert failed["retry_at"] is not None
    assert lost["error"]
    assert (running["finished_at"], running["error"]) == (None, None)


def test_wait_and_work_are_told_apart(alone) -> None:
    """From ready to start, and from start to end, in seconds; what still waits has not waited, and works on nothing."""
    document = alone.document()
    alone.run("update krai_core.stage_runs set available_at = available_at - interval '100 s'")
    alone.call("start_stage", document, "upload")
    alone.run("update krai_core.stage_runs set started_at = started_at - interval '30 s'")
    alone.call("complete_stage", document, "upload")
    runs = {one["stage_name"]: one for one in alone.call("get_document_timeline", document)["runs"]}
    assert 69 <= runs["upload"]["wait_seconds"] < 100
    assert 30 <= runs["upload"]["work_seconds"] < 60
    ready = runs["text_extraction"]
    assert (ready["status"], ready["work_seconds"], ready["started_at"]) == ("ready", None, None)
    assert ready["ready_at"] is not None


def test_times_are_those_of_the_stage(service) -> None:
    """started_at and finished_at of the run are those that the stage shows, in the same form."""
    document = service.document()
    service.call("start_stage", document, "upload")
    service.call("complete_stage", document, "upload")
    run = service.call("get_document_timeline", document)["runs"][0]
    stage = service.stage(document, "upload")
    assert (run["started_at"], run["finished_at"]) == (stage["started_at"], stage["completed_at"])
    assert abs(run["work_seconds"] - stage["duration_seconds"]) < 0.00001


def test_progress_is_that_of_each_run(service) -> None:
    """A run that was replaced keeps the progress it had; the one at work shows that of the stage."""
    document = service.document()
    service.call("start_stage", document, "upload")
    service.call("update_stage_progress", document, "upload", 40)
    service.call("fail_stage", document, "upload", "x")
    assert service.call("get_document_timeline", document)["runs"][0]["progress"] == 40
    service.call("start_stage", document, "upload")
    service.call("update_stage_progress", document, "upload", 7.5)
    first, second = service.call("get_document_timeline", document)["runs"]
    assert (first["progress"], second["progress"]) == (40, 7.5)


def test_who_acted_is_told(service) -> None:
    """A reset by a person is told with the run that it followed."""
    document = service.document()
    service.call("fail_stage", document, "upload", "x")
    service.call("retry_stage", document, "upload", "anna")
    run = service.call("get_document_timeline", document)["runs"][0]
    assert run["actor"] == "anna"
    assert run["reset_at"] is not None


def test_a_long_error_is_cut(service) -> None:
    """An error of 60,000 letters is told up to 4,000."""
    document = service.document()
    service.call("fail_stage", document, "upload", "x" * 60_000)
    assert len(service.call("get_document_timeline", document)["runs"][0]["error"]) <= 4000


def test_a_document_without_history_has_its_ready_runs(service) -> None:
    """Of a new document only what is ready is told; of one that was completed elsewhere, its eight ends."""
    (run,) = service.call("get_document_timeline", service.document())["runs"]
    assert (run["stage_name"], run["status"]) == ("upload", "ready")
    archived = service.document(processing_status="completed")
    runs = service.call("get_document_timeline", archived)["runs"]
    assert [(one["status"], one["started_at"], one["work_seconds"]) for one in runs] == [("completed", None, None)] * 8


def test_an_unknown_document_is_refused(service, connect: Callable) -> None:
    """Nobody's id is PT404, and null is 22023."""
    assert service.refused("get_document_timeline", uuid.uuid4()).word == "unknown_document"
    refusal = connect().refused("get_document_timeline", None)
    assert (refusal.sqlstate, refusal.word) == ("22023", "invalid_document_id")
