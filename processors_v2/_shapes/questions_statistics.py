"""Answers in numbers: counts, durations, flow."""

from typing import TypedDict


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
