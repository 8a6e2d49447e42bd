"""Shapes of what comes back. People import ``processors_v2.models``.

Where people write ``doc["..."]`` a plain dict comes back, described here as a TypedDict; the rest are frozen models.
The source of truth of every field is the comment on the SQL column or function.
"""

import datetime as dt
import uuid
from collections.abc import Mapping
from typing import Any, Literal, Required, TypedDict

from pydantic import BaseModel, ConfigDict, Field

StageState = Literal["pending", "processing", "completed", "failed", "skipped"]
"""State of a stage."""

DocumentState = Literal["pending", "processing", "completed", "failed"]
"""State of a document, by its stages: any failed is failed; all finished is completed; all pending is pending."""


class StageStatus(TypedDict):
    """One stage of one document. Times: ISO 8601, UTC, database clock."""

    status: StageState
    started_at: str | None
    completed_at: str | None
    duration_seconds: float | None
    """Seconds from start to end."""
    progress: float
    """Percent, 0 to 100."""
    error: str | None
    metadata: dict[str, Any]


class DocumentStatus(TypedDict):
    """Everything about one document. Times: ISO 8601, UTC, database clock."""

    document_id: str
    status: DocumentState
    current_stage: str
    """First stage in pipeline order that is not finished, or ``completed``."""
    progress: float
    """Finished stages in percent of the enabled ones, 0 to 100."""
    started_at: str | None
    """Earliest start of a stage."""
    completed_at: str | None
    """Latest end, once every stage is finished."""
    error: str | None
    """Error of the first failed stage in pipeline order."""
    stage_status: dict[str, StageStatus]


class StageCounts(TypedDict):
    """How many documents are in which state of one stage, how long it takes, and what it gets done."""

    pending: int
    processing: int
    completed: int
    failed: int
    skipped: int
    avg_duration: float | None
    """Of the completed ones, in seconds; None where nothing was timed."""
    timed: int
    """Completed ones that have a duration."""
    p50_duration: float | None
    """Median of their durations in seconds, within 19 %; None where there is none."""
    p95_duration: float | None
    """What 95 % of them do not exceed."""
    p99_duration: float | None
    """What 99 % of them do not exceed."""
    avg_wait: float | None
    """Seconds for which runs that began in the last 24 hours had been ready; None where none began."""
    throughput_per_hour: float
    """Completed per hour, in this hour and the one before."""
    oldest_waiting_at: str | None
    """Since when the longest waiting run is ready; None where none is. ISO 8601, UTC, database clock."""
    oldest_waiting: float | None
    """For how long that is, in seconds."""
    workers_busy: int
    """Workers that hold a run with a live lease."""


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


class Reaped(TypedDict, total=False):
    """What reap did."""

    requeued: Required[int]
    """Runs whose lease or timeout was over, back in the queue."""
    failed: Required[int]
    """Such runs without an attempt left, whose stage is failed."""
    filled: Required[int]
    """Documents whose ready runs were brought to the pipeline as it is."""
    adopted: int
    """Stages in processing that nobody held, now with a lease."""


class Rebuilt(TypedDict, total=False):
    """What rebuild_ready_runs had to mend: runs."""

    added: Required[int]
    removed: Required[int]
    adopted: int


class RetriedRun(TypedDict):
    """A stage that failed."""

    document_id: str
    stage_name: str
    error: str | None


class Retried(TypedDict):
    """What retry_failed brought back."""

    count: int
    more: bool
    """Whether there are more than the limit."""
    dry_run: bool
    runs: list[RetriedRun]


class AwaitedStage(TypedDict):
    """A prerequisite that is not finished."""

    stage: str
    status: StageState


class StageExplanation(TypedDict):
    """Why a stage of a document stands where it stands. Times: ISO 8601, UTC, database clock."""

    document_id: str
    stage_name: str
    status: StageState
    reason: str
    """completed, skipped, running, lease_over, disabled, waits_for_stages, failed, paused, backoff, ready, or
    not_queued."""
    message: str
    """The same as a sentence."""
    waits_for: list[AwaitedStage]
    enabled: bool
    paused: bool
    attempt: int | None
    max_attempts: int
    priority: int | None
    place: int | None
    """Place in the queue; 1 is next; None unless ready."""
    place_is_bound: bool
    """Whether the place is at least that one."""
    next_retry_at: str | None
    worker: str | None
    started_at: str | None
    heartbeat_at: str | None
    lease_expires_at: str | None


class Stage(BaseModel):
    """One row of krai_core.stages."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(
        description="Key of the stage in documents.stage_status; lower case letters, digits and underscores."
    )
    position: int = Field(description="Order in the pipeline; unique.")
    description: str = Field(description="What the stage does, for people.")
    weight: float = Field(description="Share of the stage in the weighted progress of a document; greater than 0.")
    lease_seconds: int = Field(
        description="Seconds for which a claimed run is held without a sign of life; 1 to 604800."
    )
    timeout_seconds: int | None = Field(
        description="Seconds after which a run is lost even if it still beats; null: no bound."
    )
    max_attempts: int = Field(
        description="Attempts before a stage stays failed; counted since the last retry or reset by a person."
    )
    backoff_seconds: int = Field(description="Seconds before the first automatic retry; doubled for each further one.")
    backoff_max_seconds: int = Field(description="Longest wait before an automatic retry, in seconds.")
    paused: bool = Field(description="While true nothing of this stage is handed out.")
    enabled: bool = Field(description="false: the stage counts as satisfied and is in no total.")
    changed_at: dt.datetime | None = Field(
        description="When the stage was last registered, disabled, paused or resumed; UTC, database clock."
    )
    changed_by: str | None = Field(description="Who did that.")
    requires: tuple[str, ...] = Field(description="Stages that must be finished before this one may start.")
