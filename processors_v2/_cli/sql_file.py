"""``sql``: all migrations as one file."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from processors_v2._cli.connect import Session
from processors_v2._install import folders
from processors_v2._install.editor import editor_text


def sql(
    session: Session,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there.", show_default=False)
    ] = None,
) -> None:
    """Print all migrations as one text for the SQL editor of the dashboard.

    Run all of it there. It may be run again at any time, also over an earlier version.
    """
    text = editor_text()
    if output is not None:
        folders.write(output.absolute(), text.encode())
        session.output.answer(
            {"file": str(output)}, f"{output} written: paste it into the SQL editor and run all of it"
        )
    elif session.output.as_json:
        session.output.answer({"sql": text})
    else:
        # As it is: nothing may be wrapped, and it is long.
        sys.stdout.write(text)
