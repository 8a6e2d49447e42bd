"""docs/monitoring.md names what there is. Its blocks are run by test_code_blocks.py."""

import re
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from blocks import text_of

PAGE = text_of("docs/monitoring.md")


@pytest.mark.parametrize("line", [line for line in PAGE.splitlines() if line.startswith("| ") and "`" in line])
def test_every_name_in_the_table_exists(
    connect: Callable[[], "psycopg.Connection[tuple[Any, ...]]"], line: str
) -> None:
    """The second column names methods of StageTracker, the third functions and views."""
    from processors_v2.stage_tracker import StageTracker  # noqa: PLC0415 - beside what it is compared with

    _, _, python, sql, _ = line.split("|")
    assert all(callable(getattr(StageTracker, name)) for name in re.findall(r"`(\w+)`", python))
    for name in re.findall(r"`(\w+)`", sql):
        found = (
            connect()
            .execute(
                "select 1 from pg_proc where pronamespace = 'krai_core'::regnamespace and proname = %s"
                " union all select 1 from pg_class where relnamespace = 'krai_core'::regnamespace and relname = %s",
                [name, name],
            )
            .fetchall()
        )
        assert found or "rpc" in sql, name
