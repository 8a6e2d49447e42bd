"""Small scenes, played by hand, in which one thing goes wrong in a certain way, for the same judge."""

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import psycopg
import supabase

from processors_v2._calls import queue, upkeep
from processors_v2._calls import runs as runs_calls
from processors_v2._calls.call import Call
from processors_v2._transport import postgres
from processors_v2.errors import StageTrackerError
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker
from proof._chaos import evidence
from proof._chaos.crew import Life
from proof._chaos.faults import Happened, waiting_claims
from proof._chaos.judge import judge
from proof._chaos.proxy import Proxy
from proof._chaos.recorder import Journal, Recorder
from proof._chaos.watcher import Seen, Watcher

T = TypeVar("T")

ALL = StageTracker.STAGES
_LONG = 60.0


class InTransaction:
    """A transport that calls functions on a connection of its own, for a transaction that stays open."""

    def __init__(self, connection: "psycopg.Connection[Any]") -> None:
        self.connection = connection

    def send(self, call: Call[T], **_: object) -> T:
        """Call a function."""
        row = self.connection.execute(*postgres.statement(call)).fetchone()
        assert row is not None
        return call.parse(row[0])


class Hand:
    """A worker whose every move the test makes."""

    def __init__(self, transport: Any, life: Life) -> None:
        self.transport = transport
        self.life = life

    def claim(self, stages: list[str] = ALL, limit: int = 1, lease_seconds: float = _LONG) -> list["Held"]:
        """Claim; return what came."""
        claim = uuid.uuid4()
        answer = self.transport.send(queue.claim_stages(stages, self.life.name, limit, lease_seconds, claim))
        return [Held(self, run["document_id"], run["stage_name"], claim) for run in answer]

    def start(self, document: str, stage: str, lease_seconds: float = _LONG) -> "Held | None":
        """Start a stage; return it, or None where it is held."""
        claim = uuid.uuid4()
        is_mine = self.transport.send(runs_calls.start_stage(document, stage, claim, self.life.name, lease_seconds))
        return Held(self, document, stage, claim) if is_mine else None

    def finish(self, runs: list["Held"], outcome: str = "completed", *, retry: bool = False) -> list[str]:
        """Report the same outcome for all; return the answers: ok, or the word of the error."""
        outcomes = [run.outcome(outcome, retry=retry) for run in runs]
        if not outcomes:
            return []
        return ["ok" if said["ok"] else said["error"] for said in self.transport.send(queue.finish_stages(outcomes))]

    def die(self) -> None:
        """Do nothing any more, as after kill -9."""
        self.life.killed_at = time.time()


@dataclass(frozen=True)
class Held:
    """A run that a hand holds."""

    hand: Hand
    document: str
    stage: str
    claim: uuid.UUID

    def outcome(self, outcome: str, *, retry: bool) -> dict[str, Any]:
        """Return an outcome for finish_stages that says whose it is."""
        identity = {"document_id": self.document, "stage_name": self.stage, "claim_id": str(self.claim)}
        if outcome == "failed":
            return {**identity, "outcome": outcome, "error": f"failed by {self.claim}", "retry": retry}
        return {**identity, "outcome": outcome, "metadata": {"finished": str(self.claim)}}

    def complete(self) -> str:
        """Complete it by the single call; return ok, or the word of the error."""
        call = runs_calls.complete_stage(self.document, self.stage, {"finished": str(self.claim)}, self.claim)
        try:
            self.hand.transport.send(call)
        except StageTrackerError as error:
            return error.error or error.message
        return "ok"


@dataclass
class Scene:
    """A small database, hands to work in it, and the judge to look at it afterwards."""

    stack: LocalSupabase
    proxy: Proxy
    folder: Path
    connection: "psycopg.Connection[Any]"
    client: supabase.Client
    lives: list[Life] = field(default_factory=list)
    journals: list[Journal] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)

    def documents(self, count: int) -> list[str]:
        """Insert documents and return their ids, in the order of the queue."""
        return [
            str(row[0])
            for _ in range(count)
            for row in self.connection.execute("insert into krai_core.documents (filename) values ('x') returning id")
        ]

    def hand(self, transport: Any = None) -> Hand:
        """Make a worker; without a transport one of supabase-py through the proxy."""
        life = Life(len(self.lives), 0)
        self.lives.append(life)
        inner = transport or StageTracker(self.client)._transport  # noqa: SLF001 - all calls pass there
        journal = Journal(self.folder / f"{life.name}.jsonl")
        self.journals.append(journal)
        return Hand(Recorder(inner, journal), life)

    @contextmanager
    def transaction(self) -> Iterator[Hand]:
        """Make a worker that calls inside one open transaction; it is committed at the end."""
        with psycopg.connect(self.stack.admin_url) as connection:
            yield self.hand(InTransaction(connection))

    def beside(self, work: Callable[[], T]) -> "Beside[T]":
        """Begin a call in a thread; return when it has been answered, or waits for a lock."""
        call = Beside(work)
        waits = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and query ilike '%krai_core%'"
        while call.is_alive() and self.connection.execute(waits).fetchone() is None:
            call.join(0.01)
        return call

    def until_nothing_runs(self, hand: Hand) -> None:
        """Let leases end."""
        while self.connection.execute("select 1 from krai_core.stage_runs where status = 'running'").fetchone():
            hand.transport.send(upkeep.reap())
            time.sleep(0.02)

    def drain(self, stages: list[str] = ALL) -> None:
        """Let a worker do all there is."""
        hand = self.hand()
        while runs := hand.claim(stages, limit=100):
            hand.finish(runs)

    def look_for_waiting_claims(self, call: "Beside[Any]") -> None:
        """Watch a call until it is answered or is seen to wait where it should not."""
        while call.is_alive() and not self.seen.waits:
            self.seen.waits += waiting_claims(self.connection)
            call.join(0.01)

    def violations(self) -> dict[str, list[str]]:
        """Let the rest be done, and return what the judge finds, by verdict."""
        return {verdict.name: verdict.violations for verdict in judge(self.evidence()) if not verdict.ok}

    def evidence(self, *, drained: bool = True) -> evidence.Evidence:
        """Let the rest be done, unless it is said not to, and return all there is to judge."""
        if drained:
            self.drain()
        count = self.connection.execute("select count(*) from krai_core.documents").fetchone()
        assert count is not None
        watcher = Watcher(self.stack.admin_url, count[0])
        watcher.seen = self.seen
        with contextlib.closing(watcher):
            watcher.look()
        return evidence.read(
            self.stack.admin_url,
            self.folder,
            lives=self.lives,
            troubles=[],
            happened=Happened(),
            seen=self.seen,
            log="",
        )


class Beside(threading.Thread, Generic[T]):
    """A call in a thread, and what it returned."""

    def __init__(self, work: Callable[[], T]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._results: list[T] = []
        self.start()

    def run(self) -> None:
        """Be the thread."""
        self._results.append(self._work())

    def wait(self) -> T:
        """Return the result."""
        self.join()
        return self._results[0]
