"""Claimed runs, and documents that are claimed one by one."""

import asyncio
import gc
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from processors_v2._local.process import wait_until
from processors_v2.errors import (
    DatabaseUnavailable,
    InvalidArgument,
    PermanentError,
    StageBusy,
    StageCancelled,
    StageConflict,
    StageLost,
    UnknownStage,
)
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import AsyncStageTracker, ClaimedRun, StageContext, StageTracker


@pytest.fixture
def stage(lone_stage: str) -> str:
    """A stage whose queue has only what the test puts there."""
    return lone_stage


@pytest.fixture
def documents(ready_documents: list[str]) -> list[str]:
    """Three documents that are ready for the stage, the oldest first."""
    return ready_documents


def test_claimed_runs_are_contexts_that_are_started(
    tracker: StageTracker, documents: list[str], stage: str, db: Any
) -> None:
    """claim gives what is ready, up to the limit, with what a worker has to know; its block completes the stage."""
    runs = tracker.claim(stage, limit=2, worker="gpu-7")
    assert [run.document_id for run in runs] == documents[:2]
    for run in runs:
        assert isinstance(run, StageContext)
        assert (run.stage_name, run.attempt, run.max_attempts) == (stage, 1, 3)
        assert run.filename == db.one("select filename from krai_core.documents where id = %s", run.document_id)
        assert run.idempotency_key == f"{run.document_id}/{stage}/1"
        assert run.metadata == {}
        assert db.stage(run.document_id, stage)["status"] == "processing"
        assert db.run(run.document_id, stage, "worker") == "gpu-7"
        with run as ctx:
            assert ctx is run
            ctx.update_progress(50, {"pages": 2})
        assert (db.stage(run.document_id, stage)["status"], db.stage(run.document_id, stage)["metadata"]) == (
            "completed", {"pages": 2},
        )  # fmt: skip
    assert [run.document_id for run in tracker.claim(stage, limit=10)] == documents[2:]
    assert tracker.claim(stage) == []


def test_stages_are_claimed_in_order_of_preference(
    tracker: StageTracker, documents: list[str], stage: str, db: Any
) -> None:
    """Of several stages the first that has something ready is served first."""
    other = db.document()
    tracker.set_priority(other, 9)
    runs = tracker.claim([stage, "upload"], limit=5)
    assert [run.stage_name for run in runs[:4]] == [stage] * 4
    assert {run.document_id for run in runs[:4]} == {*documents, other}
    assert runs[4].stage_name == "upload"


def test_claimed_runs_are_kept_alive_before_their_turn(
    tracker: StageTracker, documents: list[str], stage: str, db: Any
) -> None:
    """From the moment of the claim every run's lease is renewed, by one call for all of them."""
    runs = tracker.claim(stage, limit=3, lease_seconds=1)
    began = [db.run(document, stage, "lease_expires_at") for document in documents]
    assert [db.run(document, stage, "lease_seconds") for document in documents] == [1, 1, 1]

    def is_renewed(number: int) -> Callable[[], bool]:
        ends = "lease_expires_at"
        return lambda: (db.run(documents[number], stage, ends) - began[number]).total_seconds() > 1.5

    assert all(wait_until(is_renewed(number), 20) for number in range(3))
    for run in runs:
        with run:
            pass


def test_a_run_that_nobody_refers_to_is_not_kept_alive(tracker: StageTracker, documents: list[str], stage: str) -> None:
    """Runs that were claimed and dropped beat no more."""
    runs = tracker.claim(stage, limit=3)
    kept = {pulse.run[0] for pulse in tracker._heart._pulses.values()}
    assert kept >= set(documents)
    del runs
    gc.collect()
    assert not {pulse.run[0] for pulse in tracker._heart._pulses.copy().values()} & set(documents)


def test_a_run_is_given_back_untouched(tracker: StageTracker, documents: list[str], stage: str, db: Any) -> None:
    """release puts the stage back to pending at its old place, and uses up no attempt."""
    (run,) = tracker.claim(stage)
    assert run.release() is True
    assert db.stage(documents[0], stage)["status"] == "pending"
    (again,) = tracker.claim(stage)
    assert (again.document_id, again.attempt) == (documents[0], 1)
    with again as ctx:
        assert ctx.release() is True
        ctx.update_progress(50)
    assert db.stage(documents[0], stage)["status"] == "pending"
    assert db.run(documents[0], stage, "status") == "released"


def test_a_run_that_is_over_is_not_given_back(tracker: StageTracker, documents: list[str], stage: str, db: Any) -> None:
    """release answers False where somebody else closed the run."""
    (run,) = tracker.claim(stage)
    tracker._transport.send(_fail(run))
    assert run.release() is False
    assert db.stage(documents[0], stage)["status"] == "failed"


