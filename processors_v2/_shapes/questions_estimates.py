"""Answers about what is to be expected."""

from typing import Literal, TypedDict

from processors_v2._shapes.document import DocumentState, StageState

EstimatedFrom = Literal["progress", "units", "durations", "unknown"]
"""What an estimate is made from: the progress, metadata such as pages_processed of total_pages, or the durations of the
stage; unknown below five durations."""


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
