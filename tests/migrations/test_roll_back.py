"""docs/rollback.sql takes the tracker away again, and leaves the documents."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

Fresh = Callable[..., Any]

pytestmark = pytest.mark.parametrize("server", ["16"], indirect=True)

SCRIPT = Path(__file__).parents[2] / "docs/rollback.sql"
# What an earlier tracker brought, which the migration replaces: it goes with ours.
REPLACED = re.compile(
    r"^(?:routine|relation|column|view) (?:krai_core\.)?"
    r"(?:start_stage|update_stage_progress|complete_stage|fail_stage|skip_stage|get_document_progress|get_current_stage"
    r"|can_start_stage|vw_documents_by_stage|vw_stage_statistics)\b"
)
# What the migrations add to the documents, and the script leaves: the column with its default of today, and the index.
LEFT = (
    "column krai_core.documents.stage_status ",
    "index krai_core.documents CREATE INDEX idx_documents_stage_status ",
)


def lines(database: Any) -> set[str]:
    """The catalog without what an earlier tracker brought."""
    return {
        line for line in database.catalog() if not REPLACED.match(line.replace("krai_core.krai_core.", "krai_core."))
    }


def work(database: Any) -> None:
    """Use what there is, so that all tables hold something."""
    first, second = (row[0] for row in database.rows("select id from krai_core.documents order by id limit 2"))
    database.run(
        f"select krai_core.set_priority('{first}', 5)",
        f"select krai_core.start_stage('{first}', 'embedding', gen_random_uuid())",
        f"select krai_core.fail_stage('{second}', 'storage', 'disk full')",
        "select krai_core.register_stage('translation', array['text_extraction'])",
    )


@pytest.mark.parametrize("kind", ["field", "v1_rows"])
def test_what_was_there_before_is_there_after(fresh: Fresh, kind: str) -> None:
    """The catalog is that of before the migrations but for stage_status, and nothing is written to any row."""
    database = fresh(kind)
    before, tables = lines(database), set(database.contents())
    database.migrate()
    work(database)
    rows = database.contents()
    database.migrate([SCRIPT])
    assert {line for line in lines(database) ^ before if not line.startswith(LEFT)} == set()
    assert database.contents() == {table: rows[table] for table in tables}


@pytest.mark.parametrize("kind", ["empty", "v1_rows"])
def test_the_stages_stay_and_the_migrations_take_them_up_again(fresh: Fresh, kind: str) -> None:
    """What stage_status says outlives both, and the catalog is that of the first migration again."""
    database = fresh(kind, migrated=True)
    migrated = database.catalog()
    if kind == "empty":
        database.run("insert into krai_core.documents (filename) values ('a.pdf'), ('b.pdf')")
    work(database)
    query = "select id, stage_status from krai_core.documents order by id"
    before = database.rows(query)
    database.migrate([SCRIPT])
    assert database.rows(query) == before
    database.migrate()
    [default] = [line for line in migrated if line.startswith("column krai_core.documents.stage_status ")]
    assert set(migrated) ^ set(database.catalog()) <= {default}
    assert database.rows(query) == before
    assert database.value("select failed_count from krai_core.vw_stage_statistics where stage_name = 'storage'") >= 1


def test_a_view_of_the_users_over_ours_stops_it(fresh: Fresh) -> None:
    """It is named, and nothing has changed."""
    database = fresh("v1_rows", migrated=True)
    database.run("create view public.dashboard as select * from krai_core.vw_stage_statistics")
    before = (database.catalog(), database.contents())
    with pytest.raises(psycopg.errors.DependentObjectsStillExist) as caught:
        database.migrate([SCRIPT])
    assert "view dashboard depends on view krai_core.vw_stage_statistics" in str(caught.value.diag.message_detail)
    database.run("rollback")
    assert (database.catalog(), database.contents()) == before


def test_a_second_run_changes_nothing(fresh: Fresh) -> None:
    """Where the tracker is gone already, or was never there, the script does nothing."""
    database = fresh("v1_rows", migrated=True)
    database.migrate([SCRIPT])
    before = (database.catalog(), database.contents())
    database.migrate([SCRIPT])
    assert (database.catalog(), database.contents()) == before