def _fail(run: ClaimedRun) -> Any:
    from processors_v2._calls import runs as runs_calls  # noqa: PLC0415 - behind the tracker's back

    return runs_calls.fail_stage(run.document_id, run.stage_name, "by hand")


def test_a_failure_is_tried_again_while_attempts_are_left(
    tracker: StageTracker, documents: list[str], stage: str, db: Any
) -> None:
    """An exception in the block is recorded and raised, and the stage comes back until its attempts are used up."""
    tracker.set_priority(documents[0], 9)
    for attempt in (1, 2, 3):
        (run,) = tracker.claim(stage)
        assert (run.document_id, run.attempt) == (documents[0], attempt)
        with pytest.raises(ValueError, match="page 7"), run:
            raise ValueError("page 7")
        assert db.stage(documents[0], stage)["error"] == "page 7"
    assert tracker.claim(stage)[0].document_id == documents[1]


def test_a_permanent_error_is_not_tried_again(tracker: StageTracker, documents: list[str], stage: str, db: Any) -> None:
    """PermanentError, and what derives from it, fails the stage for good at the first attempt."""

    class EncryptedError(PermanentError):
        pass

    (run,) = tracker.claim(stage)
    with pytest.raises(EncryptedError), run:
        raise EncryptedError("no password")
    assert (db.stage(documents[0], stage)["status"], db.stage(documents[0], stage)["error"]) == (
        "failed", "no password",
    )  # fmt: skip
    assert tracker.claim(stage)[0].document_id == documents[1]
    assert tracker.explain_stage(documents[0], stage)["reason"] == "failed"


def test_a_run_is_used_once(tracker: StageTracker, documents: list[str], stage: str) -> None:
    """A claimed run is entered once, and is over after its block or its release."""
    first, second = tracker.claim(stage, limit=2)
    assert documents
    with first:
        with pytest.raises(StageConflict, match="is running already"), first:
            pytest.fail("ran")
    for call in (first.__enter__, lambda: first.update_progress(1), first.release, first.skip):
        with pytest.raises(StageConflict, match="is over.*claim another"):
            call()
    second.release()
    (third,) = tracker.claim(stage)
    tracker.complete_stage(third.document_id, stage)
    for run in (second, third):
        with pytest.raises(StageConflict, match="is over"), run:
            pytest.fail("ran")


def test_the_tracker_acts_for_claimed_runs(tracker: StageTracker, documents: list[str], stage: str, db: Any) -> None:
    """complete_stage and the like of the same tracker act for a run that was claimed, before and in its block."""
    first, second = tracker.claim(stage, limit=2)
    tracker.complete_stage(documents[0], stage, {"a": 1})
    assert db.run(documents[0], stage, "closed_by_holder") is True
    # Later calls are not for the run that is over.
    assert tracker.start_stage(documents[0], stage) is True
    assert tracker.complete_stage(documents[0], stage) is True
    with second:
        tracker.skip_stage(documents[1], stage)
    assert db.run(documents[1], stage, "closed_by_holder") is True
    assert db.stage(documents[1], stage)["status"] == "skipped"
    assert (first.closed_as, second.closed_as) == ("completed", "skipped")


def test_a_cancelled_document_is_heard_of(
    tracker: StageTracker, make_tracker: Callable[[], StageTracker], documents: list[str], stage: str, db: Any
) -> None:
    """After cancel_document a run hears StageCancelled, and the stage stays skipped with the reason."""
    (run,) = tracker.claim(stage, lease_seconds=1)
    with pytest.raises(StageCancelled), run:
        assert make_tracker().cancel_document(documents[0], "not wanted", actor="operator") is True
        pulse = run._pulse
        assert pulse is not None
        assert wait_until(lambda: pulse.error is not None, 20)
        run.update_progress(1)
    assert db.stage(documents[0], stage)["metadata"]["reason"] == "not wanted"


def test_two_trackers_never_get_the_same_run(
    make_tracker: Callable[[], StageTracker], documents: list[str], stage: str
) -> None:
    """Claims of many threads at once give each run to one of them."""
    assert documents
    got: list[ClaimedRun] = []
    gate = threading.Barrier(6)

    def work() -> None:
        mine = make_tracker()
        gate.wait(10)
        got.extend(mine.claim(stage, limit=2))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(run.document_id for run in got) == sorted(documents)
    for run in got:
        run.release()


