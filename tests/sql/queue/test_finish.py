"""finish_stages: many outcomes in one call, each as the single call with its claim id would have it."""

import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

GHOST = "00000000-0000-4000-8000-00000000dead"
NEW = {"pages": 3, "added": [1, {"x": None}]}
TIMES = {
    "available_at", "lease_expires_at", "heartbeat_at", "started_at", "finished_at", "retry_at", "reset_at",
    "completed_at", "duration_seconds",
}  # fmt: skip

# What is reported, as the outcome of the bulk call and as the single call.
REPORTS: dict[str, tuple[dict[str, Any], str, tuple[Any, ...], dict[str, Any]]] = {
    "completed": ({"outcome": "completed", "metadata": NEW}, "complete_stage", (NEW,), {}),
    "completed, nothing more": ({"outcome": "completed"}, "complete_stage", (), {}),
    "completed, metadata null": ({"outcome": "completed", "metadata": None}, "complete_stage", (), {}),
    "completed, metadata odd": ({"outcome": "completed", "metadata": [1]}, "complete_stage", ([1],), {}),
    "failed": ({"outcome": "failed", "error": "x" * 5000, "metadata": NEW}, "fail_stage", ("x" * 5000, NEW), {}),
    "failed, nothing more": ({"outcome": "failed"}, "fail_stage", (None,), {}),
    "failed, to retry": ({"outcome": "failed", "error": "y", "retry": True}, "fail_stage", ("y",), {"p_retry": True}),
    "failed, retry null": ({"outcome": "failed", "error": "y", "retry": None}, "fail_stage", ("y",), {"p_retry": None}),
    "skipped": ({"outcome": "skipped", "reason": "no images"}, "skip_stage", ("no images",), {}),
    "skipped, no reason": ({"outcome": "skipped", "reason": "  "}, "skip_stage", ("  ",), {}),
    "progress": ({"outcome": "progress", "progress": 55.5, "metadata": NEW}, "update_stage_progress", (55.5, NEW), {}),
    "progress, none": ({"outcome": "progress", "metadata": NEW}, "update_stage_progress", (None, NEW), {}),
    "progress, too much": ({"outcome": "progress", "progress": 101}, "update_stage_progress", (101,), {}),
    "progress, no number": ({"outcome": "progress", "progress": "NaN"}, "update_stage_progress", ("NaN",), {}),
    "progress, metadata odd": (
        {"outcome": "progress", "progress": 5, "metadata": "x"}, "update_stage_progress", (5,), {"p_metadata": '"x"'},
    ),
}  # fmt: skip
STATES = [
    "running", "expired", "last attempt", "completed", "failed", "failed, to retry", "skipped", "taken", "finished",
    "cancelled", "released", "unknown claim", "odd", "other stage", "no stage", "no document",
]  # fmt: skip


def _bring(service, bypass, state: str) -> tuple[uuid.UUID, str, str, uuid.UUID]:
    """A document of which a worker has claimed classification, and what has become of that run since."""
    document, claim = service.document(), uuid.uuid4()
    service.call("start_stage", document, "upload")
    service.edit(document, service.stage_status(document) | {"upload": "completed", "text_extraction": "completed"})
    stage, other = "classification", uuid.uuid4()
    if state == "last attempt":
        service.run(
            "update krai_core.stage_runs set attempt = 5 where document_id = %s and stage_name = %s", document, stage
        )
    service.call("start_stage", document, stage, p_claim_id=claim, p_lease_seconds=60)
    service.call("update_stage_progress", document, stage, 40, {"pages": 2, "kept": "yes"}, p_claim_id=claim)
    ends = {
        "completed": "complete_stage",
        "failed": "fail_stage",
        "failed, to retry": "fail_stage",
        "skipped": "skip_stage",
    }
    if state in ends:
        named = {"p_error": "broken", "p_retry": "retry" in state} if "failed" in state else {}
        service.call(ends[state], document, stage, p_claim_id=claim, **named)
    elif state in ("expired", "taken", "finished"):
        service.end_lease(document, stage)
    elif state == "cancelled":
        service.call("reset_stage", document, stage, p_force=True)
    elif state == "released":
        service.call("release_stages", [_ids(document, stage, claim)])
    elif state == "odd":
        stored = service.stage(document, stage) | {"progress": "forty", "started_at": 7, "metadata": [1]}
        bypass.edit(document, service.stage_status(document) | {stage: stored})
    if state in ("taken", "finished"):
        service.call("start_stage", document, stage, p_claim_id=other)
    if state == "finished":
        service.call("complete_stage", document, stage, p_claim_id=other)
    return (
        document,
        str(document if state != "no document" else GHOST),
        _stage_of(state),
        (claim if state != "unknown claim" else uuid.uuid4()),
    )


