"""The wheel, installed into a fresh environment, away from the clone: what docs/install.md and the README say works."""

import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
import threading
import uuid
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psycopg
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from processors_v2._local.database import url_to_database
from processors_v2._local.postgres import find_installation
from processors_v2._local.process import clean_environment
from processors_v2.local import LocalSupabase
from proof._migration import supabase_cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMANDS = [text for language, text in BLOCK.findall(PAGE) if language == "bash"]
PROGRAMS = [text for language, text in BLOCK.findall(PAGE) if language == "python"]
CORE = {"supabase", "pydantic", "python-dotenv"}
# Of the suite, what says most about an installation for its time: the examples of the API, and all forms of its calls.
SUITE = ("tests/seed", "tests/python/runs/test_call_forms.py")


@dataclass(frozen=True)
class Installed:
    """An environment with nothing of this project but its wheel.

    Attributes:
        folder: Where it is.
        environment: Variables for programs that run in it.
    """

    folder: Path
    environment: dict[str, str]

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.folder / "bin" / "python")

    def run(self, command: list[str], cwd: Path, **variables: str) -> str:
        """Run a program to its good end, and return what it printed."""
        environment = self.environment | variables
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="session")
def installed(wheel_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment of its own; what it depends on is lent by the one that runs these tests."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    venv.create(folder)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel_file)], check=True, capture_output=True)
    [packages] = folder.glob("lib/*/site-packages")
    # Names of folders only: the clone, which is in a file .pth of that environment, does not come along.
    (packages / "lent.pth").write_text(str(importlib.metadata.distribution("supabase").locate_file("")))
    environment = {name: value for name, value in clean_environment().items() if not name.startswith("SUPABASE")}
    environment.pop("PYTHONPATH", None)
    return Installed(folder, environment | {"PATH": f"{folder / 'bin'}{os.pathsep}{environment['PATH']}"})


class _Gateway(BaseHTTPRequestHandler):
    """What stands before PostgREST in a project: it knows /rest/v1."""

    protocol_version = "HTTP/1.1"
    pool: httpx.Client

    def do_POST(self) -> None:
        """Pass a request on."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        dropped = ("host", "accept-encoding", "connection")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        answer = self.pool.request(self.command, self.path.removeprefix("/rest/v1"), content=body, headers=headers)
        self.send_response(answer.status_code)
        for name in ("Content-Type", "Content-Range"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_HEAD = do_POST  # noqa: N815 - so are they called there

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@dataclass(frozen=True)
class Project:
    """A Supabase project without the tracker, and an empty folder to install it from.

    Attributes:
        folder: The folder.
        stack: PostgREST and Postgres.
        database_url: URL of role postgres.
        variables: What the environment of its user has.
    """

    folder: Path
    stack: LocalSupabase
    database_url: str
    variables: dict[str, str]


@pytest.fixture
def project(bare: LocalSupabase, tmp_path: Path) -> Iterator[Project]:
    """A bare Postgres with Supabase's roles behind PostgREST and its gateway; the real CLI, linked to it."""
    name = f"installed_{uuid.uuid4().hex}"
    bare.create_database(name)
    database_url = bare.url_of(name)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "psql").symlink_to(find_installation(16).psql)
    try:
        cli = supabase_cli.find_program()
    except supabase_cli.CliMissing as missing:
        pytest.skip(str(missing))
    # `supabase link` asks a hosted project, so the command is told by an option where the database is.
    linked = f'#!/bin/sh\nexec {shlex.quote(str(cli))} "$@" --yes --remote={shlex.quote(database_url)}\n'
    (tools / "supabase").write_text(linked)
    (tools / "supabase").chmod(0o755)
    folder = tmp_path / "my project"
    folder.mkdir()
    with (
        LocalSupabase(database_url=url_to_database(bare.admin_url, name), migrations=None) as stack,
        httpx.Client(base_url=stack.url, timeout=30) as pool,
        ThreadingHTTPServer(("127.0.0.1", 0), type("Gateway", (_Gateway,), {"pool": pool})) as server,
    ):
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        variables = {
            "SUPABASE_URL": f"http://127.0.0.1:{server.server_port}",
            "SUPABASE_SECRET_KEY": stack.key(),
            "DATABASE_URL": database_url,
            "HOME": str(tmp_path),
            "DO_NOT_TRACK": "1",
            "SUPABASE_TELEMETRY_DISABLED": "1",
            "SUPABASE_NO_UPDATE_NOTIFIER": "1",
            "TOOLS": str(tools),
        }
        yield Project(folder, stack, database_url, variables)
        server.shutdown()
    bare.drop_database(name)


def shell(installed: Installed, project: Project, commands: str) -> str:
    """Run commands as they stand in the docs, but for pip, whose work the fixture has done."""
    script = re.sub(r"^pip install .*\n", "", commands, flags=re.MULTILINE)
    path = os.pathsep.join([project.variables["TOOLS"], installed.environment["PATH"], supabase_cli.search_path()])
    # Only where it is wanted: doctor would ask Postgres, too.
    variables = {name: value for name, value in project.variables.items() if name != "DATABASE_URL"}
    if "$DATABASE_URL" in script:
        variables["DATABASE_URL"] = project.database_url
    return installed.run(["bash", "-euc", "set -o pipefail\n" + script], project.folder, **variables, PATH=path)


def first_program() -> tuple[str, str]:
    """The first program of the README, for a project that is there, and what it prints."""
    program, shown = BLOCK.findall(README)[1][1], BLOCK.findall(README)[2][1]
    program = program.replace("from processors_v2.local import LocalSupabase\n", "import os\nimport supabase\n")
    program = re.sub(r"^with LocalSupabase\(\) as local:.*$", "if True:", program, flags=re.MULTILINE)
    program = re.sub(r"local\.client\(\)  # elsewhere: ", "", program)
    program = program.replace("url, secret_key", "os.environ['SUPABASE_URL'], os.environ['SUPABASE_SECRET_KEY']")
    assert "local" not in program
    return program, shown


