"""Shapes of what comes back, and of what finish_stages takes.

Where people write ``doc["..."]`` a plain dict comes back, described here as a TypedDict; the rest are frozen models.
The source of truth of every field is the comment on the SQL column or function.
"""

from processors_v2._shapes.document import DocumentState, DocumentStatus, RunState, StageState, StageStatus
from processors_v2._shapes.events import StageChange, WatchEvent
from processors_v2._shapes.operations import Retried, RetriedRun
from processors_v2._shapes.pipeline import Stage
from processors_v2._shapes.questions import (
    AwaitedStage,
    FailureGroup,
    Failures,
    FailureSample,
    ListedDocument,
    ListedRun,
    StageExplanation,
    Timeline,
    TimelineRun,
)
from processors_v2._shapes.questions_estimates import (
    DocumentEta,
    EmptyQueue,
    EstimatedFrom,
    Forecast,
    SecondsRange,
    StageEta,
    StageForecast,
    TimeRange,
)
from processors_v2._shapes.questions_statistics import StageCounts, StageFlow
from processors_v2._shapes.questions_work import RunningStage, StarvedStage, StuckStages, WorkerLoad
from processors_v2._shapes.queue import HeartbeatAnswer, OutcomeAnswer, ReleaseAnswer, StageOutcome, StageRun
from processors_v2._shapes.upkeep import Maintenance, Pruned, Reaped, Rebuilt, RebuiltStatistics

__all__ = [
    "AwaitedStage",
    "DocumentEta",
    "DocumentState",
    "DocumentStatus",
    "EmptyQueue",
    "EstimatedFrom",
    "FailureGroup",
    "FailureSample",
    "Failures",
    "Forecast",
    "HeartbeatAnswer",
    "ListedDocument",
    "ListedRun",
    "Maintenance",
    "OutcomeAnswer",
    "Pruned",
    "Reaped",
    "Rebuilt",
    "RebuiltStatistics",
    "ReleaseAnswer",
    "Retried",
    "RetriedRun",
    "RunState",
    "RunningStage",
    "SecondsRange",
    "Stage",
    "StageChange",
    "StageCounts",
    "StageEta",
    "StageExplanation",
    "StageFlow",
    "StageForecast",
    "StageOutcome",
    "StageRun",
    "StageState",
    "StageStatus",
    "StarvedStage",
    "StuckStages",
    "TimeRange",
    "Timeline",
    "TimelineRun",
    "WatchEvent",
    "WorkerLoad",
]
