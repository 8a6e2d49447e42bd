"""Beside readers and writers that do not stop for a migration."""

import threading
from collections.abc import Callable
from typing import Any, Self

import psycopg
import pytest

Fresh = Callable[..., Any]


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


@pytest.mark.parametrize("server", ["16"], indirect=True)
def test_every_file_bounds_its_waits_for_locks(fresh: Fresh) -> None:
    """Each file that is one transaction sets lock_timeout below a second before it does anything."""
    database = fresh("empty")
    for path in database.files():
        first, second, *_, last = (" ".join(part.split()) for part in database.statements(path))
        if first.endswith("begin") and last == "commit":
            assert second.endswith("set local lock_timeout = '900ms'"), path.name


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
    """Neither backfill nor index build holds an insert up, and no file with a lock holds up more than one."""
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
    held_up: dict[str, int] = {}
    with Writer(database) as writer:
        database.wait_for(lambda: writer.inserted)
        for path in database.files():
            before, seen = writer.inserted, set(writer.held_up)
            database.migrate([path])
            held_up[path.name.split("_", 1)[1]] = len(writer.held_up - seen)
            if path.name.endswith(("800_repair_existing.sql", "900_index.sql")):
                assert writer.inserted > before, path.name
    assert {name: held_up.pop(name) for name in ("repair_existing.sql", "index.sql")} == {
        "repair_existing.sql": 0,
        "index.sql": 0,
    }
    assert max(held_up.values()) <= 1, held_up
    query = "select count(*) from krai_core.documents where not krai_private.is_sound(stage_status)"
    assert database.value(query) == 0
