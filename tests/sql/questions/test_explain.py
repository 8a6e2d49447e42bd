"""explain_stage: why a stage does not run, as a word, as data and in a sentence."""

import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest

KEYS = {
    "document_id", "stage_name", "status", "reason", "message", "waits_for", "enabled", "paused", "attempt",
    "max_attempts", "priority", "place", "place_is_bound", "next_retry_at", "worker", "started_at", "heartbeat_at",
    "lease_expires_at",
}  # fmt: skip


def _completed(sql: Any, document: uuid.UUID) -> str:
    sql.done(document, "upload")
    return "completed"


def _skipped(sql: Any, document: uuid.UUID) -> str:
    sql.call("skip_stage", document, "upload", "no need")
    return "skipped"


def _running(sql: Any, _: uuid.UUID) -> str:
    sql.claim()
    return "running"


def _lease_over(sql: Any, document: uuid.UUID) -> str:
    sql.claim()
    sql.end_lease(document, "upload")
    return "lease_over"


def _disabled(sql: Any, _: uuid.UUID) -> str:
    sql.call("disable_stage", "upload")
    return "disabled"


def _failed(sql: Any, document: uuid.UUID) -> str:
    sql.call("fail_stage", document, "upload", "no paper")
    return "failed"


def _paused(sql: Any, _: uuid.UUID) -> str:
    sql.call("pause_stage", "upload", "ines")
    return "paused"


def _backoff(sql: Any, document: uuid.UUID) -> str:
    (run,) = sql.claim()
    sql.call("fail_stage", document, "upload", "no paper", p_claim_id=run["claim_id"], p_retry=True)
    return "backoff"


def _ready(_: Any, __: uuid.UUID) -> str:
    return "ready"


CASES = {
    _completed: "Completed.",
    _skipped: "Skipped: no need.",
    _running: "w has been running it for 0 s (attempt 1 of 5); the lease expires in 5 min unless renewed.",
    _lease_over: "w sent no heartbeat and its lease expired 1 s ago; the next worker or reap takes the stage over.",
    _disabled: "The stage is disabled and counts as satisfied.",
    _failed: (
        "Failed in attempt 1 of 5 and will not be retried automatically; "
        "call retry_stage to try again. Error: no paper."
    ),
    _paused: "Ready, but the stage was paused by ines 0 s ago.",
    _backoff: "Attempt 1 of 5 failed; next retry in <n> s. Error: no paper.",
    _ready: "Ready for 0 s; next in line.",
}


@pytest.mark.parametrize("bring", CASES, ids=lambda bring: bring.__name__)
def test_each_reason_has_its_word_and_its_sentence(alone, bring: Callable) -> None:
    """The word is for programs and the sentence for people; both tell the same."""
    document = alone.document()
    alone.run("update krai_core.stages set backoff_seconds = 60 where name = 'upload'")
    reason = bring(alone, document)
    told = alone.call("explain_stage", document, "upload")
    assert set(told) == KEYS
    assert (told["reason"], told["document_id"], told["stage_name"]) == (reason, str(document), "upload")
    assert told["status"] == alone.stage(document, "upload")["status"]
    seconds = alone.value(
        "select round(extract(epoch from max(available_at) - clock_timestamp())) from krai_core.stage_runs "
        "where status = 'ready' and document_id = %s",
        document,
    )
    # A second may have gone by since.
    told_at_once = CASES[bring].replace("<n>", str(int(seconds or 0)))
    known = {told_at_once, re.sub(r"\d+(?= s\b)", lambda number: str(int(number[0]) + 1), told_at_once)}
    assert told["message"] in known


def test_what_a_stage_waits_for_is_listed_in_order(service) -> None:
    """Prerequisites that are not finished, with their states; finished ones are left out."""
    document = service.document()
    service.done(document, "metadata_extraction")
    service.call("start_stage", document, "embedding")
    told = service.call("explain_stage", document, "search_indexing")
    assert told["reason"] == "waits_for_stages"
    assert told["waits_for"] == [
        {"stage": "classification", "status": "pending"}, {"stage": "embedding", "status": "processing"},
    ]  # fmt: skip
    assert told["message"] == "Waiting for classification (pending), embedding (processing)."
    assert told["place"] is None


