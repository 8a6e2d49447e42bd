"""The transition table: every call in every state, without a claim id."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest

# What a call answers and leaves. A state: true, and the stage is in that state. merged: true, the state stays and the
# metadata is merged. kept: true, false: false, conflict: refused, and with these three nothing was written.
TABLE = """
call                 pending     processing  completed   failed      skipped
start                processing  false       processing  processing  processing
start_lease_over     processing  processing  processing  processing  processing
progress             conflict    merged      conflict    conflict    conflict
complete             completed   completed   merged      completed   conflict
fail                 failed      failed      false       merged      false
skip                 skipped     skipped     false       skipped     kept
retry                kept        conflict    conflict    pending     conflict
reset                kept        conflict    pending     pending     pending
reset_force          kept        pending     pending     pending     pending
reset_cascade        kept        conflict    pending     pending     pending
reset_cascade_force  kept        pending     pending     pending     pending
"""
_HEAD, *_ROWS = (line.split() for line in TABLE.strip().splitlines())
CELLS = [
    pytest.param(row[0], state, outcome, id=f"{row[0]}-{state}")
    for row in _ROWS
    for state, outcome in zip(_HEAD[1:], row[1:], strict=True)
]
NEW = {"added": 1, "pages": 3}
CALLS = {
    "start": ("start_stage", (), {}),
    "start_lease_over": ("start_stage", (), {}),
    "progress": ("update_stage_progress", (55.5, NEW), {}),
    "complete": ("complete_stage", (NEW,), {}),
    "fail": ("fail_stage", ("out of paper", NEW), {}),
    "skip": ("skip_stage", ("not needed",), {}),
    "retry": ("retry_stage", (), {}),
    "reset": ("reset_stage", (), {}),
    "reset_force": ("reset_stage", (), {"p_force": True}),
    "reset_cascade": ("reset_stage", (), {"p_cascade": True}),
    "reset_cascade_force": ("reset_stage", (), {"p_cascade": True, "p_force": True}),
}


def _worked(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the ready runs, on which nobody has worked: they follow the stages."""
    return [run for run in runs if run["status"] != "ready"]


@pytest.mark.parametrize(("call", "state", "outcome"), CELLS)
def test_every_cell_without_claim_id(service, bring: Callable, call: str, state: str, outcome: str) -> None:
    """Each call answers and changes what the table says, and nothing beside it."""
    document = service.document()
    bring(document, "classification", "completed")
    bring(document, "text_extraction", state)
    if call == "start_lease_over":
        service.end_lease(document, "text_extraction")
    function, arguments, named = CALLS[call]
    before = service.everything(document)
    (row_before, runs_before) = before[0], _worked(before[1])

    if outcome == "conflict":
        refusal = service.refused(function, document, "text_extraction", *arguments, **named)
        assert (refusal.sqlstate, refusal.word) == ("PT409", "conflict")
        assert refusal.detail == {
            "error": "conflict",
            "document_id": str(document),
            "stage": "text_extraction",
            "status": state,
        }
        assert str(document) in refusal.message
        assert state in refusal.message
        assert refusal.hint
    else:
        answer = service.call(function, document, "text_extraction", *arguments, **named)
        assert answer is (outcome != "false")

    after = service.everything(document)
    row, runs = after[0], _worked(after[1])
    others = {"text_extraction"} | ({"classification"} if "cascade" in call else set())
    assert {name: value for name, value in row["stage_status"].items() if name not in others} == {
        name: value for name, value in row_before["stage_status"].items() if name not in others
    }
    assert row["filename"] == row_before["filename"]
    assert {run["id"] for run in runs} >= {run["id"] for run in runs_before}
    stage = row["stage_status"]["text_extraction"]
    if outcome in ("conflict", "false"):
        assert after == before
    elif outcome == "kept":
        assert stage == row_before["stage_status"]["text_extraction"]
        assert "cascade" in call or after == before
    elif outcome == "merged":
        assert stage["status"] == state
        assert stage["metadata"] == {"pages": 3, "kept": "yes", "added": 1}
        assert len(runs) == len(runs_before)
    else:
        assert stage["status"] == outcome


