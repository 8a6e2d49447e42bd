"""claim_stages: what is handed out, in which order, to whom, and that a claim waits for nobody."""

import datetime as dt
import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from processors_v2.local import LocalSupabase

ANSWERED = {
    "document_id", "filename", "stage_name", "attempt", "max_attempts", "claim_id", "lease_ms", "metadata",
}  # fmt: skip


def _ids(claimed: list[dict[str, Any]]) -> list[uuid.UUID]:
    return [uuid.UUID(run["document_id"]) for run in claimed]


def test_a_claim_starts_the_stage_and_says_what_it_is(service, moment: Callable) -> None:
    """A claimed stage is processing from now, its run carries claim id, worker and lease, and the answer tells them."""
    document, claim = service.document(filename="a.pdf"), uuid.uuid4()
    (answer,) = service.call("claim_stages", "upload", "w" * 300, p_claim_id=claim)
    assert answer == {
        "document_id": str(document), "filename": "a.pdf", "stage_name": "upload", "attempt": 1, "max_attempts": 5,
        "claim_id": str(claim), "lease_ms": 300000, "metadata": {},
    }  # fmt: skip
    (run,) = service.runs(document, "upload")
    assert (run["status"], run["claim_id"], run["worker"]) == ("running", str(claim), "w" * 200)
    assert run["started_at"] == run["heartbeat_at"]
    stage = service.stage(document, "upload")
    assert (stage["status"], stage["progress"], stage["completed_at"]) == ("processing", 0, None)
    assert moment(stage["started_at"]) == dt.datetime.fromisoformat(run["started_at"])
    assert service.call("complete_stage", document, "upload", p_claim_id=claim) is True


def test_a_claim_without_an_id_makes_one(service) -> None:
    """Left out, the claim id is made by the database; it holds for all runs of the call and for none of the next."""
    for _ in range(3):
        service.document()
    first, second = service.claim(limit=2), service.claim(limit=2)
    assert [len({run["claim_id"] for run in answer}) for answer in (first, second)] == [1, 1]
    assert first[0]["claim_id"] != second[0]["claim_id"]


def test_higher_priority_goes_first_and_then_the_longest_ready(service) -> None:
    """The order is priority, negative ones last, then the time since which a run is ready."""
    old, low, young, high, higher = (service.document() for _ in range(5))
    for document, priority in ((low, -1), (high, 5), (higher, 7)):
        service.call("set_priority", document, priority)
    service.run(
        "update krai_core.stage_runs set available_at = available_at - interval '1 h' where document_id = %s", high
    )
    assert _ids(service.claim(limit=2)) == [higher, high]
    assert _ids(service.claim(limit=2)) == [old, young]
    assert _ids(service.claim(limit=2)) == [low]


def _hide(service, document: uuid.UUID, how: str) -> None:
    if how == "not due":
        service.run(
            "update krai_core.stage_runs set available_at = now() + interval '1 min' where document_id = %s",
            document,
        )
    elif how in ("paused", "disabled"):
        service.call(f"{how.removesuffix('d')}_stage", "upload")
    elif how == "running":
        service.call("start_stage", document, "upload")
    elif how == "completed":
        service.call("complete_stage", document, "upload")
    elif how == "skipped":
        service.call("skip_stage", document, "upload")
    elif how == "failed":
        service.call("fail_stage", document, "upload", "for good")


@pytest.mark.parametrize(
    "how",
    ["not due", "paused", "disabled", "running", "completed", "skipped", "failed"],
)
def test_what_is_not_ready_is_not_handed_out(alone, how: str) -> None:
    """Nothing is handed out that waits, is paused, disabled, at work or finished; an empty claim writes nothing."""
    document = alone.document()
    _hide(alone, document, how)
    before = alone.everything(document)
    assert alone.claim() == []
    assert alone.everything(document) == before


def test_a_stage_is_handed_out_once_all_that_it_requires_is_finished(service) -> None:
    """Completed and skipped both finish a prerequisite; pending, processing and failed do not."""
    document = service.document()
    required = ("classification", "metadata_extraction", "embedding")
    for stage, ended in zip(required, ("complete_stage", "skip_stage", "complete_stage"), strict=True):
        service.call("start_stage", document, stage)
        assert service.claim("search_indexing") == []
        service.call("fail_stage", document, stage, "x")
        assert service.claim("search_indexing") == []
        service.call(ended, document, stage)
    assert _ids(service.claim("search_indexing")) == [document]


def test_a_deleted_document_is_not_handed_out(service) -> None:
    """With the document its place in the queue is gone."""
    gone, there = service.document(), service.document()
    service.run("delete from krai_core.documents where id = %s", gone)
    assert _ids(service.claim(limit=5)) == [there]


@pytest.mark.triggers_off
@pytest.mark.parametrize("status", ["processing", "completed", "skipped", '"completed"', "required stage pending"])
def test_the_truth_on_the_document_is_asked_again(service, bypass, status: str) -> None:
    """A ready run that the column gives the lie to, as a restore without triggers leaves it, is not handed out."""
    document, stage = service.document(), "upload"
    if status == "required stage pending":
        service.done(document, "upload")
        stage = "text_extraction"
        bypass.edit(document, service.call("krai_private.default_stage_status"))
    else:
        stored = "completed" if status.startswith('"') else service.stage(document, "upload") | {"status": status}
        bypass.edit(document, service.stage_status(document) | {"upload": stored})
    assert [run["status"] for run in service.runs(document, stage)] == ["ready"]
    assert service.claim(stage) == []


