"""A context whose run is over, by a lease that ended or by a person, neither overwrites nor goes on unawares."""

from collections.abc import Callable
from typing import Any

import pytest

from processors_v2._local.process import wait_until
from processors_v2.errors import StageConflict, StageLost
from processors_v2.stage_tracker import StageContext, StageTracker


@pytest.fixture
def other(make_tracker: Callable[[], StageTracker]) -> StageTracker:
    """The tracker of another process."""
    return make_tracker()


def has_heard(ctx: StageContext) -> bool:
    """Wait until the background thread has learnt that the run is over."""
    pulse = ctx._pulse
    assert pulse is not None
    return wait_until(lambda: pulse.error is not None, 20)


def until_lost(call: Callable[[], object]) -> StageLost:
    """Repeat a call until it says that the run is over."""
    caught: list[StageLost] = []

    def lost() -> bool:
        try:
            call()
        except StageLost as error:
            caught.append(error)
        return bool(caught)

    assert wait_until(lost, 20)
    return caught[0]


def test_a_run_that_was_taken_over_hears_it_at_a_call(
    tracker: StageTracker, other: StageTracker, document: str, db: Any
) -> None:
    """After a take-over update_progress raises StageLost, and what the new holder wrote stays."""
    with pytest.raises(StageLost, match="another took the stage over") as caught:
        with StageContext(tracker, document, "upload", interval=0, lease_seconds=600) as ctx:
            db.end_lease(document, "upload")
            with StageContext(other, document, "upload") as new:
                new.set_metadata("by", "the new one")
                raise until_lost(lambda: ctx.update_progress(50, {"by": "the old one"}))
    assert (caught.value.document_id, caught.value.stage) == (document, "upload")
    assert db.stage(document, "upload")["metadata"] == {"by": "the new one"}


def test_a_run_that_was_taken_over_hears_it_at_the_end(
    tracker: StageTracker, other: StageTracker, document: str, db: Any
) -> None:
    """A block that ends after a take-over raises StageLost and completes nothing."""
    with (
        StageContext(other, document, "storage"),
        pytest.raises(StageLost),
        StageContext(tracker, document, "upload", lease_seconds=600),
    ):
        db.end_lease(document, "upload")
        other.start_stage(document, "upload")
    assert db.stage(document, "upload")["status"] == "processing"


def test_a_completed_take_over_is_not_failed_by_the_old_run(
    tracker: StageTracker, other: StageTracker, document: str, db: Any
) -> None:
    """An exception in a block whose run was taken over comes out, and the new run's outcome stays."""
    with pytest.raises(ValueError, match="too late"), StageContext(tracker, document, "upload", lease_seconds=600):
        db.end_lease(document, "upload")
        with StageContext(other, document, "upload"):
            pass
        raise ValueError("too late")
    stage = db.stage(document, "upload")
    assert (stage["status"], stage["error"]) == ("completed", None)


