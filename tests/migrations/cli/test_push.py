"""`supabase db push` with the real CLI."""

from collections.abc import Callable
from typing import Any

import pytest

Fresh = Callable[..., Any]
Dump = Callable[[Any], str]


def test_push_and_psql_give_the_same(fresh: Fresh, project: Any, server: Any) -> None:
    """What `supabase db push` leaves is what psql leaves, file by file: catalog, privileges, comments and rows."""
    pushed = fresh("v1_rows")
    project.push(pushed)
    with server.copy("v1_rows", migrated=True) as by_psql:
        assert [line for line in pushed.catalog() if "supabase_migrations" not in line] == by_psql.catalog()
        assert pushed.comparable() == by_psql.comparable()


@pytest.mark.parametrize("server", ["16"], indirect=True)
def test_push_and_psql_give_the_same_dump(fresh: Fresh, project: Any, server: Any, schema_dump: Dump) -> None:
    """From an empty database both ways lead to the same dump of the schema, and a second push finds nothing to do."""
    pushed = fresh("empty")
    project.push(pushed)
    with server.copy("empty", migrated=True) as by_psql:
        assert _plain(schema_dump(pushed)) == _plain(schema_dump(by_psql))
    assert "up to date" in project.push(pushed)


def _plain(dump: str) -> list[str]:
    # Newer versions of pg_dump put a random word into their output.
    return [line for line in dump.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]


@pytest.mark.parametrize("server", ["16"], indirect=True)
def test_a_push_that_was_refused_can_be_repeated(fresh: Fresh, project: Any) -> None:
    """The sentence of the migration reaches the user, nothing is left, and after the way out the push goes through."""
    database = fresh("v1_rows")
    database.run("create view public.dashboard as select stage_name from krai_core.vw_stage_statistics")
    before = database.contents()
    said = " ".join(project.push(database, fails=True).split())
    assert "view dashboard uses krai_core.vw_stage_statistics. Save the definition of yours" in said
    assert database.contents() == before
    database.run("drop view public.dashboard")
    project.push(database)
    assert database.value("select count(*) from krai_core.vw_documents_by_stage") == 29


@pytest.mark.parametrize("server", ["16"], indirect=True)
def test_a_push_that_lost_its_lock_is_repeated(fresh: Fresh, project: Any) -> None:
    """Behind a long reader the push ends with the lock timeout of the file, and the next push goes on from there."""
    database = fresh("field")
    reader = database.connect()
    reader.execute("begin; select count(*) from krai_core.documents")
    assert "lock timeout" in project.push(database, fails=True)
    reader.execute("commit")
    project.push(database)
    assert database.stage_status("manual 1.pdf")["upload"]["status"] == "pending"


@pytest.mark.parametrize("server", ["16"], indirect=True)
def test_a_push_over_an_invalid_index_builds_it_anew(fresh: Fresh, project: Any) -> None:
    """Where the build was cut off, only its own file is pushed again, and that is enough."""
    database = fresh("v1_rows")
    project.push(database)
    version, _ = database.file("stage_tracker_index").name.split("_", 1)
    database.run(f"delete from supabase_migrations.schema_migrations where version = '{version}'")
    admin = database.connect("supabase_admin")
    admin.execute(
        "update pg_index set indisvalid = false where indexrelid = 'krai_core.idx_documents_stage_status'::regclass"
    )
    project.push(database)
    query = "select indisvalid from pg_index where indexrelid = 'krai_core.idx_documents_stage_status'::regclass"
    assert database.value(query) is True


@pytest.mark.parametrize("server", ["16"], indirect=True)
def test_a_long_backfill_outlives_the_statement_timeout_of_the_role(fresh: Fresh, project: Any) -> None:
    """Hosted projects end a statement after two minutes; backfill and index build lift that for themselves."""
    database = fresh("v1_rows")
    database.run(
        f"alter database \"{database.name}\" set statement_timeout = '400ms'",
        "create function public.slow() returns trigger language plpgsql as"
        " $$ begin perform pg_sleep(0.05); return new; end $$",
        "create trigger slow before update on krai_core.documents for each row execute function public.slow()",
    )
    project.push(database)
    assert database.value("select bool_and(krai_private.is_sound(stage_status)) from krai_core.documents")
