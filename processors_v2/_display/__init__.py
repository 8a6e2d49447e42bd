"""Answers of the tracker that notebooks show as tables and pandas takes; for everybody else plain dicts and lists."""

from processors_v2._display.tables import (
    DocumentTable,
    FailureTable,
    FlowTable,
    ForecastTable,
    RunningTable,
    StageTable,
    StatisticsTable,
    TimelineTable,
    as_table,
)

__all__ = [
    "DocumentTable",
    "FailureTable",
    "FlowTable",
    "ForecastTable",
    "RunningTable",
    "StageTable",
    "StatisticsTable",
    "TimelineTable",
    "as_table",
]
