"""Looks at the workers and the database every second, and writes down what it sees."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from processors_v2.stage_tracker import StageTracker
from proof._soak.size import Size

PAUSE_SECONDS = 1.0

_LOOK = """
with sessions as (
    select a.state, a.wait_event_type, a.state_change, a.xact_start from pg_stat_activity a
    where a.backend_type = 'client backend' and a.pid <> pg_backend_pid()
)
select jsonb_build_object(
    'documents', (select count(*) from krai_core.documents),
    'deltas', (select count(*) from krai_core.stage_deltas),
    'ready', (select count(*) from krai_core.stage_runs where status = 'ready'),
    'running', (select count(*) from krai_core.stage_runs where status = 'running'),
    'closed', (select count(*) from krai_core.stage_runs where status not in ('ready', 'running')),
    'sessions', (select count(*) from sessions),
    'lock_waits', (select count(*) from sessions where wait_event_type = 'Lock'),
    'idle_in_transaction', (select count(*) from sessions where state like 'idle in transaction%'),
    'idle_seconds', (select coalesce(max(extract(epoch from clock_timestamp() - state_change)), 0)
        from sessions where state like 'idle in transaction%'),
    'transaction_seconds', (select coalesce(max(extract(epoch from clock_timestamp() - xact_start)), 0) from sessions),
    'deadlocks', (select deadlocks from pg_stat_database where datname = current_database()))
"""
_SIZES = """
select jsonb_object_agg(c.relname, pg_relation_size(c.oid)) from pg_class c
where c.relnamespace = 'krai_core'::regnamespace and c.relkind in ('r', 'i')
"""

Sample = dict[str, Any]


class Sampler(threading.Thread):
    """Takes samples in a thread of its own until it is closed.

    Each is a line of JSON in the file as soon as it is taken, so that a run that was broken off has left them. It asks
    for the statistics as well, as somebody would who looks at a dashboard.

    Args:
        size: how often it looks at the sizes.
        url: of the database.
        tracker: to ask for the statistics.
        memory: the resident bytes of each worker.
        file: where the samples go.

    Attributes:
        samples: so far.
    """

    def __init__(
        self, size: Size, url: str, tracker: StageTracker, memory: Callable[[], dict[str, int]], file: Path
    ) -> None:
        super().__init__(name="sampler", daemon=True)
        self.samples: list[Sample] = []
        self._size = size
        self._connection = psycopg.connect(url, autocommit=True)
        self._tracker = tracker
        self._memory = memory
        self._file = file.open("w", encoding="utf-8")
        self._over = threading.Event()
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Be the thread."""
        began = time.monotonic()
        sizes_due = 0.0
        try:
            while not self._over.wait(PAUSE_SECONDS):
                sample: Sample = {"seconds": round(time.monotonic() - began, 3), "memory": self._memory()}
                sample |= self._ask(_LOOK)
                self._tracker.get_statistics()
                if sample["seconds"] >= sizes_due:
                    sample["sizes"] = self._ask(_SIZES)
                    sizes_due += self._size.sizes_seconds
                self.samples.append(sample)
                self._file.write(json.dumps(sample) + "\n")
                self._file.flush()
        except BaseException as error:  # noqa: BLE001 - raised by whoever closes
            self._failure = error

    def _ask(self, question: str) -> dict[str, Any]:
        row = self._connection.execute(question).fetchone()
        assert row is not None
        found: dict[str, Any] = row[0]
        return found

    def close(self) -> None:
        """End, and raise what went wrong."""
        self._over.set()
        self.join()
        self._connection.close()
        self._file.close()
        if self._failure is not None:
            raise self._failure
