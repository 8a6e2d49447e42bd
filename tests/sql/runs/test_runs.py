"""stage_runs: impossible rows, ready runs, and rows that the column knows nothing of."""

import uuid
from collections.abc import Callable

import psycopg
import pytest

OPEN = (
    "insert into krai_core.stage_runs (document_id, stage_name, status, available_at, priority) "
    "values (%s, 'upload', 'ready', now(), %s)"
)


@pytest.mark.parametrize(
    ("row", "constraint"),
    [
        ("'upload', 'paused', 1, null, null, null, null, now()", "stage_runs_status_is_known"),
        ("'upload', 'failed', 1, null, null, null, null, null", "stage_runs_finished_unless_open"),
        ("'upload', 'ready', 1, now(), null, null, null, now()", "stage_runs_finished_unless_open"),
        ("'upload', 'running', 1, null, null, 60, now(), null", "stage_runs_running_has_a_lease"),
        ("'upload', 'running', 1, null, now(), 60, null, null", "stage_runs_running_has_a_lease"),
        ("'upload', 'running', 1, null, now(), 0, now(), null", "stage_runs_running_has_a_lease"),
        ("'upload', 'ready', 1, null, null, null, null, null", "stage_runs_ready_is_due_at_a_time"),
        ("'upload', 'failed', 0, null, null, null, null, now()", "stage_runs_attempt_is_positive"),
    ],
)
def test_impossible_runs_are_impossible_rows(service, row: str, constraint: str) -> None:
    """Each rule of a run is a constraint with a name that says it."""
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        service.run(
            "insert into krai_core.stage_runs (document_id, stage_name, status, attempt, available_at, started_at, "
            f"lease_seconds, lease_expires_at, finished_at) values (gen_random_uuid(), {row})"
        )
    assert caught.value.diag.constraint_name == constraint


def test_a_stage_has_one_open_run_at_most(service, bring: Callable) -> None:
    """A second ready or running run of a stage is refused by an index, whoever writes it."""
    document = service.document()
    bring(document, "upload", "processing")
    with pytest.raises(psycopg.errors.UniqueViolation) as caught:
        service.run(OPEN, document, 0)
    assert caught.value.diag.constraint_name == "stage_runs_document_open_stage"


@pytest.mark.parametrize("ended", ["completed", "failed"])
def test_a_claim_id_opens_a_stage_of_a_document_once(service, bring: Callable, ended: str) -> None:
    """Neither start nor claim makes a second run with a claim id; for another stage a start may use it."""
    document, claim = service.document(), uuid.uuid4()
    bring(document, "upload", ended, claim)
    service.call("reset_stage", document, "upload")
    assert service.call("start_stage", document, "upload", p_claim_id=claim) is True
    assert service.call("claim_stages", "upload", "w", p_claim_id=claim) == []
    assert [run["status"] for run in service.runs(document, "upload")] == [ended, "ready"]
    assert service.call("start_stage", document, "embedding", p_claim_id=claim) is True


def test_a_start_takes_the_ready_run(service) -> None:
    """Start of a stage that waits in the queue makes its ready run the running one, with its priority and wait."""
    document, claim = service.document(), uuid.uuid4()
    service.call("set_priority", document, 7)
    (ready,) = service.runs(document, "upload")
    assert service.call("start_stage", document, "upload", p_claim_id=claim, p_worker="w" * 300) is True
    (run,) = service.runs(document, "upload")
    assert (run["status"], run["priority"], run["claim_id"], run["attempt"]) == ("running", 7, str(claim), 1)
    assert run["worker"] == "w" * 200
    assert (run["id"], run["available_at"]) == (ready["id"], ready["available_at"])


def test_a_ready_run_says_whether_it_tries_again(service, bring: Callable) -> None:
    """The run that waits to repeat a failed one bears its time, until it is claimed, started or settled by a person."""
    for take in ("claim", "start", "retry"):
        document, claim = service.document(), uuid.uuid4()
        bring(document, "upload", "processing", claim)
        service.call("fail_stage", document, "upload", "no network", p_claim_id=claim, p_retry=True)
        failed, ready = service.runs(document, "upload")
        assert ready["retry_at"] == ready["available_at"] == failed["retry_at"] is not None
        if take == "claim":
            service.run("update krai_core.stage_runs set available_at = now() where id = %s", ready["id"])
            assert len(service.call("claim_stages", "upload", "w", 100)) == 1
        elif take == "start":
            service.call("start_stage", document, "upload")
        else:
            service.call("retry_stage", document, "upload")
        assert service.runs(document, "upload")[-1]["retry_at"] is None


