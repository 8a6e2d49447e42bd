"""Beside readers and writers that do not stop for a migration."""

import threading
from collections.abc import Callable
from typing import Any, Self

import psycopg
import pytest

from processors_v2._local.project import topic_of

Fresh = Callable[..., Any]

# The sources whose blocks lock documents against writers.
LOCKING = ("05_documents", "51_triggers")


def test_behind_a_long_reader_it_fails_cleanly_and_can_be_run_again(fresh: Fresh) -> None:
    """Rather than queue every writer behind itself, the migration gives up its lock, and goes through later."""
    database = fresh("field")
    reader = database.connect()
    reader.execute("begin; select count(*) from krai_core.documents")
    with pytest.raises(psycopg.errors.LockNotAvailable, match="canceling statement due to lock timeout"):
        database.migrate()
    database.run("rollback")
    assert not any(line.startswith("column krai_core.documents.stage_status") for line in database.catalog())
    reader.execute("commit")
    database.migrate()
    assert database.stage_status("manual 1.pdf")["upload"]["status"] == "pending"


def test_behind_a_long_writer_the_triggers_wait_no_longer(fresh: Fresh) -> None:
    """CREATE TRIGGER keeps writers out, so it does not wait for one that stays either."""
    database = fresh("v1_rows")
    writer = database.connect()
    writer.execute("begin; insert into krai_core.documents (filename) values ('slow.pdf')")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        database.migrate()
    database.run("rollback")
    assert not any(line.startswith("trigger krai_core.documents documents_") for line in database.catalog())
    writer.execute("commit")
    database.migrate()
    assert database.stage_status("slow.pdf")["upload"]["status"] == "pending"


def test_over_a_v1_nothing_waits_for_readers(fresh: Fresh) -> None:
    """Where the column is there with our default, no file needs a lock that a reader stands in the way of."""
    database = fresh("v1_rows")
    reader = database.connect()
    reader.execute("begin; select count(*) from krai_core.documents")
    database.migrate()
    reader.execute("commit")


def test_a_second_run_waits_for_no_reader(fresh: Fresh) -> None:
    """Where all is there already, a transaction that has read each table stands in nobody's way."""
    database = fresh("v1_rows", migrated=True)
    reader = database.connect()
    reader.execute("begin")
    query = "select oid::regclass::text from pg_class where relnamespace = 'krai_core'::regnamespace and relkind = 'r'"
    for (table,) in database.rows(query):
        reader.execute(f"select from {table}")
    database.migrate()
    reader.execute("commit")


def test_every_block_bounds_its_waits_for_locks(block: Any) -> None:
    """Each transaction sets lock_timeout below a second before it does anything, or does nothing that takes a lock."""
    if block.is_transaction:
        second, *rest = (" ".join(part.split()) for part in block.statements[1:])
        assert second.endswith("set local lock_timeout = '900ms'") or rest == ["commit"]


class Writer:
    """Inserts documents one after the other until it is told to stop, and is watched while it does."""

    def __init__(self, database: Any) -> None:
        self._writer = database.connect()
        self._watcher = database.connect()
        self.inserted = 0
        # When each insert that somebody held up had begun.
        self.held_up: set[Any] = set()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write), threading.Thread(target=self._watch)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self) -> None:
        while not self._stop.is_set():
            self._writer.execute("insert into krai_core.documents (filename) values ('meanwhile.pdf')")
            self.inserted += 1

    def _watch(self) -> None:
        pid = self._writer.info.backend_pid
        # Who adds a page to the table keeps others from doing the same for that moment: no lock in the sense of SQL.
        query = """
            select query_start from pg_stat_activity
            where pid = %s and wait_event_type = 'Lock' and wait_event <> 'extend' and pg_blocking_pids(pid) <> '{}'
            """
        while not self._stop.is_set():
            self.held_up.update(self._watcher.execute(query, [pid]).fetchall())


@pytest.mark.parametrize("server", ["16"], indirect=True)
def test_inserts_go_on_while_20000_documents_are_repaired(fresh: Fresh) -> None:
    """Only the two blocks that lock documents hold an insert up, and not more than one; all else holds up none."""
    database = fresh("v1")
    database.run(
        "drop index krai_core.idx_documents_stage_status",
        """
        insert into krai_core.documents (filename, processing_status, stage_status)
        select 'old.pdf', 'processing', jsonb_build_object('upload', jsonb_build_object(
            'status', 'completed', 'started_at', '2026-11-23 17:09:20.958275+00', 'duration_seconds', n))
        from generate_series(1, 20000) n
        """,
    )
    with Writer(database) as writer:
        database.wait_for(lambda: writer.inserted)
        for path in database.files():
            before = writer.inserted
            for block in database.blocks(path):
                seen = set(writer.held_up)
                database.run(*block.statements)
                held_up = len(writer.held_up - seen)
                assert held_up <= (block.section in LOCKING), (path.name, block.start, block.section)
            if topic_of(path) != "stage_tracker":
                assert writer.inserted > before, path.name
        # With our triggers there, whose functions are replaced while they are called.
        database.migrate()
        before = writer.inserted
        database.wait_for(lambda: writer.inserted > before)
    query = "select count(*) from krai_core.documents where not krai_private.is_sound(stage_status)"
    assert database.value(query) == 0
