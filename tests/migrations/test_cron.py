"""schedule_maintenance with a real pg_cron, on Debian's Postgres 15, for which alone it is to be had."""

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from processors_v2.local import LocalSupabase

DEBIAN = Path("usr/lib/postgresql/15")
SHARED = Path("usr/share/postgresql/15")
PACKAGE = "postgresql-15-cron"
ROOT = Path("/")
ROLL_BACK = Path(__file__).parents[2] / "docs/rollback.sql"
SETTINGS = {
    "shared_preload_libraries": "pg_cron",
    "cron.database_name": "postgres",
    # Without, it would log in over the network as the owner of the job, whose password it has not.
    "cron.use_background_workers": "on",
}
JOBS = "select jobname, schedule, command, username, database, active from cron.job order by jobname"
REAP = ("krai_core_reap", "* * * * *", "select krai_core.reap()", "postgres", "postgres", True)


def _fetch(folder: Path) -> None:
    """Unpack the package into a folder, without installing it."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        pytest.skip(f"{PACKAGE} is not installed, and there is no apt-get to fetch it")
    command = ["apt-get", "download", PACKAGE]
    fetched = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    packages = list(folder.glob("*.deb"))
    if fetched.returncode != 0 or not packages:
        pytest.skip(f"apt-get cannot fetch {PACKAGE}: {fetched.stderr.strip()[-200:]}")
    subprocess.run(["dpkg", "-x", packages[0].name, "."], cwd=folder, check=True, timeout=60)


@pytest.fixture(scope="module")
def installation() -> Iterator[Path]:
    """A Postgres 15 that has pg_cron: the machine's own, or a copy of it with the package unpacked into it."""
    if not (ROOT / DEBIAN / "bin" / "initdb").exists():
        pytest.skip("Debian's postgresql-15 is not installed, and pg_cron is built for no Postgres from PyPI")
    if (ROOT / DEBIAN / "lib" / "pg_cron.so").exists():
        yield ROOT / DEBIAN
        return
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        _fetch(folder)
        # Postgres looks for its files relative to where its programs are.
        for part in (DEBIAN, SHARED):
            shutil.copytree(ROOT / part, folder / part, dirs_exist_ok=True)
        yield folder / DEBIAN
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def scheduled(installation: Path) -> Iterator[LocalSupabase]:
    """A migrated stack with pg_cron, given to the role postgres as Supabase gives it."""
    with LocalSupabase(postgres=installation, settings=SETTINGS) as local:
        with psycopg.connect(local.admin_url, autocommit=True) as admin:
            admin.execute("create extension pg_cron")
            admin.execute("grant usage on schema cron to postgres with grant option")
            admin.execute("grant all on all tables in schema cron to postgres with grant option")
        yield local


@pytest.fixture
def service(scheduled: LocalSupabase) -> Iterator[psycopg.Connection[Any]]:
    """A connection of service_role, to a database without jobs and documents."""
    with psycopg.connect(scheduled.admin_url, autocommit=True) as admin:
        admin.execute("delete from cron.job")
        admin.execute("truncate cron.job_run_details")
        admin.execute("delete from krai_core.documents")
    with psycopg.connect(scheduled.database_url, autocommit=True) as connection:
        connection.execute("set role service_role")
        yield connection


def _schedule(service: psycopg.Connection[Any], arguments: str = "") -> dict[str, Any]:
    return dict(_one(service, f"select krai_core.schedule_maintenance({arguments})"))


def _one(connection: psycopg.Connection[Any], query: str, *parameters: Any) -> Any:
    row = connection.execute(query, parameters or None).fetchone()
    assert row is not None
    return row[0]


def _jobs(local: LocalSupabase) -> list[tuple[Any, ...]]:
    with psycopg.connect(local.admin_url) as admin:
        return admin.execute(JOBS).fetchall()


def _run_now(local: LocalSupabase, job: str) -> tuple[str, str]:
    """Have pg_cron itself run a job, and return its status and message; all but its schedule stays as it is."""
    with psycopg.connect(local.admin_url, autocommit=True) as admin:
        # At the start of the server, so that nobody has to wait for the next minute.
        admin.execute("update cron.job set schedule = '@reboot' where jobname = %s", [job])
    local.restart_postgres("fast")
    with psycopg.connect(local.admin_url, autocommit=True) as admin:

        def ended() -> tuple[str, str] | None:
            return admin.execute(
                "select d.status, d.return_message from cron.job_run_details d join cron.job j using (jobid)"
                " where j.jobname = %s and d.end_time is not null",
                [job],
            ).fetchone()

        return _wait_for(ended)


