"""Commands that look at documents and stages."""

import itertools
from typing import Annotated

import typer
from rich.text import Text

from processors_v2._cli import tables, words
from processors_v2._cli.arguments import Document, OneStage, StageName
from processors_v2._cli.connect import Session
from processors_v2._models import StageStatus
from processors_v2._monitoring_models import DocumentEta, ListedDocument

_ERROR_CHARACTERS = 300


def status(session: Session, document: Document) -> None:
    """Show where a document stands, stage by stage."""
    found = session.tracker.get_document_status(document)
    if session.output.as_json:
        session.output.answer(found)
        return
    console = session.output.console
    rows = [
        (
            name,
            tables.state(console, stage["status"]),
            words.percent(stage["progress"]),
            words.duration(stage["duration_seconds"]),
            _what(stage),
        )
        for name, stage in found["stage_status"].items()
    ]
    table = tables.table(console, ["stage", "status", "progress", "took", "what"], rows, left=2)
    table.columns[-1].justify = "left"
    session.output.show(
        f"{found['document_id']} is {found['status']}: {words.percent(found['progress'])} of its stages are finished"
    )
    session.output.show(_outlook(session.tracker.get_eta(document)))
    session.output.show("")
    session.output.show(table)


def _what(stage: StageStatus) -> str:
    if stage["error"]:
        return _cut(stage["error"])
    if reason := stage["metadata"].get("reason"):
        return _cut(str(reason))
    return _cut(", ".join(f"{key} {value}" for key, value in stage["metadata"].items()))


def _cut(text: str) -> str:
    return text if len(text) <= _ERROR_CHARACTERS else f"{text[: _ERROR_CHARACTERS - 4]} ..."


def _outlook(eta: DocumentEta) -> str:
    """What is to come, or what stands in the way of it, in a sentence."""
    if eta["remaining"] is not None and eta["done_at"] is not None:
        left = words.span(eta["remaining"]["p50"], eta["remaining"]["p90"])
        return f"Done in {left}, at {words.moment(eta['done_at']['p50'])}" if eta["remaining"]["p90"] else "It is done"
    ways = {
        "failed": "failed, and is not tried again by itself",
        "paused": "is paused",
        "unknown": "has fewer than five durations to tell from",
    }
    found = {"failed": eta["failed"], "paused": eta["paused"], "unknown": eta["unknown"]}
    said = [f"{', '.join(stages)} {ways[why]}" for why, stages in found.items() if stages]
    return f"When it will be done is not known: {'; '.join(said)}"


def ls(
    session: Session,
    stage: OneStage = None,
    status: Annotated[
        str | None,
        typer.Option("--status", metavar="STATUS", help="pending, processing, completed, failed or skipped."),
    ] = None,
    error: Annotated[
        str | None, typer.Option("--error", metavar="TEXT", help="Failed with this in the error; % as in LIKE.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Most documents to list; 0: all.")] = 50,
) -> None:
    """List documents by stage and status, the newest first."""
    found = session.tracker.list_documents(stage, status, error=error, limit=limit + 1 if limit else None)
    listed = list(itertools.islice(found, limit or None))
    is_cut = next(found, None) is not None
    session.output.answer(listed, _documents(session, listed))
    if is_cut:
        session.output.note(f"The newest {limit:,} are listed; --limit 0 lists all.")


def _documents(session: Session, listed: list[ListedDocument]) -> tables.Table | str:
    if not listed:
        return "There are none."
    console = session.output.console
    rows = [
        (
            one["document_id"],
            one["filename"] or "",
            one["stage_name"],
            tables.state(console, one["stage"]["status"]),
            words.percent(one["progress"]),
            _cut(one["stage"]["error"] or ""),
        )
        for one in listed
    ]
    table = tables.table(console, ["document", "file", "stage", "status", "done", "error"], rows, left=4)
    table.columns[-1].justify = "left"
    for column in (table.columns[0], table.columns[3]):
        column.no_wrap = True
    return table


def stats(session: Session) -> None:
    """Show how many documents are in which state of each stage, how long it takes, and what waits."""
    found = session.tracker.get_statistics()
    rows = [
        (
            name,
            *(words.number(one[word]) for word in ("pending", "processing", "completed")),
            Text(words.number(one["failed"]), style="bold red" if one["failed"] else ""),
            words.number(one["skipped"]),
            words.number(one["workers_busy"]),
            words.duration(one["p50_duration"]),
            words.duration(one["p95_duration"]),
            words.number(one["throughput_per_hour"], 1),
            words.duration(one["avg_wait"]),
            words.duration(one["oldest_waiting"]),
        )
        for name, one in found.items()
    ]
    parts = [
        ["pending", "processing", "completed", "failed", "skipped", "workers\nbusy"],
        ["took\np50", "took\np95", "completed\nper hour", "usual\nwait", "longest\nwaiting"],
    ]
    session.output.answer(
        found,
        tables.in_parts(session.output.console, "stage", parts, rows),
        *session.output.legend("p50, p95: half of the completed ones, and 95 of 100, took no longer than that."),
    )


def explain(session: Session, document: Document, stage: StageName) -> None:
    """Say why a stage of a document stands where it stands, and what it waits for."""
    found = session.tracker.explain_stage(document, stage)
    session.output.answer(found, found["message"])


def forecast(
    session: Session,
    hours: Annotated[int, typer.Option("--hours", help="How far to look back, 1 to 720.")] = 3,
) -> None:
    """Show what comes, what goes, and when the queues will be empty, also with one worker more or fewer."""
    found = session.tracker.get_forecast(hours)
    rows = [
        (
            name,
            words.number(one["waiting"]),
            words.number(one["running"]),
            words.number(one["arrival_per_hour"], 1),
            words.number(one["drain_per_hour"], 1),
            words.number(one["workers"]),
            "" if one["utilisation"] is None else words.percent(one["utilisation"] * 100),
            "?" if one["backlog"] is None else words.span(one["backlog"]["p50"], one["backlog"]["p90"]),
            *(_or_unknown(one["empty"][word]) for word in ("today", "one_more", "one_fewer")),
        )
        for name, one in found["stages"].items()
    ]
    parts = [
        ["pending", "running", "ready\nper hour", "finished\nper hour", "workers", "load"],
        ["work\nfor", "empty in", "with one\nworker more", "with one\nworker fewer"],
    ]
    session.output.answer(
        found,
        f"{words.number(found['documents_per_hour'], 1)} documents an hour came in the last {found['hours']:.1f} h",
        "",
        tables.in_parts(session.output.console, "stage", parts, rows),
        *session.output.legend(
            "load: work that comes, as a share of what these workers can do; above 100 % the queue grows.",
            "work for: how long these workers need for what is pending. empty in: if documents come as they did.",
            "?: never, or not known.",
        ),
    )


def _or_unknown(seconds: float | None) -> str:
    return "?" if seconds is None else words.duration(seconds)
