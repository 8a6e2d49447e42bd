"""Run a benchmark of this folder: ./dev bench NAME [--quick] [--only PART,PART] [--json FILE].

A benchmark is a module with a docstring and ``def run(bench: Bench) -> None``, which adds one result a figure:

    from benchmarks.__main__ import Bench

    def run(bench: Bench) -> None:
        for call in bench.progress(calls, "seed calls"):
            bench.add("start_stage, p50", 1.2, "ms", baseline=0.9, ratio=1.33, target="at most 2.0 times", ok=True)

It prints a table of them. A benchmark that can do some of its parts alone has PARTS, groups of names, and asks
``bench.wants``. The JSON file holds a list of the same, one object a figure with the keys name, value, unit,
baseline, ratio, target and ok. The exit code is 1 when any figure misses its target.
"""

import argparse
import dataclasses
import importlib
import json
import os
import pkgutil
import platform
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

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
    """What a benchmark gets: its options, progress bars, and a place for its figures.

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


class Module(Protocol):
    """A benchmark."""

    __doc__: str | None

    def run(self, bench: Bench) -> None:
        """Measure."""


def available() -> list[str]:
    """Names of the benchmarks in this folder."""
    return sorted(
        module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if not module.name.startswith("_")
    )


def show(number: float | None) -> str:
    """Write a figure with four significant digits."""
    return "" if number is None else f"{number:,.4g}" if abs(number) < 10_000 else f"{number:,.0f}"


def machine() -> str:
    """Describe what figures depend on: the machine, and what else it is doing right now."""
    load = os.getloadavg()[0]
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load {load:.1f} before the first measurement"
    )


def table(title: str, results: list[Result]) -> Table:
    """Lay out the figures."""
    result_table = Table(title=title)
    result_table.add_column("what", overflow="fold")
    for column in ("value", "unit", "baseline", "ratio"):
        result_table.add_column(column, justify="left" if column == "unit" else "right", no_wrap=True)
    result_table.add_column("target", overflow="fold")
    result_table.add_column("")
    verdicts = {True: "[green]ok", False: "[red]missed", None: ""}
    for result in results:
        target = result.target if isinstance(result.target, str) else show(result.target)
        result_table.add_row(
            result.name,
            show(result.value),
            result.unit,
            show(result.baseline),
            show(result.ratio),
            target,
            verdicts[result.ok],
        )
    return result_table


def main() -> int:
    """Run what the command line asks for and return the exit code."""
    names = available()
    parser = argparse.ArgumentParser(prog="./dev bench", description="Measure.")
    parser.add_argument("name", nargs="?", metavar="NAME", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: shows that it works, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file, too")
    parser.add_argument("--only", default="", metavar="PART,PART", help="some parts of a benchmark that has such")
    options = parser.parse_args()
    console = Console()
    if options.name not in names:
        known = ", ".join(names) or "none yet"
        console.print(
            f"There is no benchmark {options.name!r}." if options.name else "Which benchmark?", f"There are: {known}."
        )
        return 2
    module: Module = importlib.import_module(f"benchmarks.{options.name}")
    parts = {part for group in getattr(module, "PARTS", ()) for part in group}
    only = {part for part in options.only.split(",") if part}
    if only - parts:
        known = f"There are: {', '.join(sorted(parts))}." if parts else f"{options.name} has no parts."
        console.print(f"There is no part {', '.join(sorted(only - parts))}.", known)
        return 2
    if options.json:
        # Found out now and not after minutes of measuring.
        options.json.touch()
    bench = Bench(quick=options.quick, console=console, only=only)
    title = f"{options.name} on {machine()}"
    module.run(bench)
    console.print(table(title, bench.results))
    if options.json:
        text = json.dumps([dataclasses.asdict(result) for result in bench.results], indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 1 if any(result.ok is False for result in bench.results) else 0


if __name__ == "__main__":
    # Benchmarks import this module by its name: without this there would be two Bench classes.
    sys.modules["benchmarks.__main__"] = sys.modules["__main__"]
    sys.exit(main())
