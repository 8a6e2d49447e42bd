"""Answers about documents: why they stand where they stand, lists, failures, history."""

from typing import TypedDict

from processors_v2._shapes.document import DocumentState, RunState, StageState, StageStatus


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


class ListedRun(TypedDict):
    """The run that a stage stands on."""

    status: RunState
    attempt: int
    worker: str | None
    since: str
    """When it became ready, began or ended."""
    error: str | None


class ListedDocument(TypedDict):
    """A document as list_documents gives it."""

    document_id: str
    filename: str | None
    status: DocumentState
    current_stage: str
    progress: float
    """Finished stages in percent of the enabled ones, 0 to 100."""
    stage_name: str
    """The stage that it is listed for."""
    stage: StageStatus
    run: ListedRun | None
    """None where the stage waits for others."""


class FailureSample(TypedDict):
    """The newest failure of a kind."""

    document_id: str
    attempt: int
    error: str


class FailureGroup(TypedDict):
    """Stages that failed with the same kind of error."""

    stage_name: str
    fingerprint: str
    """For list_documents(fingerprint=...)."""
    count: int
    first_at: str
    last_at: str
    max_attempt: int
    error: str
    """The error with its ids, digits and paths folded out."""
    sample: FailureSample


class Failures(TypedDict):
    """Failed stages by the kind of their error."""

    groups: list[FailureGroup]
    """The most frequent first."""
    looked_at: int
    """How many failures were counted: the newest 10,000 at most."""
    is_all: bool
    """Whether there are no more."""


class TimelineRun(TypedDict):
    """One run of one stage."""

    stage_name: str
    status: RunState
    attempt: int
    ready_at: str | None
    started_at: str | None
    finished_at: str | None
    wait_seconds: float | None
    """From ready to start."""
    work_seconds: float | None
    """From start to end, or to now."""
    progress: float | None
    error: str | None
    retry_at: str | None
    """Of a failed run, and of the ready one that tries again."""
    reset_at: str | None
    worker: str | None
    """Shown to the service role only, like actor."""
    actor: str | None


class Timeline(TypedDict):
    """All runs of a document, in the order in which they were opened."""

    document_id: str
    filename: str | None
    runs: list[TimelineRun]
