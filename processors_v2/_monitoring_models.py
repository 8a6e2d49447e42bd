"""Shapes of what is answered to those who watch and plan. People import ``processors_v2.models``.

Times are ISO 8601, UTC, of the database clock. The source of truth of every field is the comment on the SQL column or
function.
"""

from typing import Any, Literal, TypedDict

from processors_v2._models import DocumentState, DocumentStatus, StageState, StageStatus

RunState = Literal["ready", "running", "completed", "failed", "skipped", "released", "lost", "cancelled"]
"""Status of a run: open (ready, running) or closed."""

EstimatedFrom = Literal["progress", "units", "durations", "unknown"]
"""What an estimate is made from: the progress, metadata such as pages_processed of total_pages, or the durations of the
stage; unknown below five durations."""


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


class SecondsRange(TypedDict):
    """An estimate in seconds."""

    p50: float
    """Probably."""
    p90: float
    """At most in nine of ten cases."""


class TimeRange(TypedDict):
    """The same as points in time."""

    p50: str
    p90: str


class StageEta(TypedDict):
    """What is left of one stage of a document, in seconds; None: unknown."""

    status: StageState
    p50: float | None
    p90: float | None
    estimated_from: EstimatedFrom | None


class DocumentEta(TypedDict):
    """When a document will be done."""

    document_id: str
    status: DocumentState
    weighted_progress: float
    remaining: SecondsRange | None
    """None while a stage that is named below stands in its way."""
    done_at: TimeRange | None
    unknown: list[str]
    """Stages with fewer than five durations."""
    paused: list[str]
    failed: list[str]
    """Failed without a retry to come."""
    stages: dict[str, StageEta]


class EmptyQueue(TypedDict):
    """Seconds from now until nothing of a stage is pending; None: never, or not known."""

    today: float | None
    """With the workers of today."""
    one_more: float | None
    one_fewer: float | None


class StageForecast(TypedDict):
    """What to expect of the queue of a stage."""

    waiting: int
    """Documents pending."""
    running: int
    arrival_per_hour: float
    """Runs that became ready."""
    drain_per_hour: float
    """Stages completed or skipped."""
    workers: float
    """At work now, or as many as the work took."""
    utilisation: float | None
    """Work that arrives as a share of what these workers can do; above 1 the queue grows."""
    avg_work: float | None
    """Seconds a run."""
    backlog: SecondsRange | None
    """What these workers need for what is pending; None below five durations, or where nobody works."""
    empty: EmptyQueue


class Forecast(TypedDict):
    """What to expect of the queues."""

    timestamp: str
    hours: float
    """So many hours were looked back at."""
    documents_per_hour: float
    stages: dict[str, StageForecast]


class StageFlow(TypedDict):
    """What came, began and ended in one hour."""

    stage_name: str
    """Empty: documents as a whole, of which only arrived tells."""
    hour: str
    """When it begins."""
    arrived: int
    """Runs that became ready, without retries and what was given back."""
    started: int
    retried: int
    """Those that began and were no first attempt."""
    completed: int
    failed: int
    skipped: int
    avg_wait_seconds: float | None
    avg_work_seconds: float | None


class RebuiltStatistics(TypedDict):
    """What rebuild_statistics had to mend: sums."""

    mended: int


class Pruned(TypedDict):
    """What prune_runs deleted."""

    pruned: int
    more: bool
    """Whether the limit cut it off: call it again."""


class Maintenance(TypedDict):
    """What schedule_maintenance did."""

    scheduled: bool
    jobs: list[str]
    """Names of the jobs of pg_cron."""
    message: str
