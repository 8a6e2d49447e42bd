"""Requests of those who watch and plan to the database, as in _calls. No I/O, no rules."""

import datetime as dt
import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from processors_v2 import _calls, _times
from processors_v2._errors import InvalidArgument, UnknownDocument
from processors_v2._models import StageCounts
from processors_v2._monitoring_models import WatchEvent

# Rows of a view in one answer. PostgREST may give fewer (max-rows), which is why the end is an answer without any.
_ROWS = 1000


def get_statistics(order: Iterable[str]) -> _calls.Call[dict[str, StageCounts]]:
    """Stages out of krai_core.get_stage_statistics, in the given order."""
    return _calls.reader("get_stage_statistics", {}, lambda answer: _with_order(answer, order)["stages"])


def list_documents(
    stage: str | None, status: object, limit: int, after: str | None, error: str | None, fingerprint: str | None
) -> _calls.Call[dict[str, Any]]:
    """krai_core.list_documents, one page."""
    arguments = {
        "p_stage_name": stage,
        "p_status": _calls.text_of(status.value if isinstance(status, enum.Enum) else status),
        "p_limit": limit,
        "p_after": after,
        "p_error": _calls.text_of(error),
        "p_fingerprint": _calls.text_of(fingerprint),
    }
    return _calls.reader("list_documents", _calls.given_only(arguments), _calls.as_dict)


def get_failures(stage: str | None, since: dt.datetime | None, limit: int) -> _calls.Call[dict[str, Any]]:
    """krai_core.get_failures."""
    arguments = {"p_stage_name": stage, "p_since": _times.time_of(since), "p_limit": limit}
    return _calls.reader("get_failures", _calls.given_only(arguments), _calls.as_dict)


def get_stuck_stages(limit: int, starved_after_seconds: float) -> _calls.Call[dict[str, Any]]:
    """krai_core.get_stuck_stages."""
    if not math.isfinite(starved_after_seconds):
        raise InvalidArgument(
            f"starved_after_seconds {starved_after_seconds} is no number of seconds",
            hint="Pass 0 or more",
            error="invalid_age",
        )
    arguments = {"p_limit": limit, "p_starved_after_seconds": starved_after_seconds}
    return _calls.reader("get_stuck_stages", arguments, _calls.as_dict)


def get_document_events(documents: Mapping[str, Any], order: Iterable[str]) -> _calls.Call[dict[str, Any]]:
    """krai_core.get_document_events, the stages of each state in the given order."""

    def parse(answer: object) -> dict[str, Any]:
        events = _calls.as_dict(answer)
        for event in events.values():
            if event["state"] is not None:
                event["state"]["stage_status"] = _calls.ordered(event["state"]["stage_status"], order)
        return events

    return _calls.reader("get_document_events", {"p_documents": documents}, parse)


def event_of(document: str, answer: dict[str, Any]) -> tuple[WatchEvent, dict[str, Any]]:
    """Return the event in the answer of get_document_events for a document, and what to send for the next one.

    Raises:
        UnknownDocument: There is no such document, or no longer.
    """
    if answer["state"] is None:
        raise UnknownDocument(
            f"there is no document {document}, or no longer",
            hint="As a signed-in user, check that the policies of krai_core.documents let you see it",
            error="unknown_document",
            details={"document_id": document},
        )
    known = {"seen": answer["seen"], "version": answer["version"]}
    event = WatchEvent(id=answer["seen"], changes=answer["changes"], status=answer["state"], is_open=answer["is_open"])
    return event, known


def get_workers() -> _calls.Call[list[dict[str, Any]]]:
    """krai_core.get_workers."""
    return _calls.reader("get_workers", {}, _calls.as_list)


def get_running_stages(after: Mapping[str, Any] | None) -> _calls.Call[list[dict[str, Any]]]:
    """krai_core.vw_running_stages, one page; after the last row of the page before."""
    return _page("vw_running_stages", ("started_at", "document_id", "stage_name"), [], after)


def get_stage_flow(
    stage: str | None, since: str | None, after: Mapping[str, Any] | None
) -> _calls.Call[list[dict[str, Any]]]:
    """krai_core.vw_stage_flow, one page; after the last row of the page before."""
    where = [("stage_name", "eq", "=", stage), ("hour", "gte", ">=", since)]
    return _page("vw_stage_flow", ("hour", "stage_name"), where, after)


def get_document_timeline(document: str) -> _calls.Call[dict[str, Any]]:
    """krai_core.get_document_timeline."""
    return _calls.reader("get_document_timeline", {"p_document_id": document}, _calls.as_dict)


def get_document_eta(document: str, order: Iterable[str]) -> _calls.Call[dict[str, Any]]:
    """krai_core.get_document_eta, its stages in the given order."""
    return _calls.reader("get_document_eta", {"p_document_id": document}, lambda answer: _with_order(answer, order))


def get_weighted_progress(document: str) -> _calls.Call[float]:
    """krai_core.get_weighted_progress."""
    return _calls.reader("get_weighted_progress", {"p_document_id": document}, float)


def get_forecast(hours: int, order: Iterable[str]) -> _calls.Call[dict[str, Any]]:
    """krai_core.get_forecast, its stages in the given order."""
    return _calls.reader("get_forecast", {"p_hours": hours}, lambda answer: _with_order(answer, order))


def _with_order(answer: object, order: Iterable[str]) -> dict[str, Any]:
    given = _calls.as_dict(answer)
    return {**given, "stages": _calls.ordered(given["stages"], order)}


def _page(
    view: str,
    key: Sequence[str],
    where: Iterable[tuple[str, str, str, str | None]],
    after: Mapping[str, Any] | None,
) -> _calls.Call[list[dict[str, Any]]]:
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
    return _calls.Call(
        f"{view}?{path}",
        None,
        _calls.as_list,
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