def _wait_for(look: Callable[[], tuple[str, str] | None]) -> tuple[str, str]:
    deadline = time.monotonic() + 60
    while (found := look()) is None:
        assert time.monotonic() < deadline, "pg_cron did not run the job"
        time.sleep(0.05)
    return found


def test_reap_is_scheduled_every_minute_for_the_owner(scheduled: LocalSupabase, service: Any) -> None:
    """One job, each minute, in this database, as the owner of the functions; nothing is pruned unless asked for."""
    answer = _schedule(service)
    assert (answer["scheduled"], answer["jobs"]) == (True, ["krai_core_reap"])
    assert _jobs(scheduled) == [REAP]


def test_an_age_schedules_the_pruning_too(scheduled: LocalSupabase, service: Any) -> None:
    """The job prunes what is older than that age, and keeps failures unless told otherwise."""
    answer = _schedule(service, "'30 days'")
    assert answer["jobs"] == ["krai_core_reap", "krai_core_prune"]
    prune, reap = _jobs(scheduled)
    assert reap == REAP
    assert prune[0] == "krai_core_prune"
    assert prune[2] == "select krai_core.prune_runs('30 days', 't', 100000)"
    assert prune[3:] == ("postgres", "postgres", True)


def test_a_second_call_renews_and_doubles_nothing(scheduled: LocalSupabase, service: Any) -> None:
    """The jobs of the first call are those of the second, with what the second says."""
    _schedule(service, "'30 days'")
    _schedule(service, "'7 days', false")
    prune, reap = _jobs(scheduled)
    assert reap == REAP
    assert prune[2] == "select krai_core.prune_runs('7 days', 'f', 100000)"


def test_a_call_without_an_age_ends_the_pruning(scheduled: LocalSupabase, service: Any) -> None:
    """The pruning goes, the reaping stays, and jobs of others are left alone."""
    with psycopg.connect(scheduled.admin_url, autocommit=True) as admin:
        admin.execute("select cron.schedule('krai_core_prune', '0 0 1 1 *', 'select 1')")
    _schedule(service, "'30 days'")
    assert len(_jobs(scheduled)) == 3
    _schedule(service)
    assert [(job[0], job[3]) for job in _jobs(scheduled)] == [
        ("krai_core_prune", "supabase_admin"),
        ("krai_core_reap", "postgres"),
    ]


def test_pg_cron_reaps(scheduled: LocalSupabase, service: Any) -> None:
    """The job does what it is for: the stage of a dead worker is ready again."""
    document = _one(service, "insert into krai_core.documents (filename) values ('a.pdf') returning id")
    service.execute("select krai_core.claim_stages('upload', 'dead', 1, 1, gen_random_uuid())")
    service.execute(
        "update krai_core.stage_runs set lease_expires_at = now() - interval '1 hour' where status = 'running'"
    )
    _schedule(service)
    assert _run_now(scheduled, "krai_core_reap")[0] == "succeeded"
    with psycopg.connect(scheduled.database_url) as connection:
        query = "select status from krai_core.stage_runs where document_id = %s order by id"
        assert connection.execute(query, [document]).fetchall() == [("lost",), ("ready",)]


def test_pg_cron_prunes(scheduled: LocalSupabase, service: Any) -> None:
    """The job does what it is for: a run that was superseded and is old enough goes."""
    document = _one(service, "insert into krai_core.documents (filename) values ('a.pdf') returning id")
    service.execute("select krai_core.complete_stage(%s, 'upload')", [document])
    service.execute("select krai_core.reset_stage(%s, 'upload')", [document])
    service.execute("select krai_core.complete_stage(%s, 'upload')", [document])
    service.execute(
        "update krai_core.stage_runs set finished_at = now() - interval '1 hour' where stage_name = 'upload'"
    )
    _schedule(service, "'1 minute'")
    assert _run_now(scheduled, "krai_core_prune")[0] == "succeeded"
    with psycopg.connect(scheduled.database_url) as connection:
        query = "select count(*) from krai_core.stage_runs where document_id = %s and stage_name = 'upload'"
        assert _one(connection, query, document) == 1


def test_taking_the_tracker_away_ends_its_jobs(scheduled: LocalSupabase, service: Any) -> None:
    """docs/rollback.sql unschedules both jobs."""
    _schedule(service, "'30 days'")
    script = re.sub(r"^(?:begin|commit);$", "", ROLL_BACK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    with psycopg.connect(scheduled.database_url) as owner:
        owner.execute(script.encode())
        assert _one(owner, "select count(*) from cron.job") == 0
        # The other tests need it.
        owner.rollback()
    assert len(_jobs(scheduled)) == 2
