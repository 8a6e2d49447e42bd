"""The tables of single answers, row by row. What is shown stands in the answer; nothing is worked out from it."""

from collections.abc import Mapping, Sequence
from typing import Any, cast
from xml.etree import ElementTree as ET

from processors_v2._display import html
from processors_v2._display.html import COLOURS, Cell
from processors_v2._shapes.document import StageStatus
from processors_v2._shapes.questions import FailureGroup, TimelineRun
from processors_v2._shapes.questions_estimates import StageForecast
from processors_v2._shapes.questions_statistics import StageCounts, StageFlow
from processors_v2._shapes.questions_work import RunningStage

_STATES = ("completed", "skipped", "processing", "failed", "pending")
_FLOW = ("arrived", "started", "retried", "completed", "failed", "skipped")
UNKNOWN = "-"
# What took no time is seen all the same.
_HAIR = 0.008


def stages(given: Mapping[str, StageStatus]) -> ET.Element:
    """One row per stage of a document."""
    rows: list[list[Cell]] = [
        [
            name,
            html.status(stage["status"]),
            progress(stage["progress"], stage["status"]),
            html.seconds(stage["duration_seconds"]),
            html.time(stage["started_at"]),
            html.short(stage["error"] or html.pairs(stage["metadata"])),
        ]
        for name, stage in given.items()
    ]
    return html.table(
        ["stage", "status", "progress", "duration", "started (UTC)", "error or metadata"], rows, {"duration"}
    )


def progress(percent: float, status: str) -> Cell:
    """A bar of the progress of a stage, in the colour of its status."""
    if status == "skipped":
        return html.bar((1.0, COLOURS[status]))
    label = "" if status == "pending" else f"{round(percent, 1):g} %"
    return html.labelled(html.bar((percent / 100, COLOURS.get(status, ""))), label)


def statistics(given: Mapping[str, StageCounts]) -> ET.Element:
    """One row per stage: a bar of all documents by state, counts, seconds, what it gets done."""
    headings = ["stage", "documents", *_STATES, "p50", "p95", "avg. wait", "per hour", "busy"]
    return html.table(headings, [_counts(name, stage) for name, stage in given.items()], set(headings[2:]))


def _counts(name: str, stage: StageCounts) -> list[Cell]:
    counts = [cast("Mapping[str, int]", stage)[state] for state in _STATES]
    whole = sum(counts) or 1
    drawn = [(count / whole, COLOURS.get(state, "")) for state, count in zip(_STATES, counts, strict=True)]
    title = ", ".join(f"{count} {state}" for state, count in zip(_STATES, counts, strict=True) if count)
    return [
        name,
        html.bar(*drawn, title=title),
        *map(str, counts),
        html.seconds(stage["p50_duration"]),
        html.seconds(stage["p95_duration"]),
        html.seconds(stage["avg_wait"]),
        html.number(stage["throughput_per_hour"]),
        str(stage["workers_busy"]),
    ]


def runs(given: Sequence[TimelineRun]) -> ET.Element:
    """One row per run of a document, each with its wait and its work on one axis of time."""
    spans = [_span(run) for run in given]
    known = [span for span in spans if span]
    begin = min((span[0] for span in known), default=0.0)
    whole = max((span[-1] for span in known), default=begin) - begin or 1.0
    has_worker = any(run["worker"] for run in given)
    rows: list[list[Cell]] = [
        [
            run["stage_name"],
            str(run["attempt"]),
            html.status(run["status"]),
            _gantt(run["status"], [(time - begin) / whole for time in span]),
            html.seconds(run["wait_seconds"]),
            html.seconds(run["work_seconds"]),
            html.short(run["error"]),
            *([run["worker"] or ""] if has_worker else []),
        ]
        for run, span in zip(given, spans, strict=True)
    ]
    axis = f"{html.seconds(whole)} from left to right" if known else "time"
    headings = ["stage", "attempt", "status", axis, "wait", "work", "error", *(["worker"] if has_worker else [])]
    return html.table(headings, rows, {"attempt", "wait", "work"})


