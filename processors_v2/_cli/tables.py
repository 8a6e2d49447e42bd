"""Tables: ruled on a terminal, plain columns for a pipe, in two parts where the screen is narrow."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

MARKS = {
    "pending": ("·", ".", "dim"),
    "processing": ("▶", ">", "cyan"),
    "completed": ("✓", "+", "green"),
    "failed": ("✗", "x", "bold red"),
    "skipped": ("○", "o", "yellow"),
}
"""Sign of a status, the same in ASCII, and style: told apart without colour, too."""

Cell = str | Text


def clean(text: str) -> str:
    """Return a text in one line, without what would steer a terminal."""
    return "".join(one if one.isprintable() else " " for one in text)


def state(console: Console, status: str) -> Text:
    """Show a status by sign and word."""
    sign, plain, style = MARKS[status]
    return Text(f"{plain if console.options.ascii_only else sign} {status}", style=style)


def table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[Cell]], *, left: int = 1) -> Table:
    """Return a table.

    Args:
        console: Where it is going to be printed.
        headings: Of the columns; a line break in one is a blank in a pipe.
        rows: Cells; what is no Text is taken as it is, without markup.
        left: How many columns begin at the left, as text does; numbers end at the right.
    """
    made = Table(
        box=SIMPLE_HEAD if console.is_terminal else None,
        show_edge=False,
        pad_edge=False,
        padding=(0, 2 if not console.is_terminal else 1, 0, 0),
        header_style="bold",
    )
    for place, heading in enumerate(headings):
        shown = heading if console.is_terminal else heading.replace("\n", " ")
        made.add_column(Text(shown), justify="left" if place < left else "right", vertical="top")
    for row in rows:
        made.add_row(*(one if isinstance(one, Text) else Text(clean(one)) for one in row))
    return made


def in_parts(
    console: Console, first: str, parts: Sequence[Sequence[str]], rows: Sequence[Sequence[Cell]]
) -> RenderableType:
    """Return one table, or one for each part where the whole is too wide; all begin with the same column.

    Args:
        console: Where it is going to be printed.
        first: Heading of that column.
        parts: Headings of the other columns.
        rows: A cell for each heading.
    """
    whole = table(console, [first, *(heading for part in parts for heading in part)], rows)
    if Measurement.get(console, console.options, whole).maximum <= console.width:
        return whole
    tables: list[RenderableType] = []
    begin = 1
    for part in parts:
        end = begin + len(part)
        tables += [*([Text()] if tables else []), table(console, [first, *part], [[r[0], *r[begin:end]] for r in rows])]
        begin = end
    return Group(*tables)
