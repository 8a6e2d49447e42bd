"""A chart of what happened to a document: one line per stage, one sign per stretch of time."""

import datetime as dt
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from rich.text import Text

from processors_v2._cli import words
from processors_v2._shapes.questions import TimelineRun

_STEPS = (
    0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800,
    604800,
)  # fmt: skip
_LABEL_COLUMNS = 12


@dataclass(frozen=True)
class Sign:
    """How a stretch looks.

    Attributes:
        glyph: One column wide.
        plain: The same in ASCII.
        style: Beside the shape, never instead of it.
        meaning: For the legend.
    """

    glyph: str
    plain: str
    style: str
    meaning: str


WAIT = Sign("·", ".", "dim", "ready, waits for a worker")
_WORK: Mapping[str, Sign] = MappingProxyType(
    {
        "completed": Sign("█", "#", "green", "completed"),
        "running": Sign("▶", ">", "cyan", "at work now"),
        "failed": Sign("▒", "%", "red", "failed attempt"),
        "skipped": Sign("○", "o", "yellow", "skipped"),
        "released": Sign("◁", "<", "magenta", "given back untouched"),
        "lost": Sign("?", "?", "magenta", "worker lost"),
        "cancelled": Sign("◇", "c", "magenta", "cancelled"),
    }
)
FAILURE = Sign("✗", "x", "bold red", "failure")
BACKOFF = Sign("╌", "-", "dim", "pause before the next attempt")

# What is drawn first may be drawn over.
_DRAWN = {BACKOFF: 0, WAIT: 1, FAILURE: 3}


@dataclass(frozen=True)
class _Stretch:
    """A part of a line.

    Attributes:
        sign: How it looks.
        begin: When it begins.
        end: When it ends; the same for a mark.
    """

    sign: Sign
    begin: dt.datetime
    end: dt.datetime


class Gantt:
    """The runs of a document along a time axis.

    Args:
        runs: As get_timeline gives them, one at least.
        stages: Names in the order of the lines.
        now: Where open runs end.
        columns: Width of the whole chart.
        plain: Whether to keep to ASCII.
    """

    def __init__(
        self, runs: Sequence[TimelineRun], stages: Sequence[str], now: dt.datetime, *, columns: int, plain: bool
    ) -> None:
        self._plain = plain
        self._stages = [name for name in stages if any(run["stage_name"] == name for run in runs)]
        self._stretches = {
            name: [one for run in runs if run["stage_name"] == name for one in _stretches(run, now)]
            for name in self._stages
        }
        every = [one for line in self._stretches.values() for one in line]
        self.begin = min((one.begin for one in every), default=now)
        self.end = max((one.end for one in every), default=now)
        self._seconds = max((self.end - self.begin).total_seconds(), 0.001)
        self._label = max((len(name) for name in self._stages), default=0) + 1
        self._columns = max(columns - self._label, 20)

    def lines(self) -> Iterator[Text]:
        """Give the axis, then a line for each stage that has a run."""
        yield self._axis()
        for name in self._stages:
            cells: list[Sign | None] = [None] * self._columns
            # What is short must not vanish behind what is long.
            for one in sorted(self._stretches[name], key=lambda one: _DRAWN.get(one.sign, 2)):
                first, last = self._place(one)
                cells[first : last + 1] = [one.sign] * (last + 1 - first)
            line = Text(name.ljust(self._label))
            for cell in cells:
                line.append(" " if cell is None else self._glyph(cell), style="" if cell is None else cell.style)
            line.rstrip()
            yield line

    def legend(self) -> list[Text]:
        """Return what the signs of this chart mean, in lines of its width."""
        used = {one.sign for line in self._stretches.values() for one in line}
        lines = [Text()]
        for sign in (one for one in (WAIT, *_WORK.values(), FAILURE, BACKOFF) if one in used):
            item = Text.assemble((self._glyph(sign), sign.style), f" {sign.meaning}")
            if lines[-1] and lines[-1].cell_len + item.cell_len + 3 > self._label + self._columns:
                lines.append(Text())
            lines[-1].append("   " if lines[-1] else "").append(item)
        return lines

    def _glyph(self, sign: Sign) -> str:
        return sign.plain if self._plain else sign.glyph

    def _place(self, stretch: _Stretch) -> tuple[int, int]:
        """Return the first and the last column of a stretch, which has one at least."""
        begin, end = (self._share(at) * self._columns for at in (stretch.begin, stretch.end))
        last = min(max(math.ceil(end) - 1, 0), self._columns - 1)
        return min(int(begin), last), last

    def _share(self, at: dt.datetime) -> float:
        """Return where a time is, from 0 at the begin to 1 at the end."""
        return round((at - self.begin).total_seconds() / self._seconds, 9)

    def _axis(self) -> Text:
        """Return the time since the begin, at round distances."""
        room = self._columns // _LABEL_COLUMNS
        step = next((one for one in _STEPS if self._seconds / one <= room), math.ceil(self._seconds / room))
        axis = [" "] * self._columns
        for number in range(int(self._seconds / step) + 1):
            column = min(int(number * step / self._seconds * self._columns), self._columns - 1)
            label = f"|{words.tick(number * step)}"
            if column + len(label) <= self._columns:
                axis[column : column + len(label)] = label
        return Text(" " * self._label + "".join(axis).rstrip(), style="dim")


def _stretches(run: TimelineRun, now: dt.datetime) -> Iterator[_Stretch]:
    ready, started, finished = (_time(run[word]) for word in ("ready_at", "started_at", "finished_at"))
    if ready is not None and ready < (until := started or finished or now):
        yield _Stretch(WAIT, ready, until)
    if (work := _WORK.get(run["status"])) is None:
        return
    end = finished or now
    yield _Stretch(work, end if started is None else started, end)
    if run["status"] == "failed":
        yield _Stretch(FAILURE, end, end)
        if (retry := _time(run["retry_at"])) is not None:
            yield _Stretch(BACKOFF, end, min(retry, now))


def _time(value: str | None) -> dt.datetime | None:
    return None if value is None else dt.datetime.fromisoformat(value)


def now_of(runs: Sequence[TimelineRun]) -> dt.datetime:
    """Return the time of the answer on the clock of the database, if a run tells it, else of this machine."""
    for run in runs:
        started = _time(run["started_at"])
        if run["status"] == "running" and started is not None and run["work_seconds"] is not None:
            return started + dt.timedelta(seconds=run["work_seconds"])
    return dt.datetime.now(dt.UTC)
