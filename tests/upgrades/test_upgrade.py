"""An upgrade from every version that was given away, in place, with its data, while its own worker works."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pglast
import psycopg
import pytest

from processors_v2._local.project import newest_migrations
from processors_v2.local import LocalSupabase

ROOT = Path(__file__).parents[2]
CATALOG = (ROOT / "tests" / "migrations" / "sql" / "catalog.sql").read_text(encoding="utf-8")
ALL_DONE = (
    "select not exists (select from krai_core.vw_documents_by_stage v where v.current_stage <> 'completed') "
    "and not exists (select from krai_core.stage_runs r where r.open_stage is not null)"
)


def _insert(database: psycopg.Connection[Any], count: int) -> None:
    database.execute(
        "insert into krai_core.documents (filename) select i || '.pdf' from generate_series(1, %s) i", [count]
    )


def _rows(database: psycopg.Connection[Any]) -> dict[str, list[Any]]:
    tables = ["documents", "stages", "stage_prerequisites", "stage_runs", "document_priorities"]
    query = "select to_jsonb(t) from krai_core.{} t order by to_jsonb(t)::text"
    return {table: database.execute(query.format(table)).fetchall() for table in tables}  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["postgres", "rest"])
def test_a_worker_of_before_ends_its_drain_and_todays_goes_on(
    package: Path,
    database: psycopg.Connection[Any],
    working: Callable[..., Any],
    wait_for: Callable[[str], None],
    upgrade: Callable[[], None],
    way: str,
) -> None:
    """Upgraded in its midst, the earlier worker completes all documents, and then today's does; nothing is doubled."""
    _insert(database, 300)
    with working(package, way) as said:
        wait_for("select count(*) > 200 from krai_core.stage_runs where status = 'completed'")
        upgrade()
        assert database.execute(
            "select count(*) from krai_core.stage_runs where open_stage is not null"
        ).fetchone() != (0,)
        wait_for(ALL_DONE)
    assert [line for line in said if line["level"] == "ERROR"] == []
    counts = json.loads(said[-1]["message"])
    assert counts["completed"] == 300 * 8
    _insert(database, 50)
    with working(ROOT, way) as said:
        wait_for(ALL_DONE)
    assert json.loads(said.pop()["message"])["completed"] == 50 * 8
    assert said == []
    done = "select count(*), count(distinct (document_id, stage_name)) from krai_core.stage_runs r where r.is_current"
    assert database.execute(done).fetchone() == (350 * 8, 350 * 8)
    for check, whole in (
        ("rebuild_ready_runs", {"added": 0, "removed": 0, "adopted": 0}),
        ("rebuild_statistics", {"mended": 0}),
    ):
        assert database.execute(f"select krai_core.{check}()").fetchone() == (whole,)  # type: ignore[arg-type]


def _finish(stage: str, count: int, outcome: str) -> str:
    return (
        f"select krai_core.finish_stages((select jsonb_agg(r || '{outcome}') "
        f"from jsonb_array_elements(krai_core.claim_stages('{stage}', 'w', {count})) r))"
    )


def _leave_everything(database: psycopg.Connection[Any]) -> None:
    """Data of every kind that a database of the tracker may hold, made by the functions that are there."""
    database.execute("select krai_core.register_stage('translation', array['text_extraction'], p_weight => 3)")
    _insert(database, 30)
    statements = [
        "select krai_core.pause_stage('storage', 'bert')",
        "select krai_core.disable_stage('search_indexing')",
        "select krai_core.set_priority(id, 7, 'anna') from (select id from krai_core.documents order by id limit 3) d",
        _finish("upload", 20, '{"outcome": "completed", "metadata": {"pages": 3}}'),
        _finish("text_extraction", 5, '{"outcome": "failed", "error": "bad page 7", "retry": true}'),
        "select krai_core.fail_stage(id, 'image_processing', 'no') from krai_core.documents where filename = '20.pdf'",
        "select krai_core.cancel_document(id, 'withdrawn') from krai_core.documents where filename = '1.pdf'",
        "select krai_core.reset_stage(id, 'upload', true, true) from krai_core.documents where filename = '4.pdf'",
        """update krai_core.documents
           set stage_status = jsonb_set(stage_status, '{embedding,status}', '"completed"') where filename = '9.pdf'""",
        "select krai_core.claim_stages('classification', 'held', 3)",
        # The pipeline has changed, and the runs follow it before anything is compared.
        "select krai_core.fill_ready_runs(1000)",
        "select krai_core.fill_ready_runs(1000)",
    ]
    for statement in statements:
        database.execute(statement)  # type: ignore[arg-type]


