"""What the sessions of a database wait for, by samples."""

import threading
from collections import Counter

import psycopg

_PAUSE_SECONDS = 0.05
# A statement that is at work and waits for nothing is on a processor, or would like to be.
_LOOK = """
select case when a.wait_event_type is null then 'processor' else a.wait_event_type || ' ' || a.wait_event end, count(*)
from pg_stat_activity a
where a.backend_type = 'client backend' and a.state = 'active' and a.pid <> pg_backend_pid() group by 1
"""


class Waits(threading.Thread):
    """Looks again and again, in a thread of its own, until it is closed.

    Args:
        url: of an administrator, who sees all sessions.

    Attributes:
        seen: active sessions by what they wait for, over all samples.
    """

    def __init__(self, url: str) -> None:
        super().__init__(name="waits", daemon=True)
        self.seen: Counter[str] = Counter()
        self._connection = psycopg.connect(url, autocommit=True)
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Be the thread."""
        try:
            while not self._over.wait(_PAUSE_SECONDS):
                self.seen.update(dict(self._connection.execute(_LOOK).fetchall()))
        except BaseException as error:  # noqa: BLE001 - raised by whoever closes
            self._failure = error

    def close(self) -> None:
        """End, and raise what went wrong."""
        self._over.set()
        self.join()
        self._connection.close()
        if self._failure is not None:
            raise self._failure
