"""Progress, current stage, what may start, and the status of a document, as SQL and over HTTP."""

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import httpx
import pytest

from processors_v2.local import LocalSupabase

REQUIRES = {
    "upload": [],
    "text_extraction": ["upload"],
    "image_processing": ["upload"],
    "classification": ["text_extraction"],
    "metadata_extraction": ["text_extraction"],
    "storage": ["image_processing"],
    "embedding": ["text_extraction"],
    "search_indexing": ["embedding", "metadata_extraction", "classification"],
}
STAGES = list(REQUIRES)
EDGES = [(stage, required) for stage, all_required in REQUIRES.items() for required in all_required]
FINISHED = ["completed", "skipped"]
UNFINISHED = ["pending", "processing", "failed"]


def _set(service, **states: str) -> Any:
    document = service.document()
    stages = service.stage_status(document)
    for stage, state in states.items():
        stages[stage]["status"] = state
    service.edit(document, stages)
    return document


@pytest.mark.parametrize("finished", range(9))
def test_progress_is_finished_stages_in_percent(service, finished: int) -> None:
    """3 of 8 is 37.50, with two decimals."""
    document = _set(service, **dict.fromkeys(STAGES[:finished], "completed"))
    progress = service.call("get_document_progress", document)
    assert progress == Decimal(100) * finished / 8
    assert str(progress) == f"{100 * finished / 8:.2f}"


@pytest.mark.parametrize(
    ("state", "counts"), [*[(state, True) for state in FINISHED], *[(state, False) for state in UNFINISHED]]
)
def test_only_completed_and_skipped_are_finished(service, state: str, counts: bool) -> None:
    """A skipped stage counts as a completed one does; pending, processing and failed do not."""
    document = _set(service, upload=state)
    assert service.call("get_document_progress", document) == (Decimal("12.50") if counts else 0)
    assert service.call("get_current_stage", document) == ("text_extraction" if counts else "upload")


def test_seven_completed_and_one_skipped_is_all(service) -> None:
    """A document without images reaches 100.00 and completed."""
    document = _set(service, **dict.fromkeys(STAGES, "completed") | {"image_processing": "skipped"})
    assert service.call("get_document_progress", document) == 100
    assert service.call("get_current_stage", document) == "completed"
    assert service.call("get_document_status", document)["status"] == "completed"


def test_current_stage_is_the_first_by_position_that_is_not_finished(service) -> None:
    """Stages that finished out of order, and failed ones, do not hide an earlier one."""
    document = _set(service, upload="completed", embedding="completed", classification="failed")
    assert service.call("get_current_stage", document) == "text_extraction"
    document = _set(service, upload="completed", text_extraction="failed", image_processing="processing")
    assert service.call("get_current_stage", document) == "text_extraction"


def test_a_disabled_stage_is_satisfied_and_in_no_total(alone) -> None:
    """Totals, current stage, prerequisites, views and statistics leave a disabled stage out."""
    alone.run("update krai_core.stages set enabled = false where name in ('text_extraction', 'image_processing')")
    document = alone.document()
    alone.call("complete_stage", document, "upload")
    assert alone.call("get_document_progress", document) == Decimal("16.67")
    assert alone.call("get_current_stage", document) == "classification"
    assert [stage for stage in STAGES if alone.call("can_start_stage", document, stage)] == [
        "classification", "metadata_extraction", "storage", "embedding",
    ]  # fmt: skip
    assert "text_extraction" not in alone.call("get_stage_statistics")["stages"]
    assert alone.value("select count(*) from krai_core.vw_document_stages") == 6
    for stage in STAGES:
        if stage not in ("text_extraction", "image_processing"):
            alone.call("complete_stage", document, stage)
    assert alone.call("get_document_progress", document) == 100
    assert alone.call("get_document_status", document)["status"] == "completed"
    alone.run("update krai_core.stages set enabled = false")
    assert alone.call("get_document_progress", document) == 100
    assert alone.call("get_current_stage", document) == "completed"
    assert alone.call("can_start_stage", document, "upload") is False


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_may_start_once_its_prerequisites_are_finished(service, stage: str) -> None:
    """With exactly its prerequisites finished a stage may start, whatever the other stages are."""
    for state in FINISHED:
        document = _set(service, **dict.fromkeys(REQUIRES[stage], state))
        assert service.call("can_start_stage", document, stage) is True


