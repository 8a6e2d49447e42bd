"""vw_stage_statistics and get_stage_statistics: what they tell of each stage, and in which shape."""

import re
from decimal import Decimal
from typing import Any

import pytest

STAGES = [
    "upload", "text_extraction", "image_processing", "classification",
    "metadata_extraction", "storage", "embedding", "search_indexing",
]  # fmt: skip
COUNTS = ("pending", "processing", "completed", "failed", "skipped")
ZERO = dict.fromkeys(COUNTS, 0) | {"avg_duration": None}
# What the seed's payload has not.
MORE = {
    "timed", "p50_duration", "p95_duration", "p99_duration", "avg_wait", "throughput_per_hour", "oldest_waiting_at",
    "oldest_waiting", "workers_busy",
}  # fmt: skip


def _documents(alone, stage: str, state: str, durations: list[float | None]) -> None:
    for duration in durations:
        alone.document(stage_status={stage: {"status": state, "duration_seconds": duration}})


def _of_seed(alone, stage: str) -> dict[str, Any]:
    """The fields that the seed names; all others are there as well."""
    said = alone.call("get_stage_statistics")["stages"][stage]
    assert set(said) == set(ZERO) | MORE
    return {name: said[name] for name in ZERO}


def test_without_documents_there_are_eight_rows_of_zeros_in_pipeline_order(alone) -> None:
    """An empty table is no empty answer: counts are 0, what is not known is null."""
    rows = alone.rows("select * from krai_core.vw_stage_statistics")
    nothing = (0,) * 5 + (None, None, 0, None, None, None, None, 0, None, None, 0)
    assert rows == [(stage, *nothing) for stage in STAGES]
    answer = alone.call("get_stage_statistics")["stages"]
    zero = ZERO | dict.fromkeys(MORE) | {"timed": 0, "throughput_per_hour": 0, "workers_busy": 0}
    assert answer == dict.fromkeys(STAGES, zero)


def test_the_statistics_payload_of_the_seed_field_by_field(alone) -> None:
    """The seed's example for upload and text_extraction, recreated: 151 and 149 documents, the rest pending."""
    for stage, counts, average in (
        ("upload", {"pending": 5, "processing": 2, "completed": 143, "failed": 1, "skipped": 0}, 1.2),
        ("text_extraction", {"pending": 3, "processing": 4, "completed": 140, "failed": 2, "skipped": 0}, 45.8),
    ):
        for state, count in counts.items():
            _documents(alone, stage, state, [average if state == "completed" else None] * count)
    answer = alone.call("get_stage_statistics")
    assert set(answer) == {"timestamp", "stages"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", answer["timestamp"])
    assert _of_seed(alone, "upload") == {
        "pending": 5 + 149,
        "processing": 2,
        "completed": 143,
        "failed": 1,
        "skipped": 0,
        "avg_duration": 1.2,
    }
    assert _of_seed(alone, "text_extraction") == {
        "pending": 3 + 151,
        "processing": 4,
        "completed": 140,
        "failed": 2,
        "skipped": 0,
        "avg_duration": 45.8,
    }
    assert _of_seed(alone, "storage") == ZERO | {"pending": 300}


@pytest.mark.triggers_off
def test_counts_by_state_add_up_to_the_documents(alone) -> None:
    """Each document is in exactly one state of each stage, also one whose key is missing or odd."""
    alone.run("alter table krai_core.documents disable trigger user")
    for state in ("processing", "completed", "failed", "skipped", "in_progress"):
        alone.document(stage_status={"storage": {"status": state}})
    alone.document(stage_status=None)
    alone.call("rebuild_statistics")
    expected = ZERO | {"pending": 2, "processing": 1, "completed": 1, "failed": 1, "skipped": 1}
    assert _of_seed(alone, "storage") == expected
    for said in alone.call("get_stage_statistics")["stages"].values():
        assert sum(said[name] for name in COUNTS) == 6


def test_the_average_leaves_out_what_was_not_timed(alone) -> None:
    """Completions without a start have no duration and do not pull the average down; failures are not averaged."""
    _documents(alone, "embedding", "completed", [10, 20, None, None])
    _documents(alone, "embedding", "failed", [500])
    assert alone.call("get_stage_statistics")["stages"]["embedding"]["avg_duration"] == 15
    alone.call("complete_stage", alone.document(), "embedding")
    assert alone.call("get_stage_statistics")["stages"]["embedding"]["avg_duration"] == 15


def test_the_average_is_rounded_to_microseconds_in_the_payload(alone) -> None:
    """A third of a second has six decimals in the JSON; the view gives the full average."""
    _documents(alone, "upload", "completed", [0, 0, 1])
    assert alone.call("get_stage_statistics")["stages"]["upload"]["avg_duration"] == 0.333333
    assert alone.value(
        "select avg_duration_seconds from krai_core.vw_stage_statistics where stage_name = 'upload'"
    ) == pytest.approx(Decimal(1) / 3)


def test_the_queries_of_the_seed_run_as_written(alone) -> None:
    """Performance analysis by AVG(duration_seconds), and resource planning by pending plus processing."""
    _documents(alone, "embedding", "completed", [40])
    _documents(alone, "upload", "completed", [1, 2])
    _documents(alone, "storage", "processing", [None])
    longest = alone.rows(
        """
        SELECT
            stage_name,
            AVG(duration_seconds) as avg_duration
        FROM krai_core.vw_stage_statistics
        GROUP BY stage_name
        ORDER BY avg_duration DESC;
        """
    )
    assert [row for row in longest if row[1] is not None] == [("embedding", 40), ("upload", Decimal("1.5"))]
    waiting = dict(
        alone.rows(
            """
            SELECT
                stage_name,
                pending_count + processing_count as active_count
            FROM krai_core.vw_stage_statistics
            ORDER BY active_count DESC;
            """
        )
    )
    assert waiting == dict.fromkeys(STAGES, 4) | {"embedding": 3, "upload": 2}


def test_the_view_has_the_columns_of_the_seed(alone) -> None:
    """The seven columns by name, the duration under its second name, and then what there is beyond the seed."""
    columns = alone.value(
        "select array_agg(attname::text order by attnum) from pg_attribute "
        "where attrelid = 'krai_core.vw_stage_statistics'::regclass and attnum > 0"
    )
    assert columns == [
        "stage_name", "pending_count", "processing_count", "completed_count", "failed_count", "skipped_count",
        "avg_duration_seconds", "duration_seconds", "timed_count", "p50_duration_seconds", "p95_duration_seconds",
        "p99_duration_seconds", "avg_wait_seconds", "throughput_per_hour", "oldest_waiting_at",
        "oldest_waiting_seconds", "workers_busy",
    ]  # fmt: skip


def test_further_stages_are_counted_in_their_place(alone) -> None:
    """A ninth stage in krai_core.stages appears between its neighbours without further ado."""
    alone.run("insert into krai_core.stages (name, position) values ('translation', 9)")
    alone.document()
    rows = alone.rows("select stage_name, pending_count from krai_core.vw_stage_statistics")
    assert rows == [(stage, 1) for stage in [*STAGES, "translation"]]
