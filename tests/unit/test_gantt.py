"""The chart of a timeline: what is drawn where."""

import datetime as dt
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processors_v2._cli.gantt import Gantt, now_of
from processors_v2._shapes.questions import TimelineRun

BEGIN = dt.datetime(2026, 10, 4, 8, tzinfo=dt.UTC)


def at(seconds: float) -> str:
    """A time, seconds after the begin."""
    return (BEGIN + dt.timedelta(seconds=seconds)).isoformat()


def run(
    stage: str, status: str, ready: float | None, start: float | None, end: float | None, **more: Any
) -> TimelineRun:
    """A run of a timeline; times in seconds after the begin."""
    times = {"ready_at": ready, "started_at": start, "finished_at": end}
    named = {name: None if value is None else at(value) for name, value in times.items()}
    return cast("TimelineRun", {"stage_name": stage, "status": status, "attempt": 1, "retry_at": None, **named, **more})


def chart(runs: list[TimelineRun], stages: list[str], *, columns: int = 50, now: float = 400) -> list[str]:
    """The lines of a chart."""
    drawn = Gantt(runs, stages, BEGIN + dt.timedelta(seconds=now), columns=columns, plain=False)
    return [line.plain for line in [*drawn.lines(), *drawn.legend()]]


def test_waits_work_and_failures_differ_by_shape() -> None:
    """Each attempt of a stage is on its line, in time, with a sign of its own for wait, work, failure and pause."""
    runs = [
        run("upload", "completed", 0, 100, 200),
        run("text", "failed", 200, 220, 300, retry_at=at(340)),
        run("text", "running", 340, 360, None),
    ]
    assert chart(runs, ["upload", "text"], columns=47) == [
        "       |0                            |5 min",
        "upload ··········██████████",
        "text                       ··▒▒▒▒▒▒▒✗╌╌╌╌··▶▶▶▶",
        "· ready, waits for a worker   █ completed",
        "▶ at work now   ▒ failed attempt   ✗ failure",
        "╌ pause before the next attempt",
    ]


def test_what_is_short_is_seen_beside_what_is_long() -> None:
    """A failure of a moment has a column of its own."""
    runs = [run("text", "failed", 0, 100, 100.01), run("text", "completed", 100.02, 100.02, 400)]
    assert chart(runs, ["text"])[1].count("✗") == 1


def test_stages_are_in_the_order_of_the_pipeline() -> None:
    """And those without a run have no line."""
    runs = [run("b", "skipped", None, None, 10), run("a", "completed", 0, 0, 20)]
    assert [line.split()[0] for line in chart(runs, ["a", "b", "c"])[1:3]] == ["a", "b"]


def test_the_axis_ends_at_the_time_of_the_answer() -> None:
    """The clock is that of the database where a run tells it."""
    running = run("a", "running", 0, 10, None, work_seconds=25.0)
    assert now_of([run("b", "completed", 0, 1, 2, work_seconds=1.0), running]) == BEGIN + dt.timedelta(seconds=35)
    assert now_of([run("a", "ready", 0, None, None, work_seconds=None)]) > BEGIN


times = st.none() | st.floats(0, 1e7)
states = st.sampled_from(["ready", "running", "completed", "failed", "skipped", "released", "lost", "cancelled"])


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.builds(run, st.sampled_from(["a", "b"]), states, times, times, times), min_size=1, max_size=5),
    st.integers(20, 160),
)
def test_whatever_the_runs_are_the_chart_is_as_wide_as_asked(runs: list[TimelineRun], columns: int) -> None:
    """Missing times, times before others and single instants are drawn, too."""
    lines = chart(runs, ["a", "b"], columns=columns, now=1e7)
    assert lines[0].lstrip().startswith("|0")
    assert max(map(len, lines[:-1])) <= max(columns, 60)


@pytest.mark.parametrize(("seconds", "last"), [(0.5, "|0.4 s"), (50, "|40 s"), (5000, "|1 h"), (5e5, "|4 d")])
def test_the_axis_has_round_distances(seconds: float, last: str) -> None:
    """From tenths of a second to weeks."""
    assert chart([run("a", "completed", 0, 0, seconds)], ["a"], columns=70)[0].rstrip().endswith(last)
