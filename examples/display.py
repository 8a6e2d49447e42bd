"""How the quickstart looks: live bars on a terminal, plain lines elsewhere, tables at the end.

Nothing here asks the tracker: all that is shown was read from the two views through PostgREST.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from textwrap import shorten
from types import TracebackType
from typing import Any, Self

from pipeline.search import Hit
from rich.box import ASCII, SIMPLE_HEAD, Box
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text
from supabase import Client

from processors_v2.stage_tracker import StageTracker

HEADINGS = ["upload", "text", "images", "class", "meta", "store", "embed", "index"]
"""Short names of StageTracker.STAGES for the columns, in the same order."""

MARKS = {
    "completed": ("✓", "done", "green"),
    "failed": ("✗", "FAIL", "bold red"),
    "skipped": ("-", "skip", "yellow"),
    "pending": ("·", "wait", "dim"),
}
ASCII_MARKS = {"✓": "+", "✗": "x", "·": ".", "█": "#", "░": ".", "…": "~", "▸": ">"}
READ_AT_ONCE = 500
SNIPPET_CHARACTERS = 180
NARROW = 72

Row = dict[str, Any]


def read_documents(client: Client) -> list[Row]:
    """Read vw_documents_by_stage, in pages: PostgREST cuts longer answers off without a word."""
    view = client.schema("krai_core").table("vw_documents_by_stage")
    rows: list[Row] = []
    while True:
        part: list[Any] = (
            view.select("*").order("filename").order("id").range(len(rows), len(rows) + READ_AT_ONCE - 1).execute().data
        )
        rows += part
        if len(part) < READ_AT_ONCE:
            return rows


def read_statistics(client: Client) -> list[Row]:
    """Read vw_stage_statistics: one row per stage, in pipeline order."""
    rows: list[Any] = client.schema("krai_core").table("vw_stage_statistics").select("*").execute().data
    return rows


def stages_of(row: Row) -> dict[str, Row]:
    """Return the status object of each stage of a row, in pipeline order."""
    return {stage: row[f"{stage}_status"] for stage in StageTracker.STAGES}


class Screen:
    """Writes to one console, with signs that its encoding has."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.plain = console.options.ascii_only

    def signs(self, text: str) -> str:
        """Replace the signs that the console cannot show."""
        text = text.encode("utf-8", "replace").decode()
        if not self.plain:
            return text
        for sign, substitute in ASCII_MARKS.items():
            text = text.replace(sign, substitute)
        return text.encode("ascii", "replace").decode()

    def say(self, text: str = "", style: str = "") -> None:
        """Print one line or paragraph, wrapped at the width of the console."""
        self.show(Text(self.signs(text), style=style))

    def point(self, sign: str, text: str, style: str = "") -> None:
        """Print a paragraph that hangs on a sign."""
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_row(Text(self.signs(sign), style=style), Text(self.signs(text), style=style))
        self.show(grid)

    def show(self, renderable: RenderableType) -> None:
        """Print anything; without the blanks at the ends of lines where the output may be kept."""
        if self.console.is_terminal:
            self.console.print(renderable)
            return
        with self.console.capture() as captured:
            self.console.print(renderable)
        for line in captured.get().splitlines():
            self.console.print(line.rstrip(), markup=False, soft_wrap=True)

    def box(self) -> Box:
        """Return the lines that tables are drawn with."""
        return ASCII if self.plain else SIMPLE_HEAD

    def cell(self, stage: Row, width: int) -> Text:
        """Show one stage: status by sign and word, or a bar while it is at work."""
        status = stage["status"]
        if status != "processing":
            sign, word, style = MARKS[status]
            return Text(self.signs(sign if width < 6 else f"{sign} {word}"), style=style)
        percent = float(stage["progress"] or 0)
        if width < 6:
            return Text(self.signs("▸"), style="cyan")
        number = f" {percent:3.0f}%" if width >= 10 else ""
        bar_width = width - len(number)
        filled = int(bar_width * percent / 100)
        return Text(self.signs("█" * filled + "░" * (bar_width - filled)) + number, style="cyan")

    def documents_table(self, rows: Sequence[Row]) -> Table:
        """Lay out one row per document, one column per stage."""
        narrow = self.console.width < NARROW
        cell_width = 1 if narrow else max(6, min(12, (self.console.width - 36) // len(HEADINGS)))
        table = Table(box=self.box(), show_edge=False, pad_edge=False, padding=0, header_style="bold")
        left = self.console.width - 4 - (cell_width + 1) * len(HEADINGS) - 1
        table.add_column("document", overflow="ellipsis", no_wrap=True, max_width=max(8, left))
        table.add_column("all", justify="right", width=4)
        for heading in HEADINGS:
            table.add_column(heading[:cell_width], width=cell_width, no_wrap=True)
        for row in rows:
            table.add_row(
                Text(self.signs(row["filename"].removesuffix(".pdf"))),
                f"{float(row['progress_percentage']):.0f}%",
                *(self.cell(stage, cell_width) for stage in stages_of(row).values()),
            )
        if narrow:
            table.caption = self.signs("✓ done  ✗ FAIL  - skip  · wait  ▸ at work")
        return table

    def show_documents(self, rows: Sequence[Row]) -> None:
        """Print the table documents x stages, and below it why a stage failed or was skipped."""
        self.show(self.documents_table(rows))
        self.say()
        for status in ("failed", "skipped"):
            sign, _, style = MARKS[status]
            for row in rows:
                for name, stage in stages_of(row).items():
                    if stage["status"] == status:
                        reason = stage["error"] or stage["metadata"].get("reason") or status
                        self.point(sign, f"{row['filename']}: {name}: {reason}", style)

    def show_statistics(self, rows: Sequence[Row]) -> None:
        """Print the rows of vw_stage_statistics."""
        table = Table(box=self.box(), show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        table.add_column("stage", no_wrap=True)
        counts = ["pending", "processing", "completed", "failed", "skipped"]
        for name in [*counts, "avg. s"]:
            table.add_column(name, justify="right")
        for row in rows:
            average = row["avg_duration_seconds"]
            table.add_row(
                row["stage_name"],
                *(str(row[f"{name}_count"]) for name in counts),
                "" if average is None else f"{float(average):.2f}",
            )
        self.show(table)

    def show_hits(self, hits: Sequence[Hit]) -> None:
        """Print what a search has found, best first."""
        if not hits:
            self.say("Nothing found.")
        for number, hit in enumerate(hits, start=1):
            self.point(f"{number}.", f"{hit.filename}, page {hit.page} (score {hit.score:.2f})", "bold")
            self.point("  ", shorten(hit.snippet, SNIPPET_CHARACTERS, placeholder=" ..."))


class LiveStatus:
    """Show the documents while the stages run: `refresh()` now and then, from one thread.

    On a terminal the table is redrawn in place. Elsewhere (a pipe, a log) each stage that ends is one line.
    """

    def __init__(self, screen: Screen, client: Client, document_ids: Collection[str]) -> None:
        self.screen = screen
        self.client = client
        self.document_ids = set(document_ids)
        self.rows: list[Row] = []
        self.seen: dict[tuple[str, str], str] = {}
        self.next_read = 0.0
        self.begun = False
        self.live = Live(console=screen.console, auto_refresh=False) if screen.console.is_terminal else None

    def __enter__(self) -> Self:
        if self.live is not None:
            self.live.start()
        self.refresh(at_once=True)
        self.begun = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.refresh(at_once=True)
        finally:
            if self.live is not None:
                self.live.stop()

    def refresh(self, at_once: bool = False) -> None:
        """Read the view and show it; does nothing if the last reading was a moment ago."""
        started = time.monotonic()
        if started < self.next_read and not at_once:
            return
        self.rows = [row for row in read_documents(self.client) if row["id"] in self.document_ids]
        # Four times a second, less often when there are so many documents that reading them takes its time.
        self.next_read = time.monotonic() + max(0.25, 4 * (time.monotonic() - started))
        if self.live is not None:
            self.live.update(self.screen.documents_table(self.fitting()), refresh=True)
        else:
            self.print_changes()

    def fitting(self) -> list[Row]:
        """Return the rows that the terminal has lines for: those at work, then those that wait."""
        lines = max(3, self.screen.console.height - 6)
        if len(self.rows) <= lines:
            return self.rows

        def busy(row: Row) -> int:
            statuses = [stage["status"] for stage in stages_of(row).values()]
            return 0 if "processing" in statuses else 1 if "pending" in statuses else 2

        return sorted(self.rows, key=busy)[:lines]

    def print_changes(self) -> None:
        """Print a line for each stage that has ended since the last time."""
        for row in self.rows:
            for name, stage in stages_of(row).items():
                status = stage["status"]
                if status == self.seen.get((row["id"], name), "pending"):
                    continue
                self.seen[row["id"], name] = status
                # What was done before this run began is no news.
                if self.begun and status in ("completed", "failed", "skipped"):
                    sign, _, style = MARKS[status]
                    seconds = stage["duration_seconds"]
                    took = "" if seconds is None else f" in {float(seconds):.2f} s"
                    self.screen.point(sign, f"{row['filename']}: {name} {status}{took}", style)
