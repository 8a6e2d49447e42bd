"""The one background thread of a tracker: what goes out when, and together."""

import multiprocessing
import os
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from processors_v2 import _heart, _pulse
from processors_v2._calls.call import Call
from processors_v2._heart import Heart
from processors_v2._local.process import wait_until
from processors_v2._pulse import Pulse
from processors_v2.errors import DatabaseUnavailable, StageCancelled, StageLost

FOREVER = 3600.0


class Clock:
    """The time by which the thread goes; it stands still until it is put forward."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now


class Sent:
    """In place of a transport: keeps the calls, and answers as the database would."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.faults: list[Exception] = []
        self.lease_ms = FOREVER * 1000
        self.gone: dict[str, str] = {}
        self.hold: threading.Event | None = None
        self.within: list[float] = []
        self.locked = False

    def __call__(self, call: Call[Any], *, retry: bool, within: float) -> Any:
        """Answer a call."""
        assert retry is False
        assert call.arguments is not None
        name = call.path.removeprefix("rpc/")
        self.calls.append((name, call.arguments))
        self.within.append(within)
        if self.hold is not None:
            assert self.hold.wait(20)
        if self.faults:
            raise self.faults.pop(0)
        if self.locked and name != "heartbeat":
            raise DatabaseUnavailable("the row is locked")
        if name == "heartbeat":
            runs = call.arguments["p_runs"]
            return {
                "alive": [{**run, "lease_ms": self.lease_ms} for run in runs if run["stage_name"] not in self.gone],
                **{
                    kind: [run for run in runs if self.gone.get(run["stage_name"]) == kind]
                    for kind in ("lost", "cancelled")
                },
            }
        if name == "finish_stages":
            return [
                {"ok": False, "error": "lease_lost", "message": "over", "hint": "stop"}
                if outcome["stage_name"] in self.gone
                else {"ok": True}
                for outcome in call.arguments["p_outcomes"]
            ]
        return True

    def named(self, name: str) -> list[Any]:
        """The arguments of the calls of a function."""
        return [arguments for called, arguments in list(self.calls) if called == name]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the thread."""
    clock = Clock()
    monkeypatch.setattr(_heart, "time", clock)
    monkeypatch.setattr(_pulse, "time", clock)
    return clock


@pytest.fixture
def sent() -> Sent:
    """What was sent."""
    return Sent()


@pytest.fixture
def heart(clock: Clock, sent: Sent) -> Iterator[Heart]:
    """A heart; its thread has ended when the test is over."""
    assert clock.now
    heart = Heart(sent)
    yield heart
    if sent.hold is not None:
        sent.hold.set()
    for pulse in list(heart._pulses.values()):
        pulse.stop()
    assert wait_until(lambda: heart._thread is None, 20)


def begin(heart: Heart, stage: str = "upload", *, interval: float = 10, lease: float | None = FOREVER) -> Pulse:
    """Let a run live."""
    run = (str(uuid.uuid4()), stage, uuid.uuid4())
    pulse = Pulse(heart, run, interval=interval, lease_seconds=lease)
    heart.add(pulse)
    return pulse


def later(heart: Heart, clock: Clock, seconds: float) -> None:
    """Put the clock forward, and let the thread look at it."""
    clock.now += seconds
    heart.wake()


def is_idle(heart: Heart, sent: Sent) -> bool:
    """Whether the thread has done all it has to do by now."""
    count = len(sent.calls)
    heart.wake()
    looked = wait_until(heart._mail.empty, 20)
    now = _heart.time.monotonic()
    return looked and all(pulse.due() > now for pulse in heart._pulses.copy().values()) and len(sent.calls) == count


def test_one_call_beats_for_all_runs(heart: Heart, clock: Clock, sent: Sent) -> None:
    """Runs whose signs of life are due together, or soon, are in one call, from one thread."""
    pulses = [begin(heart, lease=lease) for lease in (30, 30, 33, 300)]
    assert threading.active_count() >= 2
    assert len([thread for thread in threading.enumerate() if thread.name == "stage heartbeats"]) == 1
    later(heart, clock, 10)
    assert wait_until(lambda: len(sent.named("heartbeat")) == 1, 20)
    asked = {run["document_id"] for run in sent.named("heartbeat")[0]["p_runs"]}
    assert asked == {pulse.run[0] for pulse in pulses[:3]}


def test_each_run_beats_at_a_third_of_its_lease(heart: Heart, clock: Clock, sent: Sent) -> None:
    """Nothing is sent before a third of a lease is over, and the length of the next lease is that of the answer."""
    pulse = begin(heart, lease=30)
    later(heart, clock, 9.9)
    assert is_idle(heart, sent)
    assert sent.calls == []
    sent.lease_ms = 60_000
    later(heart, clock, 0.2)
    assert wait_until(lambda: pulse.beat_every == 20, 20)
    later(heart, clock, 19.8)
    assert is_idle(heart, sent)
    assert len(sent.calls) == 1
    later(heart, clock, 0.3)
    assert wait_until(lambda: len(sent.calls) == 2, 20)


def test_a_lease_of_unknown_length_is_asked_for_soon(heart: Heart, clock: Clock, sent: Sent) -> None:
    """Without a length the first sign of life is that for the shortest lease that there is."""
    begin(heart, lease=None)
    later(heart, clock, 0.34)
    assert wait_until(lambda: len(sent.named("heartbeat")) == 1, 20)


def test_at_most_one_write_per_interval_and_run(heart: Heart, clock: Clock, sent: Sent) -> None:
    """The first value is written at once, then the last of each interval."""
    pulse = begin(heart, interval=10)
    pulse.put(1, {})
    assert wait_until(lambda: len(sent.calls) == 1, 20)
    for value in (2, 3, 4):
        later(heart, clock, 3)
        pulse.put(value, {"n": value})
        assert is_idle(heart, sent)
    later(heart, clock, 1.5)
    assert wait_until(lambda: len(sent.calls) == 2, 20)
    first, second = sent.named("update_stage_progress")
    assert first["p_progress"] == 1
    assert (second["p_progress"], second["p_metadata"]) == (4, {"n": 4})


def test_progress_of_many_runs_is_one_call(heart: Heart, sent: Sent) -> None:
    """What is due together goes out in one finish_stages, each value for its run."""
    pulses = [begin(heart, interval=10) for _ in range(5)]
    sent.hold = threading.Event()
    pulses[0].put(1, {})
    assert wait_until(lambda: len(sent.calls) == 1, 20)
    for number, pulse in enumerate(pulses[1:], 2):
        pulse.put(number, {"n": number})
    pulses[1].put(None, {"more": True})
    sent.hold.set()
    assert wait_until(lambda: len(sent.calls) == 2, 20)
    (outcomes,) = (arguments["p_outcomes"] for arguments in sent.named("finish_stages"))
    assert [(o["progress"], o["metadata"]) for o in outcomes] == [
        (2, {"n": 2, "more": True}), (3, {"n": 3}), (4, {"n": 4}), (5, {"n": 5}),
    ]  # fmt: skip
    assert {(o["document_id"], o["stage_name"], o["claim_id"]) for o in outcomes} == {
        (p.run[0], p.run[1], str(p.run[2])) for p in pulses[1:]
    }
    assert {o["outcome"] for o in outcomes} == {"progress"}


def test_progress_without_a_percentage_leaves_it_alone_in_the_batch(heart: Heart, sent: Sent) -> None:
    """Metadata alone is sent without progress, also among others."""
    first, second = begin(heart), begin(heart)
    sent.hold = threading.Event()
    begin(heart).put(1, {})
    assert wait_until(lambda: len(sent.calls) == 1, 20)
    first.put(None, {"a": 1})
    second.put(0, {})
    sent.hold.set()
    assert wait_until(lambda: len(sent.calls) == 2, 20)
    outcomes = sent.named("finish_stages")[0]["p_outcomes"]
    assert "progress" not in outcomes[0]
    assert outcomes[1]["progress"] == 0


def test_a_run_that_is_over_hinders_no_other(heart: Heart, clock: Clock, sent: Sent) -> None:
    """Lost and cancelled runs get their own errors and nothing more is sent for them; the others live on."""
    lost, cancelled, alive = (begin(heart, stage, lease=30) for stage in ("lost", "cancelled", "upload"))
    sent.gone = {"lost": "lost", "cancelled": "cancelled"}
    later(heart, clock, 10)
    assert wait_until(lambda: bool(lost.error and cancelled.error), 20)
    assert type(lost.error) is StageLost
    assert type(cancelled.error) is StageCancelled
    assert cancelled.error.document_id == cancelled.run[0]
    with pytest.raises(StageCancelled):
        cancelled.put(1, {})
    later(heart, clock, FOREVER)
    assert wait_until(lambda: len(sent.calls) == 2, 20)
    assert [run["stage_name"] for run in sent.named("heartbeat")[1]["p_runs"]] == ["upload"]
    assert alive.error is None


def test_a_refused_outcome_is_an_error_of_its_run_alone(heart: Heart, sent: Sent) -> None:
    """In a batch of progress each answer counts for its own run."""
    sent.gone = {"lost": "lost"}
    sent.hold = threading.Event()
    begin(heart).put(1, {})
    assert wait_until(lambda: len(sent.calls) == 1, 20)
    lost, alive = begin(heart, "lost"), begin(heart)
    lost.put(1, {})
    alive.put(1, {})
    sent.hold.set()
    assert wait_until(lambda: lost.error is not None, 20)
    assert isinstance(lost.error, StageLost)
    assert alive.error is None


def test_what_was_not_written_is_written_again(heart: Heart, clock: Clock, sent: Sent) -> None:
    """After an outage the values are sent again, a later one in place of an earlier, with all of the metadata."""
    pulse = begin(heart, lease=30)
    sent.faults = [DatabaseUnavailable("away")]
    pulse.put(1, {"a": 1, "b": 1})
    assert wait_until(lambda: len(sent.calls) == 1 and not sent.faults, 20)
    pulse.put(2, {"b": 2})
    later(heart, clock, _heart.TRY_AGAIN)
    assert wait_until(lambda: len(sent.named("update_stage_progress")) == 2, 20)
    assert sent.named("update_stage_progress")[1]["p_progress"] == 2
    assert sent.named("update_stage_progress")[1]["p_metadata"] == {"a": 1, "b": 2}


def test_a_heartbeat_that_failed_is_sent_again_soon(heart: Heart, clock: Clock, sent: Sent) -> None:
    """After a failed heartbeat the next one does not wait for a third of a long lease."""
    begin(heart, lease=FOREVER)
    sent.faults = [DatabaseUnavailable("away")]
    later(heart, clock, FOREVER / 3)
    assert wait_until(lambda: len(sent.calls) == 1 and not sent.faults, 20)
    later(heart, clock, _heart.TRY_AGAIN)
    assert wait_until(lambda: len(sent.calls) == 2, 20)


def test_a_write_that_waits_does_not_keep_the_heartbeat_waiting(heart: Heart, clock: Clock, sent: Sent) -> None:
    """While progress cannot be written, the lease is renewed by heartbeats, and no call outlasts a third of a lease."""
    pulse = begin(heart, lease=12)
    begin(heart, lease=30)
    sent.locked, sent.lease_ms = True, 12_000
    pulse.put(1, {})
    for number in range(1, 4):
        assert wait_until(lambda number=number: len(sent.named("update_stage_progress")) == number, 20)
        assert wait_until(lambda: pulse.next_write > clock.now, 20)
        later(heart, clock, 0.95)
        assert wait_until(lambda number=number: len(sent.named("heartbeat")) == number, 20)
        later(heart, clock, 0.1)
    assert set(sent.within) == {4.0}


def test_what_nobody_expected_is_raised_by_the_next_call(heart: Heart, sent: Sent) -> None:
    """An exception of any kind in the thread reaches the body, not a log that nobody reads, and the thread goes on."""
    pulse = begin(heart)
    sent.faults = [MemoryError("of the machine")]
    pulse.put(1, {})
    assert wait_until(lambda: pulse.error is not None, 20)
    with pytest.raises(MemoryError, match="of the machine"):
        pulse.put(2, {})
    other = begin(heart)
    other.put(1, {})
    assert wait_until(lambda: len(sent.calls) == 2, 20)


def test_the_thread_begins_and_ends_with_its_runs(heart: Heart, sent: Sent) -> None:
    """There is no thread before the first run and after the last, and another one when there are runs again."""
    assert heart._thread is None
    for _ in range(3):
        pulses = [begin(heart), begin(heart)]
        thread = heart._thread
        assert thread is not None
        assert thread.daemon
        for pulse in pulses:
            pulse.stop()
        thread.join(20)
        assert not thread.is_alive()
        assert heart._thread is None
    assert sent.calls == []


def test_a_stopped_run_takes_nothing_and_gives_back_what_was_not_written(heart: Heart, sent: Sent) -> None:
    """What was put while another write was on its way is returned after the end, once, and later values are ignored."""
    pulse = begin(heart)
    sent.hold = threading.Event()
    pulse.put(1, {"a": 1})
    assert wait_until(lambda: pulse.is_sending, 20)
    pulse.put(2, {"b": 2})
    pulse.stop()
    settled = threading.Thread(target=pulse.settle)
    settled.start()
    assert pulse.is_sending
    assert settled.is_alive()
    sent.hold.set()
    settled.join(20)
    assert not settled.is_alive()
    pulse.put(3, {})
    assert pulse.unwritten() == (2, {"b": 2})
    assert pulse.unwritten() is None


def test_a_write_that_failed_after_the_end_is_given_back(heart: Heart, sent: Sent) -> None:
    """A value that was on its way when the run ended, and did not arrive, is among what was not written."""
    pulse = begin(heart)
    sent.hold, sent.faults = threading.Event(), [DatabaseUnavailable("away")]
    pulse.put(1, {"a": 1})
    assert wait_until(lambda: pulse.is_sending, 20)
    pulse.stop()
    sent.hold.set()
    pulse.settle()
    assert pulse.unwritten() == (1, {"a": 1})


def test_a_lock_that_was_left_locked_stops_no_other_run(heart: Heart, clock: Clock, sent: Sent) -> None:
    """Where an interrupt left the lock of a run locked, the others still beat and write, without a busy loop."""
    stuck, other = begin(heart, lease=30), begin(heart, lease=30)
    stuck.put(1, {})
    assert wait_until(lambda: len(sent.calls) == 1, 20)
    later(heart, clock, 10)
    assert stuck._values.acquire(timeout=20)
    try:
        stuck._dirty = True
        other.put(1, {})
        later(heart, clock, 10)
        assert wait_until(lambda: len(sent.named("update_stage_progress")) == 2, 20)
        later(heart, clock, 10)
        assert wait_until(lambda: len(sent.named("heartbeat")) >= 1, 20)
        assert wait_until(lambda: stuck.due() > clock.now, 20)
    finally:
        stuck._values.release()


def _in_child(heart: Heart, parents: Pulse, result: Any) -> None:
    parents.put(50, {"from": "the child"})
    parents.stop()
    parents.settle()
    nothing = parents.unwritten()
    calls: list[Any] = heart._send.calls
    before = len(calls)
    pulse = begin(heart)
    pulse.put(1, {})
    wrote = wait_until(lambda: len(calls) == before + 1, 20)
    documents = {arguments.get("p_document_id") for _, arguments in calls[before:]}
    result.put((nothing, wrote, documents == {pulse.run[0]}, os.getpid()))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_begins_anew(heart: Heart, sent: Sent) -> None:
    """A child has a thread of its own for its own runs, none of its parent's, and cannot be stuck in their locks."""
    pulse = begin(heart)
    assert pulse._values.acquire(timeout=20)
    assert pulse._sending.acquire(timeout=20)
    fork = multiprocessing.get_context("fork")
    result = fork.SimpleQueue()
    child = fork.Process(target=_in_child, args=(heart, pulse, result), daemon=True)
    child.start()
    pulse._values.release()
    pulse._sending.release()
    nothing, wrote, its_own_only, pid = result.get()
    child.join(20)
    assert (nothing, wrote, its_own_only) == (None, True, True)
    assert pid != os.getpid()
    pulse.put(60, {})
    assert wait_until(lambda: len(sent.calls) == 1, 20)
