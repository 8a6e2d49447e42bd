"""Arguments and options that several commands have."""

from typing import Annotated

import typer

Document = Annotated[str, typer.Argument(metavar="DOC", help="Id of a document.", show_default=False)]
StageName = Annotated[str, typer.Argument(metavar="STAGE", help="Name of a stage.", show_default=False)]
OneStage = Annotated[str | None, typer.Option("--stage", metavar="STAGE", help="Of this stage only.")]
Actor = Annotated[
    str | None,
    typer.Option("--actor", metavar="NAME", help="Who asks for it, kept beside it. Default: your login name."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without a question.")]
