"""What people do: retry by filter, cancel, priorities, pause and resume; and that it is kept who did it."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest

GHOST = uuid.UUID("00000000-0000-4000-8000-00000000dead")


@pytest.fixture
def failures(service) -> dict[str, uuid.UUID]:
    """Documents with a failed stage each, in the order of their failures."""
    made = {}
    for name, stage, error in (
        ("paper", "upload", "Out of paper"), ("ink", "upload", "out of ink 100%"),
        ("ocr", "image_processing", "no paper"),
    ):  # fmt: skip
        made[name] = service.document()
        service.call("fail_stage", made[name], stage, error)
    return made


def _found(answer: dict[str, Any], failures: dict[str, uuid.UUID]) -> set[str]:
    names = {str(document): name for name, document in failures.items()}
    assert answer["count"] == len(answer["runs"])
    return {names[run["document_id"]] for run in answer["runs"]}


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, {"paper", "ink", "ocr"}),
        ({"p_stage_name": "upload"}, {"paper", "ink"}),
        ({"p_stage_name": "storage"}, set()),
        ({"p_error": "PAPER"}, {"paper", "ocr"}),
        ({"p_error": "out%ink"}, {"ink"}),
        ({"p_error": "o_t of"}, {"paper", "ink"}),
        ({"p_error": "toner"}, set()),
        ({"p_stage_name": "upload", "p_error": "paper"}, {"paper"}),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_failed_stages_are_retried_by_filter(service, failures: dict, filters: dict, found: set) -> None:
    """Those that match stage and part of the error are pending and ready again, the others stay failed."""
    failed = "select count(*) from krai_core.vw_document_stages where status = 'failed'"
    dry = service.call("retry_failed", **filters, p_dry_run=True)
    assert (dry["dry_run"], dry["more"], _found(dry, failures)) == (True, False, found)
    assert service.value(failed) == 3
    answer = service.call("retry_failed", **filters)
    assert (answer["dry_run"], answer["runs"]) == (False, dry["runs"])
    assert service.value(failed) == 3 - len(found)
    assert {run["document_id"] for run in service.claim("upload", 10)} == {
        str(failures[name]) for name in found - {"ocr"}
    } | {str(failures["ocr"])}


def test_what_failed_before_a_time_stays(service, failures: dict) -> None:
    """p_since takes failures from that instant on."""
    since = service.value(
        "select krai_private.time_or_null(%s)", service.stage(failures["ink"], "upload")["completed_at"]
    )
    assert _found(service.call("retry_failed", p_since=since, p_dry_run=True), failures) == {"ink", "ocr"}
    assert _found(service.call("retry_failed", p_since=since), failures) == {"ink", "ocr"}
    assert service.stage(failures["paper"], "upload")["status"] == "failed"


def test_a_limit_tells_that_there_is_more(service, failures: dict) -> None:
    """Batch by batch all are reached, and the last answer says that nothing is left."""
    answers = [service.call("retry_failed", p_limit=2) for _ in range(2)]
    assert [(answer["count"], answer["more"]) for answer in answers] == [(2, True), (1, False)]
    assert _found(answers[0], failures) | _found(answers[1], failures) == {"paper", "ink", "ocr"}
    assert service.call("retry_failed")["count"] == 0


@pytest.mark.parametrize(
    ("named", "word"),
    [
        ({"p_limit": 0}, "invalid_limit"),
        ({"p_limit": 10001}, "invalid_limit"),
        ({"p_stage_name": "x"}, "unknown_stage"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("failures")
def test_a_retry_by_filter_names_what_is_wrong(service, named: dict, word: str) -> None:
    """Bad filters are refused, and nothing is retried."""
    assert service.refused("retry_failed", **named).word == word
    assert service.call("retry_failed", p_dry_run=True)["count"] == 3


def test_a_failure_that_waits_for_its_retry_is_retried_now(service, outcome: Callable) -> None:
    """A person need not wait for the backoff, and the attempts count from 1."""
    service.document()
    (run,) = service.claim()
    service.finish(outcome(run, "failed", error="x", retry=True))
    assert service.claim() == []
    assert service.call("retry_failed", "upload", p_actor="ines")["count"] == 1
    assert [run["attempt"] for run in service.claim()] == [1]


def test_cancel_skips_all_that_is_unfinished(service, bring: Callable) -> None:
    """Pending, processing and failed stages are skipped with the reason; completed and skipped ones stay."""
    document = service.document()
    for stage, state in (
        ("upload", "completed"),
        ("storage", "skipped"),
        ("embedding", "failed"),
        ("classification", "processing"),
    ):
        bring(document, stage, state)
    before = service.stage_status(document)
    assert service.call("cancel_document", document, "wrong file", "ines") is True
    stages = service.stage_status(document)
    for name, stage in stages.items():
        if name in ("upload", "storage"):
            assert stage == before[name]
        else:
            assert (stage["status"], stage["metadata"]["reason"], stage["error"]) == ("skipped", "wrong file", None)
    assert stages["classification"]["metadata"] == {"pages": 2, "kept": "yes", "reason": "wrong file"}
    assert service.call("get_document_status", document)["status"] == "completed"
    assert (
        service.value("select count(*) from krai_core.stage_runs where document_id = %s and status = 'ready'", document)
        == 0
    )
    assert {(run["status"], run["actor"], run["error"]) for run in service.runs(document, "classification")} == {
        ("cancelled", "ines", "wrong file")
    }


def test_cancel_can_be_repeated_and_undone(service) -> None:
    """A second cancel changes nothing; reset_stage brings a stage back."""
    document = service.document()
    service.call("cancel_document", document)
    before = service.everything(document)
    assert service.call("cancel_document", document, "again") is True
    assert service.everything(document) == before
    assert service.stage(document, "upload")["metadata"]["reason"] == "Cancelled"
    service.call("reset_stage", document, "upload")
    assert [run["document_id"] for run in service.claim()] == [str(document)]


def test_who_works_on_a_cancelled_document_hears_it(service) -> None:
    """The next heartbeat says cancelled, and whatever else is sent for the run is refused and changes nothing."""
    document, other = service.document(), service.document()
    runs = service.claim(limit=2)
    service.call("cancel_document", document)
    beat = service.call("heartbeat", runs)
    assert ([run["document_id"] for run in beat["cancelled"]], beat["lost"]) == ([str(document)], [])
    assert [run["document_id"] for run in beat["alive"]] == [str(other)]
    before, claim = service.everything(document), runs[0]["claim_id"]
    for function, arguments in (
        ("complete_stage", ()), ("fail_stage", ("x",)), ("skip_stage", ()), ("start_stage", ()),
        ("update_stage_progress", (5,)),
    ):  # fmt: skip
        refusal = service.refused(function, document, "upload", *arguments, p_claim_id=claim)
        assert (refusal.word, refusal.detail["run"]) == ("lease_lost", "cancelled")
    assert service.everything(document) == before


def test_a_disabled_stage_is_not_cancelled(alone) -> None:
    """What is not in the pipeline stays as it is."""
    document = alone.document()
    alone.call("disable_stage", "storage")
    alone.call("cancel_document", document)
    stages = alone.stage_status(document)
    assert {name for name, stage in stages.items() if stage["status"] == "pending"} == {"storage"}


@pytest.mark.parametrize(
    ("function", "arguments"), [("cancel_document", ()), ("set_priority", (1,)), ("explain_stage", ("upload",))]
)
def test_a_document_that_is_not_there_is_named(service, function: str, arguments: tuple) -> None:
    """unknown_document with the id; a null id is invalid_document_id."""
    refusal = service.refused(function, GHOST, *arguments)
    assert (refusal.sqlstate, refusal.word, refusal.detail["document_id"]) == ("PT404", "unknown_document", str(GHOST))
    assert service.refused(function, None, *arguments).word == "invalid_document_id"


def test_a_priority_holds_for_what_is_ready_and_for_what_becomes_so(service) -> None:
    """Both the stages that wait in the queue and those that come later have it, until it is 0 again."""
    document = service.document()
    service.claim()
    assert service.call("set_priority", document, 7, "ines") is True
    service.call("complete_stage", document, "upload")
    assert [run["priority"] for stage in ("upload", "text_extraction") for run in service.runs(document, stage)] == [
        7,
        7,
    ]
    assert service.rows(
        "select priority, changed_by, changed_at <= clock_timestamp() from krai_core.document_priorities"
    ) == [(7, "ines", True)]
    service.call("set_priority", document, None)
    service.done(document, "text_extraction")
    assert {
        run["priority"] for stage in ("image_processing", "embedding") for run in service.runs(document, stage)
    } == {0}
    assert service.rows("select * from krai_core.document_priorities") == []


def test_a_priority_outlives_retries_and_releases(service, outcome: Callable) -> None:
    """A run that comes back to the queue comes back with the priority of its document."""
    document = service.document()
    service.call("set_priority", document, -3)
    service.call("release_stages", service.claim())
    service.finish(outcome(service.claim()[0], "failed", error="x", retry=True))
    service.call("retry_stage", document, "upload")
    assert {run["priority"] for run in service.runs(document, "upload")} == {-3}


def test_a_paused_stage_is_handed_out_again_after_resume(alone) -> None:
    """Pause keeps the queue and what runs, and stops only what would be handed out; both calls can be repeated."""
    running, waiting = alone.document(), alone.document()
    (run,) = alone.claim()
    for _ in range(2):
        assert alone.call("pause_stage", "upload", "ines") is True
    paused = alone.rows("select paused, changed_by, changed_at from krai_core.stages where name = 'upload'")
    assert paused[0][:2] == (True, "ines")
    assert alone.claim() == []
    assert alone.call("get_next_document", "upload") is None
    assert alone.call("complete_stage", running, "upload", p_claim_id=run["claim_id"]) is True
    assert alone.call("start_stage", alone.document(), "upload") is True
    assert alone.call("pause_stage", "upload", "omar") is True
    assert alone.rows("select paused, changed_by, changed_at from krai_core.stages where name = 'upload'") == paused
    assert alone.call("resume_stage", "upload", "omar") is True
    assert alone.rows("select paused, changed_by from krai_core.stages where name = 'upload'") == [(False, "omar")]
    assert [run["document_id"] for run in alone.claim(limit=5)] == [str(waiting)]


@pytest.mark.parametrize("function", ["pause_stage", "resume_stage", "disable_stage"])
def test_a_stage_that_is_not_there_is_named(service, function: str) -> None:
    """unknown_stage, with the stages that there are."""
    refusal = service.refused(function, "nonsense")
    assert (refusal.sqlstate, refusal.word, refusal.detail["stage"]) == ("22023", "unknown_stage", "nonsense")


def test_service_role_can_pause(service) -> None:
    """Pausing needs no rights of the owner."""
    assert service.call("pause_stage", "upload") is True
    assert service.call("resume_stage", "upload") is True


@pytest.mark.parametrize(
    ("call", "arguments", "where"),
    [
        ("retry_stage", ("upload",), "upload"),
        ("reset_stage", ("upload",), "upload"),
        ("cancel_document", (), "upload"),
    ],
)
def test_who_did_it_is_kept_up_to_200_letters(service, call: str, arguments: tuple, where: str) -> None:
    """p_actor stands with the last run of the stage."""
    document = service.document()
    service.call("fail_stage", document, where, "x")
    service.call(call, document, *arguments, p_actor="i" * 300)
    actors = [run["actor"] for run in service.runs(document, where) if run["status"] != "ready"]
    assert actors[-1] == "i" * 200


@pytest.mark.usefixtures("failures")
def test_retry_failed_keeps_who_did_it(service) -> None:
    """p_actor of the filter stands with each run that it brought back."""
    service.call("retry_failed", p_actor="ines")
    assert service.rows("select distinct actor from krai_core.stage_runs where status = 'failed'") == [("ines",)]
