"""Small tables and bars as HTML: inline styles, no script, readable on light and dark pages.

Elements are built by ElementTree, which escapes every text and attribute. No text has a colour of its own: what a
colour says is said by a word, too.
"""

import datetime as dt
import math
from collections.abc import Collection, Mapping, Sequence
from xml.etree import ElementTree as ET

Cell = str | ET.Element
Part = tuple[float, str]
"""Share of a bar from 0 to 1, and its colour."""

# At least 3 to 1 against white and against the dark grey of notebooks.
COLOURS = {
    "completed": "#2b9a5b",
    "failed": "#d64550",
    "lost": "#d64550",
    "processing": "#3a82d6",
    "running": "#3a82d6",
    "skipped": "#b07d12",
    "waiting": "#8a8a8a",
}
MARKS = {"completed": "✓", "failed": "✗", "lost": "✗", "processing": "▸", "running": "▸", "pending": "·", "ready": "·"}
ROWS = 60
"""Most rows that are shown."""

_EMPTY = "rgba(128,128,128,.25)"
_LINE = "1px solid rgba(128,128,128,.35)"
_CELL = "padding:2px 9px 2px 0;vertical-align:middle;border:none;"
_NARROW = "white-space:nowrap;"
_WIDE = "white-space:normal;min-width:18em;max-width:36em;overflow-wrap:anywhere;"
_PART = "display:inline-block;vertical-align:top;height:100%"
_LONGEST = 160
_ONE_LINE = 40


def element(tag: str, *content: Cell, **attributes: str) -> ET.Element:
    """Make an element of texts and other elements."""
    made = ET.Element(tag, attributes)
    last: ET.Element | None = None
    for part in content:
        if isinstance(part, ET.Element):
            made.append(part)
            last = part
        elif last is None:
            made.text = (made.text or "") + part
        else:
            last.tail = (last.tail or "") + part
    return made


def page(*content: Cell) -> str:
    """Return what a notebook is given."""
    whole = element("div", *content, style="font-size:13px;line-height:1.4;overflow-x:auto")
    return ET.tostring(whole, encoding="unicode", method="html")


def table(headings: Sequence[str], rows: Sequence[Sequence[Cell]], numbers: Collection[str] = ()) -> ET.Element:
    """Lay out a table; columns whose headings are among ``numbers`` are aligned to the right."""
    sides = ["right" if heading in numbers else "left" for heading in headings]
    head = element("tr")
    for heading, side in zip(headings, sides, strict=True):
        head.append(element("th", heading, style=f"{_CELL}{_NARROW}text-align:{side};border-bottom:{_LINE}"))
    body = element("tbody")
    for row in rows[:ROWS]:
        line = element("tr", style="background:none")
        for cell, side in zip(row, sides, strict=True):
            is_long = isinstance(cell, str) and len(cell) > _ONE_LINE
            line.append(element("td", cell, style=f"{_CELL}{_WIDE if is_long else _NARROW}text-align:{side}"))
        body.append(line)
    if len(rows) > ROWS:
        more = element(
            "td", f"… and {len(rows) - ROWS} more", colspan=str(len(headings)), style=f"{_CELL}text-align:left"
        )
        body.append(element("tr", more))
    return element("table", element("thead", head), body, style="border-collapse:collapse;border:none;margin:4px 0")


def bar(*parts: Part, title: str = "", width: float = 7) -> ET.Element:
    """Draw parts one after the other on a grey ground.

    Args:
        *parts: Share and colour; what has no colour stays grey.
        title: What the mouse pointer gets to read.
        width: Of the whole, in em.
    """
    style = f"display:inline-block;width:{width:g}em;height:.75em;background:{_EMPTY};border-radius:2px"
    made = element("span", style=f"{style};overflow:hidden;white-space:nowrap;vertical-align:middle;font-size:13px")
    if title:
        made.set("title", title)
    for share, colour in parts:
        length = f"width:{100 * min(max(share, 0.0), 1.0):.2f}%"
        ground = f";background:{colour}" if colour else ""
        made.append(element("span", style=f"{_PART};{length}{ground}"))
    return made


def labelled(drawn: ET.Element, label: str) -> ET.Element:
    """Put a text beside a bar."""
    return element("span", drawn, f" {label}")


def status(word: str) -> str:
    """Return the status of a stage or a run with its mark."""
    return f"{MARKS.get(word, '-')} {word}"


def seconds(value: float | None) -> str:
    """Return a duration for people; nothing for None."""
    if value is None:
        return ""
    if value < 10:  # noqa: PLR2004
        return f"{value:.2f} s"
    if value < 100:  # noqa: PLR2004
        return f"{value:.1f} s"
    if value < 6000:  # noqa: PLR2004
        return f"{value // 60:.0f} min {math.floor(value % 60):02d} s"
    return f"{value / 3600:.1f} h"


def number(value: float) -> str:
    """Return a number for people."""
    return f"{value:,.1f}"


def time(value: str | None) -> str:
    """Return a time of the database to the second; nothing for None."""
    return "" if value is None else value[:19].replace("T", " ")


def instant(value: str) -> float:
    """Return a time of the database in seconds."""
    return dt.datetime.fromisoformat(value).timestamp()


def short(text: str | None) -> str:
    """Return the beginning of a text."""
    text = text or ""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def pairs(values: Mapping[str, object]) -> str:
    """Return names and values as one text."""
    return ", ".join(f"{name}: {value}" for name, value in values.items())
