"""The notebooks run, from an empty database to their last cell, and print what they show."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import httpx
import nbformat
import pytest

from processors_v2.local import LocalSupabase

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "run_notebooks.py"
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def run(*arguments: str | Path, **environment: str) -> "CompletedProcess[str]":
    """Run the tool that runs notebooks; what the environment says of projects does not count."""
    usual = {name: value for name, value in os.environ.items() if not name.startswith("SUPABASE_")}
    return subprocess.run(
        [sys.executable, TOOL, *map(str, arguments)],
        env={**usual, **environment},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """A copy of the folder, as somebody has it who tries the notebooks."""
    return shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))


@pytest.mark.parametrize("name", [path.name for path in NOTEBOOKS])
def test_each_notebook_runs_and_prints_what_it_shows(examples: Path, name: str) -> None:
    """All cells run in order, nothing goes to stderr, and the outputs are those that are kept."""
    done = run("--check", examples / name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert nbformat.read(examples / name, as_version=4) == nbformat.read(ROOT / "examples" / name, as_version=4)


def test_a_project_of_the_users_is_left_as_it_was(examples: Path, project: dict[str, str]) -> None:
    """Two variables lead to it: the first notebook deletes its document again, those with workers do not even begin."""
    before = count(project)
    done = run(examples / "01_quickstart.ipynb", examples / "02_parallel_workers.ipynb", **project)
    made = nbformat.read(examples / "01_quickstart.ipynb", as_version=4)
    assert made.cells[1].outputs[0].text == "Working on your project, as SUPABASE_URL says.\n"
    assert done.stdout == f"01_quickstart.ipynb: {len(made.cells)} cells, 0 complaints\n"
    assert done.returncode == 1
    assert "would take the documents of this project: use an empty one" in done.stderr
    assert count(project) == before != "0"


def count(project: dict[str, str]) -> str:
    """How many documents there are."""
    key = project["SUPABASE_SECRET_KEY"]
    answer = httpx.head(
        f"{project['SUPABASE_URL']}/rest/v1/documents",
        headers={"Authorization": f"Bearer {key}", "Accept-Profile": "krai_core", "Prefer": "count=exact"},
    )
    return answer.headers["content-range"].partition("/")[2]


@pytest.fixture(scope="module")
def project(local: LocalSupabase) -> Iterator[dict[str, str]]:
    """The variables of a project with a document, whose gateway knows /rest/v1 only."""
    local.client().schema("krai_core").table("documents").insert({"filename": "mine.pdf"}).execute()

    class Gateway(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            passed = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "accept-encoding")}
            path = self.path.removeprefix("/rest/v1")
            assert path != self.path
            answer = pool.request(self.command, path, content=body, headers=passed)
            self.send_response(answer.status_code)
            for name in ("content-type", "content-range"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_HEAD = do_POST = do_DELETE = do_GET  # noqa: N815 - so are they called there

        def log_message(self, *_: object) -> None:
            pass

    with (
        httpx.Client(base_url=local.url, timeout=30, trust_env=False) as pool,
        ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server,
    ):
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield {"SUPABASE_URL": f"http://127.0.0.1:{server.server_port}", "SUPABASE_SECRET_KEY": local.key()}
        server.shutdown()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_what_is_kept_of_a_run_can_be_published(path: Path) -> None:
    """A file is small, complete and clean: every cell was run in order, no key, no path, no name of a machine."""
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.read(path, as_version=4)
    assert len(text) < 400_000
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [cell for cell in notebook.cells if cell.metadata]
    assert not re.search(r"eyJ|sb_secret_\w|/tmp/|/home/|/root/|Users/|site-packages|Warning|Traceback", text)
    assert socket.gethostname() not in re.findall(r"[\w.-]+", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_words_stand_before_each_cell(path: Path) -> None:
    """Nobody has to guess what a cell is for: at most two come without words between them."""
    kinds = "".join(cell.cell_type[0] for cell in nbformat.read(path, as_version=4).cells)
    assert kinds.startswith("mc")
    assert "ccc" not in kinds


@pytest.fixture(scope="module")
def tool() -> Any:
    """The tool as a module."""
    spec = importlib.util.spec_from_file_location("run_notebooks", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("kept", "made", "same"),
    [
        ("8f14e45f-ceea-467f-ab7d-d1d2f4b1e2c3 took 1.25 s", "9a0364b9-e99b-4802-8bc5-0a7d8e9f0a1b took 3 s", True),
        ("at 2026-10-04T08:00:01.5Z: 37.5 %", "at 2026-11-28 19:01:51: 40.25 %", True),
        ("<tr><td>a</td></tr><tr><td>b</td></tr>", "<tr><td>b</td></tr><tr><td>a</td></tr>", True),
        ("6 completed", "7 completed", False),
        ("<td>completed</td>", "<td>failed</td>", False),
        ("<td>1.25 s</td>", "<td></td>", False),
    ],
)
def test_only_what_varies_is_let_pass(tool: Any, kept: str, made: str, same: bool) -> None:
    """Ids, times, durations and the order of rows may differ; words and counts may not."""
    assert (tool.without_varying(kept) == tool.without_varying(made)) is same
