"""Shapes of what comes back.

Where people write ``doc["..."]`` a plain dict comes back, described here as a TypedDict; the rest are frozen models.
The source of truth of every field is the comment on the SQL column or function.
"""

from processors_v2._models import DocumentState, DocumentStatus, Stage, StageCounts, StageState, StageStatus

__all__ = ["DocumentState", "DocumentStatus", "Stage", "StageCounts", "StageState", "StageStatus"]
