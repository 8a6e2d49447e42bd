"""The real Supabase CLI, from npm, on a copy of the project folder."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from processors_v2._local.postgres import find_installation
from processors_v2._local.process import clean_environment
from proof._migration import supabase_cli


class Project(supabase_cli.Project):
    """A copy of the project folder, and the CLI that runs in it on the databases of these tests."""

    def push(self, database: Any, *, fails: bool = False) -> str:
        """Push the migrations to a database and return all that the CLI says."""
        done = self.run(_url(database), "db", "push", "--yes")
        assert (done.returncode != 0) == fails, f"{done.stdout}\n{done.stderr}"
        return f"{done.stdout}\n{done.stderr}"

    def results(self, database: Any, *command: str) -> list[dict[str, Any]]:
        """The findings of a linting command."""
        done = self.run(_url(database), *command, "--agent", "no", "--output-format", "json")
        assert done.stdout.strip(), done.stderr
        answer = json.loads(done.stdout)
        found: list[dict[str, Any]] = answer["results"] if isinstance(answer, dict) else answer
        return found


def _url(database: Any) -> str:
    return str(database.local.url_of(database.name))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The project folder of this test; without npm and without PyPI there is no CLI."""
    try:
        return Project(tmp_path)
    except supabase_cli.CliMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def schema_dump() -> Callable[[Any], str]:
    """What pg_dump says of our schemas, privileges and comments included."""

    def dump(database: Any) -> str:
        binary = find_installation(16).bin / "pg_dump"
        command = [str(binary), "--schema-only", "--schema=krai_*", database.local.url_of(database.name)]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=clean_environment()).stdout

    return dump
