"""Databases of the versions that were given away, made and worked on by those very versions, and their workers.

``released`` holds a wheel of each: its SQL, its client and its worker, as they were. A version that is released adds
its own wheel there, and every test here runs over it.
"""

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from processors_v2._local.process import wait_until
from processors_v2._local.project import newest_migrations
from processors_v2.local import LocalSupabase

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RELEASED = sorted((HERE / "released").glob("*.whl"))


@pytest.fixture(scope="session", params=RELEASED, ids=[path.stem for path in RELEASED])
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package of an earlier version."""
    folder = tmp_path_factory.mktemp("released")
    with zipfile.ZipFile(request.param) as wheel:
        wheel.extractall(folder)
    return folder


@pytest.fixture
def stack(package: Path) -> Iterator[LocalSupabase]:
    """A stack whose database has the SQL of the earlier version."""
    with LocalSupabase(migrations=package / "processors_v2" / "migrations") as local:
        yield local


@pytest.fixture
def database(stack: LocalSupabase) -> Iterator[psycopg.Connection[Any]]:
    """A connection of the role that migrates."""
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def upgrade(stack: LocalSupabase) -> Callable[[], None]:
    """Apply today's migrations, as psql runs them."""
    return lambda: stack.apply(newest_migrations())


@pytest.fixture
def working(stack: LocalSupabase) -> Callable[..., Any]:
    """Run a worker process of a package until the block ends; then the list that it gives has what the worker said."""

    @contextmanager
    def work(package: Path, way: str) -> Iterator[list[dict[str, Any]]]:
        said: list[dict[str, Any]] = []
        environment = {
            **os.environ,
            "DSN": stack.database_url,
            "SUPABASE_URL": stack.url,
            "SUPABASE_KEY": stack.key(),
        }
        process = subprocess.Popen(
            [sys.executable, HERE / "drain.py", package, way],
            env=environment, cwd=package, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            yield said
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0, err
        said.extend(json.loads(line) for line in out.splitlines())

    return work


@pytest.fixture
def wait_for(database: psycopg.Connection[Any]) -> Callable[[str], None]:
    """Wait until a query of a boolean is true."""

    def wait(query: str) -> None:
        """Look until it is, while the worker lives."""

        def look() -> bool:
            row = database.execute(query).fetchone()
            return bool(row and row[0])

        assert wait_until(look, 90), query

    return wait
