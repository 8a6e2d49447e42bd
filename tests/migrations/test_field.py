"""On krai_core.documents as the field has it: much more than the tracker needs, and in use."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

Look = Callable[[str], Any]
Fresh = Callable[..., Any]


def test_no_row_and_no_other_column_is_changed(fresh: Fresh) -> None:
    """Every row of every table of the user's is afterwards what it was, updated_at too; only stage_status is new."""
    database = fresh("field")
    before = database.contents()
    database.migrate()
    after = database.contents("stage_status")
    assert {table: after[table] for table in before} == before


def test_triggers_policies_grants_and_views_are_as_before(fresh: Fresh) -> None:
    """No object of the user's is altered: what the catalog said of them it still says, line by line."""
    database = fresh("field")
    before = database.catalog()
    database.migrate()
    assert set(before) - set(database.catalog()) == set()


def test_the_only_foreign_things_in_the_schema_are_ours(fresh: Fresh) -> None:
    """On documents, one column, one index and our triggers are new, and nothing else."""
    database = fresh("field")
    before = set(database.catalog())
    database.migrate()
    new = [line for line in set(database.catalog()) - before if line.split(" ", 2)[1].startswith("krai_core.documents")]
    names = [line.split(" ", 3)[2] if line.startswith("trigger") else line.split(" ", 2)[1] for line in new]
    assert sorted(name for name in names if "documents_" not in name) == [
        "krai_core.documents",
        "krai_core.documents.stage_status",
    ]
    assert [line.split()[4] for line in new if line.startswith("index")] == ["idx_documents_stage_status"]


def test_old_queries_work(look: Look) -> None:
    """Inserts, updates, joins and views of before work as they did, also those that never heard of stages."""
    database = look("field")
    database.run("insert into krai_core.documents (filename, processing_status) values ('new.pdf', 'uploaded')")
    database.run("update krai_core.documents set processing_status = 'reprocessing' where filename = 'new.pdf'")
    assert database.rows("select processing_status from krai_core.documents where filename = 'new.pdf'") == [
        ("reprocessing",)
    ]
    assert database.value("select count(*) from public.vw_documents") == 8
    assert database.value("select count(*) from public.vw_processing_queue where filename is not null") == 7
    assert database.value("select updated_at > '2026-01-01' from public.vw_documents where filename = 'new.pdf'")


def test_a_document_goes_with_what_hangs_on_it(look: Look) -> None:
    """Deleting a document still cascades, and takes its runs along."""
    database = look("field")
    [(document,)] = database.rows("select id from krai_core.documents where filename = 'manual 3.pdf'")
    database.run(
        "delete from krai_system.processing_queue",
        f"select krai_core.start_stage('{document}', 'upload')",
        f"delete from krai_core.documents where id = '{document}'",
    )
    assert database.rows("select from krai_content.chunks where document_id = %s", document) == []
    assert database.rows("select from krai_core.stage_runs where document_id = %s", document) == []


def test_every_document_starts_pending_but_the_completed_ones(look: Look) -> None:
    """What was not completed before the tracker came starts pending; a NULL status is no exception."""
    found = look("field").rows(
        "select processing_status, array_agg(distinct s.value ->> 'status') from krai_core.documents,"
        " jsonb_each(stage_status) s group by 1 order by 1 nulls last"
    )
    states = {"completed": ["completed"]}
    expected = ["completed", "failed", "pending", "processing", "reprocessing", "uploaded", None]
    assert found == [(status, states.get(str(status), ["pending"])) for status in expected]


def test_anon_gets_nothing_of_ours_from_default_privileges(look: Look) -> None:
    """Although the schema gives everything new to anon and PUBLIC, nothing that the migrations made is theirs."""
    found = look("field").rows(
        """
        select c.oid::regclass::text from pg_class c
        where c.relnamespace = 'krai_core'::regnamespace
          and c.relname not in ('documents', 'manufacturers', 'document_relationships')
          and case c.relkind
              when 'S' then has_sequence_privilege('anon', c.oid, 'usage,select,update')
              when 'i' then false
              else has_table_privilege('anon', c.oid, 'select,insert,update,delete,truncate,references,trigger')
                or has_any_column_privilege('anon', c.oid, 'select,insert,update,references')
              end
        union all
        select p.oid::regprocedure::text from pg_proc p
        where p.pronamespace = 'krai_core'::regnamespace and p.proname <> 'update_updated_at_column'
          and has_function_privilege('anon', p.oid, 'execute')
        """
    )
    assert found == []


def test_authenticated_may_write_nothing_of_ours(look: Look) -> None:
    """Signed-in users read; they change neither the pipeline nor the runs."""
    found = look("field").rows(
        """
        select c.oid::regclass::text from pg_class c
        where c.relnamespace = 'krai_core'::regnamespace and c.relkind in ('r', 'v')
          and (c.relname like 'stage%' or c.relname like 'vw%')
          and has_table_privilege('authenticated', c.oid, 'insert,update,delete,truncate,references,trigger')
        """
    )
    assert found == []


