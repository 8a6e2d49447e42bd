"""What a stage looks like in the column after each call, and what stage_runs keeps of it."""

import datetime as dt
import decimal
import re
import uuid
from collections.abc import Callable

import pytest

KEYS = {"status", "started_at", "completed_at", "duration_seconds", "progress", "error", "metadata"}
PENDING = {
    "status": "pending",
    "started_at": None,
    "completed_at": None,
    "duration_seconds": None,
    "progress": 0,
    "error": None,
    "metadata": {},
}
CALLS = [
    ("start_stage", ()),
    ("update_stage_progress", (20,)),
    ("complete_stage", ()),
    ("fail_stage", ("broken",)),
    ("skip_stage", ()),
    ("retry_stage", ()),
    ("reset_stage", ()),
]


def test_a_fresh_document_has_every_stage_pending_in_seven_keys(service) -> None:
    """The default of the column is the eight stages, each with exactly the seven keys of a pending one."""
    stages = service.stage_status(service.document())
    assert set(stages) == {
        "upload", "text_extraction", "image_processing", "classification",
        "metadata_extraction", "storage", "embedding", "search_indexing",
    }  # fmt: skip
    assert all(stage == PENDING for stage in stages.values())


@pytest.mark.parametrize("state", ["pending", "processing", "completed", "failed", "skipped"])
@pytest.mark.parametrize(("function", "arguments"), CALLS, ids=[name for name, _ in CALLS])
def test_every_call_leaves_exactly_seven_keys_in_their_types(
    service, bring: Callable, function: str, arguments: tuple, state: str
) -> None:
    """Whatever is called in whatever state, all stages keep the seven keys and _is_sound holds."""
    document = service.document()
    bring(document, "upload", state)
    service.attempt(function, document, "upload", *arguments)
    stages = service.stage_status(document)
    assert all(set(stage) == KEYS for stage in stages.values())
    assert service.call("krai_private.is_sound", stages) is True


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/New_York", "Asia/Kathmandu"])
def test_times_are_iso_8601_in_utc_with_z_in_any_session(connect: Callable, moment: Callable, zone: str) -> None:
    """Times in the column end with Z and are the server's clock in UTC, whatever the zone of the session."""
    session = connect()
    session.run("select set_config('timezone', %s, false)", zone)
    document = session.document()
    before = session.value("select clock_timestamp()")
    session.call("start_stage", document, "upload")
    session.call("complete_stage", document, "upload")
    after = session.value("select clock_timestamp()")
    stage = session.stage(document, "upload")
    for name in ("started_at", "completed_at"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", stage[name])
        assert before <= moment(stage[name]) <= after


def test_duration_is_the_time_between_start_and_end(service, moment: Callable) -> None:
    """duration_seconds of a completed and of a failed stage is exactly completed_at minus started_at."""
    for function, arguments in (("complete_stage", ()), ("fail_stage", ("broken",))):
        document = service.document()
        service.call("start_stage", document, "upload")
        service.call(function, document, "upload", *arguments)
        stage = service.stage(document, "upload")
        between = moment(stage["completed_at"]) - moment(stage["started_at"])
        assert dt.timedelta(seconds=stage["duration_seconds"]) == between


def test_times_are_those_of_the_call_and_not_of_its_transaction(connect: Callable) -> None:
    """In one transaction a start and an end have different times: a call that waited for a lock is not dated back."""
    session = connect()
    document = session.document()
    with session.connection.transaction():
        begun = session.value("select krai_private.iso_time(now())")
        session.call("start_stage", document, "upload")
        session.call("complete_stage", document, "upload")
    stage = session.stage(document, "upload")
    assert begun < stage["started_at"] < stage["completed_at"]


def test_a_clock_that_was_set_back_gives_no_negative_duration(service, bypass) -> None:
    """A start that lies ahead of the clock ends with a duration of 0, in a sound stage."""
    document = service.document()
    service.call("start_stage", document, "upload")
    bypass.run(
        "update krai_core.stage_runs set started_at = started_at + interval '1 h' where document_id = %s", document
    )
    service.call("complete_stage", document, "upload")
    assert service.stage(document, "upload")["duration_seconds"] == 0
    assert service.call("krai_private.is_sound", service.stage_status(document)) is True


def test_start_begins_a_clean_processing_stage(service, moment: Callable) -> None:
    """A started stage has a start, progress 0, and nothing else."""
    document = service.document()
    service.call("start_stage", document, "upload")
    stage = service.stage(document, "upload")
    assert moment(stage["started_at"])
    assert stage == PENDING | {"status": "processing", "started_at": stage["started_at"]}


@pytest.mark.parametrize(
    ("stored", "expected"),
    [(0, 0), (100, 100), (45.5, 45.5), (0.5, 0.5), ("33.3300", 33.33), ("1e-7", 1e-7)],
)
def test_progress_is_percent_and_never_rescaled(service, stored: object, expected: float) -> None:
    """What was sent is what is stored: 0.5 is half a percent."""
    document = service.document()
    service.call("start_stage", document, "upload")
    service.call("update_stage_progress", document, "upload", decimal.Decimal(str(stored)))
    assert service.stage(document, "upload")["progress"] == expected


def test_metadata_is_merged_by_every_call_and_lost_by_none(service) -> None:
    """Keys of earlier calls stay, later values win, and complete, fail and skip keep what progress stored."""
    for function, arguments in (
        ("complete_stage", ({"c": 3, "b": 3},)),
        ("fail_stage", ("broken", {"c": 3, "b": 3})),
    ):
        document = service.document()
        service.call("start_stage", document, "embedding")
        service.call("update_stage_progress", document, "embedding", 10, {"a": 1, "nested": {"x": 1}})
        service.call("update_stage_progress", document, "embedding", 20, {"b": 2})
        service.call(function, document, "embedding", *arguments)
        assert service.stage(document, "embedding")["metadata"] == {"a": 1, "nested": {"x": 1}, "b": 3, "c": 3}
    document = service.document()
    service.call("start_stage", document, "embedding")
    service.call("update_stage_progress", document, "embedding", 10, {"a": 1})
    service.call("skip_stage", document, "embedding", "no text")
    assert service.stage(document, "embedding")["metadata"] == {"a": 1, "reason": "no text"}


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("update_stage_progress", (None,)),
        ("update_stage_progress", (None, None)),
        ("complete_stage", (None,)),
        ("fail_stage", (None, None)),
        ("skip_stage", (None,)),
    ],
)
def test_a_null_argument_erases_nothing(service, bring: Callable, function: str, arguments: tuple) -> None:
    """Progress, metadata and every other stage survive a call with null arguments."""
    document = service.document()
    bring(document, "upload", "completed")
    bring(document, "embedding", "processing")
    before = service.stage_status(document)
    assert service.call(function, document, "embedding", *arguments) is True
    after = service.stage_status(document)
    assert {name: after[name] for name in after if name != "embedding"} == {
        name: before[name] for name in before if name != "embedding"
    }
    assert after["embedding"]["metadata"].items() >= before["embedding"]["metadata"].items()
    assert after["embedding"]["progress"] == (100 if function == "complete_stage" else 40)
    assert after["embedding"]["started_at"] == before["embedding"]["started_at"]