@pytest.mark.parametrize(("stage", "required"), EDGES)
def test_one_unfinished_prerequisite_holds_a_stage_back(service, stage: str, required: str) -> None:
    """With all stages finished but one of its prerequisites, a stage may not start."""
    for state in UNFINISHED:
        others = dict.fromkeys(STAGES, "completed") | {stage: "pending", required: state}
        assert service.call("can_start_stage", _set(service, **others), stage) is False


@pytest.mark.parametrize("stage", STAGES)
def test_only_pending_and_failed_stages_may_start(service, stage: str) -> None:
    """A stage that is processing, completed or skipped may not start, though nothing holds it back."""
    for state in (*UNFINISHED, *FINISHED):
        others = dict.fromkeys(STAGES, "completed") | {stage: state}
        assert service.call("can_start_stage", _set(service, **others), stage) is (state in ("pending", "failed"))


def test_a_pause_and_a_backoff_do_not_count_for_can_start(alone) -> None:
    """can_start_stage asks for prerequisites, not for whether the queue hands the stage out now."""
    alone.run("update krai_core.stages set paused = true, backoff_seconds = 3600 where name = 'upload'")
    document = alone.document()
    alone.call("fail_stage", document, "upload", "x")
    assert alone.call("can_start_stage", document, "upload") is True


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ({}, "pending"),
        (dict.fromkeys(STAGES, "completed"), "completed"),
        (dict.fromkeys(STAGES, "skipped"), "completed"),
        ({"upload": "completed"}, "processing"),
        ({"upload": "processing"}, "processing"),
        ({"embedding": "skipped"}, "processing"),
        ({"upload": "failed"}, "failed"),
        (dict.fromkeys(STAGES, "completed") | {"storage": "failed"}, "failed"),
        ({"upload": "processing", "storage": "failed"}, "failed"),
    ],
)
def test_the_state_of_a_document_comes_from_its_stages(service, states: dict[str, str], expected: str) -> None:
    """failed with any, pending and completed with all of them, else processing; whatever the legacy column says."""
    document = _set(service, **states)
    for legacy in ("completed", "nonsense", None):
        service.run("update krai_core.documents set processing_status = %s where id = %s", legacy, document)
        assert service.call("get_document_status", document)["status"] == expected


# GET /status/{document_id} of the seed: stages by the letter, and with them the two whose dots make 37.5 percent.
EXAMPLE_STAGES: dict[str, dict[str, Any]] = {
    "upload": {
        "status": "completed",
        "started_at": "2025-10-04T08:00:00Z",
        "completed_at": "2025-10-04T08:00:01Z",
        "duration_seconds": 1.2,
        "progress": 100,
        "error": None,
    },
    "text_extraction": {
        "status": "processing",
        "started_at": "2025-10-04T08:00:01Z",
        "progress": 45.5,
        "metadata": {"pages_processed": 2000, "total_pages": 4386},
    },
    "image_processing": {"status": "completed"},
    "storage": {"status": "completed"},
}
PAYLOAD = {
    "status": "processing",
    "current_stage": "text_extraction",
    "progress": 37.5,
    "started_at": "2025-10-04T08:00:00.000000Z",
    "completed_at": None,
    "error": None,
}
FULL_UPLOAD = EXAMPLE_STAGES["upload"] | {
    "started_at": "2025-10-04T08:00:00.000000Z",
    "completed_at": "2025-10-04T08:00:01.000000Z",
    "metadata": {},
}
FULL_TEXT = EXAMPLE_STAGES["text_extraction"] | {
    "started_at": "2025-10-04T08:00:01.000000Z",
    "completed_at": None,
    "duration_seconds": None,
    "error": None,
}


def test_the_status_payload_of_the_seed_field_by_field(service) -> None:
    """get_document_status in the situation of the seed's example answers the example."""
    document = service.document(stage_status=EXAMPLE_STAGES)
    answer = service.call("get_document_status", document)
    stages = answer.pop("stage_status")
    assert answer == PAYLOAD | {"document_id": str(document)}
    assert sorted(stages) == sorted(STAGES)
    assert (stages["upload"], stages["text_extraction"]) == (FULL_UPLOAD, FULL_TEXT)


