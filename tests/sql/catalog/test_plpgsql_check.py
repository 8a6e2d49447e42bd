"""plpgsql_check over every function of both schemas, on Debian's Postgres 15, for which alone it is to be had."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from processors_v2._local.project import migrations_folder
from processors_v2.local import LocalSupabase

DEBIAN = Path("/usr/lib/postgresql/15")
PACKAGE = "postgresql-15-plpgsql-check"
LIBRARY, SCRIPT = (
    "usr/lib/postgresql/15/lib/plpgsql_check.so",
    "usr/share/postgresql/15/extension/plpgsql_check--2.3.sql",
)
# A table on which every trigger of ours is made.
DOCUMENTS = """
create schema krai_core;
create table krai_core.documents (
    id uuid primary key default gen_random_uuid(), filename text not null, processing_status text, processing_stage text
)
"""
FINDINGS = """
select p.oid::regprocedure::text, r.lineno, r.level, r.message, r.detail
from pg_proc p
join pg_language l on l.oid = p.prolang and l.lanname = 'plpgsql'
cross join lateral plpgsql_check.plpgsql_check_function_tb(
    p.oid, case when p.prorettype <> 'trigger'::regtype then 0
                when p.proname ~ 'pipeline' then 'krai_core.stages'::regclass else 'krai_core.documents'::regclass end,
    oldtable => case when p.proname ~ '^tg_.*(edited|delete_runs)' then 'before_rows' end,
    newtable => case when p.proname ~ '^tg_.*(edited|inserted)' then 'after_rows' end,
    extra_warnings => true, performance_warnings => false, security_warnings => true) r
where p.pronamespace in ('krai_core'::regnamespace, 'krai_private'::regnamespace)
  -- Its GRANT and REVOKE name objects as the catalog spells them, and rights of our own list.
  and not (p.proname = 'apply_access' and r.level = 'security')
"""


@pytest.fixture(scope="module")
def unpacked() -> Iterator[Path]:
    """The files of the package, fetched and unpacked but not installed, where the server can read them."""
    if not (DEBIAN / "bin" / "initdb").exists():
        pytest.skip("Debian's postgresql-15 is not installed, and plpgsql_check is built for no Postgres from PyPI")
    if (Path("/") / LIBRARY).exists() and (Path("/") / SCRIPT).exists():
        yield Path("/")
        return
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        pytest.skip(f"{PACKAGE} is not installed, and there is no apt-get to fetch it")
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        fetched = subprocess.run(
            ["apt-get", "download", PACKAGE], cwd=folder, capture_output=True, text=True, check=False, timeout=60
        )
        packages = list(folder.glob("*.deb"))
        if fetched.returncode != 0 or not packages:
            pytest.skip(f"apt-get cannot fetch {PACKAGE}: {fetched.stderr.strip()[-200:]}")
        subprocess.run(["dpkg", "-x", packages[0].name, "."], cwd=folder, check=True, timeout=60)
        if not (folder / SCRIPT).exists():
            pytest.skip(f"{packages[0].name} is another version than these tests know")
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def checked(unpacked: Path) -> Iterator[psycopg.Connection[Any]]:
    """A migrated database on Postgres 15 with the functions of plpgsql_check, which is not installed for it."""
    with LocalSupabase(postgres=DEBIAN, migrations=None) as local:
        with psycopg.connect(local.database_url, autocommit=True) as owner:
            owner.execute(DOCUMENTS)
        local.apply(migrations_folder())
        script = (unpacked / SCRIPT).read_text(encoding="utf-8")
        script = re.sub(r"(?m)^(\\|LOAD).*$", "", script)
        script = script.replace("@extschema@", "plpgsql_check").replace("MODULE_PATHNAME", str(unpacked / LIBRARY))
        with psycopg.connect(local.admin_url, autocommit=True) as connection:
            connection.execute("load 'plpgsql'")
            connection.execute("create schema plpgsql_check")
            connection.execute("set search_path = plpgsql_check")
            connection.execute(script)
            connection.execute("set search_path = ''")
            yield connection


def test_plpgsql_check_finds_nothing(checked: psycopg.Connection[Any]) -> None:
    """No unknown column, no wrong type, no unused variable, no open door to injection in any function."""
    assert checked.execute(FINDINGS).fetchall() == []


def test_plpgsql_check_looks_at_every_function(checked: psycopg.Connection[Any]) -> None:
    """A function with a fault is found, so that an empty list means something."""
    checked.execute(
        "create function krai_core.faulty() returns integer language plpgsql as $$ begin return nothing_there; end $$"
    )
    try:
        (finding,) = checked.execute(FINDINGS).fetchall()
        assert finding[0] == "krai_core.faulty()"
    finally:
        checked.execute("drop function krai_core.faulty()")
