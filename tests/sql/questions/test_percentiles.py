"""p50, p95 and p99 of the durations: from buckets, four to a doubling, and so right within 19 percent."""

import math
import random
from typing import Any

import pytest

WIDTH = 2**0.25
SHARES = {"p50_duration_seconds": 0.5, "p95_duration_seconds": 0.95, "p99_duration_seconds": 0.99}


def _completed(alone: Any, durations: list[float]) -> None:
    alone.run(
        "insert into krai_core.documents (filename, stage_status) "
        "select 'x', jsonb_build_object('embedding', jsonb_build_object('status', 'completed', 'duration_seconds', s)) "
        "from unnest(%s::numeric[]) s",
        "{" + ",".join(f"{one:.6f}" for one in durations) + "}",
    )


def _said(alone: Any) -> dict[str, Any]:
    said: dict[str, Any] = alone.value(
        "select to_jsonb(v) from krai_core.vw_stage_statistics v where stage_name = 'embedding'"
    )
    return said


def _exact(durations: list[float], share: float) -> float:
    return sorted(durations)[math.ceil(share * len(durations)) - 1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", ["even", "logarithmic", "two humps"])
def test_percentiles_are_right_within_a_bucket(alone, shape: str, seed: int) -> None:
    """On random durations from 2 ms to 30 h each percentile is at most 19 percent from the exact one."""
    draw = random.Random(f"{shape} {seed}")
    draws = {
        "even": lambda: draw.uniform(0.002, 100),
        "logarithmic": lambda: math.exp(draw.uniform(math.log(0.002), math.log(108_000))),
        "two humps": lambda: draw.gauss(0.2, 0.02) if draw.random() < 0.7 else draw.gauss(900, 90),
    }
    durations = [round(draws[shape](), 6) for _ in range(800)]
    _completed(alone, durations)
    said = _said(alone)
    for column, share in SHARES.items():
        exact = _exact(durations, share)
        assert exact / WIDTH * 0.999 <= said[column] <= exact * WIDTH * 1.001, (column, exact)


@pytest.mark.parametrize("seconds", [0.002, 0.5, 1, 1.2, 59.9, 3600, 86_400])
def test_of_equal_durations_every_percentile_is_near_them(alone, seconds: float) -> None:
    """Where all took equally long, p50, p95 and p99 lie within a bucket of it."""
    _completed(alone, [seconds] * 7)
    said = _said(alone)
    for column in SHARES:
        assert seconds / WIDTH * 0.999 <= said[column] <= seconds * WIDTH * 1.001


def test_percentiles_are_in_order(alone) -> None:
    """p50 is at most p95, and that at most p99, also of one and of two durations."""
    for durations in ([3.0], [0.01], [500.0]):
        _completed(alone, durations)
        said = _said(alone)
        assert 0 < said["p50_duration_seconds"] <= said["p95_duration_seconds"] <= said["p99_duration_seconds"]


def test_the_ends_of_the_scale_are_counted(alone) -> None:
    """No time at all, a microsecond and ten years have their buckets; a hundred years count as 31."""
    _completed(alone, [0, 0.000001, 0.0009, 315_360_000])
    said = _said(alone)
    assert said["timed_count"] == 4
    assert said["avg_duration_seconds"] == pytest.approx(78_840_000.00022525, rel=1e-15)
    alone.document(stage_status={"storage": {"status": "completed", "duration_seconds": 1e300}})
    assert alone.call("get_stage_statistics")["stages"]["storage"]["avg_duration"] == 1e9
    assert 0 <= said["p50_duration_seconds"] <= 0.0012
    assert said["p99_duration_seconds"] > 3_000_000


def test_what_leaves_takes_its_bucket_along(alone) -> None:
    """After the slow ones were started anew, deleted or edited away, no percentile remembers them."""
    _completed(alone, [1] * 20 + [1000] * 3)
    slow = [
        document
        for (document,) in alone.rows(
            "select id from krai_core.documents "
            "where (stage_status -> 'embedding' ->> 'duration_seconds')::numeric = 1000"
        )
    ]
    assert _said(alone)["p95_duration_seconds"] > 800
    alone.call("start_stage", slow[0], "embedding")
    alone.run("delete from krai_core.documents where id = %s", slow[1])
    alone.edit(slow[2], {})
    said = _said(alone)
    assert said["timed_count"] == 20
    assert said["p99_duration_seconds"] < 1.2
    assert alone.value("select count(*) from krai_core.vw_stage_statistics where p50_duration_seconds is not null") == 1


def test_only_completed_stages_have_a_duration(alone) -> None:
    """Failures, skips and completions without a start are in no percentile."""
    for status in ("failed", "skipped", "processing"):
        alone.document(stage_status={"embedding": {"status": status, "duration_seconds": 50}})
    alone.call("complete_stage", alone.document(), "embedding")
    said = _said(alone)
    assert (said["timed_count"], said["p50_duration_seconds"], said["avg_duration_seconds"]) == (0, None, None)


@pytest.mark.parametrize(
    ("durations", "column", "exact"),
    [
        ([10] * 14 + [100] * 5 + [10_000], "p95_duration_seconds", 100),
        ([1, 1000], "p50_duration_seconds", 1),
        ([5] * 99 + [5000], "p99_duration_seconds", 5),
    ],
    ids=str,
)
def test_a_rank_that_is_met_exactly(alone, durations: list[float], column: str, exact: float) -> None:
    """Where 19 of 20 took at most 100 seconds p95 is 100, however long the last one took."""
    _completed(alone, durations)
    assert exact / WIDTH * 0.999 <= _said(alone)[column] <= exact * WIDTH * 1.001