def test_a_repeat_with_the_same_claim_id_answers_the_same(service) -> None:
    """A lost answer is asked for again: the same runs in their order, with what is left of the lease, no others."""
    for number in range(4):
        service.call("set_priority", service.document(), number)
    claim = uuid.uuid4()
    first = service.claim(limit=3, p_claim_id=claim, p_lease_seconds=60)
    again = service.claim(limit=3, p_claim_id=claim, p_lease_seconds=60)
    assert [run | {"lease_ms": 0} for run in again] == [run | {"lease_ms": 0} for run in first]
    assert [run["lease_ms"] for run in first] == [60000] * 3
    assert all(0 < run["lease_ms"] <= 60000 for run in again)
    assert service.value("select count(*) from krai_core.stage_runs where status = 'running'") == 3


def test_a_repeat_answers_only_what_still_runs(service, outcome: Callable) -> None:
    """Runs that have ended since are left out; when all have, the answer is empty, and nothing new is taken with it."""
    for _ in range(3):
        service.document()
    claim = uuid.uuid4()
    one, other = service.claim(limit=2, p_claim_id=claim)
    service.finish(outcome(one, "completed"))
    assert _ids(service.claim(limit=2, p_claim_id=claim)) == _ids([other])
    service.finish(outcome(other, "failed", error="x"))
    assert service.claim(limit=2, p_claim_id=claim) == []
    assert len(service.claim(limit=2, p_claim_id=uuid.uuid4())) == 1


def test_a_repeat_that_comes_while_the_first_still_runs_is_told_to_come_back(service, connect: Callable) -> None:
    """claim_in_progress, at once and with no run taken; after the commit the repeat answers the first call's runs."""
    for _ in range(2):
        service.document()
    first, claim = connect(), uuid.uuid4()
    first.run("begin")
    taken = first.claim(p_claim_id=claim)
    refusal = service.refused("claim_stages", "upload", "w", p_claim_id=claim)
    assert (refusal.sqlstate, refusal.word) == ("PT409", "claim_in_progress")
    assert refusal.detail["claim_id"] == str(claim)
    assert str(claim) in refusal.message
    assert refusal.hint
    first.run("commit")
    assert _ids(service.claim(p_claim_id=claim)) == _ids(taken)
    assert service.value("select count(*) from krai_core.stage_runs where status = 'running'") == 1


def test_a_repeat_after_a_rollback_takes_anew(service, connect: Callable) -> None:
    """What the first call took and lost by a rollback is free, for the same claim id too."""
    document, first, claim = service.document(), connect(), uuid.uuid4()
    first.run("begin")
    first.claim(p_claim_id=claim)
    first.run("rollback")
    assert _ids(service.claim(p_claim_id=claim)) == [document]


@pytest.mark.parametrize("notation", ['["storage", "upload"]', "{storage,upload}"])
def test_stages_are_taken_in_their_order_of_preference(service, notation: str) -> None:
    """An array of stages, as JSON or as Postgres writes it: the first that has something first, the next fill up."""
    documents = [service.document() for _ in range(3)]
    service.done(documents[2], "upload", "image_processing")
    claimed = service.call("claim_stages", notation, "w", 2)
    assert [(run["stage_name"], run["document_id"]) for run in claimed] == [
        ("storage", str(documents[2])),
        ("upload", str(documents[0])),
    ]
    assert [run["stage_name"] for run in service.call("claim_stages", notation, "w", 5)] == ["upload"]


def test_a_paused_stage_of_several_is_passed_over(alone) -> None:
    """Of an array those that are paused or disabled give nothing, and the others still do."""
    document = alone.document()
    alone.call("pause_stage", "storage")
    alone.call("disable_stage", "embedding")
    assert _ids(alone.claim(["storage", "embedding", "upload"])) == [document]


@pytest.mark.parametrize("stages", ["nonsense", '["upload", "nonsense"]', "{upload,nonsense}", "[]]", "{a", "", None])
def test_a_name_that_is_no_stage_is_refused(service, stages: str | None) -> None:
    """unknown_stage for a name, or an array that holds one; nothing is taken."""
    document = service.document()
    before = service.everything(document)
    refusal = service.refused("claim_stages", stages, "w", 5)
    assert (refusal.sqlstate, refusal.word) == ("22023", "unknown_stage")
    assert service.everything(document) == before


@pytest.mark.parametrize(
    ("limit", "word"), [(0, "invalid_limit"), (-1, "invalid_limit"), (1001, "invalid_limit"), (None, "invalid_limit")]
)
def test_a_limit_out_of_range_is_refused(service, limit: int | None, word: str) -> None:
    """1 to 1000 runs can be claimed; anything else is named in the refusal."""
    service.document()
    refusal = service.refused("claim_stages", "upload", "w", limit)
    assert (refusal.sqlstate, refusal.word, refusal.detail["limit"]) == ("22023", word, limit)
    assert "1 to 1000" in (refusal.hint or "")
    assert len(service.claim(limit=1000)) == 1


