"""The commands, by what they are for."""

import importlib.metadata
from typing import Annotated

import typer

from processors_v2._cli import demo, operations, questions, questions_live, questions_timeline, runs, upkeep, work
from processors_v2._cli.commands import register
from processors_v2._cli.doctor import doctor
from processors_v2._cli.install import init
from processors_v2._cli.sql_file import sql
from processors_v2._transport.version import SCHEMA_VERSION

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    # A traceback with the values of variables could show a key.
    pretty_exceptions_enable=False,
    help="See where every document stands, stage by stage, and bring back what failed.",
    epilog=(
        "Exit codes: 0 done, 1 the answer is no or something failed, 2 wrong command line, "
        "3 no such document or stage, 4 does not fit the state of the stage, 5 key, rights or set-up, "
        "6 the database did not answer."
    ),
)

_SET_UP = "Set up"
register(app, init, "init", panel=_SET_UP, connects=False)
register(app, sql, "sql --output stage_tracker.sql", panel=_SET_UP, connects=False)
register(app, doctor, "doctor", panel=_SET_UP)


def _version(wanted: bool) -> None:
    if wanted:
        version = importlib.metadata.version("stage-tracker")
        typer.echo(f"stage-tracker {version}, for version {SCHEMA_VERSION} of the SQL")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


_DOCUMENT = "3f0c9a52-6f0e-4c5e-9d0a-0d1f6a1b2c3d"

_SEE, _CHANGE, _RUN = "See", "Change", "Run"
register(app, questions.status, f"status {_DOCUMENT}", panel=_SEE)
register(app, questions.ls, "ls --stage embedding --status failed", panel=_SEE)
register(app, questions.stats, "stats", panel=_SEE)
register(app, questions_live.watch, "watch", panel=_SEE)
register(app, questions_timeline.timeline, f"timeline {_DOCUMENT}", panel=_SEE)
register(app, questions.explain, f"explain {_DOCUMENT} search_indexing", panel=_SEE)
register(app, questions.forecast, "forecast --hours 24", panel=_SEE)

register(app, operations.retry, "retry --stage embedding --error '429' --since 2h --dry-run", panel=_CHANGE)
register(app, runs.skip, f"skip {_DOCUMENT} image_processing --reason 'No images'", panel=_CHANGE)
register(app, operations.reset, f"reset {_DOCUMENT} text_extraction --cascade", panel=_CHANGE)
register(app, operations.cancel, f"cancel {_DOCUMENT} --reason 'Withdrawn'", panel=_CHANGE)
register(app, operations.pause, "pause embedding", panel=_CHANGE)
register(app, operations.resume, "resume embedding", panel=_CHANGE)

register(app, work.worker, "worker my_handlers:HANDLERS --concurrency 8", panel=_RUN)
register(app, upkeep.reap, "reap", panel=_RUN)
register(app, upkeep.prune, "prune --older-than 30d --yes", panel=_RUN)
register(app, demo.demo, "demo", panel=_RUN, connects=False)
