"""Commands that look at documents and stages."""

import itertools
from typing import Annotated, cast

import typer
from rich.console import RenderableType

from processors_v2._cli import tables, words
from processors_v2._cli.arguments import Document, OneStage, StageName
from processors_v2._cli.connect import Session
from processors_v2._cli.tables import Cell, Column, numbers
from processors_v2._shapes.document import StageState, StageStatus
from processors_v2._shapes.questions import ListedDocument
from processors_v2._shapes.questions_estimates import DocumentEta

_CHARACTERS = 300


def status(session: Session, document: Document) -> None:
    """Show where a document stands, stage by stage."""
    found = session.tracker.get_document_status(document)
    output = session.output
    if output.as_json:
        output.answer(found)
        return
    rows = [
        (
            name,
            tables.state(output.console, stage["status"]),
            words.percent(stage["progress"]),
            words.duration(stage["duration_seconds"]),
            _what(stage),
        )
        for name, stage in found["stage_status"].items()
    ]
    begun = f", begun {words.moment(found['started_at'])}" if found["started_at"] else ""
    columns = [Column("stage"), Column("status"), *numbers("progress", "took"), Column("what", "wrapped")]
    output.show(f"{found['document_id']} is {found['status']}")
    output.show(f"{words.percent(found['progress'])} of its stages are finished{begun}")
    output.show(_outlook(session.tracker.get_eta(document)))
    output.show("")
    output.show(tables.table(output.console, columns, rows))


def _what(stage: StageStatus) -> str:
    if stage["error"]:
        return _brief(stage["error"])
    if reason := stage["metadata"].get("reason"):
        return _brief(str(reason))
    return _brief(", ".join(f"{key} {value}" for key, value in stage["metadata"].items()))


def _brief(text: str) -> str:
    return text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 4]} ..."


def _outlook(eta: DocumentEta) -> str:
    """What is to come, or what stands in the way of it, in a sentence."""
    if eta["status"] == "completed":
        return "Nothing is left to do"
    if eta["remaining"] is not None and eta["done_at"] is not None:
        left = words.span(eta["remaining"]["p50"], eta["remaining"]["p90"])
        return f"Done in {left}: at {words.moment(eta['done_at']['p50'])} probably"
    ways = {
        "failed and not tried again by itself": eta["failed"],
        "paused": eta["paused"],
        "too few durations to estimate from": eta["unknown"],
    }
    said = [f"{', '.join(stages)} ({way})" for way, stages in ways.items() if stages]
    return f"Time left is not known: {', '.join(said)}"


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
    # Which there are is for the database to say.
    asked = cast("StageState | None", status)
    found = session.tracker.list_documents(stage, asked, error=error, limit=limit + 1 if limit else None)
    listed = list(itertools.islice(found, limit or None))
    is_cut = next(found, None) is not None
    session.output.answer(listed, *_documents(session, listed, stage, is_filtered=bool(stage or status or error)))
    if is_cut:
        session.output.note(f"The newest {limit:,} are listed; --limit 0 lists all.")


def _documents(
    session: Session, listed: list[ListedDocument], stage: str | None, *, is_filtered: bool
) -> list[RenderableType]:
    if not listed:
        return ["There are none"]
    console = session.output.console
    # A person sees an error in a line of its own; a line for each document is what programs read.
    with_error = not console.is_terminal
    columns = [Column("document"), Column("status"), Column("stage"), Column("file", "cut")]
    rows: list[list[Cell]] = []
    for one in listed:
        # Without a filter it is about the document as a whole.
        status, at = (
            (one["stage"]["status"], one["stage_name"]) if is_filtered else (one["status"], one["current_stage"])
        )
        rows.append([one["document_id"], tables.state(console, status), at, one["filename"] or ""])
        if with_error:
            rows[-1].append(_brief(one["stage"]["error"] or ""))
    if with_error:
        columns.append(Column("error"))
    if stage is not None:
        columns = [column for column in columns if column.heading != "stage"]
        rows = [[*row[:2], *row[3:]] for row in rows]
    errors = [
        f"{one['filename'] or one['document_id']}: {one['stage_name']}: {_brief(one['stage']['error'])}"
        for one in ([] if with_error else listed)
        if one["stage"]["error"]
    ]
    return [tables.table(console, columns, rows), *(["", *errors] if errors else [])]


def stats(session: Session) -> None:
    """Show how many documents are in which state of each stage, how long it takes, and what waits."""
    found = session.tracker.get_statistics()
    rows: list[list[Cell]] = [
        [
            name,
            *(words.number(one[word]) for word in ("pending", "processing", "completed")),
            tables.alarm(one["failed"], words.number(one["failed"])),
            words.number(one["skipped"]),
            words.number(one["workers_busy"]),
            words.duration(one["p50_duration"]),
            words.duration(one["p95_duration"]),
            words.number(one["throughput_per_hour"]),
            words.duration(one["oldest_waiting"]),
        ]
        for name, one in found.items()
    ]
    parts = [
        numbers("pending", "processing", "completed", "failed", "skipped", "workers\nbusy"),
        numbers("took\np50", "took\np95", "completed\nper hour", "longest\nwaiting"),
    ]
    session.output.answer(
        found,
        tables.in_parts(session.output.console, Column("stage"), parts, rows),
        *session.output.legend("p50, p95: half of the completed ones, and 95 of 100, took no longer than that"),
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
    rows: list[list[Cell]] = [
        [
            name,
            words.number(one["waiting"]),
            words.number(one["running"]),
            words.number(one["arrival_per_hour"]),
            words.number(one["drain_per_hour"]),
            words.number(one["workers"]),
            "" if one["utilisation"] is None else words.percent(one["utilisation"] * 100),
            "?" if one["backlog"] is None else words.span(one["backlog"]["p50"], one["backlog"]["p90"]),
            *(_left(one["empty"][which]) for which in ("today", "one_more", "one_fewer")),
        ]
        for name, one in found["stages"].items()
    ]
    parts = [
        numbers("pending", "running", "ready\nper hour", "finished\nper hour", "workers", "load"),
        numbers("backlog\ntakes", "empty in", "one worker\nmore", "one worker\nfewer"),
    ]
    came = words.number(found["documents_per_hour"])
    session.output.answer(
        found,
        f"{came} documents an hour came in the last {words.duration(found['hours'] * 3600)}",
        "",
        tables.in_parts(session.output.console, Column("stage"), parts, rows),
        *session.output.legend(
            "load: work that comes, as a share of what these workers can do; above 100 % the queue grows",
            "backlog takes: these workers, for what is pending",
            "empty in: if documents go on to come like this, with the workers of today, one more, one fewer",
            "?: never, or not known",
        ),
    )


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return words.short(seconds) if seconds else "now"
