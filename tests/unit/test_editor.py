"""``stage-tracker sql``: the text for the SQL editor."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# What the dashboard accepts, in bytes; its editor refuses more before it sends anything.
EDITOR_LIMIT = 0.98 * 1024 * 1024


@pytest.fixture
def text(run: Callable[..., Any]) -> bytes:
    """What the command prints."""
    done = run("sql")
    assert (done.code, done.err) == (0, "")
    printed: bytes = done.out.encode()
    return printed


def test_the_editor_takes_a_text_of_this_length(text: bytes) -> None:
    """It is shorter than what the dashboard refuses to send."""
    assert len(text) < EDITOR_LIMIT


def test_nothing_is_left_that_an_editor_would_refuse(text: bytes) -> None:
    """No statement commits within, none is concurrent; the comments that say so of the files are gone as well."""
    said = text.decode()
    assert "\n        commit;" not in said
    assert "index concurrently" not in said
    assert "must not run inside a transaction" not in said


def test_it_can_be_written_to_a_file(run: Callable[..., Any], folder: Path, text: bytes) -> None:
    """--output writes the same text; --json gives it as one document."""
    assert run("sql", "--output", "all.sql").code == 0
    assert (folder / "all.sql").read_bytes() == text
    assert json.loads(run("sql", "--json").out) == {"sql": text.decode()}
    failed = run("sql", "--output", "all.sql/below.sql")
    assert (failed.code, "all.sql" in failed.err) == (5, True)
