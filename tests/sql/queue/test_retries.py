"""What happens after a failure: how often, after which wait, and what makes attempts count anew."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest


def _due(service) -> None:
    """Let every backoff be over."""
    service.run("update krai_core.stage_runs set available_at = clock_timestamp() where status = 'ready'")


def _fail(service, outcome: Callable, *, retry: bool = True) -> dict[str, Any]:
    """Claim the only document and fail; returns the run."""
    _due(service)
    (run,) = service.claim()
    service.finish(outcome(run, "failed", error=f"attempt {run['attempt']}", retry=retry))
    return run


@pytest.mark.parametrize("most", [1, 2, 4])
def test_a_stage_is_tried_max_attempts_times(alone, outcome: Callable, most: int) -> None:
    """After the last attempt the stage stays failed, with the error of that attempt, and nothing is ready."""
    alone.run("update krai_core.stages set max_attempts = %s where name = 'upload'", most)
    document = alone.document()
    assert [_fail(alone, outcome)["attempt"] for _ in range(most)] == list(range(1, most + 1))
    _due(alone)
    assert alone.claim() == []
    runs = alone.runs(document, "upload")
    assert [run["status"] for run in runs] == ["failed"] * most
    assert [run["retry_at"] is None for run in runs] == [False] * (most - 1) + [True]
    assert alone.stage(document, "upload")["error"] == f"attempt {most}"


def test_between_two_attempts_the_stage_is_failed_and_not_due(service, outcome: Callable) -> None:
    """A stage that waits for its next attempt shows the error, and nobody gets it before its time."""
    document = service.document()
    _fail(service, outcome)
    stage = service.stage(document, "upload")
    assert (stage["status"], stage["error"]) == ("failed", "attempt 1")
    assert service.claim() == []
    assert [run["status"] for run in service.runs(document, "upload")] == ["failed", "ready"]
    assert service.claim("text_extraction") == []


def test_a_permanent_error_is_not_tried_again(service, outcome: Callable) -> None:
    """A failure without retry is final at once, however many attempts are left."""
    document = service.document()
    _fail(service, outcome, retry=False)
    _due(service)
    assert service.claim() == []
    assert [run["status"] for run in service.runs(document, "upload")] == ["failed"]


@pytest.mark.parametrize("claimed", [True, False], ids=["claim id", "claimless"])
def test_fail_stage_with_retry_is_tried_again(service, claimed: bool) -> None:
    """p_retry does the same for the single call, with and without a claim id, and for work that was done outside."""
    document, claim = service.document(), uuid.uuid4() if claimed else None
    service.call("start_stage", document, "upload", p_claim_id=claim)
    service.call("fail_stage", document, "upload", "x", p_claim_id=claim, p_retry=True)
    service.call("fail_stage", document, "text_extraction", "y", p_retry=True)
    assert [run["status"] for run in service.runs(document, "upload")] == ["failed", "ready"]
    # What it requires is not finished: it is tried again once that is.
    assert [run["status"] for run in service.runs(document, "text_extraction")] == ["failed"]
    service.call("complete_stage", document, "upload")
    assert [run["status"] for run in service.runs(document, "text_extraction")] == ["failed", "ready"]


def test_the_backoff_doubles_up_to_its_bound(alone, outcome: Callable) -> None:
    """Waits lie between half and all of 10, 20, 40, then 50 and 50 seconds."""
    alone.run(
        "update krai_core.stages set backoff_seconds = 10, backoff_max_seconds = 50, max_attempts = 6 "
        "where name = 'upload'"
    )
    document = alone.document()
    for _ in range(5):
        _fail(alone, outcome)
    waits = [
        wait
        for (wait,) in alone.rows(
            "select extract(epoch from retry_at - finished_at)::float from krai_core.stage_runs "
            "where document_id = %s and status = 'failed' order by id",
            document,
        )
    ]
    for wait, bound in zip(waits, (10, 20, 40, 50, 50), strict=True):
        assert bound / 2 <= wait <= bound


def test_failures_at_once_do_not_come_back_at_once(service, outcome: Callable) -> None:
    """The waits of a hundred failures in one call are spread over the whole of the second half."""
    service.run("insert into krai_core.documents (filename) select 'x.pdf' from generate_series(1, 100)")
    service.finish(*(outcome(run, "failed", error="x", retry=True) for run in service.claim(limit=100)))
    ((least, most, different, full),) = service.rows(
        "select min(extract(epoch from retry_at - finished_at))::float, "
        "max(extract(epoch from retry_at - finished_at))::float, count(distinct retry_at), "
        "(select backoff_seconds from krai_core.stages where name = 'upload') "
        "from krai_core.stage_runs where status = 'failed'"
    )
    assert full / 2 <= least < full * 0.6
    assert full * 0.9 < most <= full
    assert different > 90


@pytest.mark.parametrize("call", ["retry_stage", "reset_stage", "complete_stage", "skip_stage", "edit"])
def test_attempts_count_anew_after(service, outcome: Callable, call: str) -> None:
    """A retry or reset by a person, a success, a skip and an edit back to pending begin the count at 1."""
    document = service.document()
    assert [_fail(service, outcome)["attempt"] for _ in range(2)] == [1, 2]
    if call == "edit":
        service.edit(document, service.stage_status(document) | {"upload": {"status": "pending"}})
    else:
        service.call(call, document, "upload")
        if call in ("complete_stage", "skip_stage"):
            service.call("reset_stage", document, "upload")
    # At once, and not after what was left of the backoff.
    assert [run["attempt"] for run in service.claim()] == [1]


def test_attempts_count_anew_after_a_cancelled_run(service, outcome: Callable) -> None:
    """What was cancelled and brought back begins at 1."""
    document = service.document()
    for _ in range(2):
        _fail(service, outcome)
    service.call("cancel_document", document)
    service.call("reset_stage", document, "upload")
    assert [run["attempt"] for run in service.claim()] == [1]


@pytest.mark.parametrize("by", ["claim", "reap"])
def test_a_document_that_kills_its_workers_is_given_up(alone, by: str) -> None:
    """After max_attempts leases that ended without a sign of life the stage is failed, with an error that says so."""
    alone.run("update krai_core.stages set max_attempts = 3 where name = 'upload'")
    document = alone.document()
    answers = []
    for attempt in (1, 2, 3):
        assert [run["attempt"] for run in alone.claim()] == [attempt]
        alone.end_lease(document, "upload")
        if by == "reap":
            answers.append(alone.call("reap"))
    assert alone.claim() == []
    if by == "reap":
        back, up = {"requeued": 1, "failed": 0, "filled": 0}, {"requeued": 0, "failed": 1, "filled": 0}
        assert answers == [back, back, up]
    assert [run["status"] for run in alone.runs(document, "upload")] == ["lost"] * 3
    stage = alone.stage(document, "upload")
    assert stage["status"] == "failed"
    assert stage["error"] == "given up after 3 of 3 attempts: the lease ended without a sign of life"
    assert stage["completed_at"] is not None
    assert alone.call("retry_stage", document, "upload") is True
    assert [run["attempt"] for run in alone.claim()] == [1]


def test_reap_brings_back_what_dead_workers_held(service) -> None:
    """Of all stages, up to its limit; what still has its lease is left alone."""
    alive, *dead = (service.document() for _ in range(4))
    service.done(dead[2], "upload")
    for document, stage in ((alive, "upload"), (dead[0], "upload"), (dead[1], "upload"), (dead[2], "image_processing")):
        service.call("start_stage", document, stage, p_claim_id=uuid.uuid4())
        if document != alive:
            service.end_lease(document, stage)
    assert service.call("reap", 2) == {"requeued": 2, "failed": 0, "filled": 0}
    assert service.call("reap") == {"requeued": 1, "failed": 0, "filled": 0}
    assert service.call("reap") == {"requeued": 0, "failed": 0, "filled": 0}
    assert service.stage(alive, "upload")["status"] == "processing"
    assert service.stage(dead[2], "image_processing")["status"] == "pending"
    assert [run["attempt"] for run in service.claim("upload", 5)] == [2, 2]


def test_reap_passes_over_what_somebody_is_writing(service, connect: Callable) -> None:
    """A document in somebody's transaction holds nothing up."""
    first, second = service.document(), service.document()
    service.claim(limit=2)
    for document in (first, second):
        service.end_lease(document, "upload")
    holder, reaper = connect(), connect()
    reaper.run("set lock_timeout = '200ms'")
    with holder.connection.transaction():
        holder.call("start_stage", first, "storage")
        assert reaper.call("reap")["requeued"] == 1
    assert reaper.call("reap")["requeued"] == 1


