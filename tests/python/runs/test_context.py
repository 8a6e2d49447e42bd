"""StageContext: what its block does is what is recorded."""

import threading
import uuid
from contextlib import suppress
from typing import Any

import pytest

from processors_v2.errors import InvalidArgument, StageBusy, StageConflict
from processors_v2.stage_tracker import StageContext, StageTracker


def test_a_block_that_ends_completes_the_stage(tracker: StageTracker, document: str, db: Any) -> None:
    """The stage is processing inside of the block and completed, timed and at 100 % after it."""
    with StageContext(tracker, document, "text_extraction"):
        assert db.stage(document, "text_extraction")["status"] == "processing"
    stage = db.stage(document, "text_extraction")
    assert (stage["status"], stage["progress"], stage["error"]) == ("completed", 100, None)
    assert stage["started_at"] < stage["completed_at"]
    assert stage["duration_seconds"] > 0


def test_an_exception_is_recorded_and_raised_again(tracker: StageTracker, document: str, db: Any) -> None:
    """The very exception of the block comes out, and the stage is failed with its text."""
    error = ValueError("page 7 has no text")
    with pytest.raises(ValueError, match="page 7") as caught, StageContext(tracker, document, "text_extraction"):
        raise error
    assert caught.value is error
    stage = db.stage(document, "text_extraction")
    assert (stage["status"], stage["error"]) == ("failed", "page 7 has no text")


class BrokenError(Exception):
    """An exception that cannot say what happened."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "stored"),
    [
        (TimeoutError(), "TimeoutError"),
        (RuntimeError("  \n"), "RuntimeError"),
        (KeyError("page_count"), "KeyError: 'page_count'"),
        (BrokenError(), "BrokenError"),
        (RuntimeError("bad OCR \0 here"), "bad OCR \ufffd here"),
        (RuntimeError("half \ud83d a pair"), "half \ufffd a pair"),
        (RuntimeError("📄 zerstört, 破損"), "📄 zerstört, 破損"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (SystemExit(3), "SystemExit: 3"),
        (GeneratorExit(), "GeneratorExit"),
        (ExceptionGroup("two pages", [ValueError("a"), ValueError("b")]), "two pages (2 sub-exceptions)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_exception_leaves_a_readable_error(
    tracker: StageTracker, document: str, db: Any, error: BaseException, stored: str
) -> None:
    """Whatever ends the block, the stage is failed with a text that is never empty, and the exception goes on."""
    with pytest.raises(type(error)) as caught, StageContext(tracker, document, "upload"):
        raise error
    assert caught.value is error
    stage = db.stage(document, "upload")
    assert (stage["status"], stage["error"]) == ("failed", stored)


def test_a_huge_text_is_cut_with_a_mark(tracker: StageTracker, document: str, db: Any) -> None:
    """Of an error of 1 MB the column keeps 4,000 characters and says that it was cut; the history keeps 65,536."""
    with pytest.raises(RuntimeError), StageContext(tracker, document, "upload"):
        raise RuntimeError("x" * 1_000_000)
    error = db.stage(document, "upload")["error"]
    assert len(error) <= 4000
    assert error.endswith("[cut at 4000]")
    assert db.run(document, "upload", "length(error)") == 65536


def test_a_body_that_swallows_its_error_is_completed(tracker: StageTracker, document: str, db: Any) -> None:
    """An exception that does not leave the block is the block's own business."""
    with StageContext(tracker, document, "upload"):
        with suppress(ValueError):
            raise ValueError("one page less")
    assert db.stage(document, "upload")["status"] == "completed"


def test_contexts_of_different_stages_nest(tracker: StageTracker, document: str, db: Any) -> None:
    """Each context stands for its own stage, also inside of another."""
    with StageContext(tracker, document, "text_extraction") as outer:
        with pytest.raises(ValueError, match="OCR"), StageContext(tracker, document, "image_processing") as inner:
            inner.set_metadata("images", 2)
            raise ValueError("OCR failed")
        outer.set_metadata("pages", 9)
    text, image = db.stage(document, "text_extraction"), db.stage(document, "image_processing")
    assert (text["status"], text["metadata"]) == ("completed", {"pages": 9})
    assert (image["status"], image["metadata"]) == ("failed", {"images": 2})


