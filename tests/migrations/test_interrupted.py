"""Interrupted at any statement, and run again."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from processors_v2._local.project import topic_of

Fresh = Callable[..., Any]

INDEX_STATE = "select indisvalid from pg_index where indexrelid = to_regclass('krai_core.idx_documents_stage_status')"
# Cut off at most at so many places, and in a shorter block after each statement.
CUTS = 20


def _interrupt(database: Any, statements: Sequence[str]) -> None:
    """Run statements in a session that ends before it could go on."""
    session = database.connect()
    pid = session.info.backend_pid
    for statement in statements:
        session.execute(statement)
    database.end_session(pid)
    with pytest.raises(psycopg.OperationalError):
        session.execute("commit")


def _is_as_undisturbed(database: Any, server: Any) -> bool:
    with server.copy("v1_rows", migrated=True) as undisturbed:
        assert database.catalog() == undisturbed.catalog()
        assert database.comparable() == undisturbed.comparable()
    return True


def test_the_objects_are_made_in_transactions(block: Any) -> None:
    """Only the repair, which commits per batch, and the index, which is built concurrently, work outside of one."""
    topic = topic_of(block.path)
    assert block.is_transaction or topic in ("stage_tracker_repair", "stage_tracker_index")


@pytest.mark.parametrize("server", ["16"], indirect=True)
def test_cut_off_inside_a_block_nothing_of_it_is_left(fresh: Fresh, server: Any, block: Any) -> None:
    """What earlier blocks committed stays, nothing of the one at work does, and the whole set then ends right."""
    database = fresh("v1_rows")
    database.migrate([path for path in database.files() if path < block.path])
    database.run(*database.statements(block.path)[: block.start])
    if block.is_transaction:
        before = (database.catalog(), database.contents())
        for end in range(1, len(block.statements), len(block.statements) // CUTS + 1):
            _interrupt(database, block.statements[:end])
        # Whatever one of the cuts had left would still be there.
        assert (database.catalog(), database.contents()) == before
    database.migrate()
    assert _is_as_undisturbed(database, server)


def test_a_backfill_that_was_cut_off_goes_on(fresh: Fresh, server: Any) -> None:
    """Batches that were committed before the end stay, and the next run repairs the rest."""
    database = fresh("v1_rows")
    database.prepare_repair()
    # More documents than go into a batch; their ids come after those of the odd rows but one.
    database.run(
        "insert into krai_core.documents (filename) select 'sound.pdf' from generate_series(1, 400)",
        "update krai_core.documents set id = 'ffffffff-ffff-4fff-bfff-ffffffffffff' where filename = 'failed'",
        """
        create function public.hold() returns trigger language plpgsql as $$
        begin
            perform pg_advisory_xact_lock(1) from (select new.filename) d where d.filename = 'failed';
            return new;
        end $$;
        create trigger hold before update on krai_core.documents for each row execute function public.hold()
        """,
    )
    gate = database.connect()
    gate.execute("select pg_advisory_lock(1)")
    session = database.connect()
    pid = session.info.backend_pid
    ended: list[BaseException] = []

    def repair() -> None:
        try:
            database.repair(session)
        except psycopg.OperationalError as error:
            ended.append(error)

    thread = threading.Thread(target=repair)
    thread.start()
    waiting = "select from pg_stat_activity where pid = %s and wait_event = 'advisory'"
    database.wait_for(lambda: database.rows(waiting, pid))
    database.end_session(pid)
    thread.join()
    gate.close()
    assert ended
    odd = "select filename from krai_core.documents where not krai_private.is_sound(stage_status)"
    assert database.rows(odd) == [("failed",)]
    database.run("drop function public.hold() cascade")
    database.migrate()
    assert database.rows(odd) == []
    with server.copy("v1_rows", migrated=True) as undisturbed:
        assert database.catalog() == undisturbed.catalog()


def _without_index(fresh: Fresh) -> tuple[Any, Path]:
    database = fresh("v1_rows", migrated=True)
    database.run("drop index krai_core.idx_documents_stage_status")
    return database, database.file("stage_tracker_index")


@pytest.mark.parametrize("end", ["cancelled", "terminated"])
def test_an_index_whose_build_was_cut_off_is_built_anew(fresh: Fresh, end: str) -> None:
    """A build that ended half-way leaves an invalid index; the next run replaces it by a valid one."""
    database, path = _without_index(fresh)
    writer = database.connect()
    writer.execute("begin; update krai_core.documents set filename = filename where filename = 'null'")
    builder = database.connect()
    pid = builder.info.backend_pid
    ended: list[BaseException] = []

    def build() -> None:
        try:
            for statement in database.statements(path):
                builder.execute(statement)
        except psycopg.OperationalError as error:
            ended.append(error)

    thread = threading.Thread(target=build)
    thread.start()
    # The build waits for transactions that may not know of the index yet.
    database.wait_for(lambda: database.rows(INDEX_STATE))
    database.run(f"select pg_{end.removesuffix('led').removesuffix('d')}_backend({pid})")
    thread.join()
    writer.execute("rollback")
    assert ended
    assert database.rows(INDEX_STATE) == [(False,)]
    database.migrate([path])
    assert database.rows(INDEX_STATE) == [(True,)]


def test_an_invalid_index_is_replaced_in_a_run_of_the_whole_set(fresh: Fresh) -> None:
    """An index that is marked invalid, however it came to that, is valid after the migrations."""
    database = fresh("v1_rows", migrated=True)
    admin = database.connect("supabase_admin")
    admin.execute(
        "update pg_index set indisvalid = false where indexrelid = 'krai_core.idx_documents_stage_status'::regclass"
    )
    admin.close()
    assert database.rows(INDEX_STATE) == [(False,)]
    database.migrate()
    assert database.rows(INDEX_STATE) == [(True,)]


def test_an_index_that_somebody_else_builds_just_now_is_left_to_them(fresh: Fresh) -> None:
    """A build in progress looks invalid too: a second migration meanwhile stops at its lock instead of dropping it."""
    database, path = _without_index(fresh)
    writer = database.connect()
    writer.execute("begin; update krai_core.documents set filename = filename where filename = 'null'")
    builder = database.connect()
    thread = threading.Thread(target=lambda: [builder.execute(part) for part in database.statements(path)])
    thread.start()
    database.wait_for(lambda: database.rows(INDEX_STATE))
    with pytest.raises(psycopg.errors.LockNotAvailable):
        database.migrate([path])
    writer.execute("rollback")
    thread.join()
    assert database.rows(INDEX_STATE) == [(True,)]
    database.migrate([path])