def test_a_claim_whose_answer_was_lost_is_claimed_once(
    through: StageTracker, proxy: Any, rest: StageTracker, db: Any
) -> None:
    """A repeated claim gives the runs of the first, and no attempt is used up."""
    document = db.document()
    rest.set_priority(document, 1000)
    proxy.faults = ["drop", "html"]
    (run,) = through.claim("upload")
    assert proxy.requests == ["claim_stages"] * 3
    assert (run.document_id, run.attempt) == (document, 1)
    assert db.one("select count(*) from krai_core.stage_runs where document_id = %s and status = 'running'", document)
    run.release()


def test_a_claim_that_still_runs_is_asked_for_again(through: StageTracker, proxy: Any, rest: StageTracker) -> None:
    """claim_in_progress is no answer: the claim is sent again."""
    assert rest
    detail = '{"error": "claim_in_progress"}'
    proxy.faults = [(409, {"code": "PT409", "message": "still running", "details": detail, "hint": "again"})]
    for run in through.claim("upload"):
        run.release()
    assert proxy.requests[:2] == ["claim_stages"] * 2


@pytest.mark.parametrize(("limit", "name", "kind"), [(0, "upload", InvalidArgument), (1, "ocr", UnknownStage)])
def test_odd_claims_are_refused(tracker: StageTracker, limit: int, name: str, kind: type) -> None:
    """A limit out of range and an unknown stage raise what the database says."""
    with pytest.raises(kind):
        tracker.claim(name, limit=limit)


def test_the_next_document_is_claimed_in_the_database(
    tracker: StageTracker, make_tracker: Callable[[], StageTracker], documents: list[str], stage: str, db: Any
) -> None:
    """get_next_document gives whole rows, each to one worker, then None."""
    other = make_tracker()
    first, second, third = tracker.get_next_document(stage), other.get_next_document(stage), None
    third = tracker.get_next_document(stage, worker="gpu-7")
    assert first is not None
    assert second is not None
    assert third is not None
    assert [row["id"] for row in (first, second, third)] == documents
    assert first["filename"] == db.one("select filename from krai_core.documents where id = %s", documents[0])
    assert first["stage_status"][stage]["status"] == "processing"
    assert db.run(documents[2], stage, "worker") == "gpu-7"
    assert db.run(documents[0], stage, "lease_seconds") >= 3600
    assert tracker.get_next_document(stage) is None


def test_the_tracker_acts_for_the_document_that_it_was_given(
    tracker: StageTracker, make_tracker: Callable[[], StageTracker], documents: list[str], stage: str, db: Any
) -> None:
    """start_stage, progress and complete_stage go on with the claim; another tracker does not have it."""
    assert tracker.get_next_document(stage) is not None
    other = make_tracker()
    assert other.start_stage(documents[0], stage) is False
    assert tracker.start_stage(documents[0], stage) is True
    assert tracker.start_stage(documents[0], stage) is False
    assert tracker.update_progress(documents[0], stage, 40) is True
    assert tracker.complete_stage(documents[0], stage) is True
    assert db.run(documents[0], stage, "closed_by_holder") is True
    assert db.one("select count(*) from krai_core.stage_runs where document_id = %s and stage_name = %s",
                  documents[0], stage) == 1  # fmt: skip
    assert tracker._claims.of(documents[0], stage) is None


def test_a_context_goes_on_with_the_claim_once(
    tracker: StageTracker, documents: list[str], stage: str, db: Any
) -> None:
    """A StageContext of the document that was given runs, a second one beside it does not."""
    document = tracker.get_next_document(stage)
    assert document is not None
    with StageContext(tracker, document["id"], stage) as ctx:
        assert db.run(documents[0], stage, "claim_id") == ctx.claim_id
        with pytest.raises(StageBusy), StageContext(tracker, document["id"], stage):
            pytest.fail("ran")
    assert db.stage(documents[0], stage)["status"] == "completed"
    assert tracker._claims.of(documents[0], stage) is None


def test_a_start_that_did_not_come_about_may_be_repeated(
    through: StageTracker, proxy: Any, rest: StageTracker, db: Any
) -> None:
    """Where no answer to start_stage of a claimed document came, the next call still acts for the claim."""
    rest.set_priority(db.document(), 2000)
    row = through.get_next_document("upload")
    assert row is not None
    through._transport._retry_for = 0
    proxy.faults = ["html"]
    with pytest.raises(DatabaseUnavailable):
        through.start_stage(row["id"], "upload")
    assert through.start_stage(row["id"], "upload") is True
    assert through.skip_stage(row["id"], "upload") is True