def test_a_json_null_as_metadata_means_none(service, bring: Callable) -> None:
    """The JSON value null merges nothing, like an SQL null."""
    document = service.document()
    bring(document, "embedding", "processing")
    service.run("select krai_core.complete_stage(%s, 'embedding', 'null')", document)
    assert service.stage(document, "embedding")["metadata"] == {"pages": 2, "kept": "yes"}


def test_complete_without_start_has_an_end_but_no_start_and_no_duration(service, moment: Callable) -> None:
    """Work that ran outside is completed now, with started_at and duration_seconds null, and leaves a run."""
    document = service.document()
    assert service.call("complete_stage", document, "upload", {"file_hash": "ab"}) is True
    stage = service.stage(document, "upload")
    assert moment(stage["completed_at"])
    assert stage == PENDING | {
        "status": "completed", "progress": 100, "completed_at": stage["completed_at"], "metadata": {"file_hash": "ab"},
    }  # fmt: skip
    (run,) = service.runs(document, "upload")
    assert (run["status"], run["started_at"], run["attempt"]) == ("completed", None, 1)


def test_complete_of_a_stage_that_nobody_runs_leaves_one_run(service, moment: Callable) -> None:
    """A stage set to processing by hand and then completed keeps its start, and has a history of one run."""
    document = service.document()
    stages = service.stage_status(document)
    stages["upload"] |= {"status": "processing", "started_at": "2026-01-01T10:00:00.000000Z"}
    service.edit(document, stages)
    assert service.call("complete_stage", document, "upload") is True
    stage = service.stage(document, "upload")
    assert stage["started_at"] == "2026-01-01T10:00:00.000000Z"
    assert stage["duration_seconds"] > 0
    (run,) = service.runs(document, "upload")
    assert (run["status"], run["attempt"]) == ("completed", 1)
    assert dt.datetime.fromisoformat(run["started_at"]) == moment(stage["started_at"])