def test_service_role_can_work_where_it_had_no_rights(fresh: Fresh) -> None:
    """On a table that service_role could not even read, it gets what the functions need and no more."""
    database = fresh("field")
    database.run("revoke all on krai_core.documents from service_role")
    database.migrate()
    found = database.rows(
        "select privilege_type, column_name from information_schema.column_privileges where grantee = 'service_role'"
        " and table_schema = 'krai_core' and table_name = 'documents' and privilege_type <> 'SELECT'"
    )
    assert found == [("UPDATE", "stage_status")]
    database.run("set role service_role")
    document = database.value("select id from krai_core.documents limit 1")
    assert database.value("select krai_core.start_stage(%s, 'upload')", document) is True
    assert database.value("select krai_core.complete_stage(%s, 'upload')", document) is True


def test_anon_who_reads_documents_is_reported(fresh: Fresh) -> None:
    """Where anon may select documents it sees stage_status: the migration says so, and how to end it."""
    database = fresh("field")
    database.migrate()
    [warning] = database.warnings
    assert "anon may select from krai_core.documents" in warning
    assert "revoke select on krai_core.documents from anon" in warning


def test_a_closed_database_is_migrated_without_a_warning(fresh: Fresh) -> None:
    """Where anon has nothing, there is nothing to report."""
    database = fresh("field")
    database.run("revoke all on krai_core.documents from anon")
    database.migrate()
    assert database.warnings == []


@pytest.mark.parametrize(
    ("column", "completed"),
    [
        ("enum", "completed"),
        ("domain", "completed"),
        ("varchar(9)", "completed"),
        ("text check (processing_status in ('pending', 'done'))", "done"),
        ("generated", "completed"),
        (None, None),
    ],
    ids=["enum", "domain", "narrow", "checked", "generated", "missing"],
)
def test_any_kind_of_processing_status_is_lived_with(fresh: Fresh, column: str | None, completed: str) -> None:
    """Enum, domain, narrow, checked, generated or missing: documents are migrated and worked on all the same."""
    database = fresh("field")
    database.run(
        "create type krai_core.status as enum ('pending', 'completed')",
        "create domain krai_core.checked_status as text check (value in ('pending', 'completed'))",
        "alter table krai_core.documents add column is_done boolean default false",
        "drop view public.vw_documents",
        "alter table krai_core.documents drop column processing_status",
    )
    kinds = {
        "enum": "krai_core.status",
        "domain": "krai_core.checked_status",
        "generated": "text generated always as (case when is_done then 'completed' else 'pending' end) stored",
    }
    if column is not None:
        database.run(f"alter table krai_core.documents add column processing_status {kinds.get(column, column)}")
        written = "is_done = true" if column == "generated" else f"processing_status = '{completed}'"
        database.run(f"update krai_core.documents set {written} where filename = 'manual 5.pdf'")
    database.migrate()
    archive = database.stage_status("manual 5.pdf")["upload"]["status"]
    assert archive == ("completed" if completed == "completed" else "pending")
    document = database.value("select id from krai_core.documents where filename = 'manual 1.pdf'")
    assert database.value("select krai_core.start_stage(%s, 'upload')", document) is True
    assert database.value("select krai_core.complete_stage(%s, 'upload')", document) is True
    assert database.stage_status("manual 1.pdf")["upload"]["status"] == "completed"
    database.run("insert into krai_core.documents (filename) values ('new.pdf')")
    assert database.stage_status("new.pdf")["upload"]["status"] == "pending"


def test_a_trigger_that_refuses_a_status_stops_no_stage(fresh: Fresh) -> None:
    """A trigger of the user's that guards processing_status is not overruled: its column stays, the stage goes on."""
    database = fresh("field")
    database.run(
        """
        create function krai_core.guard() returns trigger language plpgsql as $$
        begin
            if new.processing_status is distinct from old.processing_status then
                raise exception 'processing_status is guarded';
            end if;
            return new;
        end $$;
        create trigger guard before update on krai_core.documents for each row execute function krai_core.guard()
        """
    )
    database.migrate()
    document = database.value("select id from krai_core.documents where filename = 'manual 1.pdf'")
    assert database.value("select krai_core.start_stage(%s, 'upload')", document) is True
    assert any("processing_status is guarded" in warning for warning in database.warnings)


def test_a_column_that_a_user_has_comes_into_the_view(fresh: Fresh) -> None:
    """A column that is added later is shown after the next run of the migrations, and one that is dropped goes."""
    database = fresh("field")
    database.run("drop view public.vw_documents", "alter table krai_core.documents drop column created_at")
    database.migrate()
    database.run("alter table krai_core.documents add column created_at timestamptz")
    database.migrate()
    assert "created_at" in _columns(database)
    with pytest.raises(psycopg.errors.DependentObjectsStillExist):
        database.run("alter table krai_core.documents drop column processing_status")
    database.run("alter table krai_core.documents drop column processing_status cascade")
    database.migrate()
    assert "processing_status" not in _columns(database)
    database.run("insert into krai_core.documents (filename) values ('new.pdf')")


def _columns(database: Any) -> list[str]:
    view = "krai_core.vw_documents_by_stage"
    return [name for (name,) in database.rows("select attname from pg_attribute where attrelid = %s::regclass", view)]