def test_a_failure_that_was_not_recorded_is_noted_on_the_exception(
    tracker: StageTracker, other: StageTracker, document: str, db: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the failure of a lost run cannot be recorded, log and exception say so."""
    with (
        pytest.raises(ValueError, match="mine") as caught,
        StageContext(tracker, document, "upload", lease_seconds=600),
    ):
        db.end_lease(document, "upload")
        other.start_stage(document, "upload")
        raise ValueError("mine")
    assert "the failure of stage upload was not recorded" in caught.value.__notes__[0]
    assert "the failure was not recorded" in caplog.text


def test_a_reset_by_force_takes_the_run_away(
    tracker: StageTracker, other: StageTracker, document: str, db: Any
) -> None:
    """After reset_stage with force the context hears StageLost, and the stage stays pending."""
    with pytest.raises(StageLost), StageContext(tracker, document, "upload", lease_seconds=600) as ctx:
        with pytest.raises(StageConflict, match="processing"):
            other.reset_stage(document, "upload")
        assert other.reset_stage(document, "upload", force=True, actor="operator") is True
        ctx.set_metadata("late", True)
    assert db.stage(document, "upload")["status"] == "pending"
    assert db.run(document, "upload", "status") == "cancelled"
    assert db.run(document, "upload", "actor") == "operator"


def test_a_body_without_calls_hears_of_the_loss_by_the_heartbeat(
    tracker: StageTracker, other: StageTracker, document: str
) -> None:
    """The first call after the heartbeat has learnt of a reset raises StageLost, without a further request."""
    with pytest.raises(StageLost), StageContext(tracker, document, "upload", lease_seconds=1) as ctx:
        other.reset_stage(document, "upload", force=True)
        assert has_heard(ctx)
        ctx.set_metadata("late", True)


def test_a_body_that_never_calls_again_is_lost_at_the_end(
    tracker: StageTracker, other: StageTracker, document: str, db: Any
) -> None:
    """A loss that the heartbeat has learnt of ends the block with StageLost; an exception of its own gets no note."""
    with pytest.raises(StageLost), StageContext(tracker, document, "upload", lease_seconds=1) as ctx:
        other.reset_stage(document, "upload", force=True)
        assert has_heard(ctx)
    with (
        pytest.raises(ValueError, match="mine") as caught,
        StageContext(tracker, document, "upload", lease_seconds=1) as ctx,
    ):
        other.reset_stage(document, "upload", force=True)
        assert has_heard(ctx)
        raise ValueError("mine")
    assert not hasattr(caught.value, "__notes__")
    assert db.stage(document, "upload")["status"] == "pending"


def test_a_skip_after_a_take_over_is_lost(tracker: StageTracker, other: StageTracker, document: str, db: Any) -> None:
    """ctx.skip of a run that is over raises StageLost and skips nothing."""
    with pytest.raises(StageLost), StageContext(tracker, document, "upload", lease_seconds=600) as ctx:
        db.end_lease(document, "upload")
        other.start_stage(document, "upload")
        ctx.skip("late")
    assert db.stage(document, "upload")["status"] == "processing"


def test_a_close_by_another_process_is_not_overwritten(
    tracker: StageTracker, other: StageTracker, document: str, db: Any
) -> None:
    """A run that somebody else has failed ends with StageLost, not as completed."""
    with pytest.raises(StageLost), StageContext(tracker, document, "upload", lease_seconds=600):
        other.fail_stage(document, "upload", "stopped by hand")
    stage = db.stage(document, "upload")
    assert (stage["status"], stage["error"]) == ("failed", "stopped by hand")


def test_an_old_context_does_not_act_for_the_one_that_took_over(tracker: StageTracker, document: str, db: Any) -> None:
    """With one tracker for both, the end of the old context leaves the new one registered and running."""
    old = StageContext(tracker, document, "upload", lease_seconds=600)
    new = StageContext(tracker, document, "upload", lease_seconds=600)
    with pytest.raises(StageLost), old:
        db.end_lease(document, "upload")
        new.__enter__()
    tracker.update_progress(document, "upload", 30)
    new.__exit__(None, None, None)
    assert db.stage(document, "upload")["status"] == "completed"
    assert db.run(document, "upload", "closed_by_holder") is True


def test_heartbeats_keep_a_short_lease_alive(
    tracker: StageTracker, other: StageTracker, document: str, db: Any
) -> None:
    """A lease of a second is renewed over several leases of a body that reports nothing."""
    with StageContext(tracker, document, "upload", lease_seconds=1):
        began = db.run(document, "upload", "lease_expires_at")
        assert wait_until(lambda: (db.run(document, "upload", "lease_expires_at") - began).total_seconds() > 2.5, 30)
        assert other.start_stage(document, "upload") is False
        assert db.run(document, "upload", "status") == "running"
    assert db.stage(document, "upload")["status"] == "completed"


def test_heartbeats_come_from_a_thread_of_their_own(tracker: StageTracker, document: str, db: Any) -> None:
    """A body that blocks its thread keeps its lease, and the thread ends with the block."""
    with StageContext(tracker, document, "upload", lease_seconds=1):
        beating = tracker._heart._thread
        assert beating is not None
        assert beating.daemon
        began = db.run(document, "upload", "heartbeat_at")
        assert wait_until(lambda: db.run(document, "upload", "heartbeat_at") > began, 20)
    beating.join(20)
    assert not beating.is_alive()


def test_a_heartbeat_learns_how_long_the_lease_is(tracker: StageTracker, document: str, db: Any) -> None:
    """Without lease_seconds the lease is that of the stage, and the next beat comes after a third of it."""
    with StageContext(tracker, document, "upload") as ctx:
        assert db.run(document, "upload", "lease_seconds") == 300
        pulse = ctx._pulse
        assert pulse is not None
        assert wait_until(lambda: pulse.beat_every == 100, 20)
