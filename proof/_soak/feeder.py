"""Brings documents in at a steady rate, takes those away that are done, and does what an operator would have to do."""

import threading
import time
from collections import deque
from collections.abc import Callable

import psycopg

from proof._soak.size import Size

_INSERT = "insert into krai_core.documents (filename) values (%s) returning id"
_OPEN = "select count(*) from krai_core.stage_runs where status in ('ready', 'running')"
_UNENDED = """
(select count(*) from krai_core.stages s where coalesce(d.stage_status -> s.name ->> 'status', '')
    not in ('completed', 'failed', 'skipped'))
"""
_DELETE = f"""
delete from krai_core.documents d
where d.id = any (%s) and not exists (
    select from krai_core.stage_runs r where r.document_id = d.id and r.status in ('ready', 'running'))
returning d.id, {_UNENDED}
"""
_LEFT = f"select count(*), coalesce(sum({_UNENDED}), 0) from krai_core.documents d"
_PRUNE = "select (krai_core.prune_runs(make_interval(secs => %s), p_keep_failures => false) ->> 'pruned')::int"
# Vacuum takes the rows of deleted documents out of it, but never their keys, of which each document has its own.
_REINDEX = "reindex index concurrently krai_core.idx_documents_stage_status"
# For documents that are still under way: without an end of one for so long, something is stuck.
_STUCK_SECONDS = 60.0


class Feeder(threading.Thread):
    """Feeds the workers, in a thread of its own, until the time is over and all documents are done, or it is closed.

    Args:
        size: how many documents, how often.
        url: of the database.

    Attributes:
        inserted: documents.
        deleted: documents, which were done.
        pruned: runs.
        reindexed: times.
        unended: stages of documents that were done and had yet not ended.
        is_stuck: documents were left, and nothing moved any more.
    """

    def __init__(self, size: Size, url: str) -> None:
        super().__init__(name="feeder", daemon=True)
        self.inserted = self.deleted = self.pruned = self.reindexed = self.unended = 0
        self.is_stuck = False
        self._size = size
        self._connection = psycopg.connect(url, autocommit=True)
        self._there: deque[object] = deque()
        self._reindexed_at = 0
        self._over = threading.Event()
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Be the thread."""
        try:
            self._feed()
            self._finish()
        except BaseException as error:  # noqa: BLE001 - raised by whoever closes
            self._failure = error

    def _feed(self) -> None:
        began = time.monotonic()
        chores: list[tuple[float, Callable[[], None]]] = [
            (self._size.delete_seconds, self._delete),
            (self._size.prune_seconds, self._prune),
        ]
        due = [began + seconds for seconds, _ in chores]
        pause = 1 / self._size.documents_per_second
        while (now := time.monotonic()) < began + self._size.seconds:
            self._insert()
            for number, (seconds, chore) in enumerate(chores):
                if now >= due[number]:
                    chore()
                    due[number] += seconds
            # By the clock and not by pauses, so that chores do not slow the rate.
            if self._over.wait(max(0.0, began + self.inserted * pause - time.monotonic())):
                return

    def _insert(self) -> None:
        row = self._connection.execute(_INSERT, [f"{self.inserted}.pdf"]).fetchone()
        assert row is not None
        self._there.append(row[0])
        self.inserted += 1

    def _delete(self) -> None:
        surplus = [self._there[number] for number in range(len(self._there) - self._size.kept)]
        gone = self._connection.execute(_DELETE, [surplus]).fetchall() if surplus else []
        self.deleted += len(gone)
        self.unended += sum(row[1] for row in gone)
        ids = {row[0] for row in gone}
        for _ in surplus:
            document = self._there.popleft()
            if document not in ids:
                # Still at work; it comes with a later turn.
                self._there.append(document)
        if self.deleted - self._reindexed_at >= self._size.reindex_share * self._size.kept:
            self._connection.execute(_REINDEX)
            self._reindexed_at = self.deleted
            self.reindexed += 1

    def _prune(self) -> None:
        self.pruned += self._count(_PRUNE, self._size.prune_seconds)

    def _finish(self) -> None:
        fewest, since = None, time.monotonic()
        while left := self._count(_OPEN):
            if fewest is None or left < fewest:
                fewest, since = left, time.monotonic()
            if time.monotonic() - since > _STUCK_SECONDS:
                self.is_stuck = True
                break
            if self._over.wait(0.2):
                return
        row = self._connection.execute(_LEFT).fetchone()
        assert row is not None
        self.unended += int(row[1])

    def _count(self, question: str, *values: object) -> int:
        row = self._connection.execute(question, values).fetchone()
        assert row is not None
        return int(row[0])

    def close(self) -> None:
        """End, and raise what went wrong."""
        self._over.set()
        self.join()
        self._connection.close()
        if self._failure is not None:
            raise self._failure