def test_one_stage_of_two_documents_runs_at_once(tracker: StageTracker, db: Any) -> None:
    """A context holds the stage of its document only."""
    first, second = db.document(), db.document()
    with StageContext(tracker, first, "upload") as one, StageContext(tracker, second, "upload") as two:
        one.set_metadata("name", "one")
        two.set_metadata("name", "two")
    assert db.stage(first, "upload")["metadata"] == {"name": "one"}
    assert db.stage(second, "upload")["metadata"] == {"name": "two"}


def test_a_skip_inside_stays(tracker: StageTracker, document: str, db: Any) -> None:
    """ctx.skip marks the stage as skipped at once, and the end of the block leaves it so."""
    with StageContext(tracker, document, "image_processing") as ctx:
        ctx.set_metadata("pages_looked_at", 3)
        ctx.skip("No images found in PDF")
        assert db.stage(document, "image_processing")["status"] == "skipped"
    stage = db.stage(document, "image_processing")
    assert stage["status"] == "skipped"
    assert stage["metadata"] == {"pages_looked_at": 3, "reason": "No images found in PDF"}


def test_after_a_skip_the_block_may_go_on(tracker: StageTracker, document: str, db: Any) -> None:
    """What is reported after ctx.skip is recorded nowhere and raises nothing, and an exception still comes out."""
    with pytest.raises(LookupError), StageContext(tracker, document, "image_processing", interval=0) as ctx:
        ctx.skip("No images found in PDF")
        before = db.stage(document, "image_processing")
        for _ in ctx.track(range(5), unit="pages"):
            ctx.set_metadata("late", True)
        raise LookupError
    assert db.stage(document, "image_processing") == before


CLOSING = {
    "skipped": lambda t, d: t.skip_stage(d, "upload", "not needed"),
    "completed": lambda t, d: t.complete_stage(d, "upload", {"reason": "not needed"}),
    "failed": lambda t, d: t.fail_stage(d, "upload", "did not work", {"reason": "not needed"}),
}


@pytest.mark.parametrize("state", CLOSING)
def test_a_stage_closed_through_the_tracker_inside_stays(
    tracker: StageTracker, document: str, db: Any, state: str
) -> None:
    """skip_stage, complete_stage and fail_stage of the same tracker act for the run of the context and are the end."""
    with StageContext(tracker, document, "upload") as ctx:
        CLOSING[state](tracker, document)
        ctx.update_progress(12)
    stage = db.stage(document, "upload")
    assert stage["status"] == state
    assert db.run(document, "upload", "closed_by_holder") is True


@pytest.mark.parametrize("state", CLOSING)
def test_a_close_inside_loses_nothing_that_was_reported(
    tracker: StageTracker, document: str, db: Any, state: str
) -> None:
    """Progress and metadata that were not written yet are written before the stage is closed inside of its block."""
    with StageContext(tracker, document, "upload", interval=60) as ctx:
        for number in (1, 2, 3):
            ctx.update_progress(number, {f"key{number}": number})
        ctx.metadata["put"] = "straight"
        CLOSING[state](tracker, document)
    stage = db.stage(document, "upload")
    assert stage["metadata"] == {"key1": 1, "key2": 2, "key3": 3, "put": "straight", "reason": "not needed"}
    assert stage["progress"] == (100 if state == "completed" else 3)


def test_an_exception_after_a_completion_inside_leaves_it_completed(
    tracker: StageTracker, document: str, db: Any
) -> None:
    """Once the body has completed the stage itself, a later exception comes out and changes nothing."""
    with pytest.raises(OSError, match="cleanup"), StageContext(tracker, document, "upload"):
        tracker.complete_stage(document, "upload")
        raise OSError("cleanup failed")
    assert db.stage(document, "upload")["status"] == "completed"


def test_progress_through_the_tracker_inside_acts_for_the_run(tracker: StageTracker, document: str, db: Any) -> None:
    """update_progress of the same tracker carries the claim id of the context."""
    with StageContext(tracker, document, "upload") as ctx:
        tracker.update_progress(document, "upload", 40, {"from": "tracker"})
        assert db.stage(document, "upload")["progress"] == 40
        ctx.metadata["too"] = True
    assert db.stage(document, "upload")["metadata"] == {"from": "tracker", "too": True}


