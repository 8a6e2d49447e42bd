"""The backfill beside triggers, constraints and transactions of the user's."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

Fresh = Callable[..., Any]

AUDIT = """
    create table krai_core.audit (filename text, old jsonb, new jsonb);
    create function krai_core.audit() returns trigger language plpgsql as $$
    begin
        insert into krai_core.audit values (new.filename, to_jsonb(old), to_jsonb(new));
        return null;
    end $$;
    create trigger audit after update on krai_core.documents for each row execute function krai_core.audit()
    """
REFUSED = "alter table krai_core.documents add constraint named_well check (filename <> 'strings') not valid"
ODD = "select filename from krai_core.documents where not krai_private.is_sound(stage_status)"
SOUND = "select krai_private.is_sound(stage_status) from krai_core.documents where filename = %s"


@contextmanager
def _may_silence_triggers(database: Any) -> Iterator[None]:
    """What hosted Supabase allows the role postgres, and plain Postgres does not."""
    admin = database.connect("supabase_admin")
    admin.execute("grant set on parameter session_replication_role to postgres")
    try:
        yield
    finally:
        admin.execute("revoke set on parameter session_replication_role from postgres")


def test_no_trigger_hears_of_the_repair_where_that_can_be_had(fresh: Fresh) -> None:
    """Where the role may set session_replication_role, the repair is no event for audit trails and webhooks."""
    database = fresh("v1_rows")
    database.run(AUDIT)
    with _may_silence_triggers(database):
        database.migrate()
        assert database.value("select count(*) from krai_core.audit") == 0
        # In the same session all is as before.
        assert database.value("show session_replication_role") == "origin"
        database.run("update krai_core.documents set file_size = 1 where filename = 'failed'")
    assert database.value("select count(*) from krai_core.audit") == 1
    assert database.value("select updated_at > '2026-01-01' from krai_core.documents where filename = 'failed'")


def test_triggers_are_silent_for_the_repair_alone(fresh: Fresh) -> None:
    """In a transaction that goes on after a batch, triggers fire as before."""
    database = _before_the_repair(fresh)
    database.run(AUDIT)
    with _may_silence_triggers(database):
        database.run("begin", "select krai_private.repair_batch(null, 100)")
        assert database.value("show session_replication_role") == "origin"
        database.run("update krai_core.documents set file_size = 1 where filename = 'failed'", "commit")
    assert database.value("select count(*) from krai_core.audit") == 1


def test_a_trigger_that_hears_of_the_repair_hears_of_no_other_change(fresh: Fresh) -> None:
    """Elsewhere triggers fire, and what they are told is that stage_status changed and nothing else."""
    database = fresh("v1_rows")
    database.run(AUDIT)
    database.migrate()
    assert database.value("select count(*) from krai_core.audit") > 10
    told = "select count(*) from krai_core.audit where old - 'stage_status' <> new - 'stage_status'"
    assert database.value(told) == 0


def test_both_ways_give_the_same_rows(fresh: Fresh) -> None:
    """Whether triggers are silenced or not makes no difference to what is stored."""
    silent, loud = fresh("v1_rows"), fresh("v1_rows")
    with _may_silence_triggers(silent):
        silent.migrate()
    loud.migrate()
    assert silent.comparable() == loud.comparable()


def test_a_row_that_a_constraint_refuses_is_left_and_reported(fresh: Fresh) -> None:
    """Old rows that break a NOT VALID constraint cannot be updated: the migration names one and repairs all others."""
    database = fresh("v1_rows")
    database.run(
        REFUSED,
        "revoke select on krai_core.documents from anon",
    )
    before = database.stage_status("strings")
    database.migrate()
    [warning] = database.warnings
    document = database.value("select id from krai_core.documents where filename = 'strings'")
    assert "1 documents were not repaired, because krai_core.documents refuses to have them updated" in warning
    assert f"the first is {document}" in warning
    assert "named_well" in warning
    assert database.stage_status("strings") == before
    assert database.rows(ODD) == [("strings",)]


def test_a_row_that_was_left_is_read_rightly_and_can_be_repaired_later(fresh: Fresh) -> None:
    """Views and functions read the odd row as it is meant; once it conforms, the file is run again."""
    database = fresh("v1_rows")
    database.run(REFUSED)
    database.migrate()
    query = "select current_stage, upload_status ->> 'status' from krai_core.vw_documents_by_stage where filename = %s"
    assert database.rows(query, "strings") == [("text_extraction", "completed")]
    database.run("alter table krai_core.documents drop constraint named_well")
    database.migrate([database.file("stage_tracker_repair")])
    assert database.value(SOUND, "strings") is True


def test_a_row_that_a_trigger_refuses_is_left_and_reported(fresh: Fresh) -> None:
    """A trigger that keeps old documents from being changed keeps its word, and stops no other document."""
    database = fresh("v1_rows")
    database.run(
        """
        create function krai_core.keep_frozen() returns trigger language plpgsql as $$
        begin
            if old.filename in ('strings', 'failed') then raise exception 'document % is frozen', old.filename; end if;
            return new;
        end $$;
        create trigger keep_frozen before update on krai_core.documents
            for each row execute function krai_core.keep_frozen()
        """
    )
    database.migrate()
    assert any("2 documents were not repaired" in warning and "is frozen" in warning for warning in database.warnings)
    assert sorted(database.rows(ODD)) == [("failed",), ("strings",)]


def _repair_beside(database: Any, holder: psycopg.Connection[Any]) -> threading.Thread:
    """Start the repair, and wait until it stands before the row that the holder has."""
    session = database.connect()
    thread = threading.Thread(target=database.repair, args=[session])
    thread.start()
    query = "select from pg_stat_activity where pid = %s and %s = any (pg_blocking_pids(pid))"
    database.wait_for(lambda: database.rows(query, session.info.backend_pid, holder.info.backend_pid))
    return thread


def _before_the_repair(fresh: Fresh) -> Any:
    database = fresh("v1_rows")
    database.prepare_repair()
    return database


def test_rows_that_others_hold_are_waited_for_last_and_alone(fresh: Fresh) -> None:
    """While one row is held, all others get repaired, and nobody else has to wait for the repair."""
    database = _before_the_repair(fresh)
    holder = database.connect()
    holder.execute("begin; select from krai_core.documents where filename in ('strings', 'failed') for update")
    thread = _repair_beside(database, holder)
    assert sorted(database.rows(ODD)) == [("failed",), ("strings",)]
    database.run(
        "set lock_timeout = '5s'",
        "update krai_core.documents set file_size = 5 where filename not in ('strings', 'failed')",
    )
    holder.execute("commit")
    thread.join()
    assert database.rows(ODD) == []


def test_what_others_commit_meanwhile_is_not_overwritten(fresh: Fresh) -> None:
    """The repair decides on the row as it is when it has the lock, not as it was when it was found."""
    database = _before_the_repair(fresh)
    document = database.value("select id from krai_core.documents where filename = 'archive untouched'")
    holder = database.connect()
    holder.execute(f"begin; select krai_core.start_stage('{document}', 'upload')")
    thread = _repair_beside(database, holder)
    holder.execute("commit")
    thread.join()
    found = database.stage_status("archive untouched")
    # It has been worked on since: no archive any more.
    assert (found["upload"]["status"], found["storage"]["status"]) == ("processing", "pending")
    assert database.value(SOUND, "archive untouched") is True


def test_a_row_that_is_held_for_ever_does_not_hold_the_migration(fresh: Fresh) -> None:
    """After its patience the repair ends with a WARNING that names the row and says what to do."""
    database = _before_the_repair(fresh)
    database.run("alter function krai_private.repair_held set lock_timeout = '50ms'")
    holder = database.connect()
    holder.execute("begin; select from krai_core.documents where filename in ('strings', 'failed') for update")
    database.warnings.clear()
    database.repair()
    [warning] = database.warnings
    assert "2 documents were not repaired, because another transaction holds them" in warning
    assert "pg_stat_activity" in warning
    holder.execute("commit")
    database.repair()
    assert database.rows(ODD) == []
