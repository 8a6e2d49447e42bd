"""get_forecast: what comes to each stage, what goes, and when its queue is empty."""

from typing import Any

import pytest

KEYS = {
    "waiting", "running", "arrival_per_hour", "drain_per_hour", "workers", "utilisation", "avg_work", "backlog",
    "empty",
}  # fmt: skip
STAGES = [
    "upload", "text_extraction", "image_processing", "classification", "metadata_extraction", "storage",
    "embedding", "search_indexing",
]  # fmt: skip


def backlog(sql: Any, count: int) -> None:
    """So many documents that came long ago, on which nothing was done."""
    sql.run("insert into krai_core.documents (filename) select 'x' from generate_series(1, %s)", count)
    sql.run("update krai_core.stage_deltas set hour = hour - interval '1000 hours'")


def hours(sql: Any, stage: str, *, arrived: int = 0, completed: int = 0, failed: int = 0, seconds: float = 0) -> None:
    """In this hour and in the two before it so many runs came, were completed and failed, after so much work each."""
    sql.run(
        "insert into krai_core.stage_deltas (stage_name, hour, arrived, runs_completed, runs_failed, work_us) "
        "select %s, date_trunc('hour', now(), 'UTC') - n * interval '1 hour', %s, %s, %s, %s "
        "from generate_series(0, 2) n",
        stage,
        arrived,
        completed,
        failed,
        int((completed + failed) * seconds * 1_000_000),
    )


def test_nothing_is_forecast_of_nothing(alone) -> None:
    """Without documents all stages are there, nothing waits, and queues are empty now."""
    told = alone.call("get_forecast")
    assert set(told) == {"timestamp", "hours", "documents_per_hour", "stages"}
    assert set(told["stages"]) == set(STAGES)
    for stage in told["stages"].values():
        assert set(stage) == KEYS
        assert (stage["waiting"], stage["running"], stage["arrival_per_hour"], stage["drain_per_hour"]) == (0, 0, 0, 0)
        assert set(stage["empty"]) == {"today", "one_more", "one_fewer"}


def test_a_queue_that_nobody_works_on_never_empties(alone) -> None:
    """With documents and without workers it is not known when the queue is empty."""
    backlog(alone, 10)
    stage = alone.call("get_forecast")["stages"]["upload"]
    assert stage["waiting"] == 10
    assert stage["empty"] == {"today": None, "one_more": None, "one_fewer": None}


def test_a_queue_empties_by_what_its_workers_do(alone) -> None:
    """One worker that does 40 an hour empties 100 in two and a half hours, two in half of that, none never."""
    backlog(alone, 100)
    hours(alone, "upload", arrived=5, completed=20, seconds=90)
    stage = alone.call("get_forecast")["stages"]["upload"]
    assert (stage["waiting"], stage["workers"], stage["avg_work"]) == (100, 1, 90)
    assert stage["empty"]["today"] == pytest.approx(9000, abs=2)
    assert stage["empty"]["one_more"] == pytest.approx(4500, abs=2)
    assert stage["empty"]["one_fewer"] is None


def test_rates_are_per_hour_of_the_hours_looked_at(alone) -> None:
    """Arrivals, endings and utilisation are those of the hours that the answer names."""
    backlog(alone, 1)
    hours(alone, "upload", arrived=60, completed=20, failed=10, seconds=30)
    told = alone.call("get_forecast")
    stage, span = told["stages"]["upload"], told["hours"]
    assert 1 <= span <= 3.01
    counted = 3 if span > 2 else 2
    assert stage["arrival_per_hour"] == pytest.approx(60 * counted / span, rel=0.01)
    assert stage["drain_per_hour"] == pytest.approx(20 * counted / span, rel=0.01)
    assert stage["avg_work"] == 30
    expected = stage["arrival_per_hour"] * 30 / 3600 / stage["workers"]
    assert stage["utilisation"] == pytest.approx(expected, rel=0.01)


def test_new_documents_slow_the_emptying(alone) -> None:
    """What comes meanwhile is taken off what the workers do; where more comes than goes the queue never empties."""
    backlog(alone, 100)
    hours(alone, "", arrived=15)
    hours(alone, "upload", arrived=15, completed=20, seconds=90)
    told = alone.call("get_forecast")
    expected = 100 / (40 - told["documents_per_hour"]) * 3600
    assert told["stages"]["upload"]["empty"]["today"] == pytest.approx(expected, rel=0.01)
    hours(alone, "", arrived=1000)
    assert alone.call("get_forecast")["stages"]["upload"]["empty"]["today"] is None


def test_a_stage_is_not_empty_before_those_it_waits_for(alone) -> None:
    """A fast stage behind a slow one empties with the slow one."""
    backlog(alone, 100)
    hours(alone, "upload", completed=20, seconds=90)
    hours(alone, "text_extraction", completed=1000, seconds=3)
    stages = alone.call("get_forecast")["stages"]
    assert stages["text_extraction"]["empty"]["today"] == stages["upload"]["empty"]["today"]
    assert stages["embedding"]["empty"]["today"] is None


def test_those_at_work_are_the_workers_of_today(alone) -> None:
    """Three running runs are three workers, also where the hours before had fewer."""
    backlog(alone, 100)
    hours(alone, "upload", completed=20, seconds=90)
    alone.claim(limit=3)
    stage = alone.call("get_forecast")["stages"]["upload"]
    assert (stage["running"], stage["workers"], stage["waiting"]) == (3, 3, 97)
    assert stage["empty"]["one_fewer"] > stage["empty"]["today"] > stage["empty"]["one_more"]


@pytest.mark.parametrize(
    ("durations", "expected"), [([10] * 8, (240, 240)), ([1, 19] * 4, (240, 268.3)), ([10] * 4, None)], ids=str
)
def test_a_backlog_takes_as_long_as_its_stage_usually_does(alone, durations: list[int], expected: tuple | None) -> None:
    """96 pending uploads of 10 seconds are 240 for four workers; p90 grows with their spread; unknown below five."""
    for seconds in durations:
        alone.document(stage_status={"upload": {"status": "completed", "duration_seconds": seconds}})
    backlog(alone, 100)
    alone.claim(limit=4)
    told = alone.call("get_forecast")["stages"]["upload"]["backlog"]
    if expected is None:
        assert told is None
    else:
        assert (told["p50"], told["p90"]) == (pytest.approx(expected[0], abs=1), pytest.approx(expected[1], abs=3))


def test_hours_before_those_asked_for_do_not_count(alone) -> None:
    """p_hours bounds how far back it is looked."""
    alone.run(
        "insert into krai_core.stage_deltas (stage_name, hour, arrived, runs_completed, work_us) "
        "values ('upload', date_trunc('hour', now(), 'UTC') - interval '10 hours', 500, 500, 1000000)"
    )
    assert alone.call("get_forecast")["stages"]["upload"]["drain_per_hour"] == 0
    assert alone.call("get_forecast", 24)["stages"]["upload"]["drain_per_hour"] > 0


def test_a_disabled_stage_is_not_forecast(alone) -> None:
    """Only what is in the pipeline is told."""
    alone.call("disable_stage", "storage")
    assert "storage" not in alone.call("get_forecast")["stages"]


@pytest.mark.parametrize("span", [0, -1, 100_000, None])
def test_wrong_hours_are_refused(service, span: int | None) -> None:
    """Hours out of range are 22023, with a word and a remedy."""
    refusal = service.refused("get_forecast", span)
    assert refusal.sqlstate == "22023"
    assert refusal.word
    assert refusal.hint
