"""Deno's own tools over the functions."""

import subprocess

import pytest
from edge_servers import DENO, FUNCTIONS, deno_environment

from processors_v2._local.process import clean_environment


@pytest.mark.parametrize("command", [["check", "--no-remote"], ["lint"], ["fmt", "--check"]], ids=" ".join)
def test_deno_finds_nothing(command: list[str]) -> None:
    """Types, lint rules and layout are as Deno wants them."""
    done = subprocess.run(
        [DENO, *command, FUNCTIONS],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=clean_environment() | deno_environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
