"""Requests of people: retry, reset, cancel, pause. No I/O, no rules."""

import datetime as dt
from typing import Any

from processors_v2._calls.arguments import text_of, time_of
from processors_v2._calls.call import Call, as_dict, given_only, writer


def retry_stage(document: str, stage: str, actor: str | None = None) -> Call[bool]:
    """krai_core.retry_stage."""
    arguments = {"p_document_id": document, "p_stage_name": stage, "p_actor": text_of(actor)}
    # Between two sendings somebody may have started the stage, which the second would report as a conflict.
    return writer("retry_stage", arguments, None, repeatable=False)


def retry_failed(
    stage: str | None, error: str | None, since: dt.datetime | None, limit: int, actor: str | None, *, dry_run: bool
) -> Call[dict[str, Any]]:
    """krai_core.retry_failed."""
    arguments = {
        "p_stage_name": stage,
        "p_error": text_of(error),
        "p_since": time_of(since),
        "p_limit": limit,
        "p_dry_run": dry_run,
        "p_actor": text_of(actor),
    }
    # What was retried may have failed again between two sendings.
    return Call("rpc/retry_failed", given_only(arguments), as_dict, repeatable=dry_run)


def reset_stage(
    document: str, stage: str, *, cascade: bool = False, force: bool = False, actor: str | None = None
) -> Call[bool]:
    """krai_core.reset_stage."""
    arguments = {
        "p_document_id": document,
        "p_stage_name": stage,
        "p_cascade": cascade,
        "p_force": force,
        "p_actor": text_of(actor),
    }
    # The repeat of a forced reset could take away a run that began after the first.
    return writer("reset_stage", arguments, None, repeatable=False)


def cancel_document(document: str, reason: str, actor: str | None) -> Call[bool]:
    """krai_core.cancel_document."""
    arguments = {"p_document_id": document, "p_reason": text_of(reason), "p_actor": text_of(actor)}
    # Between two sendings somebody may have brought the document back.
    return writer("cancel_document", arguments, None, repeatable=False)


def set_priority(document: str, priority: int, actor: str | None) -> Call[bool]:
    """krai_core.set_priority."""
    return writer("set_priority", {"p_document_id": document, "p_priority": priority, "p_actor": text_of(actor)}, None)


def pause_stage(stage: str, actor: str | None) -> Call[bool]:
    """krai_core.pause_stage."""
    return writer("pause_stage", {"p_stage_name": stage, "p_actor": text_of(actor)}, None)


def resume_stage(stage: str, actor: str | None) -> Call[bool]:
    """krai_core.resume_stage."""
    return writer("resume_stage", {"p_stage_name": stage, "p_actor": text_of(actor)}, None)
