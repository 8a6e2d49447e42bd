"""docs/migrating.md says what becomes of malformed rows."""

import json
import re
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from blocks import text_of

ROWS = re.findall(r"^\| `(.+)` \| (\w+) \| (the original)? ?\|$", text_of("docs/migrating.md"), re.MULTILINE)


def test_there_are_odd_rows() -> None:
    """The table is found."""
    assert len(ROWS) >= 10


@pytest.mark.parametrize(("found", "state", "kept"), ROWS)
def test_an_odd_value_becomes_what_the_page_says(
    connect: Callable[[], "psycopg.Connection[tuple[Any, ...]]"], found: str, state: str, kept: str
) -> None:
    """The repair makes that state of it, and keeps the original where the page says so."""
    row = (
        connect()
        .execute("select krai_private.repaired_stages(jsonb_build_object('upload', %s::jsonb)) -> 'upload'", [found])
        .fetchone()
    )
    assert row is not None
    assert row[0]["status"] == state
    assert row[0]["metadata"] == ({"v1": json.loads(found)} if kept else {})
