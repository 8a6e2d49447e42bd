"""docs/parallel_workers.md names the settings of a stage as they are."""

import re
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from blocks import text_of

ROWS = re.findall(r"^\| `(\w+_(?:seconds|attempts))` \| (\w+) \|", text_of("docs/parallel_workers.md"), re.MULTILINE)


def test_the_settings_are_found() -> None:
    """The table has those that bound a run and its retries."""
    assert len(ROWS) == 5


@pytest.mark.parametrize(("column", "default"), ROWS)
def test_a_setting_has_that_default(
    connect: Callable[[], "psycopg.Connection[tuple[Any, ...]]"], column: str, default: str
) -> None:
    """The default is that of the column in krai_core.stages."""
    found = connect().execute(
        "select coalesce(pg_get_expr(d.adbin, d.adrelid), 'none') from pg_attribute a"
        " left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum"
        " where a.attrelid = 'krai_core.stages'::regclass and a.attname = %s",
        [column],
    )
    assert found.fetchall() == [(default,)]
