"""Runs a module of benchmarks/ or proof/ by its name, and shows its figures.

Such a module has a docstring and ``def run(bench: Bench) -> None``, which adds one result a figure:

    from benchmarks._shared.bench import Bench

    TAKES = "2 minutes"

    def run(bench: Bench) -> None:
        for call in bench.progress(calls, "seed calls"):
            bench.add("start_stage, p50", 1.2, "ms", baseline=0.9, ratio=1.33, target="at most 2.0 times", ok=True)

TAKES says how long it takes at full length, once somebody has measured that; the list of modules shows it. A module
that can do some of its parts alone has PARTS, groups of names, and asks ``bench.wants``. The JSON file holds a
list of the figures, one object each with the keys name, value, unit, baseline, ratio, target and ok. The exit code is 1
when any figure misses its target, 2 when there is nothing of that name.
"""

import argparse
import dataclasses
import importlib
import json
import os
import pkgutil
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.table import Table

from benchmarks._shared.bench import Bench, Result


class Module(Protocol):
    """A benchmark or a campaign."""

    __doc__: str | None

    def run(self, bench: Bench) -> None:
        """Do the work, and add the figures."""


@dataclasses.dataclass(frozen=True)
class Group:
    """A folder of such modules.

    Attributes:
        package: the folder, which is a Python package.
        command: what runs one of them.
        purpose: what they are there for.
    """

    package: str
    command: str
    purpose: str

    def names(self) -> list[str]:
        """Names of its modules; those that begin with an underscore are parts of others."""
        folders = importlib.import_module(self.package).__path__
        return sorted(module.name for module in pkgutil.iter_modules(folders) if not module.name.startswith("_"))

    def load(self, name: str) -> Module:
        """Import one of them."""
        module: Module = importlib.import_module(f"{self.package}.{name}")
        return module


BENCHMARKS = Group("benchmarks", "./dev bench", "measure speed and size")
CAMPAIGNS = Group("proof", "./dev proof", "prove rules under faults, load and chance")


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


def catalog(group: Group) -> Table:
    """List what a group holds: names, how long each takes, and the first sentence of its docstring."""
    listing = Table(title=f"{group.command} NAME: {group.purpose}", title_justify="left")
    for column in ("name", "takes"):
        listing.add_column(column, no_wrap=True)
    listing.add_column("what it does", overflow="fold")
    for name in group.names():
        module = group.load(name)
        listing.add_row(name, getattr(module, "TAKES", "not measured"), (module.__doc__ or "").partition("\n")[0])
    return listing


def read_arguments(command: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog=command)
    parser.add_argument("name", nargs="?", metavar="NAME", help="which one; without: list them")
    parser.add_argument("--quick", action="store_true", help="less of everything: shows that it works, not how well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file, too")
    parser.add_argument("--only", default="", metavar="PART,PART", help="some parts of one that has such")
    return parser.parse_args(arguments)


def main(*groups: Group, arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for and return the exit code.

    Args:
        groups: where names are looked up; the command is that of the first.
        arguments: the command line; by default that of the process.
    """
    options = read_arguments(groups[0].command, arguments)
    console = Console()
    group = next((group for group in groups if options.name in group.names()), None)
    if group is None:
        if options.name:
            console.print(f"There is no {options.name!r}.", markup=False)
        console.print(*map(catalog, groups), sep="\n")
        return 2
    module = group.load(options.name)
    parts = {part for names in getattr(module, "PARTS", ()) for part in names}
    only = {part for part in options.only.split(",") if part}
    if only - parts:
        known = f"There are: {', '.join(sorted(parts))}." if parts else f"{options.name} has no parts."
        console.print(f"There is no part {', '.join(sorted(only - parts))}.", known)
        return 2
    if options.json:
        # An unwritable file fails now, and not after an hour.
        options.json.touch()
    bench = Bench(quick=options.quick, console=console, only=only)
    title = f"{options.name} on {machine()}"
    module.run(bench)
    console.print(table(title, bench.results))
    if options.json:
        text = json.dumps([dataclasses.asdict(result) for result in bench.results], indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 1 if any(result.ok is False for result in bench.results) else 0