def test_a_claim_that_was_taken_over_is_lost(
    tracker: StageTracker, make_tracker: Callable[[], StageTracker], documents: list[str], stage: str, db: Any
) -> None:
    """Once the run of get_next_document is over, its calls raise StageLost, and then the tracker has forgotten it."""
    assert documents
    for call in (tracker.complete_stage, tracker.start_stage):
        document = tracker.get_next_document(stage)
        assert document is not None
        db.end_lease(document["id"], stage)
        assert make_tracker().start_stage(document["id"], stage) is True
        with pytest.raises(StageLost):
            call(document["id"], stage)
        assert tracker._claims.of(document["id"], stage) is None


def test_many_outcomes_are_reported_at_once(tracker: StageTracker, documents: list[str], stage: str, db: Any) -> None:
    """finish_stages answers each outcome on its own, and contexts of these runs know that they are over."""
    runs = tracker.claim(stage, limit=3)
    claims = [{"document_id": run.document_id, "stage_name": stage, "claim_id": run.claim_id} for run in runs]
    heard: list[object] = []
    tracker.websocket_callback = lambda *event: heard.append(event)
    try:
        answers = tracker.finish_stages([
            {**claims[0], "outcome": "completed", "metadata": {"id": uuid.UUID(int=1)}},
            {**claims[1], "outcome": "failed", "error": ValueError("page 7"), "retry": True},
            {**claims[2], "claim_id": str(uuid.uuid4()), "outcome": "skipped", "reason": "none"},
        ])  # type: ignore[typeddict-item]  # fmt: skip
    finally:
        tracker.websocket_callback = None
    assert [answer["ok"] for answer in answers] == [True, True, False]
    assert "next_retry_at" in answers[1]
    assert answers[2]["error"] == "lease_lost"
    assert db.stage(documents[0], stage)["metadata"] == {"id": str(uuid.UUID(int=1))}
    assert db.stage(documents[1], stage)["error"] == "page 7"
    assert [run.closed_as for run in runs] == ["completed", "failed", None]
    assert {event[0] for event in heard} == {"stage_completed", "stage_failed"}  # type: ignore[index]
    with runs[2]:
        pass
    assert db.stage(documents[2], stage)["status"] == "completed"


def test_an_outcome_that_cannot_be_sent_is_refused(tracker: StageTracker, document: str) -> None:
    """An id that is none, and metadata that is no JSON, raise before anything is sent."""
    run: Any = {"document_id": document, "stage_name": "upload", "claim_id": uuid.uuid4(), "outcome": "completed"}
    for wrong in ({"document_id": "x"}, {"claim_id": "x"}, {"metadata": {"a": object()}}, {"progress": float("nan")}):
        with pytest.raises(InvalidArgument):
            tracker.finish_stages([{**run, **wrong}])


def test_leases_are_renewed_and_given_back_by_hand(
    tracker: StageTracker, documents: list[str], stage: str, db: Any
) -> None:
    """heartbeat and release_stages take runs as plain dicts and say which are alive, lost, given back."""
    claim = uuid.uuid4()
    assert tracker.start_stage(documents[0], stage, claim_id=claim)
    mine: Any = {"document_id": documents[0], "stage_name": stage, "claim_id": claim}
    foreign: Any = {**mine, "claim_id": uuid.uuid4()}
    answer = tracker.heartbeat([mine, foreign])
    assert [run["claim_id"] for run in answer["alive"]] == [str(claim)]
    assert answer["alive"][0]["lease_ms"] == 60_000
    assert [run["claim_id"] for run in answer["lost"]] == [str(foreign["claim_id"])]
    given = tracker.release_stages([mine, foreign])
    assert [len(given["released"]), len(given["lost"])] == [1, 1]
    assert db.stage(documents[0], stage)["status"] == "pending"


def test_claims_are_asynchronous_too(
    tracker: StageTracker, documents: list[str], stage: str, db: Any, local: LocalSupabase
) -> None:
    """AsyncStageTracker claims, gives back, fails with retry and completes, over both transports."""
    assert tracker

    async def work(other: AsyncStageTracker) -> None:
        async with other:
            first, second, third = await other.claim(stage, limit=3)
            async with first as run:
                run.update_progress(50)
            with pytest.raises(PermanentError):
                async with second:
                    raise PermanentError("no password")
            assert await third.release() is True
            row = await other.get_next_document(stage)
            assert row is not None
            assert row["id"] == documents[2]
            assert await other.start_stage(documents[2], stage) is True
            assert await other.complete_stage(documents[2], stage) is True
            assert [row async for row in other.get_documents_ready_for(stage)] == []

    async def main() -> None:
        if tracker.supabase is None:
            await work(AsyncStageTracker.from_postgres(local.database_url))
        else:
            await work(AsyncStageTracker(await local.async_client()))

    asyncio.run(main())
    assert [db.stage(document, stage)["status"] for document in documents] == ["completed", "failed", "completed"]
