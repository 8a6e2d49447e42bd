"""Signs of life and progress of all runs of a tracker, sent from one thread of its own.

A body may report a value for each page of a document: here they are gathered, the first is written at once, then at
most one per interval and run, and the last one always, also while the body goes on with something else. The same thread
keeps the leases alive while the bodies report nothing: what is due together goes out in one call.

Ctrl-C can hit the main thread anywhere, so the thread never waits for a lock that it might leave locked: it tries, and
comes back.
"""

import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from processors_v2 import _calls
from processors_v2._errors import DatabaseUnavailable, StageCancelled, StageLost, from_word

_logger = logging.getLogger("processors_v2")

Run = tuple[str, str, uuid.UUID]
"""Document id, stage name and claim id."""

# The shortest lease that a stage can have is a second: before the first heartbeat has told how long this one is, beat
# as for that.
FIRST_BEAT = 0.33
# Seconds, while the database is away: a third of a long lease would be a long time to leave it alone.
TRY_AGAIN = 1.0
# Seconds for one call, where the leases leave less than the transport would wait.
_SHORTEST_CALL = 1.0
_LOOK_AGAIN = 0.01
_MOST_AT_ONCE = 500

Values = tuple[float | None, dict[str, Any]]


class Pulse:
    """What the thread knows of one run.

    Args:
        heart: Whose it is.
        run: The run.
        interval: Least time in seconds between two writes of progress.
        lease_seconds: Length of the lease where it is known already.
        since: When the lease began, by ``time.monotonic``; None: now.

    Attributes:
        error: What went wrong in the background, which ends it; most often a StageLost.
        beat_every: Seconds between two signs of life.
    """

    def __init__(
        self, heart: "Heart", run: Run, *, interval: float, lease_seconds: float | None, since: float | None = None
    ) -> None:
        self.run = run
        self.interval = interval
        self.error: Exception | None = None
        self.beat_every = FIRST_BEAT if lease_seconds is None else lease_seconds / 3
        self.next_beat = (time.monotonic() if since is None else since) + self.beat_every
        self.next_write = 0.0
        self._heart = heart
        self._pid = os.getpid()
        self._values = threading.Lock()
        self._sending = threading.Lock()
        self._progress: float | None = None
        self._metadata: dict[str, Any] = {}
        self._dirty = False
        self._stopped = False

    def put(self, progress: float | None, metadata: Mapping[str, Any]) -> None:
        """Take a value to write; returns at once. A later value takes the place of one that was not written yet.

        After stop() nothing is taken any more.

        Raises:
            Exception: What went wrong in the background since the last call, most often a StageTrackerError.
        """
        if self._pid != os.getpid():
            # Of a forked child: the locks may have been copied while somebody held them.
            return
        with self._values:
            if self._stopped:
                return
            if self.error is not None:
                raise self.error
            if progress is not None:
                self._progress = progress
            if metadata:
                self._metadata.update(metadata)
            if self._dirty:
                return
            self._dirty = True
        self._heart.wake()

    def stop(self) -> None:
        """Send nothing more for this run; may be repeated."""
        if self._pid == os.getpid():
            with self._values:
                self._stopped = True
        self._heart.forget(self)

    def abandon(self) -> None:
        """Send nothing more; takes no lock, since the garbage collector may say so from wherever it is."""
        self._heart.forget(self)

    @property
    def is_sending(self) -> bool:
        """Whether a write of progress is under way."""
        return self._pid == os.getpid() and self._sending.locked()

    def settle(self) -> None:
        """Wait until no write of progress is under way."""
        if self.is_sending:
            with self._sending:
                pass

    def unwritten(self) -> Values | None:
        """Return progress and metadata that were not written, once; None where there is nothing."""
        if self._pid != os.getpid():
            return None
        with self._values:
            return self._take()

    def due(self) -> float:
        """When the thread has to do something for it."""
        return min(self.next_write, self.next_beat) if self._dirty else self.next_beat

    def is_write_due(self, now: float) -> bool:
        """Whether there is something to write by now."""
        return self._dirty and self.next_write <= now

    def begin_write(self, now: float) -> Values | None:
        """Return what is to be written now, if anything; end_write() has to follow."""
        if not self.is_write_due(now):
            return None
        # Whatever keeps it from being written now, there is no hurry to look again.
        self.next_write = now + _LOOK_AGAIN
        if not self._sending.acquire(blocking=False):
            return None
        values = None
        if self._values.acquire(blocking=False):
            try:
                values = None if self._stopped else self._take()
            finally:
                self._values.release()
        if values is None:
            self._sending.release()
        return values

    def end_write(self, left: Values | None = None) -> None:
        """Say that a write is over, and what of it has to be written again."""
        if left is not None:
            progress, metadata = left
            with self._values:
                if self._progress is None:
                    self._progress = progress
                self._metadata = {**metadata, **self._metadata}
                self._dirty = True
        self._sending.release()

    def alive(self, now: float, lease_seconds: float | None = None) -> None:
        """Count a sign of life."""
        if lease_seconds is not None:
            self.beat_every = lease_seconds / 3
        self.next_beat = now + self.beat_every

    def fail(self, error: Exception) -> None:
        """End it with an error, which the next call raises."""
        self.error = error
        self._heart.forget(self)

    def _take(self) -> Values | None:
        if not self._dirty:
            return None
        taken = self._progress, self._metadata
        self._progress, self._metadata, self._dirty = None, {}, False
        return taken


