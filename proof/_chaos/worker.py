"""One worker process: real StageWorkers, and others that use every call there is.

What happens to a run is drawn by seed. Each leaves its claim id in what it writes, so that the judge can tell whose
word it was that counted.
"""

import os
import random
import signal
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import supabase

from processors_v2._calls import queue, upkeep
from processors_v2._calls import runs as runs_calls
from processors_v2._calls.call import Call
from processors_v2.errors import DatabaseUnavailable, PermanentError, StageTrackerError
from processors_v2.stage_tracker import StageTracker
from processors_v2.worker import RunContext, StageWorker
from proof._chaos.recorder import Journal, Recorder

STAGES = StageTracker.STAGES
# Nothing waits for these, so that one that failed for good holds up nothing.
_LEAVES = {"storage", "search_indexing"}
_ORPHANED = 3

Run = tuple[str, str, uuid.UUID]


@dataclass(frozen=True)
class Orders:
    """What a worker needs to know.

    Attributes:
        client: through the proxy.
        folder: for the journals.
        seed: of the whole.
        lease_seconds: to claim with.
        plain: slots below this number run the plain loop.
        pace: seconds that a run takes on average.
    """

    client: supabase.Client
    folder: Path
    seed: int
    lease_seconds: float
    plain: int
    pace: float = 0.015


def main(orders: Orders, slot: int, incarnation: int) -> None:
    """Work until SIGTERM, or until whoever made this process is gone."""
    journal = Journal(orders.folder / f"{slot}-{incarnation}.jsonl")
    tracker = StageTracker(orders.client, timeout=10.0, retry_for=60.0)
    recorder: Any = Recorder(tracker._transport, journal)  # noqa: SLF001 - the one place where all calls pass
    tracker._transport = recorder  # noqa: SLF001
    fates = Fates(random.Random(f"{orders.seed}/{slot}/{incarnation}"), orders.lease_seconds, orders.pace)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    name = f"{slot}-{incarnation}"
    if slot < orders.plain:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        Plain(tracker, fates, name, orders.lease_seconds).run()
    else:
        StageWorker(
            tracker,
            dict.fromkeys(fates.shuffled(STAGES), fates.handle),
            concurrency=2,
            name=name,
            lease_seconds=orders.lease_seconds,
            batch=5,
            idle_max=0.2,
            reap_seconds=0.5,
        ).run()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(_ORPHANED)


class Fates:
    """Draws what becomes of runs.

    Args:
        source: of the draws.
        lease_seconds: of the runs; a few take longer than that.
        pace: seconds that a run takes on average.
    """

    def __init__(self, source: random.Random, lease_seconds: float, pace: float) -> None:
        self.random = source
        self._lease_seconds = lease_seconds
        self._pace = pace

    def shuffled(self, things: list[str]) -> list[str]:
        """Return them in another order."""
        return self.random.sample(things, len(things))

    def outcome(self, stage: str) -> str:
        """Return completed, failed, permanent (a failure that is not tried again), skipped or released."""
        drawn = self.random.random()
        if drawn < 0.05:
            return "failed"
        if drawn < 0.07:
            return "permanent" if stage in _LEAVES else "failed"
        if drawn < 0.11:
            return "skipped"
        return "released" if drawn < 0.14 else "completed"

    def take_time(self) -> None:
        """Do the work, which is to take its time."""
        is_long, drawn = self.random.random() < 0.005, self.random.random()
        time.sleep((1.1 + 0.4 * drawn) * self._lease_seconds if is_long else 2 * drawn * self._pace)

    def handle(self, context: RunContext) -> dict[str, Any]:
        """Be the handler of a StageWorker."""
        claim = str(context.claim_id)
        if self.random.random() < 0.2:
            context.update_progress(50, {f"touched {claim}": True})
        self.take_time()
        outcome = self.outcome(context.stage_name)
        if outcome == "failed":
            raise RuntimeError(f"failed by {claim}")
        if outcome == "permanent":
            raise PermanentError(f"failed by {claim}")
        if outcome == "skipped":
            context.skip(f"skipped by {claim}")
        return {"finished": claim}


