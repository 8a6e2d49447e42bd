"""Requests of people and schedulers to the database, as in _calls. No I/O, no rules."""

import datetime as dt
from collections.abc import Iterable
from typing import Any

from processors_v2 import _calls, _times


def retry_stage(document: str, stage: str, actor: str | None = None) -> _calls.Call[bool]:
    """krai_core.retry_stage."""
    arguments = {"p_document_id": document, "p_stage_name": stage, "p_actor": _calls.text_of(actor)}
    # Between two sendings somebody may have started the stage, which the second would report as a conflict.
    return _calls.writer("retry_stage", arguments, None, repeatable=False)


def reset_stage(
    document: str, stage: str, *, cascade: bool = False, force: bool = False, actor: str | None = None
) -> _calls.Call[bool]:
    """krai_core.reset_stage."""
    arguments = {
        "p_document_id": document,
        "p_stage_name": stage,
        "p_cascade": cascade,
        "p_force": force,
        "p_actor": _calls.text_of(actor),
    }
    # The repeat of a forced reset could take away a run that began after the first.
    return _calls.writer("reset_stage", arguments, None, repeatable=False)


def rebuild_ready_runs() -> _calls.Call[dict[str, int]]:
    """krai_core.rebuild_ready_runs."""
    return _calls.Call("rpc/rebuild_ready_runs", {}, _calls.as_dict, repeatable=True)


def rebuild_statistics() -> _calls.Call[dict[str, Any]]:
    """krai_core.rebuild_statistics."""
    return _calls.Call("rpc/rebuild_statistics", {}, _calls.as_dict, repeatable=True)


def prune_runs(older_than: dt.timedelta, limit: int, *, keep_failures: bool) -> _calls.Call[dict[str, Any]]:
    """krai_core.prune_runs."""
    arguments = {
        "p_older_than": _times.interval_of(older_than),
        "p_keep_failures": keep_failures,
        "p_limit": limit,
    }
    return _calls.Call("rpc/prune_runs", arguments, _calls.as_dict, repeatable=True)


def schedule_maintenance(prune_older_than: dt.timedelta | None, *, keep_failures: bool) -> _calls.Call[dict[str, Any]]:
    """krai_core.schedule_maintenance."""
    age = None if prune_older_than is None else _times.interval_of(prune_older_than)
    arguments = {"p_prune_older_than": age, "p_keep_failures": keep_failures}
    return _calls.Call("rpc/schedule_maintenance", arguments, _calls.as_dict, repeatable=True)


def retry_failed(
    stage: str | None, error: str | None, since: dt.datetime | None, limit: int, actor: str | None, *, dry_run: bool
) -> _calls.Call[dict[str, Any]]:
    """krai_core.retry_failed."""
    arguments = {
        "p_stage_name": stage,
        "p_error": _calls.text_of(error),
        "p_since": _times.time_of(since),
        "p_limit": limit,
        "p_dry_run": dry_run,
        "p_actor": _calls.text_of(actor),
    }
    # What was retried may have failed again between two sendings.
    return _calls.Call("rpc/retry_failed", _calls.given_only(arguments), _calls.as_dict, repeatable=dry_run)


def cancel_document(document: str, reason: str, actor: str | None) -> _calls.Call[bool]:
    """krai_core.cancel_document."""
    arguments = {"p_document_id": document, "p_reason": _calls.text_of(reason), "p_actor": _calls.text_of(actor)}
    # Between two sendings somebody may have brought the document back.
    return _calls.writer("cancel_document", arguments, None, repeatable=False)


def set_priority(document: str, priority: int, actor: str | None) -> _calls.Call[bool]:
    """krai_core.set_priority."""
    return _calls.writer(
        "set_priority", {"p_document_id": document, "p_priority": priority, "p_actor": _calls.text_of(actor)}, None
    )


def pause_stage(stage: str, actor: str | None) -> _calls.Call[bool]:
    """krai_core.pause_stage."""
    return _calls.writer("pause_stage", {"p_stage_name": stage, "p_actor": _calls.text_of(actor)}, None)


def resume_stage(stage: str, actor: str | None) -> _calls.Call[bool]:
    """krai_core.resume_stage."""
    return _calls.writer("resume_stage", {"p_stage_name": stage, "p_actor": _calls.text_of(actor)}, None)


def register_stage(stage: str, requires: Iterable[str] | None, actor: str | None, **settings: Any) -> _calls.Call[bool]:
    """krai_core.register_stage; settings as its parameters, without ``p_``."""
    arguments = {
        "p_stage_name": stage,
        "p_requires": None if requires is None else _calls.TextArray(requires),
        "p_actor": _calls.text_of(actor),
        **{f"p_{name}": value for name, value in settings.items()},
    }
    return _calls.writer("register_stage", arguments, None)


def disable_stage(stage: str, actor: str | None) -> _calls.Call[bool]:
    """krai_core.disable_stage."""
    return _calls.writer("disable_stage", {"p_stage_name": stage, "p_actor": _calls.text_of(actor)}, None)


def explain_stage(document: str, stage: str) -> _calls.Call[dict[str, Any]]:
    """krai_core.explain_stage."""
    return _calls.reader("explain_stage", {"p_document_id": document, "p_stage_name": stage}, _calls.as_dict)


def get_documents_ready_for(stage: str, limit: int, after: str | None) -> _calls.Call[dict[str, Any]]:
    """krai_core.get_documents_ready_for, one page."""
    arguments = {"p_stage_name": stage, "p_limit": limit, "p_after": after}
    return _calls.reader("get_documents_ready_for", _calls.given_only(arguments), _calls.as_dict)


def get_installation() -> _calls.Call[dict[str, Any]]:
    """krai_core.get_installation."""
    return _calls.reader("get_installation", {}, _calls.as_dict)