class Heart:
    """The thread of one tracker: begins with the first run, and ends with the last.

    Args:
        send: Sends a call once: ``send(call, retry=False, within=seconds)``.
    """

    def __init__(self, send: Callable[..., Any]) -> None:
        self._send = send
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._pid = os.getpid()
        self._pulses: dict[int, Pulse] = {}
        self._mail: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._changing = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, pulse: Pulse) -> None:
        """Begin to send for a run.

        Raises:
            RuntimeError: No thread could be started.
        """
        if self._pid != os.getpid():
            # A forked child has neither the thread nor a part in the runs of its parent.
            self._begin_anew()
        with self._changing:
            self._pulses[id(pulse)] = pulse
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="stage heartbeats", daemon=True)
                self._thread = thread
                try:
                    thread.start()
                except BaseException:
                    self._thread = None
                    del self._pulses[id(pulse)]
                    raise
        self.wake()

    def forget(self, pulse: Pulse) -> None:
        """Send nothing more for a run; takes no lock."""
        self._pulses.pop(id(pulse), None)
        self.wake()

    def wake(self) -> None:
        """Let the thread look again at what is due."""
        self._mail.put(None)

    def _run(self) -> None:
        while self._is_needed():
            now = time.monotonic()
            pulses = list(self._pulses.copy().values())
            due = min((pulse.due() for pulse in pulses), default=now)
            if due > now:
                self._sleep(due - now)
                continue
            try:
                self._beat(pulses, now)
                self._write(pulses)
            except Exception as problem:  # noqa: BLE001 - raised again by the next call
                for pulse in pulses:
                    pulse.fail(problem)

    def _is_needed(self) -> bool:
        if self._thread is not threading.current_thread():
            return False
        if self._pulses:
            return True
        with self._changing:
            if self._pulses:
                return True
            self._thread = None
            return False

    def _sleep(self, seconds: float) -> None:
        try:
            self._mail.get(timeout=min(seconds, threading.TIMEOUT_MAX))
            while True:
                self._mail.get_nowait()
        except queue.Empty:
            return

    def _beat(self, pulses: list[Pulse], now: float) -> None:
        # A write is a sign of life as well.
        silent = [pulse for pulse in pulses if not pulse.is_write_due(now)]
        if all(pulse.next_beat > now for pulse in silent):
            return
        # With those that would follow soon, so that all of them come into step.
        beating = [pulse for pulse in silent if pulse.next_beat - pulse.beat_every / 2 <= now]
        try:
            answer = self._send(
                _calls.heartbeat([pulse.run for pulse in beating]), retry=False, within=self._bound(pulses)
            )
        except DatabaseUnavailable as problem:
            _logger.warning("heartbeat: %s; tried again", problem)
            for pulse in beating:
                pulse.next_beat = time.monotonic() + min(pulse.beat_every, TRY_AGAIN)
            return
        alive, cancelled = _by_run(answer["alive"]), _by_run(answer["cancelled"])
        for pulse in beating:
            said = alive.get(_key(pulse.run))
            if said is not None:
                pulse.alive(now, float(said["lease_ms"]) / 1000)
            else:
                pulse.fail(over(pulse.run, cancelled=_key(pulse.run) in cancelled))

    def _write(self, pulses: list[Pulse]) -> None:
        now = time.monotonic()
        writing = [(pulse, values) for pulse in pulses if (values := pulse.begin_write(now)) is not None]
        for first in range(0, len(writing), _MOST_AT_ONCE):
            self._write_some(writing[first : first + _MOST_AT_ONCE], self._bound(pulses))

    def _write_some(self, writing: list[tuple[Pulse, Values]], seconds: float) -> None:
        left: dict[int, Values] = {}
        try:
            errors = self._send_progress([(pulse.run, *values) for pulse, values in writing], seconds)
        except DatabaseUnavailable as problem:
            left = {id(pulse): values for pulse, values in writing}
            _logger.warning("progress: %s; tried again", problem)
            for pulse, _ in writing:
                pulse.next_write = time.monotonic() + min(pulse.beat_every, TRY_AGAIN)
                # A row that somebody holds keeps progress waiting, but no heartbeat.
                pulse.next_beat = min(pulse.next_beat, pulse.next_write - TRY_AGAIN / 10)
        except Exception as problem:  # noqa: BLE001 - raised again by the next call
            for pulse, _ in writing:
                pulse.fail(problem)
        else:
            now = time.monotonic()
            for (pulse, _), error in zip(writing, errors, strict=True):
                if error is not None:
                    pulse.fail(error)
                pulse.next_write = now + pulse.interval
                # Progress is a sign of life that renews the lease.
                pulse.alive(now)
        finally:
            for pulse, _ in writing:
                pulse.end_write(left.get(id(pulse)))

    def _send_progress(
        self, values: list[tuple[Run, float | None, dict[str, Any]]], seconds: float
    ) -> list[Exception | None]:
        """Write progress of several runs; return what went wrong with each."""
        if len(values) == 1:
            ((document, stage, claim_id), progress, metadata) = values[0]
            call = _calls.update_stage_progress(document, stage, progress, metadata, claim_id)
            self._send(call, retry=False, within=seconds)
            return [None]
        outcomes = [_outcome(run, progress, metadata) for run, progress, metadata in values]
        answers = self._send(_calls.finish_stages(outcomes), retry=False, within=seconds)
        return [None if answer["ok"] else from_word(answer) for answer in answers]

    @staticmethod
    def _bound(pulses: list[Pulse]) -> float:
        """Seconds for one call: what waits for one run must not cost another its lease."""
        return max(_SHORTEST_CALL, min(pulse.beat_every for pulse in pulses))


def over(run: Run, *, cancelled: bool) -> StageLost:
    """Return the error for a run that the database does not know as running any more."""
    document, stage, _ = run
    details = {"document_id": document, "stage": stage}
    text = f"this run of stage {stage} of document {document}"
    hint = "Stop this work and write nothing more for it"
    if cancelled:
        return StageCancelled(f"{text} was cancelled", hint=hint, error="cancelled", details=details)
    return StageLost(f"{text} is over", hint=hint, error="lease_lost", details=details)


def _outcome(run: Run, progress: float | None, metadata: dict[str, Any]) -> dict[str, Any]:
    document, stage, claim_id = run
    outcome = {"document_id": document, "stage_name": stage, "claim_id": str(claim_id), "outcome": "progress"}
    return {**outcome, "metadata": metadata, **({} if progress is None else {"progress": progress})}


def _key(run: Run) -> tuple[str, str, str]:
    document, stage, claim_id = run
    return document, stage, str(claim_id)


def _by_run(runs: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(run["document_id"], run["stage_name"], run["claim_id"]): run for run in runs}
