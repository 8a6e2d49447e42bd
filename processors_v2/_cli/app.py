"""The commands, by what they are for."""

import importlib.metadata
from typing import Annotated

import typer

from processors_v2 import _versions
from processors_v2._cli.commands import register
from processors_v2._cli.doctor import doctor
from processors_v2._cli.install import init
from processors_v2._cli.sql_file import sql

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    # A traceback with the values of variables could show a key.
    pretty_exceptions_enable=False,
    help="See where every document stands, stage by stage, and bring back what failed.",
    epilog=(
        "Exit codes: 0 done, 1 the answer is no or something failed, 2 wrong command line, 3 no such document or stage, "
        "4 does not fit the state of the stage, 5 key, rights or set-up, 6 the database did not answer."
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        version = importlib.metadata.version("stage-tracker")
        typer.echo(f"stage-tracker {version}, for version {_versions.SCHEMA} of the SQL")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# register(app, <function>, "<example>", panel=..., connects=...) for each command.

_SETTING_UP = "Setting up"
register(app, init, "init", panel=_SETTING_UP, connects=False)
register(app, sql, "sql --output stage_tracker.sql", panel=_SETTING_UP, connects=False)
register(app, doctor, "doctor", panel=_SETTING_UP)
