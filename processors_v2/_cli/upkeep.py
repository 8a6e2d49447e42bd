"""Commands that clean up."""

import datetime as dt
from typing import Annotated

import typer

from processors_v2._cli import words
from processors_v2._cli.arguments import Yes
from processors_v2._cli.connect import Session
from processors_v2._cli.exits import Exit


def reap(
    session: Session,
    limit: Annotated[int, typer.Option("--limit", help="Most runs, and documents to look at.")] = 1000,
) -> None:
    """Bring back what dead workers hold; workers do it by themselves, so this is for schedulers."""
    found = session.tracker.reap(limit)
    session.output.answer(
        found,
        f"{words.plural(found['requeued'], 'run')} of dead workers back in the queue, {found['failed']} left as failed",
    )


def prune(
    session: Session,
    older_than: Annotated[
        dt.timedelta,
        typer.Option(
            "--older-than", metavar="AGE", parser=words.age, show_default=False, help="Ended so long ago: 30d, 12h."
        ),
    ],
    with_failures: Annotated[bool, typer.Option("--with-failures", help="Also failed and lost runs.")] = False,
    limit: Annotated[int, typer.Option("--limit", help="Most runs at once, 1 to 100000.")] = 10_000,
    yes: Yes = False,
) -> int:
    """Delete the history of runs that no stage stands on any more; statistics keep them."""
    failures = "failed ones included" if with_failures else "failed ones kept"
    question = f"Delete up to {limit:,} superseded runs that ended before {words.ago(older_than)}, {failures}?"
    if not session.output.confirm(question, yes=yes):
        return Exit.NO
    found = session.tracker.prune_runs(older_than, keep_failures=not with_failures, limit=limit)
    session.output.answer(found, f"{words.plural(found['pruned'], 'run')} deleted")
    if found["more"]:
        session.output.note("There are more: run it again, or raise --limit.")
    return Exit.OK