@pytest.mark.parametrize("limit", [0, 100001, None])
def test_a_limit_of_reap_out_of_range_is_refused(service, limit: int | None) -> None:
    """1 to 100000."""
    assert service.refused("reap", limit).word == "invalid_limit"


def test_a_plain_start_that_nobody_ends_comes_back_too(service) -> None:
    """A run without claim id is lost like any other when its lease is over."""
    document = service.document()
    service.call("start_stage", document, "upload")
    assert service.claim() == []
    service.end_lease(document, "upload")
    assert [run["attempt"] for run in service.claim()] == [2]


@pytest.mark.triggers_off
@pytest.mark.parametrize("by", ["claim", "reap"])
def test_an_expired_run_that_the_column_knows_nothing_of_is_cancelled(service, bypass, by: str) -> None:
    """After a restore without triggers the column is the truth: the run is closed, the stage is what it says."""
    document = service.document()
    before = service.stage_status(document)
    service.claim()
    service.end_lease(document, "upload")
    bypass.edit(document, before | {"upload": before["upload"] | {"status": "completed"}})
    service.call("reap") if by == "reap" else service.claim(limit=5)
    assert [run["status"] for run in service.runs(document, "upload")] == ["cancelled"]
    assert service.stage(document, "upload")["status"] == "completed"
