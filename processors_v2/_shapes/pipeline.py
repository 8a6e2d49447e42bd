"""The pipeline, as answers tell of it."""

import datetime as dt

from pydantic import BaseModel, ConfigDict, Field


class Stage(BaseModel):
    """One row of krai_core.stages."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(
        description="Key of the stage in documents.stage_status; lower case letters, digits and underscores."
    )
    position: int = Field(description="Order in the pipeline; unique.")
    description: str = Field(description="What the stage does, for people.")
    weight: float = Field(description="Share of the stage in the weighted progress of a document; greater than 0.")
    lease_seconds: int = Field(
        description="Seconds for which a claimed run is held without a sign of life; 1 to 604800."
    )
    timeout_seconds: int | None = Field(
        description="Seconds after which a run is lost even if it still beats; null: no bound."
    )
    max_attempts: int = Field(
        description="Attempts before a stage stays failed; counted since the last retry or reset by a person."
    )
    backoff_seconds: int = Field(description="Seconds before the first automatic retry; doubled for each further one.")
    backoff_max_seconds: int = Field(description="Longest wait before an automatic retry, in seconds.")
    paused: bool = Field(description="While true nothing of this stage is handed out.")
    enabled: bool = Field(description="false: the stage counts as satisfied and is in no total.")
    changed_at: dt.datetime | None = Field(
        description="When the stage was last registered, disabled, paused or resumed; UTC, database clock."
    )
    changed_by: str | None = Field(description="Who did that.")
    requires: tuple[str, ...] = Field(description="Stages that must be finished before this one may start.")