def test_metadata_of_all_ways_is_merged_and_kept(tracker: StageTracker, document: str, db: Any) -> None:
    """ctx.metadata, set_metadata and update_progress add to one object; the later value of a key wins."""
    with StageContext(tracker, document, "upload") as ctx:
        ctx.update_progress(10, {"a": 1, "b": 1})
        ctx.set_metadata("b", 2)
        ctx.metadata["c"] = [3]
        ctx.metadata["c"].append(4)
        ctx.update_progress(20)
    assert db.stage(document, "upload")["metadata"] == {"a": 1, "b": 2, "c": [3, 4]}


def test_metadata_of_a_failed_stage_is_kept(tracker: StageTracker, document: str, db: Any) -> None:
    """A failure keeps what was known until then."""
    with pytest.raises(ValueError, match="page 8"), StageContext(tracker, document, "upload") as ctx:
        ctx.update_progress(70, {"pages_processed": 7})
        raise ValueError("page 8")
    stage = db.stage(document, "upload")
    assert (stage["progress"], stage["metadata"]) == (70, {"pages_processed": 7})


@pytest.mark.parametrize(
    "odd", [object(), float("nan"), b"bytes", {"deep": [1, {2, 3}, object()]}], ids=["object", "nan", "bytes", "deep"]
)
def test_odd_metadata_raises_in_the_call(tracker: StageTracker, document: str, db: Any, odd: object) -> None:
    """What cannot be stored raises where it is given, and the stage ends as failed with that sentence."""
    with (
        pytest.raises(InvalidArgument, match="metadata.thing.* cannot be stored as JSON"),
        StageContext(tracker, document, "upload") as ctx,
    ):
        ctx.set_metadata("fine", 1)
        with pytest.raises(InvalidArgument):
            ctx.update_progress(50, {"thing": odd})
        ctx.set_metadata("thing", odd)
    stage = db.stage(document, "upload")
    assert stage["status"] == "failed"
    assert "cannot be stored as JSON" in stage["error"]
    assert stage["metadata"] == {"fine": 1}


class Treacherous(dict[str, object]):
    """A mapping that cannot be read."""

    def items(self) -> Any:
        """Fail."""
        raise OSError("the file behind it is gone")


@pytest.mark.parametrize(
    "odd", [object(), {1: {object(): 1}}, Treacherous(x=1), 10**5000], ids=lambda v: type(v).__name__
)
def test_odd_metadata_put_straight_in_does_not_leave_the_stage_processing(
    tracker: StageTracker, document: str, db: Any, odd: object
) -> None:
    """Something unstorable in ctx.metadata fails the stage at the end of the block."""
    with pytest.raises(InvalidArgument), StageContext(tracker, document, "upload") as ctx:
        ctx.metadata["thing"] = odd
    assert db.stage(document, "upload")["status"] == "failed"


def test_odd_metadata_does_not_hide_the_exception_of_the_block(tracker: StageTracker, document: str, db: Any) -> None:
    """With something unstorable in ctx.metadata the exception of the block is still what is recorded and raised."""
    with pytest.raises(ValueError, match="the real one"), StageContext(tracker, document, "upload") as ctx:
        ctx.metadata["thing"] = object()
        raise ValueError("the real one")
    stage = db.stage(document, "upload")
    assert (stage["status"], stage["error"]) == ("failed", "the real one")


@pytest.mark.parametrize("value", [-0.1, 100.1, 1e9, float("nan"), float("inf"), "50", True, 1j, 10**400])
def test_progress_out_of_range_raises_in_the_call(tracker: StageTracker, document: str, db: Any, value: Any) -> None:
    """Progress that is no number of 0 to 100 raises InvalidArgument, and nothing of it is stored."""
    with StageContext(tracker, document, "upload") as ctx:
        ctx.update_progress(25)
        with pytest.raises(InvalidArgument) as caught:
            ctx.update_progress(value, {"lost": True})
    assert caught.value.error == "invalid_progress"
    assert db.stage(document, "upload")["metadata"] == {}