def test_a_new_run_clears_the_last_one_and_stage_runs_keeps_it(service) -> None:
    """Error, times, progress and metadata of a failed run leave the column and stay in stage_runs."""
    document = service.document()
    service.call("start_stage", document, "embedding")
    service.call("update_stage_progress", document, "embedding", 62.5, {"model": "minilm", "pages": 7})
    service.call("fail_stage", document, "embedding", "out of memory", {"node": "n1"})
    failed = service.stage(document, "embedding")
    service.call("start_stage", document, "embedding")
    stage = service.stage(document, "embedding")
    assert stage == PENDING | {"status": "processing", "started_at": stage["started_at"]}
    first, second = service.runs(document, "embedding")
    assert (first["status"], first["error"], first["progress"]) == ("failed", "out of memory", 62.5)
    assert first["metadata"] == failed["metadata"] == {"model": "minilm", "pages": 7, "node": "n1"}
    for kept, shown in (("started_at", "started_at"), ("finished_at", "completed_at")):
        assert dt.datetime.fromisoformat(first[kept]) == dt.datetime.fromisoformat(failed[shown])
    assert (second["status"], second["error"], second["progress"], second["metadata"]) == ("running", None, None, None)


def test_what_a_stage_carries_beside_the_seven_keys_goes_into_the_history(service) -> None:
    """A further key of a stage stays while the stage does, and with the next run it is kept with the last one."""
    document = service.document()
    stages = service.stage_status(document)
    stages["upload"] |= {"status": "failed", "error": "x", "ticket": 4711}
    service.edit(document, stages)
    assert service.stage(document, "upload")["ticket"] == 4711
    service.call("start_stage", document, "upload")
    assert set(service.stage(document, "upload")) == KEYS
    assert service.runs(document, "upload")[0]["metadata"] == {"ticket": 4711}


def test_metadata_of_a_pending_stage_survives_its_start(service) -> None:
    """What stands on a stage that never ran, put there by hand or by the repair, outlives its start."""
    document = service.document(stage_status={"upload": "in_progress"})
    service.call("start_stage", document, "upload")
    assert service.stage(document, "upload")["metadata"] == {"v1": "in_progress"}
    service.call("complete_stage", document, "upload", {"pages": 1})
    assert service.stage(document, "upload")["metadata"] == {"v1": "in_progress", "pages": 1}


def test_attempts_count_up_and_begin_again_after_success_retry_and_reset(service) -> None:
    """Failures count 1, 2, 3; a success, a retry and a reset let them begin from 1."""
    document = service.document()

    def start_and(function: str, *arguments: object) -> int:
        service.call("start_stage", document, "upload")
        attempt = service.runs(document, "upload")[-1]["attempt"]
        service.call(function, document, "upload", *arguments)
        return attempt

    assert [start_and("fail_stage", "x") for _ in range(3)] == [1, 2, 3]
    service.call("retry_stage", document, "upload")
    assert [start_and("fail_stage", "x"), start_and("complete_stage")] == [1, 2]
    assert [start_and("fail_stage", "x"), start_and("fail_stage", "x")] == [1, 2]
    service.call("reset_stage", document, "upload")
    assert [start_and("fail_stage", "x"), start_and("skip_stage")] == [1, 2]
    assert start_and("fail_stage", "x") == 1


def test_a_run_that_lost_its_lease_counts_as_an_attempt(service) -> None:
    """Taking over a lost run is the next attempt."""
    document = service.document()
    for attempt in (1, 2, 3):
        assert service.call("start_stage", document, "upload") is True
        assert service.runs(document, "upload")[-1]["attempt"] == attempt
        service.end_lease(document, "upload")


def test_the_actor_of_a_retry_and_of_a_reset_is_kept_with_the_last_run(service) -> None:
    """Who brought a stage back, and when, stands with the run that it undid."""
    document = service.document()
    service.call("start_stage", document, "upload")
    service.call("fail_stage", document, "upload", "x")
    service.call("retry_stage", document, "upload", p_actor="ines@example.org")
    service.call("start_stage", document, "upload")
    service.call("complete_stage", document, "upload")
    service.call("reset_stage", document, "upload", p_actor="omar")
    assert [(run["actor"], run["reset_at"] is not None) for run in service.runs(document, "upload")] == [
        ("ines@example.org", True),
        ("omar", True),
        (None, False),
    ]


