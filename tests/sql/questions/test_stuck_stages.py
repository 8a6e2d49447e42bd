"""What is stuck: stalled, slow and starved told apart; who works on what; what runs."""

import uuid
from typing import Any

import pytest

ROW = {
    "document_id", "filename", "stage_name", "worker", "attempt", "started_at", "running_seconds", "heartbeat_at",
    "lease_expires_at", "progress", "metadata", "condition", "remaining_p50_seconds", "remaining_p90_seconds",
    "estimated_from",
}  # fmt: skip
NOTHING: dict[str, list[Any]] = {"stalled": [], "slow": [], "starved": []}


def stuck(sql: Any, **named: object) -> dict[str, list[Any]]:
    """The answer, each kind by the documents or stages in it."""
    answer = sql.call("get_stuck_stages", **named)
    assert set(answer) == set(NOTHING)
    return {
        "stalled": [row["document_id"] for row in answer["stalled"]],
        "slow": [row["document_id"] for row in answer["slow"]],
        "starved": [row["stage_name"] for row in answer["starved"]],
    }


def samples(sql: Any, stage: str, *durations: float) -> None:
    """Documents that have completed the stage in so many seconds."""
    for seconds in durations:
        sql.document(stage_status=finished_but(stage, {"status": "completed", "duration_seconds": seconds}))


def finished_but(stage: str, value: object) -> dict[str, object]:
    """A column in which every other stage is skipped."""
    stages = [
        "upload", "text_extraction", "image_processing", "classification", "metadata_extraction", "storage",
        "embedding", "search_indexing",
    ]  # fmt: skip
    return {one: value if one == stage else {"status": "skipped"} for one in stages}


def at_work(sql: Any, stage: str, seconds: float = 0, worker: str = "w") -> uuid.UUID:
    """A document on whose stage a worker is for so many seconds, all else skipped."""
    document: uuid.UUID = sql.document(stage_status=finished_but(stage, {"status": "pending"}))
    sql.call("start_stage", document, stage, p_claim_id=uuid.uuid4(), p_worker=worker)
    sql.run(
        "update krai_core.stage_runs set started_at = started_at - %s * interval '1 s' "
        "where document_id = %s and status = 'running'",
        seconds,
        document,
    )
    return document


def starve(sql: Any, document: uuid.UUID, seconds: float) -> None:
    """The ready runs of a document are due for so many seconds longer."""
    sql.run(
        "update krai_core.stage_runs set available_at = available_at - %s * interval '1 s' "
        "where document_id = %s and status = 'ready'",
        seconds,
        document,
    )


def test_nothing_is_stuck_where_all_is_well(alone) -> None:
    """Without documents, and with a fresh one and a working one, all three are empty."""
    assert stuck(alone) == NOTHING
    alone.document()
    at_work(alone, "storage")
    assert stuck(alone) == NOTHING


def test_a_run_whose_lease_is_over_is_stalled(alone) -> None:
    """No sign of life within the lease is stalled, however short it runs, and not slow as well."""
    samples(alone, "storage", *[1.0] * 20)
    document = at_work(alone, "storage", 500)
    alone.end_lease(document, "storage")
    assert stuck(alone) == NOTHING | {"stalled": [str(document)]}


def test_a_run_beyond_the_usual_that_still_beats_is_slow(alone) -> None:
    """Beyond p95 of its stage, lease alive: slow; beyond the half of them, or short of the longest: neither."""
    samples(alone, "storage", *[10.0] * 14, *[100.0] * 6, 10_000.0)
    at_work(alone, "storage", 5)
    at_work(alone, "storage", 60)
    slow = at_work(alone, "storage", 300)
    assert stuck(alone) == NOTHING | {"slow": [str(slow)]}


