"""The JSON examples, and what it means that an answer is like one."""

import datetime as dt
import json
import re
from typing import Any

STAGE_STATUS = json.loads("""
{
    "upload": {
      "status": "completed",
      "started_at": "2025-10-04T08:00:00Z",
      "completed_at": "2025-10-04T08:00:01Z",
      "duration_seconds": 1.2,
      "progress": 100,
      "error": null,
      "metadata": {}
    },
    "text_extraction": {
      "status": "processing",
      "started_at": "2025-10-04T08:00:01Z",
      "completed_at": null,
      "duration_seconds": null,
      "progress": 45.5,
      "error": null,
      "metadata": {
        "pages_processed": 2000,
        "total_pages": 4386
      }
    }
}
""")

DOCUMENT_STATUS = json.loads("""
{
  "document_id": "...",
  "status": "processing",
  "current_stage": "text_extraction",
  "progress": 37.5,
  "started_at": "2025-10-04T08:00:00Z",
  "completed_at": null,
  "error": null,
  "stage_status": {
    "upload": {
      "status": "completed",
      "started_at": "2025-10-04T08:00:00Z",
      "completed_at": "2025-10-04T08:00:01Z",
      "duration_seconds": 1.2,
      "progress": 100,
      "error": null
    },
    "text_extraction": {
      "status": "processing",
      "started_at": "2025-10-04T08:00:01Z",
      "progress": 45.5,
      "metadata": {
        "pages_processed": 2000,
        "total_pages": 4386
      }
    }
  }
}
""")

STATISTICS = json.loads("""
{
  "timestamp": "2025-10-04T08:00:00Z",
  "stages": {
    "upload": {
      "pending": 5,
      "processing": 2,
      "completed": 143,
      "failed": 1,
      "skipped": 0,
      "avg_duration": 1.2
    },
    "text_extraction": {
      "pending": 3,
      "processing": 4,
      "completed": 140,
      "failed": 2,
      "skipped": 0,
      "avg_duration": 45.8
    }
  }
}
""")

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def means(found: Any, example: Any) -> bool:
    """Whether what was found is the example: same keys where it has some, same types, times as instants."""
    if isinstance(example, dict):
        return isinstance(found, dict) and all(key in found and means(found[key], example[key]) for key in example)
    if isinstance(example, str) and TIME.fullmatch(example):
        return TIME.fullmatch(found) is not None and dt.datetime.fromisoformat(found) == dt.datetime.fromisoformat(
            example
        )
    return bool(found == example) and isinstance(found, bool) == isinstance(example, bool)
