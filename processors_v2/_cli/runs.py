"""The command that ends a stage by hand."""

from typing import Annotated

import typer

from processors_v2._cli.arguments import Document, StageName
from processors_v2._cli.connect import Session
from processors_v2._cli.exits import Exit


def skip(
    session: Session,
    document: Document,
    stage: StageName,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Kept with the stage.")] = "Not applicable",
) -> int:
    """Mark a stage as not applicable to a document; what depends on it may start."""
    done = session.tracker.skip_stage(document, stage, reason)
    session.output.answer(done, f"{stage} is skipped" if done else f"{stage} is completed already; nothing was changed")
    return Exit.OK if done else Exit.NO