def _stage_of(state: str) -> str:
    return {"no stage": "nonsense", "other stage": "storage"}.get(state, "classification")


def _ids(document: object, stage: str, claim: object) -> dict[str, Any]:
    return {"document_id": str(document), "stage_name": stage, "claim_id": str(claim)}


def _comparable(service, document: uuid.UUID) -> Any:
    """The row and its runs without ids; of times only whether there is one."""

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: inner is not None if key in TIMES else bare(inner)
                for key, inner in value.items()
                if key not in ("id", "document_id", "claim_id", "xmin", "created_at", "updated_at")
            }
        return [bare(inner) for inner in value] if isinstance(value, list) else value

    row, runs = service.everything(document)
    kept = sorted((bare(run) for run in runs), key=lambda run: (run["stage_name"], run["attempt"], run["status"]))
    return bare(row), kept


@pytest.mark.parametrize("report", REPORTS)
@pytest.mark.parametrize("state", STATES)
def test_an_outcome_is_the_single_call(service, bypass, state: str, report: str) -> None:
    """Answer, refusal, document and runs are those that the single call with the same claim id gives."""
    outcome, function, arguments, named = REPORTS[report]
    one, *single = _bring(service, bypass, state)
    other, *bulk = _bring(service, bypass, state)
    (answer,) = service.finish(_ids(*bulk) | outcome)
    refusal = _refusal(service, function, single, arguments, named)
    if refusal is None:
        assert answer.pop("next_retry_at", None) is None or "retry" in report + state
        assert answer == {"ok": True}
    else:
        told = refusal.detail | {
            "ok": False, "code": refusal.sqlstate, "message": refusal.message, "hint": refusal.hint,
        }  # fmt: skip
        assert {key: _without(value, other) for key, value in answer.items()} == {
            key: _without(value, one) for key, value in told.items()
        }
    assert _comparable(service, other) == _comparable(service, one)


def _refusal(service, function: str, single: list, arguments: tuple, named: dict) -> Any:
    """Make the single call: null where it answers true, else what it says."""
    try:
        assert service.call(function, *single[:2], *arguments, **named, p_claim_id=single[2]) is True
    except psycopg.Error:
        # A refusal changed nothing, so that the call can be made again.
        return service.refused(function, *single[:2], *arguments, **named, p_claim_id=single[2])
    return None


def _without(value: Any, document: uuid.UUID) -> Any:
    return value.replace(str(document), "it") if isinstance(value, str) else value


def test_two_stages_of_one_document_are_both_written(service, outcome: Callable) -> None:
    """What is reported of several stages of a document in one call is all there afterwards."""
    document = service.document()
    service.done(document, "upload", "text_extraction")
    runs = [
        service.claim(stage)[0] for stage in ("classification", "metadata_extraction", "embedding", "image_processing")
    ]
    assert service.finish(
        outcome(runs[0], "completed", metadata={"a": 1}), outcome(runs[1], "failed", error="x"),
        outcome(runs[2], "skipped", reason="y"), outcome(runs[3], "progress", progress=12),
    ) == [{"ok": True}] * 4  # fmt: skip
    stages = service.stage_status(document)
    assert [stages[run["stage_name"]]["status"] for run in runs] == ["completed", "failed", "skipped", "processing"]
    assert stages["classification"]["metadata"] == {"a": 1}
    assert stages["image_processing"]["progress"] == 12


