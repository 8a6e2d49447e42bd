"""Views, page by page, for PostgREST and as SQL."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from processors_v2._calls.call import Call, as_list

# Rows of a view in one answer. PostgREST may give fewer (max-rows), which is why the end is an answer without any.
_ROWS = 1000


def page_of(
    view: str,
    key: Sequence[str],
    where: Iterable[tuple[str, str, str, str | None]],
    after: Mapping[str, Any] | None,
) -> Call[list[dict[str, Any]]]:
    """Return the call for a page of a view in the order of its key, for PostgREST and as SQL.

    Args:
        view: Its name.
        key: Columns that tell its rows apart.
        where: Column, operator of PostgREST, the same in SQL, and value; not asked for where that is None.
        after: Last row of the page before; None: the first page.
    """
    asked = [one for one in where if one[3] is not None]
    query = [f"{column}={word}.{quote(str(value), safe='')}" for column, word, _, value in asked]
    conditions = [f"{column} {sign} %s" for column, _, sign, _ in asked]
    values = [str(value) for *_, value in asked]
    if after is not None:
        last = [str(after[column]) for column in key]
        query.append(f"or={quote(_beyond(key, last), safe='(),.')}")
        conditions.append(f"({', '.join(key)}) > ({', '.join(['%s'] * len(key))})")
        values += last
    columns = ", ".join(key)
    path = "&".join([*query, f"order={','.join(key)}", f"limit={_ROWS}"])
    condition = f" where {' and '.join(conditions)}" if conditions else ""
    rows = f"select * from krai_core.{view}{condition} order by {columns} limit {_ROWS}"  # noqa: S608 - names of our own
    return Call(
        f"{view}?{path}",
        None,
        as_list,
        repeatable=True,
        sql=f"select coalesce(jsonb_agg(to_jsonb(v) order by {columns}), '[]') from ({rows}) v",  # noqa: S608 - as above
        values=tuple(values),
    )


def _beyond(key: Sequence[str], last: Sequence[str]) -> str:
    """Return the rows beyond one as a condition of PostgREST, which compares no rows."""
    branches = []
    for place, (column, value) in enumerate(zip(key, last, strict=True)):
        same = [f'{before}.eq."{equal}"' for before, equal in zip(key[:place], last[:place], strict=True)]
        parts = [*same, f'{column}.gt."{value}"']
        branches.append(f"and({','.join(parts)})")
    return f"({','.join(branches)})"
