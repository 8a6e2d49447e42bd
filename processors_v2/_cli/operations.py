"""Commands that bring back, reset, cancel and pause."""

import datetime as dt
import getpass
from typing import Annotated

import typer

from processors_v2._cli import tables, words
from processors_v2._cli.arguments import Actor, Document, OneStage, StageName, Yes
from processors_v2._cli.connect import Session
from processors_v2._cli.exits import Exit
from processors_v2._cli.tables import Column
from processors_v2._shapes.operations import Retried

_SHOWN = 20

_RETRIED = [Column("document"), Column("stage"), Column("error", "cut")]


def retry(
    session: Session,
    document: Annotated[
        str | None, typer.Argument(metavar="[DOC]", help="Id of a document; without one: all that failed.")
    ] = None,
    stage_name: Annotated[str | None, typer.Argument(metavar="[STAGE]", help="Name of its stage.")] = None,
    stage: OneStage = None,
    error: Annotated[
        str | None, typer.Option("--error", metavar="TEXT", help="Only with this in the error; % as in LIKE.")
    ] = None,
    since: Annotated[
        dt.datetime | None,
        typer.Option("--since", metavar="TIME", parser=words.since, help="Only what failed since: 2h, 3d or ISO 8601."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="Most stages at once, 1 to 10000.")] = 1000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing, show what would be retried.")] = False,
    yes: Yes = False,
    actor: Actor = None,
) -> int:
    """Bring failed stages back to pending: one of a document, or many by stage, error and time."""
    if document is not None:
        if stage_name is None:
            raise typer.BadParameter("Name the stage of the document, too: retry DOC STAGE.")
        if stage or error or since or dry_run:
            raise typer.BadParameter("--stage, --error, --since and --dry-run are for many; with DOC STAGE give none.")
        done = session.tracker.retry_stage(document, stage_name, actor=_actor(actor))
        session.output.answer(done, f"{stage_name} is pending again")
        return Exit.OK
    would = session.tracker.retry_failed(stage, error, since, limit, dry_run=True)
    if dry_run:
        _show_retried(session, would)
        return Exit.OK
    question = f"Retry {words.plural(would['count'], 'stage')}{', and leave more for later' if would['more'] else ''}?"
    if would["count"] and not session.output.confirm(question, yes=yes):
        return Exit.NO
    _show_retried(session, session.tracker.retry_failed(stage, error, since, limit, actor=_actor(actor)))
    return Exit.OK


def _show_retried(session: Session, answer: Retried) -> None:
    said = "would be retried" if answer["dry_run"] else "retried"
    rows = [(run["document_id"], run["stage_name"], run["error"] or "") for run in answer["runs"][:_SHOWN]]
    shown = [tables.table(session.output.console, _RETRIED, rows)] if rows else []
    session.output.answer(answer, f"{words.plural(answer['count'], 'stage')} {said}", *shown)
    if answer["count"] > _SHOWN and not session.output.as_json:
        session.output.note(f"The first {_SHOWN} are listed; --json lists all.")
    if answer["more"]:
        session.output.note("There are more: run it again, or raise --limit.")


def reset(
    session: Session,
    document: Document,
    stage: StageName,
    cascade: Annotated[bool, typer.Option("--cascade", help="Also every stage that depends on it.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also where it is at work; its worker loses the run.")] = False,
    actor: Actor = None,
) -> None:
    """Bring a stage in any status back to pending, so that it is run again."""
    done = session.tracker.reset_stage(document, stage, cascade=cascade, force=force, actor=_actor(actor))
    session.output.answer(done, f"{stage}{' and all that depends on it' if cascade else ''} will be run again")


def cancel(
    session: Session,
    document: Document,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Kept with each stage.")] = "Cancelled",
    actor: Actor = None,
) -> None:
    """Give a document up: everything that is not finished is skipped, and whoever works on it is told."""
    done = session.tracker.cancel_document(document, reason, actor=_actor(actor))
    session.output.answer(done, f"{document} is cancelled")


def pause(session: Session, stage: StageName, actor: Actor = None) -> None:
    """Hand out nothing of a stage until it is resumed; what runs goes on."""
    session.output.answer(session.tracker.pause_stage(stage, actor=_actor(actor)), f"{stage} is paused")


def resume(session: Session, stage: StageName, actor: Actor = None) -> None:
    """Hand out a paused stage again."""
    session.output.answer(session.tracker.resume_stage(stage, actor=_actor(actor)), f"{stage} is handed out again")


def _actor(given: str | None) -> str | None:
    try:
        return given or getpass.getuser()
    except (OSError, KeyError):
        # A container may run under an id that has no name.
        return None
