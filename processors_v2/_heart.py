"""Signs of life and progress of all runs of a tracker, sent from one thread of its own.

A body may report a value for each page of a document: here they are gathered, the first is written at once, then at
most one per interval and run, and the last one always, also while the body goes on with something else. The same thread
keeps the leases alive while the bodies report nothing: what is due together goes out in one call.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from processors_v2._calls import queue as queue_calls
from processors_v2._calls import runs as runs_calls
from processors_v2._errors import DatabaseUnavailable, StageCancelled, StageLost, from_word
from processors_v2._pulse import Pulse, Run, Values

_logger = logging.getLogger("processors_v2")

# Seconds, while the database is away: a third of a long lease would be a long time to leave it alone.
TRY_AGAIN = 1.0
# Seconds for one call, where the leases leave less than the transport would wait.
_SHORTEST_CALL = 1.0
_MOST_AT_ONCE = 500


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
                queue_calls.heartbeat([pulse.run for pulse in beating]), retry=False, within=self._bound(pulses)
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
            call = runs_calls.update_stage_progress(document, stage, progress, metadata, claim_id)
            self._send(call, retry=False, within=seconds)
            return [None]
        outcomes = [_outcome(run, progress, metadata) for run, progress, metadata in values]
        answers = self._send(queue_calls.finish_stages(outcomes), retry=False, within=seconds)
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