def test_a_held_stage_does_not_run_twice(tracker: StageTracker, document: str) -> None:
    """A context that does not get the stage raises StageBusy with the ids, and its body does not run."""
    ran = False
    with StageContext(tracker, document, "upload"):
        with pytest.raises(StageBusy, match=f"upload of document {document} is held") as caught:
            with StageContext(tracker, document, "upload"):
                ran = True
    assert not ran
    assert (caught.value.document_id, caught.value.stage, caught.value.error) == (document, "upload", "busy")


def test_a_stage_that_a_plain_start_holds_is_busy(tracker: StageTracker, document: str) -> None:
    """A run that was started without a context holds its stage against contexts as well."""
    tracker.start_stage(document, "upload")
    with pytest.raises(StageBusy), StageContext(tracker, document, "upload"):
        pytest.fail("ran")
    assert tracker.complete_stage(document, "upload") is True


def test_of_two_threads_with_one_tracker_one_runs_the_body(tracker: StageTracker, db: Any) -> None:
    """Two contexts of one stage, entered at once in two threads: exactly one body runs, the other hears StageBusy."""
    for _ in range(10):
        document = db.document()
        gate, finished = threading.Barrier(2), threading.Barrier(2)
        outcomes: list[str] = []

        def work(document: str = document, gate: Any = gate, finished: Any = finished, to: Any = outcomes) -> None:
            gate.wait(10)
            try:
                with StageContext(tracker, document, "embedding"):
                    to.append("ran")
                    finished.wait(10)
            except StageBusy:
                to.append("busy")
                finished.wait(10)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(outcomes) == ["busy", "ran"]


def test_each_block_has_a_claim_id_of_its_own(tracker: StageTracker, document: str, db: Any) -> None:
    """A context may be used again; each block is a new run with a new claim id and empty metadata."""
    ctx = StageContext(tracker, document, "upload")
    assert ctx.claim_id is None
    claims = []
    for number in (1, 2):
        with ctx:
            claims.append(ctx.claim_id)
            ctx.set_metadata(f"key{number}", number)
            assert db.run(document, "upload", "claim_id") == ctx.claim_id
    assert ctx.claim_id is None
    assert len(set(claims)) == 2
    assert all(isinstance(claim, uuid.UUID) and claim.version == 4 for claim in claims)
    assert db.stage(document, "upload")["metadata"] == {"key2": 2}


def test_a_context_is_not_entered_twice_at_once(tracker: StageTracker, document: str, db: Any) -> None:
    """Entering a context that is running raises StageConflict and leaves the run alone."""
    with StageContext(tracker, document, "upload") as ctx:
        with pytest.raises(StageConflict, match="is running already"), ctx:
            pytest.fail("ran")
        ctx.set_metadata("still", "mine")
    assert db.stage(document, "upload")["metadata"] == {"still": "mine"}


def test_a_context_works_inside_of_its_block_only(tracker: StageTracker, document: str) -> None:
    """Before and after its block a context refuses to report or to skip."""
    ctx = StageContext(tracker, document, "upload")
    for call in (lambda: ctx.update_progress(1), lambda: ctx.set_metadata("a", 1), ctx.skip):
        with pytest.raises(StageConflict, match="inside its `with` block"):
            call()
    with ctx:
        pass
    with pytest.raises(StageConflict, match="is not running"):
        ctx.update_progress(1)


def test_the_worker_is_named_by_host_and_process(tracker: StageTracker, document: str, db: Any) -> None:
    """The history shows who ran a stage: host name and process id, or the name that was given."""
    with StageContext(tracker, document, "upload"):
        assert db.run(document, "upload", "worker ~ ':[0-9]+$'") is True
    with StageContext(tracker, document, "upload", worker="gpu-7"):
        assert db.run(document, "upload", "worker") == "gpu-7"


def test_a_thread_that_cannot_start_fails_the_stage(
    tracker: StageTracker, document: str, db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the machine has no thread left for the heartbeat, the stage is failed, not left in processing."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"), StageContext(tracker, document, "upload"):
            pytest.fail("ran")
    assert db.stage(document, "upload")["error"] == "can't start new thread"
    with StageContext(tracker, document, "upload"):
        pass


def test_the_repr_names_document_and_stage(tracker: StageTracker, document: str) -> None:
    """A context shows in logs what it stands for."""
    assert repr(StageContext(tracker, document, "upload")) == f"StageContext({document}, 'upload')"
