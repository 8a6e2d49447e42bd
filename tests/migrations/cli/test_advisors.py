"""The linters that Supabase shows in its dashboard, and plpgsql_check."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Fresh = Callable[..., Any]

SECURITY = Path(__file__).parents[3] / "docs/security.md"
RECIPES = re.findall(r"^```sql\n(alter table .*?)^```$", SECURITY.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
ADVISORS = ("db", "advisors", "--level", "info")
UNUSED = """
    select i.indexrelid::regclass::text from pg_index i
    join pg_class c on c.oid = i.indrelid
    where c.relnamespace = 'krai_core'::regnamespace and not i.indisunique
      and c.relname || i.indexrelid::regclass::text !~ 'file_hash' and pg_stat_get_numscans(i.indexrelid) = 0
    """


FINISH = """
select krai_core.finish_stages(jsonb_agg(jsonb_build_object(
    'document_id', r.document_id, 'stage_name', r.stage_name, 'claim_id', r.claim_id, 'outcome',
    (array['completed', 'failed', 'skipped'])[r.id % 3 + 1], 'error', 'disk full')))
from krai_core.stage_runs r where r.status = 'running'
"""
QUESTIONS = (
    "list_documents('upload', 'completed')",
    "list_documents('upload', 'skipped')",
    "list_documents('upload', 'failed')",
    "get_failures()",
    "get_stuck_stages()",
    "prune_runs('0 s', false)",
)


def _exercise(database: Any) -> None:
    """Use each index of ours that is not unique, or the linter calls it unused."""
    database.run("insert into krai_core.documents (filename) select n || '.pdf' from generate_series(1, 20) n")
    session = database.connect()
    session.execute("set enable_seqscan = off")
    session.execute(
        'select count(*) from krai_core.documents where stage_status @> \'{"upload": {"status": "failed"}}\''
    )
    session.execute("select krai_core.claim_stages('upload', 'advisors', 15, null, gen_random_uuid())")
    session.execute(FINISH)
    session.execute(
        "select krai_core.start_stage(r.document_id, 'upload') from krai_core.stage_runs r where r.is_current limit 1"
    )
    for question in QUESTIONS:
        session.execute(f"select krai_core.{question}")
    # Among twenty runs other indexes do as well for failures of one kind, and for those at work.
    session.execute("begin")
    for index in ("stage_runs_failures", "stage_runs_failed", "stage_runs_document_open_stage"):
        session.execute(f"drop index krai_core.{index}")
    session.execute(
        "select krai_core.list_documents(p_fingerprint => krai_private.error_fingerprint('disk full')::text)"
    )
    session.execute("select count(*) from krai_core.stage_runs where status = 'running' and stage_name = 'upload'")
    session.execute("rollback")
    # A session tells the server what it used when it ends.
    session.close()
    database.wait_for(lambda: not database.rows(UNUSED))


def _findings(project: Any, database: Any) -> set[str]:
    return {finding["detail"] for finding in project.results(database, *ADVISORS)}


@pytest.mark.parametrize("server", ["16"], indirect=True)
def test_the_advisors_find_nothing(fresh: Fresh, project: Any) -> None:
    """`supabase db advisors` at its lowest level, with krai_core exposed and each index used: no finding."""
    database = fresh("empty", migrated=True)
    _exercise(database)
    assert project.results(database, *ADVISORS) == []


@pytest.mark.parametrize("server", ["16"], indirect=True)
def test_what_the_advisors_say_of_the_users_own_does_not_grow(fresh: Fresh, project: Any) -> None:
    """In a database of the field they find what they found before the migration; what they found of a v1 is gone."""
    database = fresh("v1", migrated=True)
    _exercise(database)
    assert _findings(project, database) == _findings(project, fresh("field"))


@pytest.mark.parametrize("server", ["16"], indirect=True)
@pytest.mark.parametrize("recipe", RECIPES, ids=["owner", "tenant"])
def test_the_recipes_for_policies_are_as_the_advisors_want_them(fresh: Fresh, project: Any, recipe: str) -> None:
    """After a recipe of docs/security.md they find nothing but that nobody has used its index yet."""
    database = fresh("empty", migrated=True)
    database.run(recipe)
    assert {finding["name"] for finding in project.results(database, *ADVISORS)} <= {"unused_index"}


@pytest.mark.parametrize("server", ["16"], indirect=True)
def test_the_advisors_look_at_our_schema(fresh: Fresh, project: Any) -> None:
    """A table that is open is found: the silence of the advisors means something."""
    database = fresh("empty", migrated=True)
    database.run("alter table krai_core.stage_prerequisites disable row level security")
    found = {finding["name"] for finding in project.results(database, *ADVISORS)}
    assert "rls_disabled_in_public" in found


@pytest.mark.parametrize("server", ["15"], indirect=True)
def test_plpgsql_check_finds_nothing(fresh: Fresh, project: Any, server: Any) -> None:
    """`supabase db lint` finds no function that could not run."""
    database = fresh("v1_rows", migrated=True)
    if not database.rows("select from pg_available_extensions where name = 'plpgsql_check'"):
        pytest.skip(f"Postgres {server.version} has no plpgsql_check here")
    admin = database.connect("supabase_admin")
    admin.execute("create extension plpgsql_check")
    found = project.results(database, "db", "lint", "--schema", "krai_core,krai_private", "--level", "warning")
    assert found == []
