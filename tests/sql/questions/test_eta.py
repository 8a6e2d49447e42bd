"""get_document_eta and what vw_running_stages says is left: from own rates, else from durations, along the DAG."""

import datetime as dt
import uuid
from typing import Any

import pytest

# Seconds that every earlier document took; the longest way is upload, text_extraction, embedding, search_indexing.
USUAL = {
    "upload": 10, "text_extraction": 100, "image_processing": 20, "classification": 5,
    "metadata_extraction": 30, "storage": 40, "embedding": 200, "search_indexing": 7,
}  # fmt: skip
LONGEST = 10 + 100 + 200 + 7
WIDTH = 2**0.25 * 1.01


def history(sql: Any, count: int = 8, **durations: float) -> None:
    """Documents that are done, and took so many seconds in each stage."""
    for _ in range(count):
        sql.document(
            stage_status={
                stage: {"status": "completed", "duration_seconds": durations.get(stage, seconds)}
                for stage, seconds in USUAL.items()
            }
        )


def running(sql: Any, stage: str, seconds: float, progress: float | None = None, **metadata: object) -> uuid.UUID:
    """A document on which a stage has been running for so long, and nothing else is to be done."""
    document: uuid.UUID = sql.document(stage_status={one: {"status": "skipped"} for one in USUAL if one != stage})
    sql.call("start_stage", document, stage)
    if progress is not None or metadata:
        sql.call("update_stage_progress", document, stage, progress, metadata)
    sql.run(
        "update krai_core.stage_runs set started_at = started_at - %s * interval '1 s' where status = 'running'",
        seconds,
    )
    return document


def left(sql: Any, document: uuid.UUID) -> tuple[float | None, float | None, str]:
    """What vw_running_stages says is left of the one running stage."""
    ((p50, p90, source),) = sql.rows(
        "select remaining_p50_seconds, remaining_p90_seconds, estimated_from "
        "from krai_core.vw_running_stages where document_id = %s",
        document,
    )
    return p50 and float(p50), p90 and float(p90), source


def near(value: float | None, expected: float, factor: float = WIDTH) -> bool:
    """Whether it is within a bucket of the histogram."""
    return value is not None and expected / factor <= value <= expected * factor


@pytest.mark.parametrize("count", [0, 4])
def test_below_five_samples_nothing_is_known(alone, count: int) -> None:
    """With four documents done the ETA of a fifth is unknown, and names the stages; with five it is known."""
    history(alone, count)
    document = alone.document()
    told = alone.call("get_document_eta", document)
    assert (told["remaining"], told["done_at"]) == (None, None)
    assert told["unknown"] == list(USUAL)
    assert {stage["estimated_from"] for stage in told["stages"].values()} == {"unknown"}
    history(alone, 5 - count)
    told = alone.call("get_document_eta", document)
    assert told["unknown"] == []
    assert told["remaining"] is not None


def test_a_run_without_any_sign_is_unknown_below_five_samples(alone) -> None:
    """A running stage without progress, of which four durations are known, says unknown and no number."""
    history(alone, 4)
    assert left(alone, running(alone, "storage", 10)) == (None, None, "unknown")


def test_the_rate_of_its_progress_tells_what_is_left(alone) -> None:
    """A quarter in 60 seconds leaves 180, at p90 more, also where nothing else is known."""
    p50, p90, source = left(alone, running(alone, "storage", 60, 25))
    assert source == "progress"
    assert near(p50, 180, 1.1)
    assert p90 is not None
    assert p50 is not None
    assert p90 >= p50


@pytest.mark.parametrize("unit", ["pages", "images", "chunks"])
def test_units_in_metadata_tell_what_is_left(alone, unit: str) -> None:
    """1,000 of 4,000 units in 60 seconds leave 180, where no progress was reported."""
    units = {f"{unit}_processed": 1000, f"total_{unit}": 4000}
    p50, _, source = left(alone, running(alone, "storage", 60, None, **units))
    assert source == "units"
    assert near(p50, 180, 1.1)


@pytest.mark.parametrize(
    "units",
    [
        {"pages_processed": 7, "total_pages": 0},
        {"pages_processed": "7", "total_pages": "9"},
        {"pages_processed": 9, "total_pages": 7},
        {"pages_processed": -1, "total_pages": 7},
        {"pages_processed": 1e308, "total_pages": 1e308},
        {"pages_processed": None, "total_pages": [1]},
        {"pages_processed": 5},
    ],
    ids=str,
)
def test_units_that_make_no_sense_are_passed_over(alone, units: dict) -> None:
    """What is no share of a whole is no rate: the durations of the stage tell what is left then."""
    history(alone)
    p50, _, source = left(alone, running(alone, "storage", 10, None, **units))
    assert source == "durations"
    assert near(p50, 30, 1.5)


def test_durations_count_as_far_as_they_were_longer_than_what_has_passed(alone) -> None:
    """Half took 10 s, half 1,000: at its start a run has 10 to 1,000 left, and after 50 s some 950."""
    history(alone, 20, storage=10)
    history(alone, 20, storage=1000)
    p50, p90, source = left(alone, running(alone, "storage", 50))
    assert source == "durations"
    assert near(p50, 950, 1.25)
    assert near(p90, 950, 1.25)


def test_beyond_all_that_is_known_nothing_is_known(alone) -> None:
    """A run that takes longer than any before it is unknown, and not about to end."""
    history(alone)
    assert left(alone, running(alone, "storage", 5000)) == (None, None, "unknown")


