"""Every call of a processor, a worker or a person is counted, and leaves a stage that has ended on one current run."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from truth import prove

Story = list[Callable[[Any, uuid.UUID], object]]


def _call(function: str, *arguments: object, **named: object) -> Callable[[Any, uuid.UUID], object]:
    return lambda sql, document: sql.call(function, document, *arguments, **named)


def _outcome(outcome: str, **further: object) -> Callable[[Any, uuid.UUID], object]:
    def report(sql: Any, _: uuid.UUID) -> object:
        (run,) = sql.claim(limit=1)
        ids = {name: run[name] for name in ("document_id", "stage_name", "claim_id")}
        return sql.finish({**ids, "outcome": outcome, **further})

    return report


def _end_lease(sql: Any, document: uuid.UUID) -> None:
    sql.end_lease(document, "upload")


def _give_back(sql: Any, _: uuid.UUID) -> object:
    return sql.call("release_stages", sql.claim(limit=1))


START = _call("start_stage", "upload")
COMPLETE = _call("complete_stage", "upload")
FAIL = _call("fail_stage", "upload", "broken")
AGAIN = _call("fail_stage", "upload", "broken", p_retry=True)
SKIP = _call("skip_stage", "upload")
# What is done to the upload of one document, one after the other, and the status in which that leaves it.
STORIES: dict[str, tuple[Story, str]] = {
    "start": ([START], "processing"),
    "start, complete": ([START, COMPLETE], "completed"),
    "start, fail": ([START, FAIL], "failed"),
    "start, skip": ([START, SKIP], "skipped"),
    "complete, unstarted": ([COMPLETE], "completed"),
    "fail, unstarted": ([FAIL], "failed"),
    "skip, unstarted": ([SKIP], "skipped"),
    "complete twice": ([START, COMPLETE, _call("complete_stage", "upload", {"pages": 2})], "completed"),
    "fail twice": ([START, FAIL, FAIL], "failed"),
    "fail, complete": ([START, FAIL, COMPLETE], "completed"),
    "fail, skip": ([START, FAIL, SKIP], "skipped"),
    "fail a completed one": ([START, COMPLETE, FAIL], "completed"),
    "complete, start": ([START, COMPLETE, START], "processing"),
    "fail, start": ([START, FAIL, START], "processing"),
    "skip, start": ([SKIP, START], "processing"),
    "start over a lease": ([START, _end_lease, START], "processing"),
    "progress": ([START, _call("update_stage_progress", "upload", 50)], "processing"),
    "fail, retry": ([START, FAIL, _call("retry_stage", "upload")], "pending"),
    "fail with a retry": ([START, AGAIN], "failed"),
    "fail with a retry, start": ([START, AGAIN, START], "processing"),
    "retry_failed": ([START, FAIL, lambda sql, _: sql.call("retry_failed", "upload")], "pending"),
    "reset": ([START, COMPLETE, _call("reset_stage", "upload")], "pending"),
    "reset by force": ([START, _call("reset_stage", "upload", p_force=True)], "pending"),
    "reset with cascade": (
        [
            START, COMPLETE, _call("complete_stage", "text_extraction"), _call("fail_stage", "embedding", "x"),
            _call("reset_stage", "upload", p_cascade=True),
        ],
        "pending",
    ),
    "cancel": ([_call("cancel_document")], "skipped"),
    "cancel a running one": ([START, _call("cancel_document")], "skipped"),
    "cancel a failed one": ([START, FAIL, _call("cancel_document")], "skipped"),
    "claim": ([lambda sql, _: sql.claim()], "processing"),
    "claim, completed": ([_outcome("completed")], "completed"),
    "claim, failed": ([_outcome("failed", error="x")], "failed"),
    "claim, failed with a retry": ([_outcome("failed", error="x", retry=True)], "failed"),
    "claim, skipped": ([_outcome("skipped")], "skipped"),
    "claim, progress": ([_outcome("progress", progress=5)], "processing"),
    "release": ([_give_back], "pending"),
    "claim over a lease": ([lambda sql, _: sql.claim(), _end_lease, lambda sql, _: sql.claim()], "processing"),
    "reap": ([lambda sql, _: sql.claim(), _end_lease, lambda sql, _: sql.call("reap")], "pending"),
}  # fmt: skip


@pytest.mark.parametrize("story", STORIES)
def test_each_writer_is_counted(service, story: str) -> None:
    """After every call of a story counters and current runs are what the documents say."""
    steps, status = STORIES[story]
    document = service.document()
    for step in steps:
        step(service, document)
        prove(service)
    assert service.stage(document, "upload")["status"] == status
    assert service.call("get_stage_statistics")["stages"]["upload"][status] == 1


def test_the_last_attempt_that_is_lost_is_counted_as_failed(alone) -> None:
    """Where no attempt is left, reap ends the stage as failed, and its current run is the lost one."""
    alone.run("update krai_core.stages set max_attempts = 1")
    document = alone.document()
    alone.claim()
    alone.end_lease(document, "upload")
    assert alone.call("reap")["failed"] == 1
    prove(alone)
    ((status,),) = alone.rows("select status from krai_core.stage_runs where is_current")
    assert status == "lost"


def test_many_outcomes_in_one_call_are_counted(service, outcome: Callable) -> None:
    """finish_stages with outcomes of all kinds, two of one document, a repeat and a late one among them."""
    for _ in range(6):
        document = service.document()
        service.done(document, "upload")
    runs = service.claim(["text_extraction", "image_processing"], 12)
    kinds = ["completed", "failed", "skipped", "progress"]
    outcomes = [outcome(run, kinds[place % 4], error="x", reason="y") for place, run in enumerate(runs)]
    service.call("reset_stage", runs[0]["document_id"], runs[0]["stage_name"], p_force=True)
    service.finish(*outcomes, outcomes[1])
    prove(service)
    assert {said["ok"] for said in service.finish(*outcomes)} == {True, False}
    prove(service)