@pytest.mark.parametrize("state", ["pending", "processing", "completed", "failed", "skipped"])
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("cascade", [False, True])
def test_reset_reaches_what_depends_on_the_stage(
    service, bring: Callable, state: str, force: bool, cascade: bool
) -> None:
    """Dependents are reset only with p_cascade, a processing one only with p_force, else nothing is."""
    document = service.document()
    for stage in ("upload", "text_extraction", "image_processing", "classification", "storage"):
        bring(document, stage, "completed")
    bring(document, "embedding", state)
    before = service.everything(document)

    def reset() -> bool:
        return service.call("reset_stage", document, "text_extraction", p_cascade=cascade, p_force=force)

    if cascade and state == "processing" and not force:
        refusal = service.refused("reset_stage", document, "text_extraction", p_cascade=True)
        assert refusal.detail["stage"] == "embedding"
        assert service.everything(document) == before
        return
    assert reset() is True
    states = {name: stage["status"] for name, stage in service.stage_status(document).items()}
    assert states == {
        "upload": "completed",
        "text_extraction": "pending",
        "image_processing": "completed",
        "classification": "pending" if cascade else "completed",
        "metadata_extraction": "pending",
        "storage": "completed",
        "embedding": "pending" if cascade else state,
        "search_indexing": "pending",
    }


def test_reset_with_cascade_goes_all_the_way_down(service, bring: Callable) -> None:
    """A reset of the first stage with p_cascade brings back every stage of the pipeline, and each with its actor."""
    document = service.document()
    for stage in service.stage_status(document):
        bring(document, stage, "completed")
    assert service.call("reset_stage", document, "upload", p_cascade=True, p_actor="ines") is True
    assert {stage["status"] for stage in service.stage_status(document).values()} == {"pending"}
    assert service.rows(
        "select actor, count(*) from krai_core.stage_runs where document_id = %s and reset_at is not null group by 1",
        document,
    ) == [("ines", 8)]


# The same with a claim id: how the run that carries it stands. taken: its lease ended and another runs the stage.
# finished: another took it over and completed it. cancelled: it was reset by force.
CLAIM_TABLE = """
call      running     completed  failed    skipped   taken       finished    cancelled
start     kept        kept       kept      kept      lease_lost  lease_lost  lease_lost
progress  merged      conflict   conflict  conflict  lease_lost  lease_lost  lease_lost
complete  completed   kept       conflict  conflict  lease_lost  lease_lost  lease_lost
fail      failed      conflict   kept      conflict  lease_lost  lease_lost  lease_lost
skip      skipped     conflict   conflict  kept      lease_lost  lease_lost  lease_lost
"""
_CLAIM_HEAD, *_CLAIM_ROWS = (line.split() for line in CLAIM_TABLE.strip().splitlines())
CLAIM_CELLS = [
    pytest.param(row[0], own, outcome, id=f"{row[0]}-{own}")
    for row in _CLAIM_ROWS
    for own, outcome in zip(_CLAIM_HEAD[1:], row[1:], strict=True)
]


def _bring_own_run(service, bring: Callable, document: uuid.UUID, claim: uuid.UUID, own: str) -> None:
    bring(document, "embedding", own if own in ("completed", "failed", "skipped") else "processing", claim)
    if own in ("taken", "finished"):
        other = uuid.uuid4()
        service.end_lease(document, "embedding")
        assert service.call("start_stage", document, "embedding", p_claim_id=other) is True
        if own == "finished":
            service.call("complete_stage", document, "embedding", p_claim_id=other)
    elif own == "cancelled":
        service.call("reset_stage", document, "embedding", p_force=True)