def test_the_same_run_twice_in_one_call(service, outcome: Callable) -> None:
    """Outcomes of one run are taken in their order: after the first that ends it, others are too late."""
    document = service.document()
    (run,) = service.claim()
    answers = service.finish(
        outcome(run, "progress", progress=10), outcome(run, "progress", progress=20), outcome(run, "completed"),
        outcome(run, "failed", error="x"), outcome(run, "completed"), outcome(run, "progress", progress=30),
    )  # fmt: skip
    assert [answer.get("error", answer["ok"]) for answer in answers] == [True, True, True, "conflict", True, "conflict"]
    assert service.stage(document, "upload")["status"] == "completed"
    assert [run["status"] for run in service.runs(document, "text_extraction")] == ["ready"]


def test_each_outcome_is_answered_on_its_own(service, outcome: Callable) -> None:
    """Between good ones, late, unknown and odd ones are refused in their places and change nothing."""
    documents = [service.document() for _ in range(4)]
    good, late, odd, last = service.claim(limit=4)
    service.end_lease(documents[1], "upload")
    service.call("start_stage", documents[1], "upload", p_claim_id=uuid.uuid4())
    before = [service.everything(documents[which]) for which in (1, 2)]
    answers = service.finish(
        outcome(good, "completed"), outcome(late, "completed"), outcome(odd, "progress", progress=-1),
        outcome(odd | {"stage_name": "x"}, "completed"), outcome(odd | {"document_id": GHOST}, "completed"),
        outcome(odd, "completed", metadata=[]), outcome(last, "skipped"),
    )  # fmt: skip
    assert [answer.get("error", answer["ok"]) for answer in answers] == [
        True, "lease_lost", "invalid_progress", "unknown_stage", "unknown_document", "invalid_metadata", True,
    ]  # fmt: skip
    assert [service.everything(documents[which]) for which in (1, 2)] == before
    assert [service.stage(document, "upload")["status"] for document in documents] == [
        "completed", "processing", "processing", "skipped",
    ]  # fmt: skip


def test_a_repeated_call_answers_the_same_and_writes_nothing(service, outcome: Callable) -> None:
    """After a lost answer the whole batch is sent again: the same answers, the times of retries among them."""
    documents = [service.document() for _ in range(3)]
    done, failed, skipped = service.claim(limit=3)
    batch = [
        outcome(done, "completed", metadata=NEW),
        outcome(failed, "failed", error="x", retry=True),
        outcome(skipped, "skipped"),
    ]
    first = service.finish(*batch)
    assert [answer["ok"] for answer in first] == [True] * 3
    before = [service.everything(document) for document in documents]
    assert service.finish(*batch) == first
    assert [service.everything(document) for document in documents] == before


def test_a_failure_that_is_tried_again_says_when(service, moment: Callable, outcome: Callable) -> None:
    """next_retry_at is the time from which the ready run may be handed out; a final failure has none."""
    document = service.document()
    (run,) = service.claim()
    ((answer),) = service.finish(outcome(run, "failed", error="x", retry=True))
    assert service.value(
        "select bool_and(available_at = %s) and count(*) = 1 from krai_core.stage_runs "
        "where document_id = %s and status = 'ready'",
        moment(answer["next_retry_at"]), document,
    )  # fmt: skip
    assert service.runs(document, "upload")[0]["retry_at"] is not None
    service.document()
    (run,) = service.claim()
    assert service.finish(outcome(run, "failed", error="x")) == [{"ok": True}]


@pytest.mark.parametrize("together", [True, False], ids=["one call", "three calls"])
def test_a_stage_that_joins_three_becomes_ready_once(service, outcome: Callable, together: bool) -> None:
    """The last of three prerequisites makes exactly one ready run, also when all three are in one call."""
    document = service.document()
    service.done(document, "upload", "text_extraction")
    runs = [service.claim(stage)[0] for stage in ("classification", "metadata_extraction", "embedding")]
    outcomes = [outcome(runs[0], "completed"), outcome(runs[1], "skipped"), outcome(runs[2], "completed")]
    if together:
        service.finish(*outcomes)
    else:
        for one in outcomes:
            assert service.runs(document, "search_indexing") == []
            service.finish(one)
    assert [run["status"] for run in service.runs(document, "search_indexing")] == ["ready"]


