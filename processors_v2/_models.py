"""Shapes of what comes back. People import ``processors_v2.models``.

Where people write ``doc["..."]`` a plain dict comes back, described here as a TypedDict; the rest are frozen models.
The source of truth of every field is the comment on the SQL column or function.
"""

from typing import Any, Literal, TypedDict

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
    """How many documents are in which state of one stage."""

    pending: int
    processing: int
    completed: int
    failed: int
    skipped: int
    avg_duration: float | None
    """Seconds; None where nothing was timed."""


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
    paused: bool = Field(description="While true nothing of this stage is handed out.")
    enabled: bool = Field(description="false: the stage counts as satisfied and is in no total.")
    requires: tuple[str, ...] = Field(description="Stages that must be finished before this one may start.")