def test_started_at_is_the_earliest_start_and_completed_at_the_latest_end(service) -> None:
    """completed_at appears once every stage is finished; stages that ran outside have no start to count."""
    document = service.document()
    assert service.call("get_document_status", document)["started_at"] is None
    for stage in reversed(STAGES):
        service.call("start_stage", document, stage)
    assert service.call("get_document_status", document)["completed_at"] is None
    for stage in STAGES[:-1]:
        service.call("complete_stage", document, stage)
    assert service.call("get_document_status", document)["completed_at"] is None
    service.call("skip_stage", document, "search_indexing")
    status = service.call("get_document_status", document)
    assert status["started_at"] == service.stage(document, "search_indexing")["started_at"]
    assert status["completed_at"] == service.stage(document, "search_indexing")["completed_at"]


def test_the_error_is_that_of_the_first_failed_stage_by_position(service) -> None:
    """Not by the order of keys in JSON, which is by their length."""
    document = service.document()
    service.call("fail_stage", document, "storage", "no bucket")
    assert service.call("get_document_status", document)["error"] == "no bucket"
    service.call("fail_stage", document, "text_extraction", "no text")
    assert service.call("get_document_status", document)["error"] == "no text"
    service.call("retry_stage", document, "text_extraction")
    service.call("start_stage", document, "storage")
    assert service.call("get_document_status", document)["error"] is None


def test_the_view_has_the_columns_of_the_seed_with_stages_as_json(service, bring: Callable) -> None:
    """vw_documents_by_stage: id, filename, current stage, progress, and the eight stages as they are stored."""
    document = service.document(filename="m30.pdf")
    bring(document, "upload", "completed")
    types = dict(
        service.rows(
            "select attname::text, format_type(atttypid, null) from pg_attribute "
            "where attrelid = 'krai_core.vw_documents_by_stage'::regclass and attnum > 0 order by attnum"
        )
    )
    assert list(types)[:12] == [
        "id", "filename", "current_stage", "progress_percentage", *[f"{stage}_status" for stage in STAGES],
    ]  # fmt: skip
    assert {types[f"{stage}_status"] for stage in STAGES} == {"jsonb"}
    assert (types["stage_status"], types["progress_percentage"]) == ("jsonb", "numeric")
    (row,) = service.value(
        "select jsonb_agg(to_jsonb(v)) from krai_core.vw_documents_by_stage v where id = %s", document
    )
    assert (row["filename"], row["current_stage"], row["progress_percentage"]) == ("m30.pdf", "text_extraction", 12.5)
    assert {stage: row[f"{stage}_status"] for stage in STAGES} == row["stage_status"] == service.stage_status(document)


def test_readers_are_served_by_get(local: LocalSupabase, service, bring: Callable) -> None:
    """GET /rpc/... works for every reader, since they are stable, and gives plain JSON."""
    document = service.document()
    bring(document, "upload", "completed")
    headers = {"Authorization": f"Bearer {local.key()}", "Accept-Profile": "krai_core"}
    with httpx.Client(base_url=local.url, headers=headers, trust_env=False) as http:
        of_document = {"p_document_id": str(document)}
        assert http.get("/rpc/get_document_progress", params=of_document).json() == 12.5
        assert http.get("/rpc/get_current_stage", params=of_document).json() == "text_extraction"
        of_stage = of_document | {"p_stage_name": "text_extraction"}
        assert http.get("/rpc/can_start_stage", params=of_stage).json() is True
        status = http.get("/rpc/get_document_status", params=of_document)
        assert status.status_code == 200
        assert status.json() == json.loads(json.dumps(service.call("get_document_status", document), default=float))
        assert set(http.get("/rpc/get_stage_statistics").json()) == {"timestamp", "stages"}
        assert http.get("/rpc/start_stage", params=of_stage).status_code == 405
        rows = http.get("/vw_documents_by_stage", params={"id": f"eq.{document}", "select": "upload_status->>status"})
        assert rows.json() == [{"status": "completed"}]


def test_readers_write_nothing_and_lock_nothing(service, connect: Callable, bring: Callable) -> None:
    """In a read-only transaction, beside a writer that holds the row, every reader answers at once."""
    document = service.document()
    bring(document, "upload", "failed")
    writer, reader = connect(), connect()
    reader.run("set lock_timeout = '100ms'")
    with writer.connection.transaction(), reader.connection.transaction():
        writer.call("start_stage", document, "upload")
        reader.run("set transaction read only")
        assert reader.call("get_document_status", document)["status"] == "failed"
        assert reader.call("get_document_progress", document) == 0
        assert reader.call("can_start_stage", document, "upload") is True
        assert reader.call("get_current_stage", document) == "upload"
        assert len(reader.call("get_stage_statistics")["stages"]) == 8
