"""What workers report, and what they are answered."""

import uuid
from collections.abc import Mapping
from typing import Any, Literal, Required, TypedDict


class StageRun(TypedDict):
    """Names a run that is held."""

    document_id: str | uuid.UUID
    stage_name: str
    claim_id: str | uuid.UUID


class StageOutcome(StageRun, total=False):
    """What became of a run."""

    outcome: Required[Literal["completed", "failed", "skipped", "progress"]]
    metadata: Mapping[str, Any]
    """Merged into what is stored."""
    error: str | BaseException
    """Of failed: what happened, for people."""
    retry: bool
    """Of failed: try again by itself, after a pause, while attempts are left."""
    reason: str
    """Of skipped."""
    progress: float
    """Of progress: percent, 0 to 100."""


class OutcomeAnswer(TypedDict, total=False):
    """What the database says to an outcome."""

    ok: Required[bool]
    next_retry_at: str
    """Of failed: when it is tried again. ISO 8601, UTC, database clock."""
    error: str
    """Where ok is False: lease_lost, conflict, unknown_document, unknown_stage, invalid_metadata, invalid_progress."""
    message: str
    hint: str
    document_id: str
    stage: str
    status: str


class HeartbeatAnswer(TypedDict):
    """Which runs live on, each as it was given."""

    alive: list[dict[str, Any]]
    """With lease_ms, the length of the lease in milliseconds from now."""
    lost: list[dict[str, Any]]
    """Closed by somebody else: stop the work."""
    cancelled: list[dict[str, Any]]
    """Taken away on purpose: stop the work."""


class ReleaseAnswer(TypedDict):
    """Which runs were given back, each as it was given."""

    released: list[dict[str, Any]]
    lost: list[dict[str, Any]]
