"""Fixtures that all tests share."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from processors_v2.local import LocalSupabase

pytest_plugins = ["processors_v2.pytest_plugin"]

# A background job of a shell script ignores Ctrl-C, and so would every program that these tests start and interrupt.
# What is handled here, and not ignored, is back at its default in them.
signal.signal(signal.SIGINT, signal.default_int_handler)

# They take minutes, for the most part waiting. Begun first, they are done before the others are.
_BEGUN_FIRST = ("test_soak.py", "test_short_chaos.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files before the others, whose order stays."""
    items.sort(key=lambda item: item.path.name not in _BEGUN_FIRST)


@pytest.fixture(scope="session")
def local(local_supabase: LocalSupabase) -> LocalSupabase:
    """The stack of the session: Postgres 16, PostgREST, all migrations applied."""
    return local_supabase


@dataclass(frozen=True)
class Result:
    """What a command of stage-tracker did."""

    code: int
    out: str
    err: str


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working directory; no variables of Supabase, and none that change what a terminal can do."""
    for name in list(os.environ):
        if name.startswith(("SUPABASE_", "DATABASE_URL")) or name in {"FORCE_COLOR", "NO_COLOR", "COLUMNS", "LINES"}:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run the command in this process and an empty folder, its output going to pipes."""
    # The extra cli, which most tests do without.
    from processors_v2.cli import main  # noqa: PLC0415

    assert folder.is_dir()

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["stage-tracker", *map(str, arguments)])
        # What an option sets in the environment ends with the command.
        before = dict(os.environ)
        capfd.readouterr()
        try:
            code = main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        finally:
            os.environ.clear()
            os.environ.update(before)
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return call
