"""``stage-tracker doctor`` where there is nothing to ask."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("variables", "check", "remedy"),
    [
        ({}, "url", "Set it to the URL of the project"),
        ({"SUPABASE_URL": "postgresql://x"}, "url", "Set it to the URL of the project"),
        ({"SUPABASE_URL": "http://127.0.0.1:9"}, "key", "Set the secret key"),
        ({"SUPABASE_URL": "http://127.0.0.1:9", "SUPABASE_SECRET_KEY": "sb_publishable_x"}, "key", "needs the secret"),
    ],
    ids=["nothing", "no http", "no key", "publishable"],
)
def test_the_command_without_what_it_needs(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], check: str, remedy: str
) -> None:
    """A variable that is missing or wrong is a finding like others: exit code 1, what and remedy."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    done = run("doctor", "--json")
    [problem] = [finding for finding in json.loads(done.out)["findings"] if finding["level"] == "problem"]
    assert (done.code, problem["check"]) == (1, check)
    assert remedy in problem["remedy"]
    shown = run("doctor").out.splitlines()
    assert shown[0].startswith(f"problem {check} ")
    assert remedy in shown[1]


def test_the_command_in_a_folder_that_is_not_there(run: Callable[..., Any], folder: Path) -> None:
    """A folder that does not exist is a wrong command line."""
    assert run("doctor", "--project", folder / "nowhere").code == 2
