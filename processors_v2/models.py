"""Shapes of what comes back, and of what finish_stages takes.

Where people write ``doc["..."]`` a plain dict comes back, described here as a TypedDict; the rest are frozen models.
The source of truth of every field is the comment on the SQL column or function.
"""

from processors_v2._models import (
    AwaitedStage,
    DocumentState,
    DocumentStatus,
    HeartbeatAnswer,
    OutcomeAnswer,
    Reaped,
    Rebuilt,
    ReleaseAnswer,
    Retried,
    RetriedRun,
    Stage,
    StageCounts,
    StageExplanation,
    StageOutcome,
    StageRun,
    StageState,
    StageStatus,
)

__all__ = [
    "AwaitedStage",
    "DocumentState",
    "DocumentStatus",
    "HeartbeatAnswer",
    "OutcomeAnswer",
    "Reaped",
    "Rebuilt",
    "ReleaseAnswer",
    "Retried",
    "RetriedRun",
    "Stage",
    "StageCounts",
    "StageExplanation",
    "StageOutcome",
    "StageRun",
    "StageState",
    "StageStatus",
]
