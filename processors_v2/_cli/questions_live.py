"""The command that shows what is at work, as it changes."""

import datetime as dt
import time
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from processors_v2._cli import tables, words
from processors_v2._cli.connect import Session
from processors_v2._cli.tables import Cell, Column, numbers
from processors_v2._shapes.questions_statistics import StageCounts
from processors_v2._shapes.questions_work import RunningStage

_WIDE = 110
_WIDE_BAR, _NARROW_BAR = 20, 10
# Lines around the bars and the stages: headlines, rules, legends.
_OTHER_LINES = 10
_CONDITIONS = {"stalled": "bold red", "slow": "yellow"}

Statistics = dict[str, StageCounts]


def watch(
    session: Session,
    once: Annotated[bool, typer.Option("--once", help="Show how it stands now, and end.")] = False,
    every: Annotated[float, typer.Option("--every", min=0.1, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Show live bars of everything that is at work, until Ctrl-C; a line for each change where it is piped."""
    output, console = session.output, session.output.console
    running, statistics = _look(session)
    if output.as_json or once:
        output.answer({"running": running, "stages": statistics}, screen(console, running, statistics, lines=None))
        return
    try:
        if console.is_terminal:
            _live(session, every, running, statistics)
        else:
            _lines(session, every, running)
    except KeyboardInterrupt:
        # That is how it ends.
        return


def _look(session: Session) -> tuple[list[RunningStage], Statistics]:
    return session.tracker.get_running_stages(), session.tracker.get_statistics()


def _live(session: Session, every: float, running: list[RunningStage], statistics: Statistics) -> None:
    console = session.output.console
    with Live(console=console, auto_refresh=False, screen=False, vertical_overflow="crop") as live:
        while True:
            live.update(screen(console, running, statistics, lines=console.height), refresh=True)
            time.sleep(every)
            running, statistics = _look(session)


def _lines(session: Session, every: float, running: list[RunningStage]) -> None:
    """Print each change as a line, which a log keeps."""
    seen: dict[tuple[str, str], str] = {}
    while True:
        told = {(run["document_id"], run["stage_name"]): _sentence(run) for run in running}
        for key, sentence in told.items():
            if seen.get(key) != sentence:
                _stamped(session, sentence)
        for document, stage in seen.keys() - told.keys():
            _stamped(session, f"{document} {stage} is not at work any more")
        seen = told
        time.sleep(every)
        running = session.tracker.get_running_stages()


def _sentence(run: RunningStage) -> str:
    who = f" by {run['worker']}" if run["worker"] else ""
    return f"{run['document_id']} {run['stage_name']} {words.percent(run['progress'])} {run['condition']}{who}"


def _stamped(session: Session, sentence: str) -> None:
    session.output.show(f"{dt.datetime.now(dt.UTC):%H:%M:%S} {sentence}")
    session.output.console.file.flush()


def screen(
    console: Console, running: list[RunningStage], statistics: Statistics, *, lines: int | None
) -> RenderableType:
    """Return the bars of what is at work, and under them the stages that something waits in or failed in.

    Args:
        console: Where it is going to be printed.
        running: As get_running_stages gives them.
        statistics: As get_statistics gives them.
        lines: How many the screen has; None: as many as it takes.
    """
    open_stages = {name: one for name, one in statistics.items() if one["pending"] + one["processing"] + one["failed"]}
    room = None if lines is None else max(lines - len(open_stages) - _OTHER_LINES, 3)
    shown = running[:room]
    parts: list[RenderableType] = [_headline(running), Text()]
    if shown:
        parts.append(_bars(console, shown, max(map(len, statistics), default=0)))
        if len(shown) < len(running):
            parts.append(Text(f"and {len(running) - len(shown):,} more", style="dim"))
        parts += [*_legend(shown), Text()]
    parts.append(_stages(console, open_stages) if open_stages else Text("Every stage of every document is finished"))
    return Group(*parts)


def _stages(console: Console, statistics: Statistics) -> RenderableType:
    rows: list[list[Cell]] = [
        [
            name,
            *(words.number(one[word]) for word in ("pending", "processing", "completed")),
            tables.alarm(one["failed"], words.number(one["failed"])),
            words.duration(one["oldest_waiting"]),
        ]
        for name, one in statistics.items()
    ]
    columns = numbers("pending", "processing", "completed", "failed", "longest waiting")
    return tables.table(console, [Column("stage"), *columns], rows)


def _headline(running: list[RunningStage]) -> Text:
    if not running:
        return Text("Nothing is at work", style="bold")
    workers = len({run["worker"] for run in running})
    line = Text(f"{words.plural(len(running), 'stage')} at work by {words.plural(workers, 'worker')}", style="bold")
    for condition in ("stalled", "slow"):
        if count := sum(run["condition"] == condition for run in running):
            line.append(f", {count:,} {condition}", style=_CONDITIONS[condition])
    return line


def _legend(running: list[RunningStage]) -> list[Text]:
    said = {
        "stalled": "stalled: no sign of life of its worker; the next worker or reap takes it over",
        "slow": "slow: longer at work than 95 of 100 completed ones",
    }
    found = {run["condition"] for run in running}
    return [Text(text, style="dim") for condition, text in said.items() if condition in found]


def _bars(console: Console, running: list[RunningStage], stage_columns: int) -> RenderableType:
    is_wide = console.width >= _WIDE
    rows: list[list[Cell]] = [
        [
            run["filename"] or run["document_id"],
            run["stage_name"],
            _bar(console, run, _WIDE_BAR if is_wide else _NARROW_BAR),
            f"{int(run['progress'])} %",
            Text(_still(run), style=_CONDITIONS.get(run["condition"], "")),
            *([words.duration(run["running_seconds"]), run["worker"] or ""] if is_wide else []),
        ]
        for run in running
    ]
    # Columns that keep their places from look to look.
    columns = [
        Column("document", "cut"),
        Column("stage", least=stage_columns),
        Column("progress"),
        Column("", "number", least=5),
        Column("time left", "number", least=16),
    ]
    more = [*numbers("at work for"), Column("worker")] if is_wide else []
    return tables.table(console, [*columns, *more], rows)


def _bar(console: Console, run: RunningStage, columns: int) -> Text:
    full, empty = ("#", "-") if console.options.ascii_only else ("█", "░")
    done = int(float(run["progress"]) / 100 * columns)
    style = _CONDITIONS.get(run["condition"], "cyan")
    return Text.assemble((full * done, style), (empty * (columns - done), "dim"))


def _still(run: RunningStage) -> str:
    left = words.span(run["remaining_p50_seconds"], run["remaining_p90_seconds"]) or "?"
    return {"working": left, "slow": f"slow, {left}", "stalled": "stalled"}[run["condition"]]