@pytest.mark.parametrize("count", [0, 4])
def test_nothing_is_slow_where_nobody_knows_what_is_usual(alone, count: int) -> None:
    """Below five samples a run is never slow."""
    samples(alone, "storage", *[1.0] * count)
    at_work(alone, "storage", 5000)
    assert stuck(alone)["slow"] == []
    samples(alone, "storage", 1.0, 1.0, 1.0, 1.0, 1.0)
    assert len(stuck(alone)["slow"]) == 1


def test_a_stage_that_nobody_claims_from_is_starved(alone) -> None:
    """Ready for longer than p_starved_after_seconds, and no worker takes it: told by its stage, with its wait."""
    document = alone.document()
    starve(alone, document, 100)
    (row,) = alone.call("get_stuck_stages")["starved"]
    assert set(row) == {"stage_name", "oldest_ready_at", "waiting_seconds", "is_paused"}
    assert (row["stage_name"], row["is_paused"]) == ("upload", False)
    assert 100 <= row["waiting_seconds"] < 130
    assert stuck(alone, p_starved_after_seconds=1000)["starved"] == []
    assert stuck(alone, p_starved_after_seconds=99.5)["starved"] == ["upload"]


def test_what_waits_for_its_time_or_for_other_stages_is_not_starved(alone) -> None:
    """A retry that is not due and a stage whose prerequisites are not finished have nobody to blame."""
    alone.run("update krai_core.stages set backoff_seconds = 1000")
    document = alone.document()
    alone.call("start_stage", document, "upload")
    alone.call("fail_stage", document, "upload", "x", p_retry=True)
    assert stuck(alone, p_starved_after_seconds=0) == NOTHING


def test_a_paused_stage_says_that_it_is(alone) -> None:
    """What is ready in a paused stage is starved on purpose: is_paused."""
    document = alone.document()
    starve(alone, document, 100)
    alone.call("pause_stage", "upload")
    (row,) = alone.call("get_stuck_stages")["starved"]
    assert (row["stage_name"], row["is_paused"]) == ("upload", True)


def test_the_stalled_are_told_the_longest_over_first(alone) -> None:
    """In order of the end of their leases, the newest last; p_limit bounds each kind."""
    documents = [at_work(alone, "storage") for _ in range(4)]
    for place, document in enumerate(documents):
        alone.run(
            "update krai_core.stage_runs set lease_expires_at = clock_timestamp() - %s * interval '1 min' "
            "where document_id = %s and status = 'running'",
            place + 1,
            document,
        )
    assert stuck(alone)["stalled"] == [str(one) for one in documents[::-1]]
    assert len(stuck(alone, p_limit=2)["stalled"]) == 2


def test_a_disabled_stage_starves_nobody(alone) -> None:
    """What is disabled is not to be claimed."""
    starve(alone, alone.document(), 500)
    alone.call("disable_stage", "upload")
    assert "upload" not in stuck(alone)["starved"]


@pytest.mark.parametrize("named", [{"p_limit": 0}, {"p_limit": 100_000}, {"p_starved_after_seconds": -1}])
def test_wrong_arguments_are_refused(service, named: dict) -> None:
    """A limit out of range and a negative time are 22023 with a word."""
    refusal = service.refused("get_stuck_stages", **named)
    assert refusal.sqlstate == "22023"
    assert refusal.word
    assert refusal.hint


def test_a_row_tells_all_of_a_run(alone) -> None:
    """Every field of vw_running_stages, and the same in get_stuck_stages."""
    document = at_work(alone, "storage", 20, worker="anna")
    alone.call("update_stage_progress", document, "storage", 25, {"pages": 4}, _claim(alone, document))
    row = alone.value("select to_jsonb(v) from krai_core.vw_running_stages v")
    assert set(row) == ROW
    assert (row["document_id"], row["filename"], row["stage_name"]) == (str(document), "manual.pdf", "storage")
    assert (row["worker"], row["attempt"], row["progress"], row["metadata"]) == ("anna", 1, 25, {"pages": 4})
    assert 20 <= row["running_seconds"] < 50
    assert row["condition"] == "working"
    alone.end_lease(document, "storage")
    (stalled,) = alone.call("get_stuck_stages")["stalled"]
    assert set(stalled) == ROW
    assert stalled["condition"] == "stalled"


