"""Answers about what is at work, and what does not go on."""

from typing import Any, Literal, TypedDict

from processors_v2._shapes.questions_estimates import EstimatedFrom


class RunningStage(TypedDict):
    """One stage of one document that is being worked on."""

    document_id: str
    filename: str | None
    stage_name: str
    worker: str | None
    attempt: int
    started_at: str
    running_seconds: float
    heartbeat_at: str | None
    lease_expires_at: str
    progress: float
    """Percent, 0 to 100."""
    metadata: dict[str, Any]
    condition: Literal["working", "slow", "stalled"]
    """slow: alive, and longer at work than 95 % of the completed runs of its stage; stalled: its lease is over."""
    remaining_p50_seconds: float | None
    """What is probably left; None: unknown."""
    remaining_p90_seconds: float | None
    """What is left at most in nine of ten cases."""
    estimated_from: EstimatedFrom


class StarvedStage(TypedDict):
    """A stage with a run that is ready, while nobody works on any."""

    stage_name: str
    oldest_ready_at: str
    waiting_seconds: float
    is_paused: bool


class StuckStages(TypedDict):
    """What does not go on."""

    stalled: list[RunningStage]
    """The lease is over; the longest over first."""
    slow: list[RunningStage]
    """Alive, but longer at work than usual; the longest first."""
    starved: list[StarvedStage]
    """In pipeline order."""


class WorkerLoad(TypedDict):
    """What one worker holds."""

    worker: str | None
    """None: those that gave no name."""
    running: int
    stalled: int
    """Those of them whose lease is over."""
    stages: dict[str, int]
    oldest_started_at: str
    last_heartbeat_at: str | None
