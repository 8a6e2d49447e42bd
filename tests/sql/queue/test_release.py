"""release_stages: what was claimed and not worked on goes back as if nobody had had it."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest


def _bare(claimed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: run[name] for name in ("document_id", "stage_name", "claim_id")} for run in claimed]


def test_a_released_stage_keeps_its_place_and_its_attempt(service) -> None:
    """It is pending and ready again, before those that became ready later, and no attempt has been burned."""
    first, second = service.document(), service.document()
    for _ in range(3):
        claimed = service.claim()
        assert (claimed[0]["document_id"], claimed[0]["attempt"]) == (str(first), 1)
        assert service.call("release_stages", _bare(claimed)) == {"released": _bare(claimed), "lost": []}
    assert service.stage(first, "upload") == service.stage(second, "upload")
    *released, ready = service.runs(first, "upload")
    assert {(run["status"], run["closed_by_holder"]) for run in released} == {("released", True)}
    assert (ready["status"], ready["available_at"]) == ("ready", released[0]["available_at"])


def test_a_release_after_a_failure_burns_no_attempt(service, outcome: Callable) -> None:
    """The attempt that was given back has the same number when it is handed out again."""
    service.document()
    service.finish(outcome(service.claim()[0], "failed", error="x", retry=True))
    service.run("update krai_core.stage_runs set available_at = clock_timestamp() where status = 'ready'")
    (second,) = service.claim()
    service.call("release_stages", [second])
    assert [run["attempt"] for run in (second, *service.claim())] == [2, 2]


def test_what_stood_on_the_stage_before_stays(service) -> None:
    """Metadata put there by somebody else is still there when the stage is given back."""
    document = service.document()
    service.edit(document, {"upload": {"status": "pending", "metadata": {"ocr": "de"}}})
    service.call("release_stages", service.claim())
    assert service.claim()[0]["metadata"] == {"ocr": "de"}


def test_a_release_is_safe_to_repeat(service) -> None:
    """A repeat answers the same and writes nothing, also after the stage was claimed by another."""
    document = service.document()
    claimed = _bare(service.claim())
    first = service.call("release_stages", claimed)
    before = service.everything(document)
    assert service.call("release_stages", claimed) == first
    assert service.everything(document) == before
    (other,) = service.claim()
    assert service.call("release_stages", claimed) == first
    assert service.call("complete_stage", document, "upload", p_claim_id=other["claim_id"]) is True


def test_what_others_have_closed_is_lost(service, outcome: Callable) -> None:
    """Completed, taken over, cancelled and unknown runs are told as lost, and stay as they are."""
    documents = [service.document() for _ in range(4)]
    completed, taken, cancelled, held = service.claim(limit=4)
    service.finish(outcome(completed, "completed"))
    service.end_lease(documents[1], "upload")
    service.call("start_stage", documents[1], "upload", p_claim_id=uuid.uuid4())
    service.call("cancel_document", documents[2])
    unknown = held | {"claim_id": str(uuid.uuid4())}
    before = [service.everything(document) for document in documents[:3]]
    answer = service.call("release_stages", [completed, taken, unknown, cancelled, held])
    assert answer == {"released": [held], "lost": [completed, taken, unknown, cancelled]}
    assert [service.everything(document) for document in documents[:3]] == before


def test_a_released_run_is_over_for_its_holder(service) -> None:
    """Who gave a run back hears lease_lost or conflict afterwards, and does not harm the next one."""
    document = service.document()
    (run,) = service.claim()
    service.call("release_stages", [run])
    before = service.everything(document)
    for function, arguments in (("complete_stage", ()), ("fail_stage", ("x",)), ("update_stage_progress", (5,))):
        refusal = service.refused(function, document, "upload", *arguments, p_claim_id=run["claim_id"])
        assert refusal.word in ("lease_lost", "conflict")
    assert service.call("heartbeat", [run])["lost"] == [run]
    assert service.everything(document) == before


@pytest.mark.parametrize(
    "runs",
    [None, {}, "7", [7], [{}], [{"document_id": "x", "stage_name": "upload", "claim_id": str(uuid.UUID(int=1))}]],
    ids=str,
)
@pytest.mark.parametrize("function", ["release_stages", "heartbeat"])
def test_runs_that_cannot_be_read_are_refused(service, function: str, runs: Any) -> None:
    """invalid_runs, with a remedy, and nothing is written."""
    refusal = service.refused(function, runs)
    assert (refusal.sqlstate, refusal.word) == ("22023", "invalid_runs")
    assert function in refusal.message
    assert refusal.hint