def test_who_holds_a_stage_and_until_when(service, moment: Callable) -> None:
    """Worker, beginning, last sign of life and end of the lease are those of the run."""
    document = service.document()
    service.call("set_priority", document, 4)
    service.claim(p_lease_seconds=60)
    told = service.call("explain_stage", document, "upload")
    assert (told["worker"], told["attempt"], told["priority"], told["place"]) == ("w", 1, 4, None)
    assert service.value(
        "select started_at = %s and heartbeat_at = %s and lease_expires_at = %s from krai_core.stage_runs "
        "where document_id = %s and stage_name = 'upload'",
        *(moment(told[name]) for name in ("started_at", "heartbeat_at", "lease_expires_at")),
        document,
    )


def test_a_stage_that_waits_for_its_retry_says_when(service, moment: Callable, outcome: Callable) -> None:
    """next_retry_at is the time from which it may be handed out, attempt the one to come."""
    document = service.document()
    ((answer),) = service.finish(outcome(service.claim()[0], "failed", error="x", retry=True))
    told = service.call("explain_stage", document, "upload")
    assert (told["next_retry_at"], told["attempt"], told["status"]) == (answer["next_retry_at"], 2, "failed")
    assert moment(told["next_retry_at"])


def test_the_place_is_the_number_of_those_before_and_one(service) -> None:
    """By priority, then age; what is not due yet does not count."""
    first, second, third, later = (service.document() for _ in range(4))
    service.call("set_priority", third, 1)
    service.run(
        "update krai_core.stage_runs set available_at = now() + interval '1 h', priority = 9 where document_id = %s",
        later,
    )
    service.run("update krai_core.stage_runs set priority = 0 where document_id = %s", later)
    places = {one: service.call("explain_stage", one, "upload")["place"] for one in (first, second, third)}
    assert places == {third: 1, first: 2, second: 3}
    assert "2 ahead of it in the queue" in service.call("explain_stage", second, "upload")["message"]
    assert service.call("explain_stage", later, "upload")["place"] is None
    assert service.claim()[0]["document_id"] == str(third)


def test_the_place_is_counted_up_to_a_bound(service) -> None:
    """Behind more than a thousand others it says `at least`, and does not read the whole queue."""
    service.run("insert into krai_core.documents (filename) select 'x.pdf' from generate_series(1, 1200)")
    document = service.document()
    told = service.call("explain_stage", document, "upload")
    assert (told["place"], told["place_is_bound"]) == (1001, True)
    assert "more than 1000 ahead of it in the queue" in told["message"]
    service.claim(limit=500)
    told = service.call("explain_stage", document, "upload")
    assert (told["place"], told["place_is_bound"]) == (701, False)


def test_before_the_queue_has_come_by_it_says_so(alone) -> None:
    """After a change of the pipeline a stage that may start and is not in the queue yet is not_queued."""
    document = alone.document()
    alone.call("register_stage", "extra")
    told = alone.call("explain_stage", document, "extra")
    assert (told["reason"], told["status"]) == ("not_queued", "pending")
    assert "fill_ready_runs" in told["message"]
    while alone.call("fill_ready_runs"):
        pass
    assert alone.call("explain_stage", document, "extra")["reason"] == "ready"


@pytest.mark.triggers_off
def test_processing_that_no_run_carries_is_explained(service, bypass) -> None:
    """What a restore without triggers leaves as processing is nobody's."""
    document = service.document()
    stages = service.stage_status(document)
    bypass.edit(document, stages | {"upload": stages["upload"] | {"status": "processing"}})
    told = service.call("explain_stage", document, "upload")
    assert (told["reason"], told["worker"], told["lease_expires_at"]) == ("lease_over", None, None)
    assert "nobody holds it" in told["message"]


def test_a_stage_that_is_not_there_is_named(service) -> None:
    """unknown_stage."""
    assert service.refused("explain_stage", service.document(), "nonsense").word == "unknown_stage"