@pytest.mark.parametrize("error", [None, "", "   ", "\n\t \r"])
def test_an_error_without_text_is_stored_as_a_sentence(service, error: str | None) -> None:
    """A null or blank error text becomes `failed without a message`."""
    document = service.document()
    service.call("fail_stage", document, "upload", error)
    assert service.stage(document, "upload")["error"] == "failed without a message"
    assert service.runs(document, "upload")[0]["error"] == "failed without a message"


@pytest.mark.parametrize(
    ("length", "in_column", "in_runs"),
    [(3999, 3999, 3999), (4000, 4000, 4000), (4001, 3998, 4001), (100_000, 3998, 65536)],
)
def test_a_long_error_is_cut_in_the_column_and_kept_longer_in_stage_runs(
    service, length: int, in_column: int, in_runs: int
) -> None:
    """Over 4,000 characters the column holds the beginning and a mark, stage_runs up to 65,536 characters."""
    document, error = service.document(), "ä" * length
    service.call("fail_stage", document, "upload", error)
    stored = service.stage(document, "upload")["error"]
    assert len(stored) == in_column
    assert stored.endswith("[cut at 4000]") is (length > 4000)
    assert service.runs(document, "upload")[0]["error"] == error[:in_runs]


def test_a_second_failure_takes_the_new_error_and_keeps_the_times(service) -> None:
    """fail on a failed stage replaces the error and merges metadata; the end and the run stay."""
    document = service.document()
    service.call("start_stage", document, "upload")
    service.call("fail_stage", document, "upload", "first", {"a": 1})
    before = service.stage(document, "upload")
    service.call("fail_stage", document, "upload", "second", {"b": 2})
    assert service.stage(document, "upload") == before | {"error": "second", "metadata": {"a": 1, "b": 2}}
    (run,) = service.runs(document, "upload")
    assert run["error"] == "second"


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        ("No images found in PDF", "No images found in PDF"),
        (None, "Not applicable"),
        (" ", "Not applicable"),
        ("x" * 5000, "x" * 4000),
    ],
)
def test_the_reason_of_a_skip_stands_in_metadata(service, reason: str | None, kept: str) -> None:
    """metadata.reason holds the reason, or `Not applicable`; error and duration stay null."""
    document = service.document()
    service.call("skip_stage", document, "image_processing", reason)
    stage = service.stage(document, "image_processing")
    assert (stage["status"], stage["metadata"]) == ("skipped", {"reason": kept})
    assert (stage["error"], stage["duration_seconds"]) == (None, None)


def test_skip_without_a_reason_says_not_applicable(service) -> None:
    """The default of p_reason is the one of the seed."""
    document = service.document()
    service.call("skip_stage", document, "storage")
    assert service.stage(document, "storage")["metadata"] == {"reason": "Not applicable"}


def test_complete_again_merges_metadata_and_keeps_the_times(service) -> None:
    """A second complete, as force_reprocess of the field does it, changes only metadata."""
    document = service.document()
    service.call("complete_stage", document, "upload", {"file_hash": "a", "page_count": 3})
    before = service.stage(document, "upload")
    service.call("complete_stage", document, "upload", {"file_hash": "b"})
    assert service.stage(document, "upload") == before | {"metadata": {"file_hash": "b", "page_count": 3}}
    assert len(service.runs(document, "upload")) == 1


def test_a_repeated_complete_with_its_claim_id_does_not_merge_again(service) -> None:
    """The repeat of a call whose answer was lost changes nothing, also where its metadata would."""
    document, claim = service.document(), uuid.uuid4()
    service.call("start_stage", document, "upload", p_claim_id=claim)
    service.call("complete_stage", document, "upload", {"n": 1}, p_claim_id=claim)
    service.call("complete_stage", document, "upload", {"n": 2})
    before = service.everything(document)
    assert service.call("complete_stage", document, "upload", {"n": 1}, p_claim_id=claim) is True
    assert service.everything(document) == before


def test_stages_of_one_document_run_beside_each_other(service) -> None:
    """Two stages in work at once keep their own progress and metadata."""
    document = service.document()
    for stage, progress in (("text_extraction", 10), ("image_processing", 70)):
        service.call("start_stage", document, stage)
        service.call("update_stage_progress", document, stage, progress, {"of": stage})
    service.call("complete_stage", document, "image_processing")
    stages = service.stage_status(document)
    assert [stages[name]["status"] for name in ("text_extraction", "image_processing")] == ["processing", "completed"]
    assert stages["text_extraction"]["progress"] == 10
    assert stages["text_extraction"]["metadata"] == {"of": "text_extraction"}
