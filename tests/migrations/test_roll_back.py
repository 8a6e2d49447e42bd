"""docs/rollback.sql takes the tracker away again, and leaves the documents."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tools.build_rollback import filled, names

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


# What a user may have built on the tracker, how the script names it, and how it goes.
USES = [
    (
        "create view public.dashboard as select * from krai_core.vw_stage_statistics",
        "view public.dashboard uses view krai_core.vw_stage_statistics",
        "drop view public.dashboard",
    ),
    (
        "create view public.sound as select krai_private.is_sound(stage_status) as is_sound from krai_core.documents",
        "view public.sound uses routine krai_private.is_sound(jsonb)",
        "drop view public.sound",
    ),
    (
        "create table public.notes (stage_name text references krai_core.stages)",
        "constraint notes_stage_name_fkey on table public.notes uses table krai_core.stages",
        "drop table public.notes",
    ),
    (
        "create function public.age(krai_core.stage_runs) returns interval language sql return now() - ($1).started_at",
        "function public.age(krai_core.stage_runs) uses table krai_core.stage_runs",
        "drop function public.age",
    ),
    (
        "create table krai_private.notes (note text)",
        "table krai_private.notes uses schema krai_private",
        "drop table krai_private.notes",
    ),
]


@pytest.mark.parametrize(("made", "said", "dropped"), USES, ids=[said.split(" uses ")[0] for _, said, _ in USES])
def test_what_a_user_built_on_ours_stops_it(fresh: Fresh, made: str, said: str, dropped: str) -> None:
    """It is named in the message itself, nothing has changed, and without it the script goes through."""
    database = fresh("v1_rows", migrated=True)
    database.run(made)
    before = (database.catalog(), database.contents())
    with pytest.raises(psycopg.errors.DependentObjectsStillExist) as caught:
        database.migrate([SCRIPT])
    assert f"stays as it is, because {said}. Keep the definition" in str(caught.value.diag.message_primary)
    database.run("rollback")
    assert (database.catalog(), database.contents()) == before
    database.run(dropped)
    database.migrate([SCRIPT])
    assert database.value("select to_regnamespace('krai_private')") is None


def test_a_migration_that_was_interrupted_is_taken_away(fresh: Fresh, block: Any) -> None:
    """Whatever blocks of the first migration there are, the script leaves what was there before."""
    database = fresh("field")
    before = lines(database)
    database.migrate([path for path in database.files() if path < block.path])
    database.run(*database.statements(block.path)[: block.start])
    database.migrate([SCRIPT])
    assert {line for line in lines(database) ^ before if not line.startswith(LEFT)} == set()


def test_an_earlier_state_is_taken_away(fresh: Fresh) -> None:
    """Before 0.1.1 all helpers stood in krai_core and no list named them: the script knows their names."""
    database = fresh("v1_rows")
    before = lines(database)
    database.migrate()
    work(database)
    database.move_helpers_back()
    database.migrate([SCRIPT])
    assert {line for line in lines(database) ^ before if not line.startswith(LEFT)} == set()


def test_an_upgrade_that_was_interrupted_is_taken_away(fresh: Fresh) -> None:
    """Where helpers of before stand in krai_core beside those of krai_private, and are used, both go."""
    database = fresh("v1_rows")
    before = lines(database)
    database.migrate()
    database.move_helpers_back()
    for block in database.blocks(database.file("stage_tracker")):
        database.run(*block.statements)
        if block.section == "42_leftovers":
            break
    assert database.value("select cardinality(krai_private.leftovers())") > 100
    database.migrate([SCRIPT])
    assert {line for line in lines(database) ^ before if not line.startswith(LEFT)} == set()


def test_the_names_are_those_of_the_list(look: Callable[[str], Any]) -> None:
    """For a state without a list of its own the script holds the names of today's and of the leftovers."""
    found = names()
    for kind, name in look("empty").rows(
        "select kind, replace(name, 'krai_core.', '') from krai_private.access_list()"
    ):
        assert kind not in found or name in found[kind]
    assert filled(SCRIPT.read_text(encoding="utf-8")) == SCRIPT.read_text(encoding="utf-8")


@pytest.mark.parametrize(("kind", "migrated"), [("v1_rows", True), ("v1_rows", False), ("field", False)])
def test_where_there_is_no_tracker_nothing_changes(fresh: Fresh, kind: str, *, migrated: bool) -> None:
    """Where the tracker is gone already, or an earlier one is there or none, the script does nothing."""
    database = fresh(kind, migrated=migrated)
    if migrated:
        database.migrate([SCRIPT])
    before = (database.catalog(), database.contents())
    database.migrate([SCRIPT])
    assert (database.catalog(), database.contents()) == before