@pytest.mark.parametrize(("call", "own", "outcome"), CLAIM_CELLS)
def test_every_cell_with_a_claim_id(service, bring: Callable, call: str, own: str, outcome: str) -> None:
    """With a claim id a call acts on its own run, answers a repeat as the first time, and else is refused."""
    document, claim = service.document(), uuid.uuid4()
    _bring_own_run(service, bring, document, claim, own)
    function, arguments, _ = CALLS[call]
    before = service.everything(document)
    if outcome in ("conflict", "lease_lost"):
        refusal = service.refused(function, document, "embedding", *arguments, p_claim_id=claim)
        assert (refusal.sqlstate, refusal.word) == ("PT409", outcome)
        assert str(document) in refusal.message
        assert refusal.hint
        if outcome == "conflict":
            assert refusal.detail["status"] == own
            assert refusal.message.endswith(f"is {own} by this run already")
        assert service.everything(document) == before
        return
    assert service.call(function, document, "embedding", *arguments, p_claim_id=claim) is True
    stage = service.stage(document, "embedding")
    if outcome == "kept":
        assert service.everything(document) == before
    elif outcome == "merged":
        assert (stage["status"], stage["progress"]) == ("processing", 55.5)
    else:
        assert stage["status"] == outcome
        (run,) = service.runs(document, "embedding")
        assert (run["status"], run["closed_by_holder"]) == (outcome, True)


@pytest.mark.parametrize("state", ["pending", "processing", "completed", "failed", "skipped"])
@pytest.mark.parametrize("call", ["progress", "complete", "fail", "skip"])
def test_a_claim_id_that_no_run_carries_is_refused(service, bring: Callable, call: str, state: str) -> None:
    """A claim id never seen on the stage is lease_lost in every state, and nothing is written."""
    document, claim = service.document(), uuid.uuid4()
    bring(document, "storage", state)
    service.call("start_stage", document, "upload", p_claim_id=claim)
    function, arguments, _ = CALLS[call]
    before = service.everything(document)
    refusal = service.refused(function, document, "storage", *arguments, p_claim_id=claim)
    assert (refusal.sqlstate, refusal.word, refusal.detail["run"]) == ("PT409", "lease_lost", None)
    assert service.everything(document) == before


@pytest.mark.parametrize("state", ["pending", "processing", "completed", "failed", "skipped"])
@pytest.mark.parametrize("holder", [None, "0b0c0d00-0000-4000-8000-000000000001"])
def test_start_with_a_new_claim_id_opens_a_run_unless_another_lives(
    service, bring: Callable, state: str, holder: str | None
) -> None:
    """Start with a new claim id begins a run from every state but processing, whoever ran the stage before."""
    document, claim = service.document(), uuid.uuid4()
    bring(document, "storage", state, holder and uuid.UUID(holder))
    before = service.everything(document)
    answer = service.call("start_stage", document, "storage", p_claim_id=claim, p_worker="w7")
    assert answer is (state != "processing")
    if state == "processing":
        assert service.everything(document) == before
    else:
        last = service.runs(document, "storage")[-1]
        assert (last["claim_id"], last["worker"], last["status"]) == (str(claim), "w7", "running")


@pytest.mark.parametrize("call", ["complete", "fail", "skip", "progress"])
def test_a_call_without_claim_id_acts_on_the_run_at_hand(service, bring: Callable, call: str) -> None:
    """A plain seed call reaches a run that carries a claim id too; its holder then hears lease_lost."""
    document, claim = service.document(), uuid.uuid4()
    bring(document, "storage", "processing", claim)
    function, arguments, _ = CALLS[call]
    assert service.call(function, document, "storage", *arguments) is True
    if call == "progress":
        assert service.call("complete_stage", document, "storage", p_claim_id=claim) is True
    else:
        assert service.refused("complete_stage", document, "storage", p_claim_id=claim).word == "lease_lost"