def test_a_document_takes_the_longest_way_through_the_dag(alone) -> None:
    """All stages of a new document: the sum along the longest way, not of all stages."""
    history(alone)
    told = alone.call("get_document_eta", alone.document())
    assert set(told) >= {
        "document_id", "status", "weighted_progress", "remaining", "done_at", "unknown", "paused", "stages",
    }  # fmt: skip
    assert near(told["remaining"]["p50"], LONGEST)
    assert told["remaining"]["p90"] >= told["remaining"]["p50"]
    assert told["status"] == "pending"
    assert {name: stage["status"] for name, stage in told["stages"].items()} == dict.fromkeys(USUAL, "pending")
    for name, stage in told["stages"].items():
        assert near(stage["p50"], USUAL[name]), name


def test_what_is_finished_takes_no_more_time(alone) -> None:
    """With upload and text_extraction done, embedding and search_indexing are left; skipped stages count nothing."""
    history(alone)
    document = alone.document()
    alone.done(document, "upload", "text_extraction")
    assert near(alone.call("get_document_eta", document)["remaining"]["p50"], 207)
    alone.call("skip_stage", document, "embedding")
    # Now the way over the images is the longest.
    assert near(alone.call("get_document_eta", document)["remaining"]["p50"], 60)


def test_a_running_stage_counts_with_what_is_left_of_it(alone) -> None:
    """Of an embedding at 90 % only the rest is waited for, and then search_indexing."""
    history(alone)
    document = alone.document()
    alone.done(document, "upload", "text_extraction", "image_processing", "storage", "classification")
    alone.done(document, "metadata_extraction")
    alone.call("start_stage", document, "embedding")
    alone.call("update_stage_progress", document, "embedding", 90)
    alone.run("update krai_core.stage_runs set started_at = started_at - interval '180 s' where status = 'running'")
    told = alone.call("get_document_eta", document)
    assert near(told["remaining"]["p50"], 20 + 7, 1.3)
    assert told["stages"]["embedding"]["estimated_from"] == "progress"


def test_a_finished_document_is_done(alone) -> None:
    """Nothing is left of it, and nothing is unknown."""
    history(alone, 1)
    document = alone.value("select id from krai_core.documents")
    told = alone.call("get_document_eta", document)
    assert (told["status"], told["weighted_progress"], told["unknown"]) == ("completed", 100, [])
    assert told["remaining"] == {"p50": 0, "p90": 0}


def test_done_at_is_now_and_what_remains(alone) -> None:
    """done_at is a time of the database in UTC, as far from now as remaining says."""
    history(alone)
    told = alone.call("get_document_eta", alone.document())
    now = alone.value("select clock_timestamp()")
    for share in ("p50", "p90"):
        done = dt.datetime.strptime(told["done_at"][share], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=dt.UTC)
        assert abs((done - now).total_seconds() - told["remaining"][share]) < 30


def test_a_paused_stage_in_the_way_leaves_no_answer(alone) -> None:
    """What is paused is named, and nobody knows when it goes on; once it is finished it does not matter."""
    history(alone)
    alone.call("pause_stage", "storage")
    document = alone.document()
    told = alone.call("get_document_eta", document)
    assert (told["remaining"], told["paused"]) == (None, ["storage"])
    alone.done(document, "storage")
    told = alone.call("get_document_eta", document)
    assert told["paused"] == []
    assert told["remaining"] is not None


def test_a_failure_without_a_retry_leaves_no_answer(alone) -> None:
    """Of a stage that failed for good nobody knows when somebody retries it; with a retry to come it is waited for."""
    history(alone)
    alone.run("update krai_core.stages set backoff_seconds = 1000, backoff_max_seconds = 1000 where name = 'upload'")
    final, again = alone.document(), alone.document()
    alone.call("start_stage", final, "upload")
    alone.call("fail_stage", final, "upload", "x")
    assert alone.call("get_document_eta", final)["remaining"] is None
    alone.call("start_stage", again, "upload")
    alone.call("fail_stage", again, "upload", "x", p_retry=True)
    told = alone.call("get_document_eta", again)
    assert LONGEST / WIDTH + 450 <= told["remaining"]["p50"] <= LONGEST * WIDTH + 1000


def test_a_disabled_stage_takes_no_time(alone) -> None:
    """What is disabled is in no estimate."""
    history(alone)
    alone.call("disable_stage", "embedding")
    told = alone.call("get_document_eta", alone.document())
    assert "embedding" not in told["stages"]
    assert near(told["remaining"]["p50"], 10 + 100 + 30 + 7)


def test_what_usually_waits_is_waited_for(alone) -> None:
    """Where runs of a stage waited for 500 s lately, a document that comes to it waits, too."""
    history(alone)
    alone.run(
        "insert into krai_core.stage_deltas (stage_name, started, waited, wait_us) values ('embedding', 10, 10, 5e9)"
    )
    assert near(alone.call("get_document_eta", alone.document())["remaining"]["p50"], LONGEST + 500)


def test_an_unknown_document_is_refused(service) -> None:
    """Nobody's id is PT404, null is 22023."""
    assert service.refused("get_document_eta", uuid.uuid4()).word == "unknown_document"
    assert service.refused("get_document_eta", None).sqlstate == "22023"
