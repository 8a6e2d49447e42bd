"""Every command explains itself."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from processors_v2._cli.app import app

COMMANDS = sorted(str(one.name) for one in app.registered_commands)
PAGES = "\n".join(page.read_text(encoding="utf-8") for page in (Path(__file__).parents[2] / "docs").glob("*.md"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(run: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its help says what it does, ends with a call of it, and needs no database."""
    monkeypatch.setenv("COLUMNS", "200")
    done = run(name, "--help")
    assert (done.code, done.err) == (0, "")
    (command,) = [one for one in app.registered_commands if one.name == name]
    assert command.callback is not None
    assert (command.callback.__doc__ or "").splitlines()[0].rstrip(".") in done.out
    assert f"Example: stage-tracker {name}" in done.out
    assert "--json" in done.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name: str) -> None:
    """A page has a call of it as an example."""
    assert re.search(rf"^(\$ )?stage-tracker {name}\b", PAGES, re.MULTILINE)


def test_the_list_of_commands_is_shown_without_one(run: Any) -> None:
    """stage-tracker alone prints its help."""
    done = run()
    assert all(re.search(rf"\b{name}\b", done.out + done.err) for name in COMMANDS)
    assert "Exit codes" in done.out + done.err


def test_the_version_is_told(run: Any) -> None:
    """--version names the client and the SQL that it is made for."""
    done = run("--version")
    assert done.code == 0
    assert re.fullmatch(r"stage-tracker \S+, for version \d+(\.\d+)+ of the SQL\n", done.out)


def test_the_app_is_one_of_typer() -> None:
    """Whoever writes documentation or completion for it gets the object that they know."""
    assert isinstance(app, typer.Typer)
