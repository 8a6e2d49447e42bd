"""Requests that only read: where documents stand, what is at work, what is to be expected. No I/O, no rules."""

import datetime as dt
import enum
import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

from processors_v2._calls.arguments import text_of, time_of
from processors_v2._calls.call import Call, as_bool, as_dict, as_list, given_only, ordered, reader
from processors_v2._calls.pages import page_of
from processors_v2._errors import InvalidArgument
from processors_v2._shapes.document import DocumentStatus, StageStatus


def get_document_progress(document: str) -> Call[float]:
    """krai_core.get_document_progress."""
    return reader("get_document_progress", {"p_document_id": document}, float)


def get_current_stage(document: str) -> Call[str]:
    """krai_core.get_current_stage."""
    return reader("get_current_stage", {"p_document_id": document}, str)


def can_start_stage(document: str, stage: str) -> Call[bool]:
    """krai_core.can_start_stage."""
    return reader("can_start_stage", {"p_document_id": document, "p_stage_name": stage}, as_bool)


def get_document_status(document: str, order: Iterable[str]) -> Call[DocumentStatus]:
    """krai_core.get_document_status, its stages in the given order."""

    def parse(answer: object) -> DocumentStatus:
        status = as_dict(answer)
        return cast("DocumentStatus", {**status, "stage_status": ordered(status["stage_status"], order)})

    return reader("get_document_status", {"p_document_id": document}, parse)


def get_stage_status(document: str, order: Iterable[str]) -> Call[dict[str, StageStatus]]:
    """stage_status out of krai_core.get_document_status, in the given order."""
    return reader(
        "get_document_status",
        {"p_document_id": document},
        lambda answer: ordered(as_dict(answer)["stage_status"], order),
    )


def get_weighted_progress(document: str) -> Call[float]:
    """krai_core.get_weighted_progress."""
    return reader("get_weighted_progress", {"p_document_id": document}, float)


def get_document_timeline(document: str) -> Call[dict[str, Any]]:
    """krai_core.get_document_timeline."""
    return reader("get_document_timeline", {"p_document_id": document}, as_dict)


def explain_stage(document: str, stage: str) -> Call[dict[str, Any]]:
    """krai_core.explain_stage."""
    return reader("explain_stage", {"p_document_id": document, "p_stage_name": stage}, as_dict)


def list_documents(
    stage: str | None, status: object, limit: int, after: str | None, error: str | None, fingerprint: str | None
) -> Call[dict[str, Any]]:
    """krai_core.list_documents, one page."""
    arguments = {
        "p_stage_name": stage,
        "p_status": text_of(status.value if isinstance(status, enum.Enum) else status),
        "p_limit": limit,
        "p_after": after,
        "p_error": text_of(error),
        "p_fingerprint": text_of(fingerprint),
    }
    return reader("list_documents", given_only(arguments), as_dict)


def get_documents_ready_for(stage: str, limit: int, after: str | None) -> Call[dict[str, Any]]:
    """krai_core.get_documents_ready_for, one page."""
    arguments = {"p_stage_name": stage, "p_limit": limit, "p_after": after}
    return reader("get_documents_ready_for", given_only(arguments), as_dict)


def get_failures(stage: str | None, since: dt.datetime | None, limit: int) -> Call[dict[str, Any]]:
    """krai_core.get_failures."""
    arguments = {"p_stage_name": stage, "p_since": time_of(since), "p_limit": limit}
    return reader("get_failures", given_only(arguments), as_dict)


def get_stage_statistics(order: Iterable[str]) -> Call[dict[str, Any]]:
    """krai_core.get_stage_statistics, its stages in the given order."""
    return reader("get_stage_statistics", {}, lambda answer: _with_order(answer, order))


def get_stage_flow(stage: str | None, since: str | None, after: Mapping[str, Any] | None) -> Call[list[dict[str, Any]]]:
    """krai_core.vw_stage_flow, one page; after the last row of the page before."""
    where = [("stage_name", "eq", "=", stage), ("hour", "gte", ">=", since)]
    return page_of("vw_stage_flow", ("hour", "stage_name"), where, after)


def get_stuck_stages(limit: int, starved_after_seconds: float) -> Call[dict[str, Any]]:
    """krai_core.get_stuck_stages."""
    if not math.isfinite(starved_after_seconds):
        raise InvalidArgument(
            f"starved_after_seconds {starved_after_seconds} is no number of seconds",
            hint="Pass 0 or more",
            error="invalid_age",
        )
    arguments = {"p_limit": limit, "p_starved_after_seconds": starved_after_seconds}
    return reader("get_stuck_stages", arguments, as_dict)


def get_running_stages(after: Mapping[str, Any] | None) -> Call[list[dict[str, Any]]]:
    """krai_core.vw_running_stages, one page; after the last row of the page before."""
    return page_of("vw_running_stages", ("started_at", "document_id", "stage_name"), [], after)


def get_workers() -> Call[list[dict[str, Any]]]:
    """krai_core.get_workers."""
    return reader("get_workers", {}, as_list)


def get_document_eta(document: str, order: Iterable[str]) -> Call[dict[str, Any]]:
    """krai_core.get_document_eta, its stages in the given order."""
    return reader("get_document_eta", {"p_document_id": document}, lambda answer: _with_order(answer, order))


def get_forecast(hours: int, order: Iterable[str]) -> Call[dict[str, Any]]:
    """krai_core.get_forecast, its stages in the given order."""
    return reader("get_forecast", {"p_hours": hours}, lambda answer: _with_order(answer, order))


def _with_order(answer: object, order: Iterable[str]) -> dict[str, Any]:
    given = as_dict(answer)
    return {**given, "stages": ordered(given["stages"], order)}
