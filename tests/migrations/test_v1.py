"""Over an earlier version of the tracker: its column, index, functions and views, and the rows that it left."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

Look = Callable[[str], Any]
Fresh = Callable[..., Any]

STAGES = "upload text_extraction image_processing classification metadata_extraction storage embedding search_indexing"
KEYS = {"status", "started_at", "completed_at", "duration_seconds", "progress", "error", "metadata"}
IN_PROGRESS = {
    "status": "in_progress",
    "started_at": "2026-11-23 17:09:20.958275+00",
    "note": "by hand",
}

# Of each odd row: what its stages say afterwards, and what became of the odd values. All else is pending.
STATES = {
    "null": "",
    "empty object": "",
    "partial": "upload completed",
    "json null": "",
    "whole value a string": "",
    "whole value an array": "",
    "whole value a number": "",
    "strings": "upload completed",
    "status in_progress": "",
    "stages of other kinds": "",
    "unknown keys": "upload completed",
    "progress NaN": "upload processing",
    "progress out of range": "upload completed",
    "negative duration": "upload completed",
    "metadata an array": "upload completed",
    "failed": "upload failed",
    "skipped": "image_processing skipped",
    "times that are none": "upload completed",
    "status of another case": "",
}
KEPT = [
    ("whole value a string", ["upload", "metadata", "v1"], "completed"),
    ("whole value an array", ["upload", "metadata", "v1"], ["upload", "storage"]),
    ("whole value a number", ["upload", "metadata", "v1"], 42),
    ("strings", ["upload", "metadata", "v1"], "completed"),
    ("strings", ["text_extraction", "metadata", "v1"], "in_progress"),
    ("strings", ["storage", "metadata", "v1"], "failed"),
    ("status in_progress", ["text_extraction", "metadata", "v1"], IN_PROGRESS),
    ("status in_progress", ["text_extraction", "started_at"], None),
    ("stages of other kinds", ["upload", "metadata", "v1"], [1, 2]),
    ("stages of other kinds", ["storage", "metadata", "v1"], 7),
    ("stages of other kinds", ["embedding", "metadata", "v1"], True),
    ("unknown keys", ["product_extraction"], "completed"),
    ("unknown keys", ["chunking"], {"status": "in_progress"}),
    ("unknown keys", ["upload", "worker"], "w1"),
    ("progress NaN", ["upload", "progress"], 0),
    ("progress NaN", ["upload", "metadata", "v1", "progress"], "NaN"),
    ("progress out of range", ["upload", "progress"], 100),
    ("progress out of range", ["upload", "metadata", "v1", "progress"], 150),
    ("progress out of range", ["storage", "metadata", "v1", "progress"], -5),
    ("negative duration", ["upload", "duration_seconds"], None),
    ("negative duration", ["upload", "metadata", "v1", "duration_seconds"], -3600.5),
    ("metadata an array", ["upload", "metadata", "v1", "metadata"], [1, 2]),
    ("failed", ["upload", "error"], "bad OCR"),
    ("failed", ["upload", "progress"], 80),
    ("failed", ["upload", "metadata"], {"page": 7}),
    ("failed", ["upload", "started_at"], "2026-11-23T17:09:20.000000Z"),
    ("skipped", ["image_processing", "metadata"], {"reason": "No images found in PDF"}),
    ("times that are none", ["upload", "started_at"], None),
    ("times that are none", ["upload", "metadata", "v1", "started_at"], "yesterday-ish"),
    ("times that are none", ["upload", "metadata", "v1", "completed_at"], 1764),
    ("partial", ["upload", "started_at"], "2026-11-23T17:09:20.958275Z"),
    ("partial", ["upload", "completed_at"], "2026-11-23T17:09:22.158275Z"),
    ("partial", ["upload", "duration_seconds"], 1.2),
    ("partial", ["upload", "metadata"], {"page_count": 12}),
    ("status of another case", ["upload", "metadata", "v1", "status"], "Completed"),
    ("status of another case", ["storage", "metadata", "v1", "status"], 5),
]


@pytest.mark.parametrize(("filename", "states"), STATES.items())
def test_each_odd_row_says_what_it_meant(look: Look, filename: str, states: str) -> None:
    """A plain "completed" means completed, a known status means itself, and all else means pending."""
    found = look("v1_rows").stage_status(filename)
    expected = dict.fromkeys(STAGES.split(), "pending")
    if states:
        stage, state = states.split()
        expected[stage] = state
    assert {stage: found[stage]["status"] for stage in STAGES.split()} == expected


@pytest.mark.parametrize(("filename", "path", "value"), KEPT)
def test_nothing_odd_is_lost(look: Look, filename: str, path: list[str], value: Any) -> None:
    """What has no place in the seven keys is kept in metadata.v1, and what has one is in it."""
    found = look("v1_rows").stage_status(filename)
    for key in path:
        found = found[key]
    assert found == value


def test_every_stage_of_every_row_has_the_seven_keys(look: Look) -> None:
    """After the migration each of the eight stages of each document is in the shape of the seven keys."""
    database = look("v1_rows")
    assert database.value("select bool_and(krai_private.is_sound(stage_status)) from krai_core.documents")
    for (stage_status,) in database.rows("select stage_status from krai_core.documents"):
        assert {stage for stage in STAGES.split() if set(stage_status[stage]) >= KEYS} == set(STAGES.split())


@pytest.mark.parametrize("filename", ["archive without a value", "archive untouched", "manual 5.pdf"])
def test_a_document_that_was_completed_stays_so(look: Look, filename: str) -> None:
    """processing_status = 'completed' over untouched stages: completed in each, without times."""
    for stage in look("v1_rows").stage_status(filename).values():
        assert (stage["status"], stage["progress"], stage["metadata"]) == ("completed", 100, {"v1": "completed"})
        assert (stage["started_at"], stage["completed_at"], stage["duration_seconds"]) == (None, None, None)


def test_a_completed_document_with_some_stages_tracked_is_an_archive_too(look: Look) -> None:
    """Processors of old never tracked all stages: those that were touched keep their word, the others are completed."""
    found = look("v1_rows").stage_status("archive never tracked to its end")
    assert found["upload"]["duration_seconds"] == 10
    assert (found["storage"]["status"], found["storage"]["error"]) == ("failed", "no bucket")
    assert found["text_extraction"]["metadata"] == {"v1": "in_progress"}
    others = set(STAGES.split()) - {"storage"}
    assert {found[stage]["status"] for stage in others} == {"completed"}


def test_archives_count_in_no_average(look: Look) -> None:
    """Stages that were completed before the tracker are counted as completed, and in no duration."""
    columns = "stage_name, completed_count, avg_duration_seconds"
    found = look("v1_rows").rows(f"select {columns} from krai_core.vw_stage_statistics")
    averages = {stage: (count, average) for stage, count, average in found}
    assert averages["search_indexing"] == (4, None)
    # 1.2 and 10 seconds; the negative one and those of the archives are not durations.
    assert float(averages["upload"][1]) == pytest.approx(5.6)


def test_legacy_columns_and_times_are_not_written(fresh: Fresh) -> None:
    """The migration changes stage_status and no other column, processing_status and updated_at least of all."""
    database = fresh("v1_rows")
    before = database.contents("stage_status")["krai_core.documents"]
    database.migrate()
    assert database.contents("stage_status")["krai_core.documents"] == before


def test_a_sound_row_is_not_written(fresh: Fresh) -> None:
    """What is as it should be costs no new row version, and no lock."""
    database = fresh("v1")
    query = "select filename, ctid::text from krai_core.documents where processing_status <> 'completed' order by 1"
    before = database.rows(query)
    database.migrate()
    assert database.rows(query) == before


def test_calls_by_name_have_one_meaning(look: Look) -> None:
    """Beside ours no old signature is left that would make a call of the seed ambiguous; each answers as ours does."""
    database = look("v1_rows")
    names = database.rows(
        "select proname from pg_proc where pronamespace = 'krai_core'::regnamespace group by 1 having count(*) > 1"
    )
    assert names == []
    document = database.value("select id from krai_core.documents where filename = 'null'")
    named = f"p_document_id => '{document}', p_stage_name => 'upload'"
    assert database.value(f"select krai_core.start_stage({named})") is True
    assert database.value(f"select krai_core.update_stage_progress({named}, p_progress => 45.5)") is True
    assert database.value(f"select krai_core.complete_stage({named})") is True
    assert database.value(f"select krai_core.fail_stage('{document}', 'storage', 'OCR engine timeout')") is True
    assert database.value(f"select krai_core.skip_stage('{document}', 'embedding')") is True
    assert database.value(f"select krai_core.get_document_progress('{document}')") == 25
    assert database.value(f"select krai_core.get_current_stage('{document}')") == "text_extraction"
    assert database.value(f"select krai_core.can_start_stage('{document}', 'text_extraction')") is True


def test_the_views_show_what_they_showed_before(look: Look) -> None:
    """Each column of the earlier views is there by its name, and further ones beside it."""
    database = look("v1_rows")
    database.run(
        "select id, filename, processing_status, current_stage, progress_percentage, upload_status,"
        " text_extraction_status, image_processing_status, classification_status, metadata_extraction_status,"
        " storage_status, embedding_status, search_indexing_status, created_at, updated_at"
        " from krai_core.vw_documents_by_stage",
        "select stage_name, pending_count, processing_count, completed_count, failed_count, skipped_count,"
        " avg_duration_seconds from krai_core.vw_stage_statistics",
    )
    assert database.value("select count(*) from krai_core.vw_documents_by_stage") == 29


def test_rights_that_stood_open_are_closed(look: Look) -> None:
    """The functions that kept their signature were executable by everybody, and are no longer."""
    found = look("v1").rows(
        "select p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'krai_core'::regnamespace"
        " and p.proname <> 'update_updated_at_column' and has_function_privilege('anon', p.oid, 'execute')"
    )
    assert found == []


def test_open_wrappers_in_public_are_closed_and_reported(fresh: Fresh) -> None:
    """Wrappers with the rights of their owner that anon could call are revoked, with a WARNING that names them."""
    database = fresh("v1")
    database.run("revoke select on krai_core.documents from anon")
    database.load("v1_wrappers.sql")
    database.migrate()
    [warning] = database.warnings
    assert "public.start_stage(uuid, text)" in warning
    assert "public.fail_stage(uuid, text, text, jsonb)" in warning
    assert "public.get_current_stage(uuid)" in warning
    may = "select has_function_privilege(%s, 'public.start_stage(uuid, text)', 'execute')"
    roles = ["anon", "authenticated", "service_role"]
    assert [role for role in roles if database.value(may, role)] == ["service_role"]


def test_a_namesake_of_another_system_is_left_alone(fresh: Fresh) -> None:
    """A function in public that only shares a name with ours keeps its rights."""
    database = fresh("v1")
    database.load("v1_wrappers.sql")
    database.migrate()
    assert database.value("select has_function_privilege('anon', 'public.skip_stage(text)', 'execute')")


def test_wrappers_are_reported_once(fresh: Fresh) -> None:
    """What is closed already is no news in the next run."""
    database = fresh("v1")
    database.run("revoke select on krai_core.documents from anon")
    database.load("v1_wrappers.sql")
    database.migrate()
    database.warnings.clear()
    database.migrate()
    assert database.warnings == []


def test_a_default_of_an_empty_object_is_replaced(fresh: Fresh) -> None:
    """A column with default '{}', nullable or not, gets the eight stages as its default, and its rows are repaired."""
    database = fresh("field")
    database.run("alter table krai_core.documents add column stage_status jsonb not null default '{}'")
    database.migrate()
    default = "select pg_get_expr(adbin, adrelid) from pg_attrdef where adrelid = 'krai_core.documents'::regclass"
    assert any("search_indexing" in expression for (expression,) in database.rows(default))
    database.run("insert into krai_core.documents (filename) values ('new.pdf')")
    for filename in ("manual 1.pdf", "new.pdf"):
        assert set(database.stage_status(filename)) == set(STAGES.split())
    # An explicit null is repaired before the constraint sees it.
    database.run("insert into krai_core.documents (filename, stage_status) values ('null.pdf', null)")
    assert set(database.stage_status("null.pdf")) == set(STAGES.split())


def test_a_view_of_the_users_over_the_old_views_stops_it(fresh: Fresh) -> None:
    """It is named, the way out is told, nothing is left behind, and after the way out the migration goes through."""
    database = fresh("v1_rows")
    database.run("create view public.dashboard as select stage_name, failed_count from krai_core.vw_stage_statistics")
    _stops(database, "view dashboard uses krai_core.vw_stage_statistics", "pg_get_viewdef")
    database.run("drop view public.dashboard")
    database.migrate()
    database.run("create view public.dashboard as select stage_name, failed_count from krai_core.vw_stage_statistics")


def test_what_uses_an_old_function_stops_it(fresh: Fresh) -> None:
    """A function of the user's that holds on to an old signature is named in the same way."""
    database = fresh("v1_rows")
    database.run(
        "create function public.begin_upload(id uuid) returns void"
        " begin atomic select krai_core.start_stage(id, 'upload'); end"
    )
    _stops(database, "function begin_upload(uuid) uses krai_core.start_stage()", "pg_get_functiondef")


