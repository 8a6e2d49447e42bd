"""Run twice, after work was done, and restored from a dump."""

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from processors_v2._local.postgres import find_installation
from processors_v2._local.process import clean_environment

Look = Callable[[str], Any]
Fresh = Callable[..., Any]

SCHEMAS = ("krai_core", "krai_private", "krai_content", "krai_intelligence", "krai_system")


@pytest.mark.parametrize("kind", ["empty", "field", "v1_rows"])
def test_a_second_run_changes_nothing(fresh: Fresh, kind: str) -> None:
    """Applied twice, the migrations leave catalog and rows as the first run left them."""
    database = fresh(kind, migrated=True)
    before = (database.catalog(), database.contents(), database.rows("select ctid::text from krai_core.documents"))
    database.migrate()
    after = (database.catalog(), database.contents(), database.rows("select ctid::text from krai_core.documents"))
    assert after == before


def test_psql_and_this_process_do_the_same(fresh: Fresh, server: Any) -> None:
    """psql, file by file, leaves the catalog and the rows that the statements one by one leave."""
    database = fresh("v1_rows")
    database.migrate()
    with server.copy("v1_rows", migrated=True) as by_psql:
        assert by_psql.catalog() == database.catalog()
        assert by_psql.comparable() == database.comparable()


def test_work_between_two_runs_is_kept(fresh: Fresh) -> None:
    """What was done to stages, pipeline and documents since the first run outlives the second."""
    database = fresh("v1_rows", migrated=True)
    first, archive = (
        database.value("select id from krai_core.documents where filename = %s", name)
        for name in ("null", "archive untouched")
    )
    database.run(
        f"select krai_core.start_stage('{first}', 'upload', gen_random_uuid())",
        f"select krai_core.reset_stage('{archive}', 'storage')",
        "update krai_core.stages set lease_seconds = 7, description = 'ours' where name = 'upload'",
        "delete from krai_core.stage_prerequisites",
        "select krai_core.fill_ready_runs()",
    )
    before = database.contents()
    database.migrate()
    assert database.contents() == before
    assert database.stage_status("archive untouched")["storage"]["status"] == "pending"


def test_a_stage_that_was_reset_stays_pending_where_the_old_column_says_completed(fresh: Fresh) -> None:
    """The archive rule is for documents that this tracker never worked on, whatever processing_status still says."""
    database = fresh("field")
    database.run(
        "alter table krai_core.documents add check (processing_status in ('pending', 'uploaded', 'completed',"
        " 'reprocessing', 'failed') or filename <> 'manual 5.pdf')",
    )
    database.migrate()
    document = database.value("select id from krai_core.documents where filename = 'manual 5.pdf'")
    database.run(f"select krai_core.reset_stage('{document}', 'storage')")
    assert database.rows("select processing_status from krai_core.documents where id = %s", document) == [
        ("completed",)
    ]
    database.migrate()
    assert database.stage_status("manual 5.pdf")["storage"]["status"] == "pending"


@pytest.mark.parametrize("server", ["16"], indirect=True)
def test_a_dump_restores_to_the_same(fresh: Fresh, server: Any) -> None:
    """A backup of a migrated database, read into an empty one, gives the same catalog and rows."""
    database = fresh("v1_rows", migrated=True)
    binaries = find_installation(16).bin
    schemas = [f"--schema={name}" for name in SCHEMAS]
    dump = _run([str(binaries / "pg_dump"), "--no-sync", *schemas], database)
    with server.copy("empty") as restored:
        _run([str(binaries / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1"], restored, dump)
        expected = [line for line in database.catalog() if "public.vw_" not in line]
        assert restored.catalog() == expected
        assert restored.contents() == database.contents()


def _run(command: list[str], database: Any, script: str | None = None) -> str:
    parts = conninfo_to_dict(database.local.url_of(database.name))
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
    environment = clean_environment() | {names[name]: str(value) for name, value in parts.items()}
    done = subprocess.run(command, check=False, env=environment, input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