def _claim(sql: Any, document: uuid.UUID) -> uuid.UUID:
    claim: uuid.UUID = sql.value(
        "select claim_id from krai_core.stage_runs where document_id = %s and status = 'running'", document
    )
    return claim


def test_every_running_run_is_a_row_and_no_other(service) -> None:
    """Two stages of one document are two rows; what is ready or ended is none."""
    document = service.document()
    service.done(document, "upload")
    service.call("start_stage", document, "text_extraction")
    service.call("start_stage", document, "image_processing")
    service.call("start_stage", document, "storage")
    service.call("fail_stage", document, "storage", "x")
    service.document()
    rows = service.rows("select document_id, stage_name from krai_core.vw_running_stages order by stage_name")
    assert rows == [(document, "image_processing"), (document, "text_extraction")]


def test_workers_are_told_with_what_they_hold(alone) -> None:
    """One entry per name: how many runs, of which stages, since when, and which of them are stalled."""
    documents = [at_work(alone, "storage", 10 * place, "anna") for place in range(3)]
    at_work(alone, "embedding", 5, "anna")
    at_work(alone, "embedding", 0, "bert")
    alone.end_lease(documents[2], "storage")
    workers = {one["worker"]: one for one in alone.call("get_workers")}
    assert set(workers) == {"anna", "bert"}
    anna = workers["anna"]
    assert set(anna) == {"worker", "running", "stalled", "stages", "oldest_started_at", "last_heartbeat_at"}
    assert (anna["running"], anna["stalled"]) == (4, 1)
    assert anna["stages"] == {"storage": 3, "embedding": 1}
    oldest = alone.value(
        "select krai_private.iso_time(min(started_at)) from krai_core.stage_runs where worker = 'anna'"
    )
    assert anna["oldest_started_at"] == oldest
    assert (workers["bert"]["running"], workers["bert"]["stalled"]) == (1, 0)


def test_runs_without_a_name_have_a_worker_without_a_name(service) -> None:
    """What was started by plain calls is told as one worker whose name is null; without runs there is nobody."""
    assert service.call("get_workers") == []
    service.call("start_stage", service.document(), "upload")
    (worker,) = service.call("get_workers")
    assert (worker["worker"], worker["running"], worker["stages"]) == (None, 1, {"upload": 1})


def test_busy_workers_are_counted_per_stage(alone) -> None:
    """workers_busy of the statistics: how many workers hold a run of the stage whose lease lives."""
    at_work(alone, "storage", 0, "anna")
    at_work(alone, "storage", 0, "anna")
    at_work(alone, "storage", 0, "bert")
    at_work(alone, "embedding", 0, "bert")
    stages = alone.call("get_stage_statistics")["stages"]
    assert (stages["storage"]["workers_busy"], stages["embedding"]["workers_busy"]) == (2, 1)
    assert stages["upload"]["workers_busy"] == 0


def test_the_oldest_that_waits_is_told_per_stage(alone) -> None:
    """oldest_waiting: since when the ready run that is due longest waits; null where none is due."""
    old, new = alone.document(), alone.document()
    starve(alone, old, 300)
    said = alone.call("get_stage_statistics")["stages"]
    assert 300 <= said["upload"]["oldest_waiting"] < 330
    due = alone.value(
        "select krai_private.iso_time(available_at) from krai_core.stage_runs where document_id = %s", old
    )
    assert said["upload"]["oldest_waiting_at"] == due
    assert said["storage"]["oldest_waiting"] is None
    alone.call("set_priority", new, 10)
    assert 300 <= alone.call("get_stage_statistics")["stages"]["upload"]["oldest_waiting"] < 330
    alone.call("start_stage", old, "upload")
    assert alone.call("get_stage_statistics")["stages"]["upload"]["oldest_waiting"] < 100
