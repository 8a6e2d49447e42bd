"""Requests of schedulers and of whoever looks after an installation. No I/O, no rules."""

import datetime as dt
from typing import Any

from processors_v2._calls.arguments import interval_of
from processors_v2._calls.call import Call, as_dict, reader


def reap(limit: int = 1000) -> Call[dict[str, Any]]:
    """krai_core.reap."""
    return Call("rpc/reap", {"p_limit": limit}, as_dict, repeatable=True)


def fill_ready_runs(limit: int = 1000) -> Call[int]:
    """krai_core.fill_ready_runs."""
    return Call("rpc/fill_ready_runs", {"p_limit": limit}, int, repeatable=True)


def rebuild_ready_runs() -> Call[dict[str, int]]:
    """krai_core.rebuild_ready_runs."""
    return Call("rpc/rebuild_ready_runs", {}, as_dict, repeatable=True)


def rebuild_statistics() -> Call[dict[str, Any]]:
    """krai_core.rebuild_statistics."""
    return Call("rpc/rebuild_statistics", {}, as_dict, repeatable=True)


def prune_runs(older_than: dt.timedelta, limit: int, *, keep_failures: bool) -> Call[dict[str, Any]]:
    """krai_core.prune_runs."""
    arguments = {
        "p_older_than": interval_of(older_than),
        "p_keep_failures": keep_failures,
        "p_limit": limit,
    }
    return Call("rpc/prune_runs", arguments, as_dict, repeatable=True)


def schedule_maintenance(prune_older_than: dt.timedelta | None, *, keep_failures: bool) -> Call[dict[str, Any]]:
    """krai_core.schedule_maintenance."""
    age = None if prune_older_than is None else interval_of(prune_older_than)
    arguments = {"p_prune_older_than": age, "p_keep_failures": keep_failures}
    return Call("rpc/schedule_maintenance", arguments, as_dict, repeatable=True)


def get_installation() -> Call[dict[str, Any]]:
    """krai_core.get_installation."""
    return reader("get_installation", {}, as_dict)


def schema_version() -> Call[str]:
    """krai_core.schema_version."""
    return reader("schema_version", {}, str)
