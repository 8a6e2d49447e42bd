"""What a benchmark or a campaign reports to: its options, progress bars, and a place for its figures."""

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Result:
    """One figure.

    Attributes:
        name: what was measured.
        value: the figure, in ``unit``.
        unit: ms, 1/s, bytes, "" for a plain number.
        baseline: what it is compared with, measured in the same run, in the same unit.
        ratio: value / baseline.
        target: what was asked for, in words or as a number.
        ok: whether the target was met; None where there is none.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    target: str | float | None = None
    ok: bool | None = None


class Bench:
    """Options, progress bars, and a place for figures.

    Attributes:
        quick: whether fewer repetitions are wanted, to see that it works.
        only: the parts that are wanted; none: all of them.
        results: the figures so far, in their order.
    """

    def __init__(self, *, quick: bool, console: Console, only: Collection[str] = ()) -> None:
        self.quick = quick
        self.only = frozenset(only)
        self.results: list[Result] = []
        self._console = console

    def wants(self, part: str, group: Collection[str]) -> bool:
        """Say whether a part is wanted: it is named, or nothing of its group is."""
        return part in self.only or self.only.isdisjoint(group)

    def say(self, text: str) -> None:
        """Tell the user what happens."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def progress(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Go through items under a progress bar.

        Args:
            items: what to go through.
            description: what is going on, for people.
            total: how many items there are, where they have no length.
        """
        if total is None and isinstance(items, Sequence | set | dict):
            total = len(items)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(TextColumn("{task.description}"), *columns, console=self._console, transient=True) as bars:
            yield from bars.track(items, total=total, description=description)

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        baseline: float | None = None,
        ratio: float | None = None,
        target: str | float | None = None,
        ok: bool | None = None,
    ) -> None:
        """Record a figure; see Result."""
        self.results.append(Result(name, value, unit, baseline, ratio, target, ok))