def test_a_run_that_was_given_back_does_not_count_as_an_attempt(service, bring: Callable) -> None:
    """After a released run the next one has its number."""
    document = service.document()
    bring(document, "upload", "failed")
    service.call("start_stage", document, "upload")
    service.run(
        "update krai_core.stage_runs set status = 'released', finished_at = now() "
        "where document_id = %s and status = 'running'",
        document,
    )
    service.call("start_stage", document, "upload")
    assert [run["attempt"] for run in service.runs(document, "upload")] == [1, 2, 2]


@pytest.mark.parametrize("state", ["pending", "completed", "failed", "skipped"])
def test_a_start_closes_a_run_that_the_column_knows_nothing_of(service, bypass, state: str) -> None:
    """After a restore without triggers the column is the truth: start cancels the forgotten run and opens its own."""
    document, forgotten = service.document(), uuid.uuid4()
    before = service.stage_status(document)
    service.call("start_stage", document, "upload", p_claim_id=forgotten)
    bypass.edit(document, before | {"upload": before["upload"] | {"status": state}})
    assert service.call("start_stage", document, "upload") is True
    assert [run["status"] for run in service.runs(document, "upload")] == ["cancelled", "running"]
    assert service.refused("complete_stage", document, "upload", p_claim_id=forgotten).word == "lease_lost"


def test_a_stage_that_was_set_to_processing_long_ago_is_taken_over_at_once(service) -> None:
    """processing written by hand holds from its started_at: start takes an old one over, and keeps what it said."""
    document = service.document()
    stages = service.stage_status(document)
    stages["upload"] |= {
        "status": "processing", "progress": 30, "started_at": "2026-01-01T10:00:00.000000Z", "metadata": {"a": 1},
    }  # fmt: skip
    service.edit(document, stages)
    assert service.call("start_stage", document, "upload") is True
    lost, running = service.runs(document, "upload")
    assert (lost["status"], lost["progress"], lost["metadata"]) == ("lost", 30, {"a": 1})
    assert (running["status"], running["attempt"]) == ("running", 2)


@pytest.mark.parametrize("given", ["edit", "insert"])
@pytest.mark.parametrize(("of_stage", "lease"), [(300, 3600), (7200, 7200)])
def test_a_stage_that_is_set_to_processing_by_hand_gets_a_run(alone, given: str, of_stage: int, lease: int) -> None:
    """processing written by hand is held like a plain start, for an hour at least, and can be ended by anybody."""
    alone.run("update krai_core.stages set lease_seconds = %s where name = 'upload'", of_stage)
    started = alone.value("select krai_private.iso_time(clock_timestamp() - interval '10 s')")
    stages = {"upload": {"status": "processing", "started_at": started}}
    document = alone.document(**({"stage_status": stages} if given == "insert" else {}))
    if given == "edit":
        alone.edit(document, stages)
    (run,) = alone.runs(document, "upload")
    assert (run["status"], run["claim_id"], run["lease_seconds"]) == ("running", None, lease)
    assert alone.value(
        "select started_at = %s::timestamptz and lease_expires_at = %s::timestamptz + make_interval(secs => %s) "
        "from krai_core.stage_runs where document_id = %s and stage_name = 'upload'",
        started, started, lease, document,
    )  # fmt: skip
    assert alone.call("start_stage", document, "upload") is False
    assert alone.call("complete_stage", document, "upload") is True
    assert [run["status"] for run in alone.runs(document, "upload")] == ["completed"]


def test_a_run_from_before_the_history_gets_its_row(service) -> None:
    """A stage that failed before there was a history leaves what it held there when it is retried."""
    failed = {
        "status": "failed", "started_at": "2025-10-04T08:00:00.000000Z", "completed_at": "2025-10-04T08:05:00.000000Z",
        "duration_seconds": 300, "progress": 70, "error": "out of paper", "metadata": {"pages": 3},
    }  # fmt: skip
    document = service.document(stage_status={"upload": failed})
    service.call("retry_stage", document, "upload", p_actor="ines")
    run, ready = service.runs(document, "upload")
    assert (ready["status"], ready["attempt"]) == ("ready", 1)
    assert (run["status"], run["error"], run["progress"], run["metadata"]) == (
        "failed",
        "out of paper",
        70,
        {"pages": 3},
    )
    assert (run["started_at"], run["finished_at"]) == ("2025-10-04T08:00:00+00:00", "2025-10-04T08:05:00+00:00")
    assert run["actor"] == "ines"