def test_a_view_over_the_documents_is_no_obstacle(fresh: Fresh) -> None:
    """Views of the user's over documents, stage_status included, and over functions that stay, survive."""
    database = fresh("v1_rows")
    database.run(
        "create view public.progress as select id, stage_status, krai_core.get_document_progress(id) as progress"
        " from krai_core.documents",
    )
    database.migrate()
    assert database.value("select max(progress) from public.progress") == 100


def test_a_view_over_our_views_survives_a_second_run(fresh: Fresh) -> None:
    """What a user builds on the views as they are now is not in the way of running the migrations again."""
    database = fresh("v1_rows")
    database.migrate()
    database.run(
        "create view public.dashboard as select * from krai_core.vw_stage_statistics",
        "create view public.board as select * from krai_core.vw_documents_by_stage",
        "create view public.stages as select * from krai_core.vw_document_stages",
    )
    before = database.catalog()
    database.migrate()
    assert database.catalog() == before


def _stops(database: Any, *parts: str) -> None:
    before = (database.catalog(), database.contents())
    with pytest.raises(psycopg.errors.DependentObjectsStillExist) as caught:
        database.migrate()
    said = str(caught.value.diag.message_primary)
    assert [part for part in parts if part not in said] == []
    database.run("rollback")
    assert (database.catalog(), database.contents()) == before
