"""The direct transport through a real pgbouncer in transaction mode, with fewer connections than there are callers."""

import asyncio
import os
import shutil
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from processors_v2._local.process import free_port, spawn_as, unprivileged_account, wait_until
from processors_v2.errors import DatabaseUnavailable, StageBusy, StageConflict, StageLost, UnknownStage
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import AsyncStageContext, AsyncStageTracker, StageContext, StageTracker

# With what it needs of libraries that a small machine may lack.
PACKAGES = ["pgbouncer", "libc-ares2", "libevent-2.1-7"]

# Two connections to Postgres for all: whatever depends on a session would go wrong.
CONFIG = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users.txt
pool_mode = transaction
default_pool_size = 2
max_client_conn = 100
logfile = {folder}/log
"""


@pytest.fixture(scope="module")
def program() -> Iterator[tuple[Path, dict[str, str]]]:
    """pgbouncer, installed or fetched and unpacked, and the environment that it needs."""
    installed = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
    if installed:
        yield Path(installed), dict(os.environ)
        return
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        pytest.skip("pgbouncer is not installed, and there is no apt-get to fetch it")
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        fetched = subprocess.run(
            ["apt-get", "download", *PACKAGES], cwd=folder, capture_output=True, text=True, check=False, timeout=60
        )
        if fetched.returncode != 0:
            pytest.skip(f"apt-get cannot fetch pgbouncer: {fetched.stderr.strip()[-200:]}")
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package.name, "."], cwd=folder, check=True, timeout=60)
        libraries = ":".join(str(path) for path in folder.glob("usr/lib/*") if path.is_dir())
        yield folder / "usr" / "sbin" / "pgbouncer", {**os.environ, "LD_LIBRARY_PATH": libraries}
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def pooled_url(local: LocalSupabase, program: tuple[Path, dict[str, str]]) -> Iterator[str]:
    """URL of Postgres by way of a running pgbouncer."""
    executable, environment = program
    account = unprivileged_account()
    parts = conninfo_to_dict(local.database_url)
    folder, own = Path(tempfile.mkdtemp()), free_port()
    (folder / "users.txt").write_text(f'"{parts["user"]}" "{parts["password"]}"\n')
    (folder / "config.ini").write_text(CONFIG.format(host=parts["host"], port=parts["port"], own=own, folder=folder))
    if account is not None:
        for path in (folder, *folder.iterdir()):
            os.chown(path, account.uid, account.gid)
    process = subprocess.Popen(
        [str(executable), str(folder / "config.ini")],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **spawn_as(account),
    )  # fmt: skip
    url = f"postgresql://{parts['user']}:{parts['password']}@127.0.0.1:{own}/{parts['dbname']}"

    def serves() -> bool:
        assert process.poll() is None, (folder / "log").read_text() if (folder / "log").exists() else "it has ended"
        try:
            psycopg.connect(url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    try:
        assert wait_until(serves, 20)
        yield url
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def test_the_pooler_is_in_transaction_mode(pooled_url: str) -> None:
    """Sessions are shared: what one client sets, another may find; so the tests below mean something."""
    with psycopg.connect(pooled_url, autocommit=True, prepare_threshold=None) as client:
        pids = set()
        for _ in range(20):
            with psycopg.connect(pooled_url, prepare_threshold=None) as other:
                other.execute("select 1")
                pids.add(client.execute("select pg_backend_pid()").fetchone())
        assert len(pids) <= 2
    with psycopg.connect(pooled_url, autocommit=True) as one, psycopg.connect(pooled_url, autocommit=True) as two:
        one.execute("set application_name = 'leaked'")
        one.execute("set statement_timeout = '77s'")
        found = {two.execute("show statement_timeout").fetchone() for _ in range(5)}
        one.execute("set statement_timeout = default")
    assert ("77s",) in found


def test_calls_of_many_threads_share_two_connections(pooled_url: str, db: Any) -> None:
    """Every call of 12 threads takes effect on its own document."""
    documents = [db.document() for _ in range(12)]
    tracker = StageTracker.from_postgres(pooled_url)

    def work(document: str) -> None:
        for stage in ("upload", "text_extraction"):
            with StageContext(tracker, document, stage) as ctx:
                ctx.update_progress(50, {"name": document})

    threads = [threading.Thread(target=work, args=(document,)) for document in documents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for document in documents:
        stage = db.stage(document, "text_extraction")
        assert (stage["status"], stage["metadata"]) == ("completed", {"name": document})


def test_rules_and_errors_are_the_same(pooled_url: str, document: str, db: Any) -> None:
    """A held stage, a conflict, an unknown stage and a lost run are told through the pooler."""
    tracker = StageTracker.from_postgres(pooled_url)
    with pytest.raises(UnknownStage):
        tracker.start_stage(document, "ocr")
    with pytest.raises(StageConflict):
        tracker.update_progress(document, "upload", 1)
    with pytest.raises(StageLost), StageContext(tracker, document, "upload"):
        with pytest.raises(StageBusy), StageContext(tracker, document, "upload"):
            pytest.fail("ran")
        db.end_lease(document, "upload")
        assert StageTracker.from_postgres(pooled_url).start_stage(document, "upload") is True
    assert len(tracker.list_stages()) >= 8


def test_claims_are_exclusive(pooled_url: str, db: Any, rest: StageTracker) -> None:
    """Claims of many threads through two connections give each run to one of them."""
    documents = [db.document() for _ in range(20)]
    for document in documents:
        rest.set_priority(document, 3000)
    tracker = StageTracker.from_postgres(pooled_url)
    got: list[Any] = []
    threads = [threading.Thread(target=lambda: got.extend(tracker.claim("upload", limit=2))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(run.document_id for run in got) == sorted(documents)
    for run in got:
        with run:
            pass
    assert {db.stage(document, "upload")["status"] for document in documents} == {"completed"}


def test_asynchronous_calls_share_two_connections(pooled_url: str, db: Any) -> None:
    """Many tasks at once work through the pooler, and leases are kept from the thread beside them."""
    documents = [db.document() for _ in range(12)]

    async def work() -> None:
        async with AsyncStageTracker.from_postgres(pooled_url) as tracker, asyncio.TaskGroup() as tasks:

            async def one(document: str) -> None:
                async with AsyncStageContext(tracker, document, "upload", lease_seconds=1) as ctx:
                    began = await asyncio.to_thread(db.run, document, "upload", "lease_expires_at")
                    ctx.update_progress(50, {"name": document})
                    assert began is not None

            for document in documents:
                tasks.create_task(one(document))

    asyncio.run(work())
    assert {db.stage(document, "upload")["metadata"]["name"] for document in documents} == set(documents)


def test_a_statement_that_was_given_up_is_cancelled(
    pooled_url: str, document: str, local: LocalSupabase, db: Any
) -> None:
    """The cancel request finds its statement through the pooler, so that it does not hold one of two connections."""
    name = f"cancelled {uuid.uuid4().hex[:8]}"
    tracker = StageTracker.from_postgres(
        f"{pooled_url}?application_name={name.replace(' ', '%20')}", timeout=0.3, retry_for=0
    )
    waiting = "select count(*) from pg_stat_activity where application_name = %s and state = 'active'"
    with psycopg.connect(local.database_url) as connection:
        connection.execute("select from krai_core.documents where id = %s for update", [document])
        with pytest.raises(DatabaseUnavailable):
            tracker.start_stage(document, "upload")
        assert wait_until(lambda: db.one(waiting, name) == 0, 20)
