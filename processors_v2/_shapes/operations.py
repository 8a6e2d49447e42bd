"""What is answered to people who bring stages back."""

from typing import TypedDict


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
