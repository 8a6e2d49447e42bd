"""What goes wrong, and when: spread over the work by seed, so that all of it meets work in progress."""

import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import psycopg

from processors_v2.local import LocalSupabase
from proof._chaos.crew import Crew
from proof._chaos.size import Size

# Share of the work before which all faults have begun: what the last of them left behind has to be found and done, too.
_UNTIL = 0.97

_HOLD_SECONDS = 0.4
_WAITS = """
select a.pid, left(a.query, 80) from pg_stat_activity a
where a.wait_event_type = 'Lock' and a.wait_event in ('transactionid', 'tuple', 'advisory')
  and a.query ilike '%claim_stages%' and a.pid <> pg_backend_pid()
  and a.query_start < clock_timestamp() - interval '100 ms'
"""


def waiting_claims(connection: "psycopg.Connection[Any]") -> list[str]:
    """Return the claims that wait for somebody's lock, which they never should."""
    return [f"session {pid} waits: {query}" for pid, query in connection.execute(_WAITS)]


@dataclass
class Happened:
    """What was done to the servers.

    Attributes:
        restarts: immediate restarts of Postgres, from when until it answered through PostgREST again.
        postgrest_kills: the same of PostgREST.
        holds: so many times documents were locked for a while.
        waits: claims that waited for those.
    """

    restarts: list[tuple[float, float]] = field(default_factory=list)
    postgrest_kills: list[tuple[float, float]] = field(default_factory=list)
    holds: int = 0
    waits: list[str] = field(default_factory=list)


class Faults:
    """Does what is due.

    Args:
        size: how many of which kind.
        seed: when, and to whom.
        stack: the servers.
        crew: the workers.
    """

    def __init__(self, size: Size, seed: int, stack: LocalSupabase, crew: Crew) -> None:
        self.happened = Happened()
        self._random = random.Random(seed)
        self._stack = stack
        self._crew = crew
        self._lease_seconds = size.lease_seconds
        kinds: dict[Callable[[], bool], int] = {
            self._kill: size.kills,
            self._stop: size.stops,
            self._outage(self._restart): size.restarts,
            self._outage(self._kill_postgrest): size.postgrest_kills,
            self._outage(self._hold): size.restarts * 2,
        }
        plan = [(self._random.random() * _UNTIL, kind) for kind, count in kinds.items() for _ in range(count)]
        self._plan = sorted(plan, key=lambda entry: entry[0])
        self._outages: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run_outages, name="outages")
        self._failure: BaseException | None = None
        self._thread.start()

    def do(self, share: float) -> None:
        """Do what is due when this share of the work is done.

        Raises:
            Exception: whatever kept a server from coming back.
        """
        if self._failure is not None:
            raise self._failure
        while self._plan and self._plan[0][0] <= share and self._plan[0][1]():
            self._plan.pop(0)

    @property
    def left(self) -> int:
        """So many have not been done."""
        return len(self._plan)

    def close(self) -> None:
        """Wait for the end of the outages that have begun."""
        self._outages.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _kill(self) -> bool:
        present = self._crew.present()
        if present:
            self._crew.replace(self._random.choice(present))
        return bool(present)

    def _stop(self) -> bool:
        present = self._crew.present()
        if present:
            self._crew.stop(self._random.choice(present), self._random.uniform(1.2, 2.5) * self._lease_seconds)
        return bool(present)

    def _outage(self, kind: Callable[[], None]) -> Callable[[], bool]:
        def begin() -> bool:
            self._outages.put(kind)
            return True

        return begin

    def _run_outages(self) -> None:
        """One after the other, while workers are killed and stopped meanwhile."""
        while (outage := self._outages.get()) is not None:
            try:
                outage()
            except BaseException as error:  # noqa: BLE001 - raised by whoever asks next
                self._failure = error
                return

    def _restart(self) -> None:
        began = time.time()
        self._stack.restart_postgres("immediate")
        self._wait_for_service()
        self.happened.restarts.append((began, time.time()))

    def _kill_postgrest(self) -> None:
        began = time.time()
        self._stack.kill_postgrest()
        self._stack.restart_postgrest()
        self._wait_for_service()
        self.happened.postgrest_kills.append((began, time.time()))

    def _wait_for_service(self) -> None:
        headers = {"Authorization": f"Bearer {self._stack.key()}", "Accept-Profile": "krai_core"}
        with httpx.Client(base_url=self._stack.url, headers=headers, trust_env=False) as client:
            for _ in range(3000):
                try:
                    if client.get("/stages?select=name").is_success:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.02)
        raise RuntimeError("PostgREST did not find its way back to Postgres")

    def _hold(self) -> None:
        """Lock some documents as somebody's long transaction would, and look who waits for them."""
        with psycopg.connect(self._stack.admin_url, autocommit=True) as connection, connection.transaction():
            connection.execute(
                "select from krai_core.documents where id in (select document_id from krai_core.stage_runs"
                " where status = 'ready' order by priority desc, available_at limit 50) for update skip locked"
            )
            time.sleep(_HOLD_SECONDS)
            self.happened.waits += waiting_claims(connection)
        self.happened.holds += 1
