"""Every JSON example, and the JavaScript that reads it: field by field, over HTTP as a browser gets it."""

import datetime as dt
import json
from typing import Any

import httpx
import pytest
from json_examples import DOCUMENT_STATUS, STAGE_STATUS, STATISTICS, TIME, means

from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker

KEYS = {"status", "started_at", "completed_at", "duration_seconds", "progress", "error", "metadata"}


@pytest.fixture
def example(sql: Any, document: str) -> str:
    """The document of the examples: upload done, text extraction at 45.5 %, and two stages more finished."""
    others = {name: {**STAGE_STATUS["upload"], "status": "skipped"} for name in ("image_processing", "storage")}
    sql(
        "update krai_core.documents set stage_status = stage_status || %s::jsonb where id = %s",
        json.dumps({**STAGE_STATUS, **others}),
        document,
    )
    return document


def test_the_column_by_calls(tracker: StageTracker, sql: Any, document: str) -> None:
    """Two stages that were run by calls have the keys, types and values of the example."""
    tracker.start_stage(document, "upload")
    tracker.complete_stage(document, "upload")
    tracker.start_stage(document, "text_extraction")
    tracker.update_progress(document, "text_extraction", 45.5, {"pages_processed": 2000, "total_pages": 4386})
    ((found,),) = sql("select stage_status from krai_core.documents")
    upload, text = found["upload"], found["text_extraction"]
    assert set(upload) == set(text) == KEYS
    assert TIME.fullmatch(upload["started_at"])
    assert TIME.fullmatch(upload["completed_at"])
    assert TIME.fullmatch(text["started_at"])
    lasted = dt.datetime.fromisoformat(upload["completed_at"]) - dt.datetime.fromisoformat(upload["started_at"])
    assert upload["duration_seconds"] == pytest.approx(lasted.total_seconds(), abs=1e-6)
    varying = {"started_at", "completed_at", "duration_seconds"}
    assert {k: v for k, v in upload.items() if k not in varying} == {
        k: v for k, v in STAGE_STATUS["upload"].items() if k not in varying
    }
    assert {k: v for k, v in text.items() if k != "started_at"} == {
        k: v for k, v in STAGE_STATUS["text_extraction"].items() if k != "started_at"
    }
    assert len(found) == 8


def test_the_column_as_written_by_hand(sql: Any, example: str) -> None:
    """The example itself, written into the column, is kept with the same meaning."""
    ((found,),) = sql("select stage_status from krai_core.documents where id = %s", example)
    assert means(found, STAGE_STATUS)
    assert set(found["upload"]) == set(found["text_extraction"]) == KEYS


def get(stack: LocalSupabase, function: str, **parameters: str) -> Any:
    """GET an rpc, as fetch() in a browser or an edge function does."""
    headers = {"Authorization": f"Bearer {stack.key()}", "Accept-Profile": "krai_core"}
    answer = httpx.get(f"{stack.url}/rpc/{function}", params=parameters, headers=headers, trust_env=False)
    assert answer.status_code == 200
    return answer.json()


def test_get_document_status(stack: LocalSupabase, tracker: StageTracker, example: str) -> None:
    """The payload of a document has the fields of the example with its values, by HTTP and by Python."""
    found = get(stack, "get_document_status", p_document_id=example)
    assert set(found) == set(DOCUMENT_STATUS)
    assert means(found, DOCUMENT_STATUS | {"document_id": example})
    assert tracker.get_document_status(example) == found


def test_get_document_status_of_a_finished_and_of_a_failed_document(
    stack: LocalSupabase, tracker: StageTracker, document: str
) -> None:
    """completed_at comes with the last stage; error is that of the first failed stage in pipeline order."""
    for name in reversed(StageTracker.STAGES):
        tracker.complete_stage(document, name)
    found = get(stack, "get_document_status", p_document_id=document)
    assert (found["status"], found["current_stage"], found["progress"]) == ("completed", "completed", 100)
    assert found["completed_at"] == found["stage_status"]["upload"]["completed_at"]
    assert found["started_at"] is None
    for name, error in (("storage", "R2 is away"), ("text_extraction", "OCR engine timeout")):
        tracker.start_stage(document, name)
        tracker.fail_stage(document, name, error)
    found = get(stack, "get_document_status", p_document_id=document)
    assert (found["status"], found["current_stage"], found["progress"]) == ("failed", "text_extraction", 75)
    assert (found["error"], found["completed_at"]) == ("OCR engine timeout", None)
    assert found["started_at"] == found["stage_status"]["storage"]["started_at"]


@pytest.mark.parametrize("name", ["upload", "text_extraction"])
def test_get_stage_statistics(stack: LocalSupabase, tracker: StageTracker, sql: Any, name: str) -> None:
    """With as many documents in each state as in the example, the statistics of a stage are those of the example."""
    wanted = STATISTICS["stages"][name]
    for state in ("pending", "processing", "completed", "failed", "skipped"):
        duration = wanted["avg_duration"] if state == "completed" else None
        stored = json.dumps({name: {"status": state, "duration_seconds": duration}})
        sql(
            "insert into krai_core.documents (filename, stage_status)"
            " select n || '.pdf', %s::jsonb from generate_series(1, %s) n",
            stored,
            wanted[state],
        )
    found = get(stack, "get_stage_statistics")
    assert set(found) == set(STATISTICS)
    assert TIME.fullmatch(found["timestamp"])
    assert {key: found["stages"][name][key] for key in wanted} == wanted
    assert set(found["stages"]) == set(StageTracker.STAGES)
    by_python = tracker.get_statistics()
    assert {stage: {key: by_python[stage][key] for key in wanted} for stage in by_python} == {
        stage: {key: counts[key] for key in wanted} for stage, counts in found["stages"].items()
    }


def test_statistics_without_documents(stack: LocalSupabase, sql: Any) -> None:
    """Without a document every stage is there with zeros, and no average."""
    assert sql("select 1") == [(1,)]
    zeros = {"pending": 0, "processing": 0, "completed": 0, "failed": 0, "skipped": 0, "avg_duration": None}
    stages = get(stack, "get_stage_statistics")["stages"]
    assert set(stages) == set(StageTracker.STAGES)
    assert all(zeros.items() <= counts.items() for counts in stages.values())


def test_use_case_1_progress_bar(stack: LocalSupabase, example: str) -> None:
    """What the JavaScript of the progress bar reads is where it looks for it."""
    # const status = await fetch(`/status/${documentId}`);
    status = get(stack, "get_document_status", p_document_id=example)
    # const progress = status.progress; // 37.5%
    assert status["progress"] == 37.5
    # status.stage_status.text_extraction.progress; // 45.5%
    assert status["stage_status"]["text_extraction"]["progress"] == 45.5
