"""How a function becomes a command: options that all have, exit codes, and errors as sentences."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from processors_v2._cli.connect import Session
from processors_v2._cli.exits import Exit, code_of
from processors_v2._cli.output import Output
from processors_v2._errors import StageTrackerError

Function = Callable[..., int | None]
"""Takes a Session and what Typer reads from the command line; returns the exit code, None for 0."""

_PANEL = "Options of every command"


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_JSON = _option(
    "as_json",
    Annotated[bool, typer.Option("--json", help="Print one JSON document.", rich_help_panel=_PANEL)],
    default=False,
)
_CONNECTION = [
    _option(
        "url",
        Annotated[
            str | None,
            typer.Option("--url", metavar="URL", help="In place of SUPABASE_URL.", rich_help_panel=_PANEL),
        ],
        default=None,
    ),
    _option(
        "database_url",
        Annotated[
            str | None,
            typer.Option(
                "--database-url",
                metavar="URL",
                help="Postgres itself, in place of SUPABASE_DB_URL: others on this machine may see it.",
                rich_help_panel=_PANEL,
            ),
        ],
        default=None,
    ),
    _option(
        "timeout",
        Annotated[
            float,
            typer.Option("--timeout", min=0.1, help="Seconds to wait for the database.", rich_help_panel=_PANEL),
        ],
        default=10.0,
    ),
]


def register(app: typer.Typer, function: Function, example: str, *, panel: str, connects: bool = True) -> None:
    """Make a command of a function.

    Args:
        app: Where it is added, under the name of the function.
        function: Its first parameter is the Session; its docstring is the help.
        example: Arguments of a typical call, shown at the end of its help.
        panel: Heading that it stands under in the list of commands.
        connects: Whether it has the options that say where the database is.
    """
    common = [*(_CONNECTION if connects else []), _JSON]
    _, *own = inspect.signature(function, eval_str=True).parameters.values()
    parameters = [*(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own), *common]

    @functools.wraps(function)
    def command(**values: Any) -> None:
        given = {one.name: values.pop(one.name) for one in common}
        code = _run(function, Output(as_json=given.pop("as_json")), given, values)
        if code:
            raise typer.Exit(code)

    # What Typer reads, in its older and its newer versions.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    name = function.__name__.rstrip("_").replace("_", "-")
    app.command(name, rich_help_panel=panel, epilog=f"Example: stage-tracker {example}")(command)


def _run(function: Function, output: Output, options: dict[str, Any], values: dict[str, Any]) -> int:
    try:
        session = Session(output, **options)
        try:
            return function(session, **values) or Exit.OK
        finally:
            session.close()
    except StageTrackerError as error:
        output.error(error.message, error.hint)
        return code_of(error)
    except typer.BadParameter as error:
        # Typer would put it into a box, whose lines break in the middle of what is to be typed.
        output.error(f"{error.param_hint}: {error.message}" if error.param_hint else error.message)
        return Exit.USAGE
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
