"""The doctor on folders ``processors_v2`` of a project's own: each case by its name, and the remedy works."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from processors_v2._doctor.folders import LINE, folder_findings
from processors_v2.doctor import Finding

PACKAGE = Path(__file__).parents[2] / "processors_v2"
# What `from processors_v2.stage_tracker import StageTracker` would read.
FIND = "from importlib.util import find_spec; print(getattr(find_spec('processors_v2.stage_tracker'), 'origin', None))"

Look = Callable[[], list[Finding]]


@pytest.fixture
def theirs(folder: Path) -> Path:
    """A folder backend/processors_v2 as a project has it, with a module."""
    path = folder / "backend" / "processors_v2"
    path.mkdir(parents=True)
    (path / "upload_processor.py").write_text("raise SystemExit('this was run')\n")
    return path


@pytest.fixture
def look(folder: Path) -> Look:
    """What the doctor finds in the project, apart from what else is on the path of this process."""
    return lambda: [finding for finding in folder_findings(folder) if str(folder) in finding.message]


def imports(theirs: Path) -> bool:
    """Whether a program that has their folder first on its path gets our tracker."""
    path = os.pathsep.join([str(theirs.parent), str(PACKAGE.parent)])
    done = subprocess.run(
        [sys.executable, "-c", FIND], env=os.environ | {"PYTHONPATH": path}, cwd=theirs.parent, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    return done.stdout == f"{PACKAGE / 'stage_tracker.py'}\n"


def test_no_folder_of_their_own(folder: Path) -> None:
    """Where there is none, that is said; a clone or an installed copy of this package is none."""
    (folder / "processors_v2").mkdir()
    (folder / "processors_v2" / "_errors.py").touch()
    (folder / ".venv" / "lib" / "processors_v2").mkdir(parents=True)
    (folder / ".venv" / "lib" / "processors_v2" / "other.py").touch()
    assert [(finding.level, str(folder) in finding.message) for finding in folder_findings(folder)] == [("ok", False)]


@pytest.mark.parametrize(
    "init", [None, f"{LINE}\n", "import pkgutil\n__path__ = pkgutil.extend_path(__path__, __name__)\n"]
)
def test_a_folder_that_lives_beside_ours(theirs: Path, look: Look, init: str | None) -> None:
    """Without __init__.py, or with the line in it, both are found; nothing of theirs was run to see that."""
    if init is not None:
        (theirs / "__init__.py").write_text(f'"""Their processors."""\n{init}')
    [finding] = look()
    assert (finding.check, finding.level) == ("folder", "ok")
    assert imports(theirs)


@pytest.mark.parametrize(
    "init",
    ["", "VERSION = '2'\n", "from .upload_processor import run\n", "def broken(:\n", "# __path__ = extend_path\n"],
)
def test_a_folder_that_hides_ours(theirs: Path, look: Look, init: str) -> None:
    """An __init__.py without the line hides this package: it is named, and so is the line that helps."""
    (theirs / "__init__.py").write_text(init)
    [finding] = look()
    assert finding.level == "problem"
    assert f"{theirs}/__init__.py hides this package" in finding.message
    assert str(finding.remedy).endswith(LINE)
    assert not imports(theirs)


def test_the_line_that_is_told_helps(theirs: Path, look: Look) -> None:
    """With the line of the remedy put in, the import works, and nothing is found."""
    (theirs / "__init__.py").touch()
    [finding] = look()
    (theirs / "__init__.py").write_text(str(finding.remedy).rpartition(": ")[2])
    assert [one.level for one in look()] == ["ok"]
    assert imports(theirs)


def test_the_docs_tell_the_same_line() -> None:
    """README and docs/install.md have the line as the doctor tells it."""
    assert all(LINE in (PACKAGE.parent / page).read_text() for page in ("README.md", "docs/install.md"))


@pytest.mark.parametrize("init", [None, LINE])
def test_a_tracker_of_their_own_hides_ours(theirs: Path, look: Look, init: str | None) -> None:
    """A stage_tracker.py of theirs is found first, whatever else is right; without it the import is ours."""
    if init is not None:
        (theirs / "__init__.py").write_text(init)
    old = theirs / "stage_tracker.py"
    old.write_text("class StageTracker:\n    STAGES = ['old']\n")
    [finding] = look()
    assert finding.level == "problem"
    assert f"{old} of your own is found before the one of this package" in finding.message
    assert "Delete it or rename it" in str(finding.remedy)
    assert not imports(theirs)
    old.unlink()
    assert [one.level for one in look()] == ["ok"]
    assert imports(theirs)


def test_other_modules_of_the_same_name_are_worth_a_note(theirs: Path, look: Look) -> None:
    """A models.py of theirs is the one that is imported; the tracker works, so it is no problem."""
    (theirs / "models.py").touch()
    [finding] = look()
    assert (finding.level, "its modules models are the ones" in finding.message) == ("note", True)
    assert imports(theirs)


def test_a_folder_on_the_path_is_found_wherever_it_is(
    folder: Path, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What PYTHONPATH names is looked at, too, and each folder once."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (theirs / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(theirs.parent))
    monkeypatch.syspath_prepend(theirs.parent)
    problems = [finding for finding in folder_findings(elsewhere) if finding.level == "problem"]
    assert [str(theirs) in finding.message for finding in problems] == [True]
