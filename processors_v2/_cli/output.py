"""What a command prints: for people on a terminal, plain for a pipe, or one JSON document.

Answers go to standard output; questions, notes and errors to standard error.
"""

import json
import os
import sys
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from processors_v2._cli.tables import clean

# Nothing is cut or wrapped where no person reads it.
_PIPE_WIDTH = 10_000


class Output:
    """Where a command prints.

    Args:
        as_json: Print the answer as one JSON document, and nothing else on standard output.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.console = _console(stderr=False)
        self.errors = _console(stderr=True)

    def answer(self, data: Any, *shown: RenderableType) -> None:
        """Print what a command was asked for.

        Args:
            data: The answer as the database gave it, for --json.
            shown: The same for people; text is taken as it is, without markup.
        """
        if self.as_json:
            is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
            sys.stdout.write(json.dumps(data, ensure_ascii=not is_unicode, indent=2) + "\n")
            return
        for one in shown:
            self.show(one)

    def show(self, one: RenderableType) -> None:
        """Print something on standard output, unless that is to be JSON."""
        if not self.as_json:
            _print(self.console, one)

    def legend(self, *lines: str) -> list[RenderableType]:
        """Return what explains a table to a person; nothing for a pipe."""
        return [Text("\n".join(["", *lines]), style="dim")] if self.console.is_terminal else []

    def note(self, text: str) -> None:
        """Say something beside the answer, on standard error."""
        _print(self.errors, text)

    def error(self, message: str, hint: str | None = None) -> None:
        """Say what went wrong, and what to do about it, on standard error."""
        _print(self.errors, Text.assemble(("Error: ", "bold red"), clean(message).rstrip(".") + "."))
        if hint:
            _print(self.errors, hint.rstrip(".") + ".")

    def confirm(self, question: str, *, yes: bool) -> bool:
        """Return whether a change of many things is wanted.

        Args:
            question: With the count, such as "Retry 12 stages?".
            yes: The answer that was given beforehand by --yes.

        Raises:
            typer.BadParameter: Nobody said --yes, and there is no terminal to ask on.
        """
        if yes:
            return True
        if not (sys.stdin.isatty() and self.errors.is_terminal):
            raise typer.BadParameter(f"{question} There is no terminal to ask on: pass --yes")
        return typer.confirm(question, err=True)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    return console


def _print(console: Console, one: RenderableType) -> None:
    """Print anything; without the blanks at the ends of lines where the output may be kept."""
    if isinstance(one, str):
        one = Text("\n".join(clean(line) for line in one.splitlines()))
    if console.is_terminal:
        console.print(one)
        return
    with console.capture() as captured:
        console.print(one)
    for line in captured.get().splitlines():
        console.print(line.rstrip(), soft_wrap=True)
