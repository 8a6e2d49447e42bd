"""A stack without the project's migrations, and ways to watch processes end."""

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from processors_v2.local import LocalSupabase

MAX_ROWS = 50

SCHEMA = """
create function public.who_am_i() returns text language sql stable as 'select current_user::text';
create function public.timeout() returns text language sql stable
    as 'select current_setting(''statement_timeout'')';
create function public.many() returns setof integer language sql stable as 'select generate_series(1, 1000)';
create table public.notes (id integer primary key, owner uuid not null, text text not null);
alter table public.notes enable row level security;
create policy notes_read_own on public.notes for select to authenticated using (owner = (select auth.uid()));
grant select on public.notes to authenticated;
grant select, insert on public.notes to service_role;
"""

# Starts a stack, says where it is, and waits to be ended.
CHILD = """
import json, os, sys, threading
from processors_v2.local import LocalSupabase
with LocalSupabase(migrations=None) as local:
    if "fork" in sys.argv and os.fork() == 0:
        threading.Event().wait(60)
        os._exit(0)
    print(json.dumps({
        "postgres": local._postgres.pid, "postgrest": local._postgrest.pid,
        "watchdog": local._postgres._watchdog._process.pid,
        "folders": [str(local._postgres.folder), str(local._postgrest._folder)], "url": local.url,
    }), flush=True)
    threading.Event().wait()
"""


@pytest.fixture(scope="session")
def bare() -> Iterator[LocalSupabase]:
    """A stack with a small schema of the tests' own."""
    with LocalSupabase(migrations=None, schemas=("public",), max_rows=MAX_ROWS) as stack:
        with psycopg.connect(stack.database_url) as connection:
            connection.execute(SCHEMA)
        stack.reload_schema()
        yield stack


@pytest.fixture(scope="session")
def wheel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this clone."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=Path(__file__).parents[2], check=True, capture_output=True)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the account which Postgres runs as can reach; those of pytest are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="stack-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@dataclass
class Child:
    """A Python process that runs a stack."""

    process: subprocess.Popen[str]
    url: str
    folders: list[Path]
    watched: dict[str, int]

    def survivors(self, seconds: float = 30.0) -> list[str]:
        """Wait for the end of its servers, and name those that did not come to it."""
        alive = dict(self.watched)
        while alive:
            ended, _, _ = select.select(list(alive.values()), [], [], seconds)
            if not ended:
                break
            alive = {name: fd for name, fd in alive.items() if fd not in ended}
        return sorted(alive)


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[Child]:
    """A child process with a running stack; a parameter is passed to it."""
    arguments = [request.param] if hasattr(request, "param") else []
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        # A pidfd sees the end of a process that is nobody's child any more.
        watched = {name: os.pidfd_open(facts[name]) for name in ("postgres", "postgrest", "watchdog")}
        yield Child(process, facts["url"], [Path(folder) for folder in facts["folders"]], watched)
        for fd in watched.values():
            os.close(fd)
        if process.poll() is None:
            process.kill()
