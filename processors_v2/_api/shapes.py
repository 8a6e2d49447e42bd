"""What the endpoints answer, as OpenAPI tells it. Answers come from the database and are not checked against it."""

from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

from pydantic import BaseModel, Field, create_model

from processors_v2._models import DocumentStatus, StageCounts
from processors_v2._monitoring_models import StageChange


def model_of(shape: type) -> type[BaseModel]:
    """Return a TypedDict as a model, because pydantic reads none that is made with typing before Python 3.12."""
    fields: dict[str, Any] = {name: (_modelled(hint), ...) for name, hint in get_type_hints(shape).items()}
    return create_model(shape.__name__, __doc__=shape.__doc__, **fields)


def _modelled(hint: Any) -> Any:
    if is_typeddict(hint):
        return model_of(hint)
    if get_origin(hint) is dict:
        key, value = get_args(hint)
        return dict[key, _modelled(value)]  # type: ignore[misc,valid-type] - they are known at run time only
    return hint


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str = Field(description="What is wrong, with the value concerned.")
    hint: str | None = Field(description="What to do about it.")
    error: str | None = Field(description="The same as a word for programs.")


DocumentStatusModel = model_of(DocumentStatus)
StageChangeModel = model_of(StageChange)


class Statistics(BaseModel):
    """The counts of all stages at one moment."""

    timestamp: str = Field(description="ISO 8601, UTC, database clock.")
    stages: dict[str, model_of(StageCounts)]  # type: ignore[valid-type] - as above


DOCUMENT_ID = "0d6cb0a8-6c62-4c0b-a6a6-4f3d5f1c7f10"
DOCUMENT = {
    "document_id": DOCUMENT_ID,
    "status": "processing",
    "current_stage": "text_extraction",
    "progress": 37.5,
    "started_at": "2025-10-04T08:00:00Z",
    "completed_at": None,
    "error": None,
    "stage_status": {
        "upload": {
            "status": "completed",
            "started_at": "2025-10-04T08:00:00Z",
            "completed_at": "2025-10-04T08:00:01.2Z",
            "duration_seconds": 1.2,
            "progress": 100,
            "error": None,
            "metadata": {},
        },
        "text_extraction": {
            "status": "processing",
            "started_at": "2025-10-04T08:00:01.2Z",
            "completed_at": None,
            "duration_seconds": None,
            "progress": 45.5,
            "error": None,
            "metadata": {"pages_processed": 2000, "total_pages": 4386},
        },
    },
}
STATISTICS = {
    "timestamp": "2025-10-04T08:00:00Z",
    "stages": {
        "upload": {
            "pending": 5,
            "processing": 2,
            "completed": 143,
            "failed": 1,
            "skipped": 0,
            "avg_duration": 1.2,
            "timed": 143,
            "p50_duration": 1.1,
            "p95_duration": 2.0,
            "p99_duration": 2.4,
            "avg_wait": 0.4,
            "throughput_per_hour": 71.5,
            "oldest_waiting_at": "2025-10-04T07:59:58.5Z",
            "oldest_waiting": 1.5,
            "workers_busy": 2,
        }
    },
}
EVENTS = """id: 4711.s4712
event: status
data: {"changes":[{"stage_name":"text_extraction","change":"started",...}],"status":{...},"is_open":true}

"""


def problem(detail: str, hint: str, error: str) -> dict[str, Any]:
    """Return the example of a problem."""
    return {"detail": detail, "hint": hint, "error": error}
