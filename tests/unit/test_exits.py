"""Exit codes that need no database: what is missing or wrong on the command line and in the environment."""

import subprocess
import sys
from typing import Any

import pytest

from processors_v2 import errors
from processors_v2._cli.exits import Exit, code_of


def is_clean(done: Any) -> bool:
    """Whether nothing was answered, and no traceback shown."""
    return done.out == "" and "Traceback" not in done.err and done.err.startswith("Error: ")


@pytest.mark.parametrize("kind", sorted(set(errors.__all__) - {"PermanentError", "StageTrackerError"}))
def test_every_class_of_error_has_a_code_of_its_kind(kind: str) -> None:
    """None falls to 1, which says the least."""
    error = getattr(errors, kind)("said")
    assert code_of(error) in {Exit.USAGE, Exit.NOT_FOUND, Exit.CONFLICT, Exit.SETUP, Exit.AWAY}
    assert (code_of(error) == Exit.CONFLICT) == isinstance(error, errors.StageConflict)


def test_no_database_is_named(run: Any) -> None:
    """Without variables the message names those that would do."""
    done = run("stats")
    assert done.code == 5
    assert is_clean(done)
    for name in ("SUPABASE_URL", "SUPABASE_SECRET_KEY", "SUPABASE_DB_URL", ".env"):
        assert name in done.err


def test_a_url_without_a_key_names_the_keys(run: Any) -> None:
    """A project needs a key, which comes from the environment only."""
    done = run("stats", "--url", "http://127.0.0.1:9")
    assert done.code == 5
    assert "SUPABASE_SECRET_KEY" in done.err


def test_two_ways_to_the_database_are_one_too_many(run: Any) -> None:
    """--url and --database-url exclude each other."""
    done = run("stats", "--url", "http://127.0.0.1:9", "--database-url", "postgresql://127.0.0.1:9/x")
    assert done.code == 5
    assert "Give one of them" in done.err


@pytest.mark.parametrize("option", [["--url", "http://127.0.0.1:9"], ["--database-url", "postgresql://127.0.0.1:9/x"]])
def test_a_database_that_does_not_answer_is_6(run: Any, option: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time that --timeout gives, the message says where it was looked for."""
    monkeypatch.setenv("SUPABASE_SECRET_KEY", "sb_secret_x")
    done = run("stats", *option, "--timeout", "0.1")
    assert done.code == 6
    assert is_clean(done)
    assert "127.0.0.1" in done.err


@pytest.mark.parametrize("command", [["frobnicate"], ["status"], ["stats", "--frob"], ["prune", "--older-than", "old"]])
def test_a_wrong_command_line_is_2(run: Any, command: list[str]) -> None:
    """Unknown commands and options, missing arguments and values of no form."""
    done = run(*command)
    assert (done.code, done.out) == (2, "")
    assert "Usage: stage-tracker" in done.err


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_it_says_what_to_install(missing: str) -> None:
    """The core has no command line; the message is one line, and the exit code 2."""
    program = f"import sys; sys.modules[{missing!r}] = None; from processors_v2.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"stage-tracker needs {missing}: pip install 'stage-tracker[cli]'\n"


def test_the_demo_without_its_extra_says_what_to_install(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded stack is an extra of its own."""
    monkeypatch.setitem(sys.modules, "processors_v2._local.stack", None)
    done = run("demo")
    assert done.code == 5
    assert is_clean(done)
    assert "pip install 'stage-tracker[local]'" in done.err
