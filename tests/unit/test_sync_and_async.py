"""The synchronous classes are the asynchronous ones with other words."""

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from processors_v2 import stage_tracker

ROOT = Path(__file__).resolve().parents[2]
PAIRS = [
    ("AsyncStageTracker", "StageTracker"),
    ("AsyncStageContext", "StageContext"),
    ("AsyncClaimedRun", "ClaimedRun"),
]
# track takes asynchronous iterables, too, in the asynchronous class alone.
BY_HAND = {"track"}


def check(root: Path) -> "subprocess.CompletedProcess[str]":
    """Compare the two folders of a copy of the project."""
    return subprocess.run(
        [sys.executable, str(root / "tools" / "unasync.py"), "--check"], capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what is compared."""
    for folder in ("tools", "processors_v2/_async", "processors_v2/_sync"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_synchronous_code_is_made_from_the_asynchronous() -> None:
    """Nobody has changed one of the two alone."""
    done = check(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_change_of_one_alone_is_found(copy: Path) -> None:
    """A line that only the synchronous code has is shown, and so is a file without a source."""
    made = copy / "processors_v2" / "_sync" / "tracker.py"
    made.write_text(f"{made.read_text()}\nEXTRA = 1\n")
    (copy / "processors_v2" / "_sync" / "more.py").touch()
    done = check(copy)
    assert done.returncode == 1
    assert "-EXTRA = 1" in done.stdout
    assert "_sync/more.py has no source in _async" in done.stdout


def test_a_rule_that_nothing_needs_is_found(copy: Path) -> None:
    """The list of words stays as short as it can be."""
    script = copy / "tools" / "unasync.py"
    script.write_text(script.read_text().replace("RULES = [", 'RULES = [("never seen", "x"),'))
    done = check(copy)
    assert done.returncode == 1
    assert "never seen" in done.stderr


def test_the_synchronous_code_waits_for_nothing() -> None:
    """No coroutine, no event loop and no asynchronous client is left in what was made."""
    hand_made = {"callbacks.py", "pool.py", "__init__.py"}
    for path in (ROOT / "processors_v2" / "_sync").glob("*.py"):
        words = set(re.findall(r"\w+", path.read_text(encoding="utf-8").partition("\n")[2]))
        found = words & {"async", "await", "asyncio", "AsyncClient", "AsyncConnection", "aclose", "acreate_client"}
        assert not found or path.name in hand_made, (path.name, found)


def public(owner: type) -> dict[str, Any]:
    """The public members of a class that are not object's."""
    return {name: member for name, member in inspect.getmembers(owner) if not name.startswith("_")}


def plain(text: str | None) -> str:
    """A text without the words that tell the two kinds apart."""
    text = re.sub(r"\b(An|an|A|a|async|await|asynchronous|synchronous)\b ?", "", text or "")
    text = re.sub(r"Async(?=[A-Z])|_async\b|_sync\b|\ba(?=create_client)", "", text)
    return re.sub(r"(?<=processors_v2\.)\.", "", re.sub(r"\s+", " ", text))


@pytest.mark.parametrize(("other", "usual"), PAIRS)
def test_both_kinds_have_the_same_members(other: str, usual: str) -> None:
    """Every public name of one class is in the other, with the same parameters, defaults and words."""
    asynchronous, synchronous = getattr(stage_tracker, other), getattr(stage_tracker, usual)
    assert plain(asynchronous.__doc__) == plain(synchronous.__doc__)
    assert plain(str(inspect.signature(asynchronous))) == plain(str(inspect.signature(synchronous)))
    assert public(asynchronous).keys() == public(synchronous).keys()
    for name, member in public(asynchronous).items():
        if callable(member) and name not in BY_HAND:
            twin = getattr(synchronous, name)
            assert plain(str(inspect.signature(member))) == plain(str(inspect.signature(twin))), name
            assert plain(member.__doc__) == plain(twin.__doc__), name


def test_what_touches_the_database_is_awaited() -> None:
    """Every method of AsyncStageTracker is a coroutine function but the constructor and the iterators."""
    methods = inspect.getmembers(stage_tracker.AsyncStageTracker, inspect.isfunction)
    plain_ones = {
        name for name, method in methods if not name.startswith("_") and not inspect.iscoroutinefunction(method)
    }
    assert plain_ones == {"get_documents_ready_for", "list_documents", "watch"}
    for name in plain_ones:
        assert inspect.isasyncgenfunction(getattr(stage_tracker.AsyncStageTracker, name))


def test_reporting_is_not_awaited() -> None:
    """In a context only what goes to the database at once is awaited."""
    methods = inspect.getmembers(stage_tracker.AsyncClaimedRun, inspect.iscoroutinefunction)
    assert {name for name, _ in methods if not name.startswith("_")} == {"skip", "release"}
