"""Deltas that are not folded: as many as a test needs, and how many there are."""

from typing import Any

DUE = 1100


def make_due(sql: Any, count: int = DUE, *, below: int | None = None) -> None:
    """Append so many deltas that change nothing; ``below``: the next one is that much below a thousandth."""
    if below is not None:
        last = sql.value("select last_value from krai_core.stage_deltas_id_seq")
        count += (-below - last - count - 1) % 1000
    sql.run("insert into krai_core.stage_deltas (stage_name) select '' from generate_series(1, %s)", count)


def deltas(sql: Any) -> int:
    """How many are not folded."""
    count: int = sql.value("select count(*) from krai_core.stage_deltas")
    return count