class Plain:
    """Claims, or starts what is ready, and reports in one call or in single ones."""

    def __init__(self, tracker: StageTracker, fates: Fates, name: str, lease_seconds: float) -> None:
        self._transport = tracker._transport  # noqa: SLF001
        self._fates = fates
        self._random = fates.random
        self._name = name
        self._lease_seconds = lease_seconds
        self._held: dict[Run, None] = {}

    def run(self) -> None:
        """Work without end."""
        threading.Thread(target=self._beat, daemon=True).start()
        while True:
            drawn = self._random.random()
            if drawn < 0.1:
                self._send(upkeep.reap(100))
            runs = self._start() if drawn > 0.85 else self._claim()
            if not runs:
                time.sleep(self._random.uniform(0.02, 0.2))
            self._held.update(dict.fromkeys(runs))
            outcomes = [outcome for run in runs if (outcome := self._handle(run))]
            self._report(outcomes)
            for run in runs:
                self._held.pop(run, None)

    def _claim(self) -> list[Run]:
        claim = uuid.uuid4()
        stages = self._fates.shuffled(STAGES)[: self._random.choice([1, 8])]
        limit = self._random.choice([1, 4, 10])
        answer = self._send(queue.claim_stages(stages, self._name, limit, self._lease_seconds, claim))
        return [(run["document_id"], run["stage_name"], claim) for run in answer or []]

    def _start(self) -> list[Run]:
        stage = self._random.choice(STAGES)
        arguments = {"p_stage_name": stage, "p_limit": 10}
        page = self._send(Call("rpc/get_documents_ready_for", arguments, dict, repeatable=True))
        documents = page["documents"]
        if not documents:
            return []
        document, claim = self._random.choice(documents)["id"], uuid.uuid4()
        started = self._send(runs_calls.start_stage(document, stage, claim, self._name, self._lease_seconds))
        return [(document, stage, claim)] if started else []

    def _handle(self, run: Run) -> dict[str, Any] | None:
        document, stage, claim = run
        if self._random.random() < 0.2:
            touched = {f"touched {claim}": True}
            if self._random.random() < 0.5:
                self._send(runs_calls.update_stage_progress(document, stage, 50, touched, claim))
            else:
                self._report([_outcome(run, "progress", progress=50, metadata=touched)])
        self._fates.take_time()
        outcome = self._fates.outcome(stage)
        if outcome == "released":
            self._send(queue.release_stages([run]))
            return None
        if outcome in {"failed", "permanent"}:
            return _outcome(run, "failed", error=f"failed by {claim}", retry=outcome == "failed")
        if outcome == "skipped":
            return _outcome(run, "skipped", reason=f"skipped by {claim}")
        return _outcome(run, "completed", metadata={"finished": str(claim)})

    def _report(self, outcomes: list[dict[str, Any]]) -> None:
        if self._random.random() < 0.7:
            if outcomes:
                self._send(queue.finish_stages(outcomes))
            return
        for outcome in outcomes:
            self._report_one(outcome)

    def _report_one(self, outcome: dict[str, Any]) -> None:
        document, stage, claim = outcome["document_id"], outcome["stage_name"], uuid.UUID(outcome["claim_id"])
        if outcome["outcome"] == "completed":
            self._send(runs_calls.complete_stage(document, stage, outcome["metadata"], claim))
        elif outcome["outcome"] == "skipped":
            self._send(runs_calls.skip_stage(document, stage, outcome["reason"], claim))
        elif outcome["outcome"] == "failed" and not outcome["retry"]:
            self._send(runs_calls.fail_stage(document, stage, outcome["error"], None, claim))
        else:
            self._send(queue.finish_stages([outcome]))

    def _send(self, call: Call[Any]) -> Any:
        """Send until there is an answer; a refusal is one, and the journal has it."""
        while True:
            try:
                return self._transport.send(call)
            except DatabaseUnavailable:
                continue
            except StageTrackerError as error:
                if error.error is not None:
                    return None
                # The judge hears of it by the journal.
                time.sleep(0.05)

    def _beat(self) -> None:
        while True:
            time.sleep(self._lease_seconds / 3)
            if runs := list(self._held):
                try:
                    self._transport.send(queue.heartbeat(runs), retry=False)
                except StageTrackerError:
                    # Once more at once, and then in a third of the lease.
                    self._again(runs)

    def _again(self, runs: list[Run]) -> None:
        try:
            self._transport.send(queue.heartbeat(runs), retry=False)
        except StageTrackerError:
            return


def _outcome(run: Run, outcome: str, **values: object) -> dict[str, Any]:
    document, stage, claim = run
    return {"document_id": document, "stage_name": stage, "claim_id": str(claim), "outcome": outcome, **values}
