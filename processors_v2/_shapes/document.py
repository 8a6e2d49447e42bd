"""Where a document and its stages stand."""

from typing import Any, Literal, TypedDict

StageState = Literal["pending", "processing", "completed", "failed", "skipped"]
"""State of a stage."""

DocumentState = Literal["pending", "processing", "completed", "failed"]
"""State of a document, by its stages: any failed is failed; all finished is completed; all pending is pending."""

RunState = Literal["ready", "running", "completed", "failed", "skipped", "released", "lost", "cancelled"]
"""Status of a run: open (ready, running) or closed."""


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
