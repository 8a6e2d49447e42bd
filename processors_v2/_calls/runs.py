"""Requests of a run from its start to its end. No I/O, no rules."""

import uuid
from collections.abc import Mapping
from typing import Any

from processors_v2._calls import storable
from processors_v2._calls.arguments import failure_text, percent, text_of
from processors_v2._calls.call import Call, writer


def start_stage(
    document: str,
    stage: str,
    claim_id: uuid.UUID | None = None,
    worker: str | None = None,
    lease_seconds: float | None = None,
) -> Call[bool]:
    """krai_core.start_stage."""
    arguments = {
        "p_document_id": document,
        "p_stage_name": stage,
        "p_worker": text_of(worker),
        "p_lease_seconds": lease_seconds,
    }
    # Without a claim id the repeat of a start that took effect is told that the stage is held.
    return writer("start_stage", arguments, claim_id, repeatable=claim_id is not None)


def update_stage_progress(
    document: str,
    stage: str,
    progress: object,
    metadata: Mapping[str, Any] | None = None,
    claim_id: uuid.UUID | None = None,
) -> Call[bool]:
    """krai_core.update_stage_progress."""
    arguments = {
        "p_document_id": document,
        "p_stage_name": stage,
        "p_progress": percent(progress),
        "p_metadata": storable.metadata(metadata),
    }
    return writer("update_stage_progress", arguments, claim_id)


def complete_stage(
    document: str, stage: str, metadata: Mapping[str, Any] | None = None, claim_id: uuid.UUID | None = None
) -> Call[bool]:
    """krai_core.complete_stage."""
    arguments = {"p_document_id": document, "p_stage_name": stage, "p_metadata": storable.metadata(metadata)}
    return writer("complete_stage", arguments, claim_id)


def fail_stage(
    document: str,
    stage: str,
    error: object,
    metadata: Mapping[str, Any] | None = None,
    claim_id: uuid.UUID | None = None,
    *,
    retry: bool = False,
) -> Call[bool]:
    """krai_core.fail_stage; an exception may be given as the error."""
    arguments = {
        "p_document_id": document,
        "p_stage_name": stage,
        "p_error": failure_text(error),
        "p_metadata": storable.metadata(metadata),
        "p_retry": retry or None,
    }
    return writer("fail_stage", arguments, claim_id)


def skip_stage(document: str, stage: str, reason: str, claim_id: uuid.UUID | None = None) -> Call[bool]:
    """krai_core.skip_stage."""
    arguments = {
        "p_document_id": document,
        "p_stage_name": stage,
        "p_reason": text_of(reason),
    }
    return writer("skip_stage", arguments, claim_id)
