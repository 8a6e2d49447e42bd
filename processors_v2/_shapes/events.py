"""What has changed about a document."""

from typing import Literal, TypedDict

from processors_v2._shapes.document import DocumentStatus


class StageChange(TypedDict):
    """A stage of a document began, ended, or was retried or reset by a person."""

    stage_name: str
    change: Literal["started", "completed", "failed", "skipped", "released", "lost", "cancelled", "reset"]
    at: str
    """ISO 8601, UTC."""
    attempt: int
    error: str | None
    """Of the attempt that failed or was lost."""


class WatchEvent(TypedDict):
    """What has changed about a document, and where it stands now."""

    id: str
    """What has been seen up to here; ``watch(after=...)`` goes on behind it."""
    changes: list[StageChange]
    """Since the event before, oldest first; empty where only progress or metadata is new."""
    status: DocumentStatus
    """Where the document stands now."""
    is_open: bool
    """Whether a stage runs or may run; false: nothing happens until a person does something."""