def test_what_was_there_is_there_and_the_catalog_is_that_of_a_new_installation(
    stack: LocalSupabase, database: psycopg.Connection[Any], upgrade: Callable[[], None]
) -> None:
    """No row changes, and nothing of the earlier version is left behind."""
    _leave_everything(database)
    before = _rows(database)
    upgrade()
    assert _rows(database) == before
    told = database.execute("select krai_core.get_installation()").fetchone()
    assert told is not None
    for key in ("missing_objects", "missing_grants", "excess_grants", "leftovers", "tables_without_rls"):
        assert told[0][key] == [], key
    stack.create_database("fresh")
    stack.apply_to("fresh", newest_migrations())
    with psycopg.connect(stack.url_of("fresh"), autocommit=True) as fresh:
        fresh.execute("select krai_core.register_stage('translation', array['text_extraction'])")
        fresh.execute("select krai_core.disable_stage('search_indexing')")
        assert _catalog(database) == _catalog(fresh)
    after = database.execute("select krai_core.rebuild_ready_runs(), krai_core.rebuild_statistics()").fetchone()
    assert after == ({"added": 0, "removed": 0, "adopted": 0}, {"mended": 0})


def _catalog(connection: psycopg.Connection[Any]) -> list[str]:
    return [line for (line,) in connection.execute(CATALOG)]  # type: ignore[arg-type]


def test_helpers_of_before_stay_while_somebody_may_be_using_them(
    stack: LocalSupabase, database: psycopg.Connection[Any], upgrade: Callable[[], None]
) -> None:
    """A transaction from before the change keeps them, with a WARNING; once it is over, they can go."""
    with psycopg.connect(stack.database_url) as old:
        old.execute("select 1")
        upgrade()
        old.execute("select krai_core.complete_stage(id, 'upload') from krai_core.documents")
        left = database.execute("select cardinality(krai_private.leftovers())").fetchone()
        assert left is not None
        assert left[0] > 100
        # What a body of before would do.
        old.execute("select krai_core._stage_named('upload')")
    assert database.execute("select krai_private.drop_leftovers()").fetchone() == ([],)


def test_killed_anywhere_and_run_again_it_ends_the_same(
    stack: LocalSupabase, database: psycopg.Connection[Any], upgrade: Callable[[], None]
) -> None:
    """Ended behind any statement, in a block or between two, and run again: no row is lost, nothing is left over."""
    _leave_everything(database)
    before = _rows(database)
    statements = [
        statement for path in newest_migrations() for statement in pglast.split(path.read_text(encoding="utf-8"))
    ]
    for stop in range(25, len(statements), 70):
        with psycopg.connect(stack.database_url, autocommit=True) as doomed:
            for statement in statements[:stop]:
                doomed.execute(statement)  # type: ignore[arg-type]
            doomed.close()
        assert _rows(database) == before
    upgrade()
    assert _rows(database) == before
    told = database.execute("select krai_core.get_installation()").fetchone()
    assert told is not None
    assert (told[0]["missing_objects"], told[0]["excess_grants"], told[0]["leftovers"]) == ([], [], [])


def test_a_state_that_was_never_given_away_gets_a_sentence(
    stack: LocalSupabase, database: psycopg.Connection[Any], upgrade: Callable[[], None]
) -> None:
    """A table without the columns of the first version stops the upgrade, nothing changes, and the way out is one."""
    _leave_everything(database)
    database.execute("alter table krai_core.stage_runs drop column opens_claim cascade")
    before = _catalog(database)
    with pytest.raises(Exception, match="was made by an unreleased state .*no column opens_claim.*docs/migrating.md"):
        upgrade()
    assert _catalog(database) == before
    # The pipeline is that of the beginning then, in which search_indexing is enabled.
    kept = "select jsonb_object_agg(id, stage_status - 'search_indexing') from krai_core.documents"
    status = database.execute(kept).fetchone()
    stack.apply(ROOT / "docs" / "rollback.sql")
    upgrade()
    assert database.execute(kept).fetchone() == status