@pytest.mark.parametrize("lease", ["0", "-5", "NaN", "604800.1"])
def test_a_lease_out_of_range_is_refused(service, lease: str) -> None:
    """More than 0 and at most a week, as for start_stage."""
    service.document()
    refusal = service.refused("claim_stages", "upload", "w", p_lease_seconds=lease)
    assert (refusal.sqlstate, refusal.word) == ("22023", "invalid_lease")


@pytest.mark.parametrize(("of_stage", "asked", "seconds"), [(300, None, 300), (42, None, 42), (42, 12.5, 12.5)])
def test_the_lease_is_that_of_the_stage_or_the_one_asked_for(
    alone, of_stage: int, asked: float | None, seconds: float
) -> None:
    """Length, end and answer of the lease agree."""
    alone.run("update krai_core.stages set lease_seconds = %s where name = 'upload'", of_stage)
    alone.document()
    (run,) = alone.claim(p_lease_seconds=asked)
    assert run["lease_ms"] == seconds * 1000
    assert alone.rows(
        "select lease_seconds::float, extract(epoch from lease_expires_at - started_at)::float "
        "from krai_core.stage_runs where status = 'running'"
    ) == [(seconds, seconds)]


def test_the_metadata_of_a_pending_stage_stays_and_is_answered(service) -> None:
    """What somebody put on a stage before it began is for the one who works on it."""
    document = service.document()
    service.edit(document, {"upload": {"status": "pending", "metadata": {"ocr": "de"}, "note": 7}})
    (run,) = service.claim()
    assert run["metadata"] == {"ocr": "de"}
    stage = service.stage(document, "upload")
    assert (stage["metadata"], stage["note"], stage["status"]) == ({"ocr": "de"}, 7, "processing")


def test_what_a_failed_attempt_left_goes_to_its_history(service, outcome: Callable) -> None:
    """The next attempt begins clean: progress, metadata and error of the failed one stay with its run."""
    document = service.document()
    (first,) = service.claim()
    service.finish(outcome(first, "progress", progress=40, metadata={"pages": 3}))
    service.finish(outcome(first, "failed", error="no paper", retry=True))
    service.run("update krai_core.stage_runs set available_at = clock_timestamp() where status = 'ready'")
    (second,) = service.claim()
    assert (second["attempt"], second["metadata"]) == (2, {})
    kept, running = service.runs(document, "upload")
    assert (kept["progress"], kept["metadata"], kept["error"]) == (40, {"pages": 3}, "no paper")
    assert (running["progress"], running["metadata"]) == (None, None)
    stage = service.stage(document, "upload")
    assert (stage["error"], stage["progress"], stage["metadata"]) == (None, 0, {})


@pytest.mark.triggers_off
@pytest.mark.parametrize(
    ("column", "metadata"),
    [
        (None, {}),
        ({}, {}),
        ("text", {}),
        ([], {}),
        ({"upload": None}, {}),
        ({"upload": "in_progress"}, {"v1": "in_progress"}),
        ({"upload": {"status": "queued", "by": "v1"}}, {"v1": {"status": "queued", "by": "v1"}}),
        ({"upload": {"metadata": [1]}}, {"v1": {"metadata": [1]}}),
        ({"upload": {"status": "pending", "progress": "x", "metadata": {"a": 1}}}, None),
    ],
    ids=json.dumps,
)
def test_odd_rows_are_handed_out_and_repaired(service, bypass, column: Any, metadata: dict | None) -> None:
    """A stage in no shape of ours counts as pending: it is handed out in shape, and what it held is kept."""
    document = service.document()
    bypass.edit(document, column)
    (run,) = service.claim()
    stage = service.stage(document, "upload")
    assert run["document_id"] == str(document)
    assert (stage["status"], stage["progress"], stage["error"]) == ("processing", 0, None)
    assert run["metadata"] == stage["metadata"]
    if metadata is not None and column != "text":
        assert stage["metadata"] == metadata
    assert service.call("complete_stage", document, "upload", p_claim_id=run["claim_id"]) is True
    assert service.call("krai_private.is_sound", service.stage_status(document)) is True


def test_every_answer_has_the_same_keys(service) -> None:
    """First answer, repeat, and what came from an expired run: the eight keys and no others."""
    document, claim = service.document(), uuid.uuid4()
    answers = [service.claim(p_claim_id=claim), service.claim(p_claim_id=claim)]
    service.end_lease(document, "upload")
    answers.append(service.claim())
    assert [set(run) for (run,) in answers] == [ANSWERED] * 3


def test_a_claim_over_http_answers_an_array(local: LocalSupabase, service) -> None:
    """supabase-py gets a list of dicts."""
    document = service.document()
    answer = (
        local.client().schema("krai_core").rpc("claim_stages", {"p_stage_name": "upload", "p_worker": "w"}).execute()
    )
    assert [run["document_id"] for run in answer.data] == [str(document)]