def _span(run: TimelineRun) -> tuple[float, ...]:
    """When a run was ready, began, and ended or was last seen; empty where it has not begun."""
    if run["started_at"] is None:
        return ()
    started = html.instant(run["started_at"])
    ready = started - (run["wait_seconds"] or 0)
    return ready, started, started + (run["work_seconds"] or 0)


def _gantt(status: str, span: Sequence[float]) -> Cell:
    if not span:
        return ""
    ready, started, ended = span
    room = (max(ready, 0), "transparent")
    work = (max(ended - started, _HAIR), COLOURS.get(status, COLOURS["skipped"]))
    return html.bar(room, (started - ready, COLOURS["waiting"]), work, width=16)


def failures(given: Sequence[FailureGroup]) -> ET.Element:
    """One row per kind of error, the bar in proportion to the most frequent one."""
    most = max((group["count"] for group in given), default=1)
    rows: list[list[Cell]] = [
        [
            group["stage_name"],
            html.labelled(html.bar((group["count"] / most, COLOURS["failed"]), width=5), str(group["count"])),
            html.short(group["error"]),
            str(group["max_attempt"]),
            html.time(group["last_at"]),
            group["fingerprint"],
        ]
        for group in given
    ]
    headings = ["stage", "failed", "error", "attempts", "last (UTC)", "fingerprint"]
    return html.table(headings, rows, {"attempts"})


def forecast(given: Mapping[str, StageForecast]) -> ET.Element:
    """One row per stage: what waits, comes and goes, and when nothing waits any more."""
    headings = ["stage", "waiting", "running", "in / hour", "out / hour", "workers", "utilisation", "backlog"]
    headings += ["empty in", "with one more", "with one fewer"]
    rows = [_expected(name, stage) for name, stage in given.items()]
    return html.table(headings, rows, set(headings[1:]) - {"utilisation"})


def _expected(name: str, stage: StageForecast) -> list[Cell]:
    used, backlog, empty = stage["utilisation"], stage["backlog"], stage["empty"]
    drawn: Cell = ""
    if used is not None:
        colour = COLOURS["failed" if used > 1 else "processing"]
        drawn = html.labelled(html.bar((used, colour), width=5), f"{100 * used:,.0f} %")
    return [
        name,
        str(stage["waiting"]),
        str(stage["running"]),
        html.number(stage["arrival_per_hour"]),
        html.number(stage["drain_per_hour"]),
        f"{stage['workers']:g}",
        drawn,
        between(None, None) if backlog is None else between(backlog["p50"], backlog["p90"]),
        *(html.seconds(empty[which]) or UNKNOWN for which in ("today", "one_more", "one_fewer")),
    ]


def flow(given: Sequence[StageFlow]) -> ET.Element:
    """One row per stage and hour."""
    headings = ["hour (UTC)", "stage", *_FLOW, "avg. wait", "avg. work"]
    rows: list[list[Cell]] = [
        [
            html.time(row["hour"])[:16],
            row["stage_name"] or "(documents)",
            *(str(cast("Mapping[str, Any]", row)[name]) for name in _FLOW),
            html.seconds(row["avg_wait_seconds"]),
            html.seconds(row["avg_work_seconds"]),
        ]
        for row in given
    ]
    return html.table(headings, rows, set(headings[2:]))


def running(given: Sequence[RunningStage]) -> ET.Element:
    """One row per stage that is being worked on."""
    rows: list[list[Cell]] = [
        [
            row["filename"] or row["document_id"],
            row["stage_name"],
            progress(row["progress"], "processing"),
            row["condition"],
            html.seconds(row["running_seconds"]),
            between(row["remaining_p50_seconds"], row["remaining_p90_seconds"]),
            row["worker"] or "",
        ]
        for row in given
    ]
    return html.table(["document", "stage", "progress", "condition", "running", "left", "worker"], rows, {"running"})


def between(low: float | None, high: float | None) -> str:
    """A range of seconds."""
    return UNKNOWN if low is None else f"{html.seconds(low)} to {html.seconds(high)}"
