"""The upgrade as a user makes it: `stage-tracker init --update` and `supabase db push`, both as programs."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from processors_v2._local.process import clean_environment
from processors_v2.local import LocalSupabase
from proof._migration import supabase_cli

OWN = "create table public.invoices (id bigint primary key, document_id uuid); insert into public.invoices values (1);"
LISTS = ("missing_objects", "missing_grants", "excess_grants", "leftovers", "tables_without_rls")


@pytest.fixture
def project(tmp_path: Path, package: Path) -> supabase_cli.Project:
    """A project with a table of its own and the migrations of the earlier version."""
    try:
        found = supabase_cli.Project(tmp_path)
    except supabase_cli.CliMissing as missing:
        pytest.skip(str(missing))
    migrations = tmp_path / "supabase" / "migrations"
    shutil.rmtree(migrations)
    migrations.mkdir()
    for path in (package / "processors_v2" / "migrations").glob("*.sql"):
        shutil.copy(path, migrations)
    (migrations / "20260101000000_invoices.sql").write_text(OWN, encoding="utf-8")
    return found


def _push(project: supabase_cli.Project, url: str) -> str:
    done = project.run(url, "db", "push", "--yes")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return f"{done.stdout}\n{done.stderr}"


def test_three_files_and_a_push_make_todays_installation(project: supabase_cli.Project) -> None:
    """After the push nothing of the earlier version is left, its data and the user's table are, and no more is due."""
    with LocalSupabase(migrations=None) as local:
        _push(project, local.database_url)
        with psycopg.connect(local.database_url, autocommit=True) as database:
            database.execute(
                "insert into krai_core.documents (filename) select i || '.pdf' from generate_series(1, 40) i"
            )
            database.execute("select krai_core.claim_stages('upload', 'held', 7)")
            before = _stages(database)
            migrations = project.folder / "supabase" / "migrations"
            files = set(migrations.iterdir())
            subprocess.run(
                [sys.executable, "-m", "processors_v2", "init", "--update", "--project", str(project.folder)],
                check=True, cwd=project.folder, env=clean_environment(),
            )  # fmt: skip
            added = set(migrations.iterdir()) - files
            assert len(added) == 3
            assert min(path.name for path in added) > max(path.name for path in files)
            _push(project, local.database_url)
            told = _value(database, "select krai_core.get_installation()")
            assert {key: told[key] for key in LISTS} == {key: [] for key in LISTS}
            assert _stages(database) == before
            assert _value(database, "select count(*) from public.invoices") == 1
        assert "up to date" in _push(project, local.database_url)


def _stages(database: psycopg.Connection[Any]) -> Any:
    return _value(database, "select jsonb_object_agg(filename, stage_status) from krai_core.documents")


def _value(database: psycopg.Connection[Any], query: str) -> Any:
    row = database.execute(query).fetchone()  # type: ignore[arg-type]
    return row and row[0]
