"""The answers of each endpoint as OpenAPI tells them, with examples."""

from http import HTTPStatus
from typing import Any

from processors_v2._api import shapes

Answers = dict[int | str, dict[str, Any]]

DOCUMENT_ID = "0d6cb0a8-6c62-4c0b-a6a6-4f3d5f1c7f10"
_DOCUMENT = {
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
_STATISTICS = {
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
_EVENTS = """id: 4711.s4712
event: status
data: {"changes":[{"stage_name":"text_extraction","change":"started",...}],"status":{...},"is_open":true}

"""


def _json(model: type, example: dict[str, Any], description: str) -> dict[str, Any]:
    return {"description": description, "model": model, "content": {"application/json": {"example": example}}}


def _problem(description: str, detail: str, hint: str | None, error: str | None) -> dict[str, Any]:
    return _json(shapes.Problem, {"detail": detail, "hint": hint, "error": error}, description)


_SIGN_IN = "Workers need the secret key; signed-in users may read what the policies of krai_core.documents let them see"
_DENIED: Answers = {
    HTTPStatus.UNAUTHORIZED: _problem("No token, or one that is not valid any more", "JWT expired", _SIGN_IN, None),
    HTTPStatus.FORBIDDEN: _problem("A token that may not ask this", "permission denied", _SIGN_IN, None),
    HTTPStatus.SERVICE_UNAVAILABLE: {
        **_problem("The database is away", "the database cannot be asked now", "Try again later", "unavailable"),
        "headers": {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}},
    },
}
_UNKNOWN: Answers = {
    **_DENIED,
    HTTPStatus.NOT_FOUND: _problem(
        "No such document, or none that the caller may see",
        f"unknown document {DOCUMENT_ID}",
        "Check the id",
        "unknown_document",
    ),
    HTTPStatus.UNPROCESSABLE_ENTITY: _problem(
        "A malformed id",
        "document id 'manual.pdf' is not a UUID",
        "Pass the id of a row of krai_core.documents",
        "invalid_document_id",
    ),
}
_TAGGED = {"headers": {"ETag": {"description": "Of the body", "schema": {"type": "string"}}}}


def _header(name: str, description: str) -> dict[str, Any]:
    """Return a header for ``openapi_extra``: as a parameter of the function it would bring a 422 that cannot happen."""
    schema = {"type": "string"}
    return {
        "parameters": [{"name": name, "in": "header", "required": False, "schema": schema, "description": description}]
    }


IF_NONE_MATCH = _header("If-None-Match", "ETag of an earlier answer: 304 while it is the same.")
LAST_EVENT_ID = _header("Last-Event-ID", "Id of the last event that was seen, as browsers send it by themselves.")
_SAME: Answers = {HTTPStatus.NOT_MODIFIED: {"description": "The answer is the one that If-None-Match names"}}
STATUS: Answers = {
    HTTPStatus.OK: _TAGGED | _json(shapes.Document, _DOCUMENT, "Where the document stands"),
    **_SAME,
    **_UNKNOWN,
}
STATISTICS: Answers = {
    HTTPStatus.OK: _TAGGED | _json(shapes.Statistics, _STATISTICS, "The counts of all stages"),
    **_SAME,
    **_DENIED,
}
EVENTS: Answers = {
    HTTPStatus.OK: {
        "description": "Events, until the caller goes",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _EVENTS}},
    },
    **_UNKNOWN,
}