def test_finished_stages_make_their_followers_ready(service, outcome: Callable) -> None:
    """In one call over many documents each gets the ready runs that its own outcome allows, and no others."""
    completed, failed, skipped, running = (service.document() for _ in range(4))
    runs = service.claim(limit=4)
    service.finish(
        outcome(runs[0], "completed"), outcome(runs[1], "failed", error="x"), outcome(runs[2], "skipped"),
        outcome(runs[3], "progress", progress=99),
    )  # fmt: skip
    assert {
        (document, stage)
        for document, stage in service.rows(
            "select document_id, stage_name from krai_core.stage_runs where status = 'ready'"
        )
    } == {(one, stage) for one in (completed, skipped) for stage in ("text_extraction", "image_processing")}
    assert {service.stage(one, "upload")["status"] for one in (failed, running)} == {"failed", "processing"}


def test_progress_renews_the_lease(service, outcome: Callable) -> None:
    """A progress among the outcomes is a sign of life, as progress always is."""
    document = service.document()
    (run,) = service.claim(p_lease_seconds=60)
    service.end_lease(document, "upload")
    service.finish(outcome(run, "progress", progress=1))
    assert service.value("select lease_expires_at > clock_timestamp() + interval '50 s' from krai_core.stage_runs")


@pytest.mark.parametrize(
    "outcomes",
    [
        None, {}, ["x"], [None], [[]],
        [{"outcome": "completed"}],
        [_ids(GHOST, "upload", GHOST)],
        [_ids(GHOST, "upload", GHOST) | {"outcome": "done"}],
        [_ids(GHOST, "upload", GHOST) | {"outcome": None}],
        [_ids("x", "upload", GHOST) | {"outcome": "completed"}],
        [_ids(GHOST, "upload", "x") | {"outcome": "completed"}],
        [_ids(GHOST, "upload", GHOST) | {"outcome": "completed", "claim_id": None}],
        [_ids(GHOST, "upload", GHOST) | {"outcome": "completed", "stage_name": None}],
        [_ids(GHOST, "upload", GHOST) | {"outcome": "completed", "document_id": 7}],
        [_ids(GHOST, "upload", GHOST) | {"outcome": "failed", "retry": "maybe"}],
        [_ids(GHOST, "upload", GHOST) | {"outcome": "progress", "progress": "half"}],
        [_ids(GHOST, "upload", GHOST) | {"outcome": "progress", "progress": {}}],
    ],
    ids=str,
)  # fmt: skip
def test_malformed_outcomes_refuse_the_whole_call(service, outcome: Callable, outcomes: Any) -> None:
    """What cannot be read is invalid_outcomes with its place, and nothing of the call is written."""
    document = service.document()
    (run,) = service.claim()
    before = service.everything(document)
    given = [outcome(run, "completed"), *outcomes] if isinstance(outcomes, list) else outcomes
    refusal = service.refused("finish_stages", given)
    assert (refusal.sqlstate, refusal.word) == ("22023", "invalid_outcomes")
    assert refusal.hint
    assert service.everything(document) == before


def test_no_outcomes_have_no_answers(service) -> None:
    """An empty array is answered by an empty array."""
    assert service.finish() == []


def test_outcomes_wait_for_the_disk(service, connect: Callable, outcome: Callable) -> None:
    """What is reported as done may not be lost: the commit waits, over PostgREST too."""
    service.document()
    (run,) = service.claim()
    session = connect()
    with session.connection.transaction():
        session.run("select set_config('request.path', '/rpc/finish_stages', true)")
        session.finish(outcome(run, "completed"))
        assert session.value("show synchronous_commit") == "on"


def test_an_edit_after_finish_stages_in_the_same_transaction_is_a_direct_edit(
    connect: Callable, outcome: Callable
) -> None:
    """What the bulk writer tells the triggers does not reach the statements that follow in its transaction."""
    session = connect()
    document = session.document()
    (run,) = session.claim()
    with session.connection.transaction():
        session.finish(outcome(run, "completed"))
        session.edit(document, {"upload": "in_progress"})
    assert session.stage(document, "upload")["metadata"] == {"v1": "in_progress"}
    assert [run["status"] for run in session.runs(document, "upload")] == ["completed", "ready"]
    assert session.runs(document, "text_extraction") == []