def test_an_empty_folder_becomes_a_project_that_works(installed: Installed, project: Project) -> None:
    """The commands of docs/install.md, then the README's program: the wheel and nothing else of this project."""
    install, update = COMMANDS[0], COMMANDS[-1]
    # The README.md names the same commands.
    assert ("bash", install) in BLOCK.findall(README)
    assert len(install.splitlines()) <= 5
    before, doctor = install.rsplit("stage-tracker doctor", 1)
    assert doctor == "\n"
    shell(installed, project, before)
    project.stack.reload_schema()
    shown = next(text for language, text in BLOCK.findall(PAGE) if not language)
    assert shell(installed, project, "stage-tracker doctor\n") == shown
    # From this version to itself nothing is new.
    assert "_stage_tracker_index.sql are up to date" in " ".join(shell(installed, project, update).split())
    program, printed = first_program()
    lines = installed.run([installed.python, "-c", program], project.folder, **project.variables).splitlines()
    assert [line.rstrip() for line in lines] == [line.rstrip() for line in printed.splitlines()]
    green = installed.run([installed.python, "-c", PROGRAMS[0]], project.folder, **project.variables)
    assert green == "True []\n"


def test_the_other_ways_of_the_page_lead_there_too(installed: Installed, project: Project) -> None:
    """One file, that file through psql, and the files one by one: each is run over the one before."""
    for commands in COMMANDS[1:-1]:
        shell(installed, project, commands)
    with psycopg.connect(project.database_url) as connection:
        [(version,)] = connection.execute("select krai_core.schema_version()").fetchall()
    assert (project.folder / "stage_tracker.sql").exists()
    project.stack.reload_schema()
    assert f"client and database have version {version}" in shell(installed, project, "stage-tracker doctor\n")


def test_the_suite_runs_against_the_installed_wheel(installed: Installed, tmp_path: Path) -> None:
    """The examples of the API and all forms of its calls pass with the package that was installed, not the clone's."""
    (tmp_path / "where.py").write_text(
        "import processors_v2._errors\n"
        "def pytest_terminal_summary(terminalreporter):\n"
        "    terminalreporter.write_line(f'tested: {processors_v2._errors.__file__}')\n"
    )
    tests = [str(ROOT / path) for path in SUITE]
    options = ["-q", "-p", "where", "-p", "no:cacheprovider", f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml")]
    printed = installed.run([installed.python, "-m", "pytest", *options, *tests], tmp_path, PYTHONPATH=str(tmp_path))
    assert re.search(rf"^tested: {re.escape(str(installed.folder))}/lib/", printed, re.MULTILINE), printed
    assert re.search(r"^\d+ passed in ", printed, re.MULTILINE), printed


def closure(names: set[str]) -> set[str]:
    """Return distributions and all that they depend on here, by the metadata of what is installed."""
    found: set[str] = set()
    wanted = [Requirement(name) for name in names]
    while wanted:
        one = wanted.pop()
        extras = {"", *one.extras}
        key = f"{canonicalize_name(one.name)}{sorted(one.extras)}"
        if key in found:
            continue
        found.add(key)
        for text in importlib.metadata.requires(one.name) or []:
            further = Requirement(text)
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                wanted.append(further)
    return {key.partition("[")[0] for key in found}


def test_the_core_needs_three_packages(installed: Installed) -> None:
    """Without an extra the wheel asks for supabase, pydantic and python-dotenv; extras are named, and no more."""
    [metadata] = installed.folder.glob("lib/*/site-packages/stage_tracker-*.dist-info/METADATA")
    message = importlib.metadata.PathDistribution(metadata.parent)
    needed = [Requirement(text) for text in message.requires or []]
    assert {one.name for one in needed if one.marker is None} == CORE
    assert all("extra ==" in str(one.marker) for one in needed if one.marker is not None)


CORE_ONLY = """
import importlib.abc, sys
allowed = set(sys.argv[1].split(","))
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        # The settings that Python was built with are a module that its list leaves out.
        if name.partition(".")[0] not in allowed | sys.stdlib_module_names and not name.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
import processors_v2.doctor, processors_v2.errors, processors_v2.models, processors_v2.worker
import supabase
from processors_v2.stage_tracker import StageTracker
print(StageTracker(supabase.create_client("http://127.0.0.1:9", "sb_secret_x"), retry_for=0))
from processors_v2.cli import main
print(main())
"""


def test_the_core_runs_on_what_those_three_need(installed: Installed, tmp_path: Path) -> None:
    """With all modules hidden but those of the three and what they depend on, the tracker works; the command asks."""
    packages = importlib.metadata.packages_distributions()
    core = closure(CORE)
    allowed = {module for module, owners in packages.items() if core & {canonicalize_name(one) for one in owners}}
    assert not allowed & {"typer", "rich", "fastapi", "psycopg", "pandas", "pytest", "tomlkit"}
    command = [installed.python, "-c", CORE_ONLY, ",".join(allowed | {"processors_v2"})]
    done = subprocess.run(command, cwd=tmp_path, env=installed.environment, capture_output=True, text=True, check=False)
    assert done.stdout == "StageTracker(RestTransport(http://127.0.0.1:9/rest/v1))\n2\n", done.stderr
    assert done.stderr.startswith("stage-tracker needs ")
    assert done.stderr.endswith(": pip install 'stage-tracker[cli]'\n")
