"""Tables: ruled on a terminal, plain columns for a pipe, in parts where the screen is narrow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

Cell = str | Text
"""A str is taken as it is, without markup, in one line."""

# A measurement is cut off at the width of the screen.
_UNBOUND = 10_000
_NARROWEST = 8

_MARKS: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "pending": ("·", ".", "dim"),
        "processing": ("▶", ">", "cyan"),
        "completed": ("✓", "+", "green"),
        "failed": ("✗", "x", "bold red"),
        "skipped": ("○", "o", "yellow"),
    }
)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: Over it; a line break in it is a blank in a pipe.
        kind: Text begins at the left, numbers end at the right; where the screen is narrow, what is "cut" gives way
            first, and what is "wrapped" takes more lines.
        least: Width at least, where a table is drawn again and again.
    """

    heading: str
    kind: Literal["text", "number", "cut", "wrapped"] = "text"
    least: int = 0


def numbers(*headings: str) -> list[Column]:
    """Return columns of numbers."""
    return [Column(heading, "number") for heading in headings]


def clean(text: str) -> str:
    """Return a text in one line, without what would steer a terminal."""
    return "".join(one if one.isprintable() else " " for one in text)


def state(console: Console, status: str) -> Text:
    """Show a status by sign and word, to a program by the word."""
    if not console.is_terminal:
        return Text(status)
    sign, plain, style = _MARKS[status]
    return Text(f"{plain if console.options.ascii_only else sign} {status}", style=style)


def alarm(count: int, said: str) -> Text:
    """Show a number that should be 0."""
    return Text(said, style="bold red" if count else "")


def table(console: Console, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> Table:
    """Return a table that fits on the screen, if its columns allow for it."""
    cells = [[one if isinstance(one, Text) else Text(clean(one)) for one in row] for row in rows]
    made = _table(console, columns, cells, gap=2)
    if _width(console, made) <= console.width:
        return made
    made = _table(console, columns, cells, gap=1)
    excess = _width(console, made) - console.width
    cut = next((place for place, column in enumerate(columns) if column.kind == "cut"), None)
    if cut is None or excess <= 0 or not cells:
        return made
    room = max(max(row[cut].cell_len for row in cells) - excess, _NARROWEST)
    for row in cells:
        row[cut].truncate(room, overflow="ellipsis")
    return _table(console, columns, cells, gap=1)


def in_parts(
    console: Console, first: Column, parts: Sequence[Sequence[Column]], rows: Sequence[Sequence[Cell]]
) -> RenderableType:
    """Return one table, or one for each part where the whole is too wide; all begin with the same column.

    Args:
        console: Where it is going to be printed.
        first: That column.
        parts: The other columns.
        rows: A cell for each column.
    """
    whole = table(console, [first, *(column for part in parts for column in part)], rows)
    if _width(console, whole) <= console.width:
        return whole
    tables: list[RenderableType] = []
    begin = 1
    for part in parts:
        end = begin + len(part)
        tables += [*([Text()] if tables else []), table(console, [first, *part], [[r[0], *r[begin:end]] for r in rows])]
        begin = end
    return Group(*tables)


def _table(console: Console, columns: Sequence[Column], cells: Sequence[Sequence[Text]], *, gap: int) -> Table:
    made = Table(
        box=SIMPLE_HEAD if console.is_terminal else None,
        show_edge=False,
        pad_edge=False,
        # The rule under the headings has a column of its own between two others.
        padding=(0, gap - 1 if console.is_terminal else gap, 0, 0),
        header_style="bold",
    )
    for column in columns:
        made.add_column(
            Text(column.heading if console.is_terminal else column.heading.replace("\n", " ")),
            justify="right" if column.kind == "number" else "left",
            no_wrap=column.kind != "wrapped",
            min_width=column.least or None,
        )
    for row in cells:
        made.add_row(*row)
    return made


def _width(console: Console, made: Table) -> int:
    """Return how wide a table is where nothing bounds it."""
    return Measurement.get(console, console.options.update(max_width=_UNBOUND), made).maximum
