"""The command that shows the history of a document."""

from rich.table import Table

from processors_v2._cli import tables, words
from processors_v2._cli.arguments import Document
from processors_v2._cli.connect import Session
from processors_v2._cli.gantt import Gantt, now_of
from processors_v2._cli.tables import Column, numbers
from processors_v2._shapes.questions import TimelineRun

_CHART_COLUMNS = 160


def timeline(session: Session, document: Document) -> None:
    """Draw when each stage of a document waited, ran and failed, and list its attempts."""
    found = session.tracker.get_timeline(document)
    runs, output = found["runs"], session.output
    if output.as_json or not runs:
        output.answer(found, f"{document} has no runs: nothing of it was ever ready or begun.")
        return
    stages = [stage.name for stage in session.tracker.list_stages()]
    gone = sorted({run["stage_name"] for run in runs} - set(stages))
    columns = min(output.console.width, _CHART_COLUMNS)
    chart = Gantt(runs, [*stages, *gone], now_of(runs), columns=columns, plain=output.console.options.ascii_only)
    took = words.duration((chart.end - chart.begin).total_seconds())
    output.show(f"{found['filename'] or document}: {took} since {words.moment(chart.begin.isoformat())}")
    output.show("")
    for line in chart.lines():
        output.show(line)
    output.show("")
    for line in chart.legend():
        output.show(line)
    output.show("")
    output.show(_attempts(session, runs))
    errors = [f"{run['stage_name']}, attempt {run['attempt']}: {run['error']}" for run in runs if run["error"]]
    for error in ["", *errors] if errors else []:
        output.show(error)


def _attempts(session: Session, runs: list[TimelineRun]) -> Table:
    rows = [
        (
            run["stage_name"],
            str(run["attempt"]),
            run["status"],
            words.duration(run["wait_seconds"]),
            words.duration(run["work_seconds"]),
            run["worker"] or "",
        )
        for run in runs
    ]
    columns = [Column("stage"), *numbers("attempt"), Column("status"), *numbers("waited", "worked")]
    return tables.table(session.output.console, [*columns, Column("worker", "cut")], rows)
