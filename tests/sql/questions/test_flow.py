"""vw_stage_flow: what came, began and ended in each hour of each stage, kept whatever becomes of the runs."""

import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

FLOW = ("arrived", "started", "retried", "completed", "failed", "skipped")
NOTHING = dict.fromkeys(FLOW, 0)


def flow(sql: Any, stage: str = "upload") -> dict[str, int]:
    """The sums over all hours, since a test may begin before the hour and end after it."""
    row = sql.rows(
        f"select {', '.join(f'coalesce(sum({one}), 0)' for one in FLOW)} "
        "from krai_core.vw_stage_flow where stage_name = %s",
        stage,
    )[0]
    return dict(zip(FLOW, map(int, row), strict=True))


def test_a_document_arrives_where_it_is_ready(alone) -> None:
    """What becomes ready arrives: at once in the first stage, in the others when what they wait for is done."""
    document = alone.document()
    assert flow(alone) == NOTHING | {"arrived": 1}
    assert flow(alone, "storage") == NOTHING
    alone.done(document, "upload")
    assert flow(alone, "text_extraction")["arrived"] == flow(alone, "image_processing")["arrived"] == 1
    assert flow(alone, "storage") == NOTHING
    alone.done(document, "image_processing")
    assert flow(alone, "storage") == NOTHING | {"arrived": 1}


def test_many_documents_arrive_at_once(alone) -> None:
    """A bulk insert is as many arrivals as documents, finished ones in none of their stages."""
    alone.run("insert into krai_core.documents (filename) select 'x' from generate_series(1, 300)")
    alone.document(processing_status="completed")
    assert flow(alone)["arrived"] == 300


@pytest.mark.parametrize("ending", ["completed", "failed", "skipped"])
@pytest.mark.parametrize("way", ["single", "bulk", "unstarted"])
def test_what_is_begun_and_ended_is_counted_once(alone, outcome: Callable, way: str, ending: str) -> None:
    """By single calls, in bulk, or reported without a start: one ending, and one start where there was one."""
    document = alone.document()
    if way == "bulk":
        alone.finish(*(outcome(run, ending, error="x", reason="y") for run in alone.claim()))
    else:
        if way == "single":
            alone.call("start_stage", document, "upload")
        call, arguments = {
            "completed": ("complete_stage", ()), "failed": ("fail_stage", ("x",)), "skipped": ("skip_stage", ()),
        }[ending]  # fmt: skip
        alone.call(call, document, "upload", *arguments)
        alone.call(call, document, "upload", *arguments)
    assert flow(alone) == NOTHING | {"arrived": 1, "started": int(way != "unstarted"), ending: 1}


def test_a_retry_is_another_start_and_no_arrival(alone, outcome: Callable) -> None:
    """What failed and is tried again by itself begins twice, once as a retry, and has arrived once."""
    alone.run("update krai_core.stages set backoff_seconds = 0")
    alone.document()
    alone.finish(*(outcome(run, "failed", error="x", retry=True) for run in alone.claim()))
    alone.finish(*(outcome(run, "completed") for run in alone.claim()))
    assert flow(alone) == {"arrived": 1, "started": 2, "retried": 1, "completed": 1, "failed": 1, "skipped": 0}


def test_a_failed_stage_that_is_started_again_is_a_retry(alone) -> None:
    """By start_stage, which asks for no retry, too."""
    document = alone.document()
    for _ in range(3):
        alone.call("start_stage", document, "upload")
        alone.call("fail_stage", document, "upload", "x")
    assert flow(alone) == NOTHING | {"arrived": 1, "started": 3, "retried": 2, "failed": 3}


def test_what_was_given_back_does_not_arrive_again(alone) -> None:
    """A released run begins again, as the first attempt, and has arrived once."""
    alone.document()
    alone.call("release_stages", alone.claim())
    alone.claim()
    assert flow(alone) == NOTHING | {"arrived": 1, "started": 2}


def test_a_lost_run_is_begun_again(alone) -> None:
    """What a dead worker held is a retry, and neither completed nor failed."""
    document = alone.document()
    alone.claim()
    alone.end_lease(document, "upload")
    alone.claim()
    assert flow(alone) == NOTHING | {"arrived": 1, "started": 2, "retried": 1}


def test_the_last_attempt_that_is_lost_has_failed(alone) -> None:
    """A stage that reap gives up counts as failed in the flow."""
    alone.run("update krai_core.stages set max_attempts = 1")
    document = alone.document()
    alone.claim()
    alone.end_lease(document, "upload")
    alone.call("reap")
    assert flow(alone)["failed"] == 1


def test_what_is_reset_comes_again(alone) -> None:
    """A stage that a person brings back arrives anew, and is completed a second time."""
    document = alone.document()
    for _ in range(2):
        alone.call("start_stage", document, "upload")
        alone.call("complete_stage", document, "upload")
        alone.call("reset_stage", document, "upload", p_cascade=True)
    assert flow(alone) == NOTHING | {"arrived": 3, "started": 2, "completed": 2}


def test_a_cancelled_document_is_skipped(alone) -> None:
    """cancel_document is a skip of every stage that was not finished."""
    document = alone.document()
    alone.done(document, "upload")
    alone.call("cancel_document", document)
    assert flow(alone)["skipped"] == 0
    assert flow(alone, "storage") == NOTHING | {"skipped": 1}


@pytest.mark.parametrize("way", ["single", "bulk"])
def test_waits_and_work_are_measured_apart(alone, outcome: Callable, way: str) -> None:
    """From when it was due until it began is wait, from there to its end is work; the averages are per hour."""
    document = alone.document()
    alone.run("update krai_core.stage_runs set available_at = available_at - interval '100 s'")
    if way == "single":
        alone.call("start_stage", document, "upload")
    runs = alone.claim() if way == "bulk" else []
    alone.run("update krai_core.stage_runs set started_at = started_at - interval '30 s' where status = 'running'")
    if way == "single":
        alone.call("complete_stage", document, "upload")
    alone.finish(*(outcome(run, "completed") for run in runs))
    wait, work = alone.rows(
        "select max(avg_wait_seconds), max(avg_work_seconds) from krai_core.vw_stage_flow where stage_name = 'upload'"
    )[0]
    assert 100 <= wait < 130
    assert 30 <= work < 60
    said = alone.call("get_stage_statistics")["stages"]["upload"]
    assert 100 <= said["avg_wait"] < 130


def test_nobody_waited_where_nothing_was_ready(alone) -> None:
    """A start without a ready run, as of processors that start in any order, has no wait."""
    document = alone.document()
    alone.call("start_stage", document, "search_indexing")
    assert flow(alone, "search_indexing") == NOTHING | {"started": 1}
    assert alone.value("select max(avg_wait_seconds) from krai_core.vw_stage_flow") is None


def test_hours_are_kept_apart(alone) -> None:
    """What was appended for earlier hours stays in theirs, in UTC, also when it is folded."""
    alone.run(
        "insert into krai_core.stage_deltas (stage_name, hour, arrived, runs_completed, work_us) "
        "select 'upload', date_trunc('hour', now(), 'UTC') - n * interval '1 hour', 1, n, n * 2000000::bigint "
        "from generate_series(5, 1100) n"
    )
    alone.call("reap")
    rows = alone.rows(
        "select extract(minute from hour at time zone 'UTC'), arrived, completed, avg_work_seconds "
        "from krai_core.vw_stage_flow where stage_name = 'upload' order by hour desc"
    )
    assert rows == [(0, 1, n, 2) for n in range(5, 1101)]


def test_the_flow_is_the_sum_of_all_histories(alone, outcome: Callable) -> None:
    """After a mixed day starts, ends and retries of each stage are those that the runs tell of."""
    alone.run("update krai_core.stages set backoff_seconds = 0")
    for _ in range(12):
        alone.document()
    kinds = ["completed", "completed", "failed", "completed", "skipped", "completed"]
    for round_number in range(14):
        runs = alone.claim(["upload", "text_extraction", "image_processing", "storage", "embedding"], 5)
        if round_number == 3:
            alone.call("release_stages", runs[:2])
            runs = runs[2:]
        alone.finish(*(
            outcome(run, kinds[(place + round_number) % 6], error="x", retry=True) for place, run in enumerate(runs)
        ))  # fmt: skip
    told = Counter[tuple[str, str]]()
    for stage, status, started, retried in alone.rows(
        "select stage_name, status, started_at is not null, attempt > 1 from krai_core.stage_runs "
        "where status <> 'ready'"
    ):
        told[stage, status] += 1
        told[stage, "started"] += started
        told[stage, "retried"] += started and retried
    for stage in ("upload", "text_extraction", "image_processing", "storage", "embedding"):
        said = flow(alone, stage)
        assert {one: said[one] for one in FLOW[1:]} == {one: told[stage, one] for one in FLOW[1:]}, stage
    assert sum(told[stage, "retried"] for stage in ("upload", "text_extraction")) > 0


def test_the_flow_outlives_its_documents(alone) -> None:
    """What was done stays done when the documents are deleted or truncated; the documents' own counts do not."""
    document = alone.document()
    alone.done(document, "upload")
    before = flow(alone)
    alone.run("delete from krai_core.documents")
    assert flow(alone) == before
    alone.document()
    alone.run("truncate krai_core.documents")
    assert flow(alone) == before | {"arrived": before["arrived"] + 1}


def test_throughput_is_of_this_hour_and_the_one_before(alone) -> None:
    """Completed runs of the last one to two hours, per hour; older ones are not counted."""
    alone.run(
        "insert into krai_core.stage_deltas (stage_name, hour, runs_completed) "
        "select 'upload', date_trunc('hour', now(), 'UTC') - n * interval '1 hour', 600 from generate_series(0, 5) n"
    )
    said = alone.call("get_stage_statistics")["stages"]["upload"]["throughput_per_hour"]
    assert 590 <= said <= 1210
    assert alone.call("get_stage_statistics")["stages"]["storage"]["throughput_per_hour"] == 0


def test_a_claim_id_that_starts_again_is_one_start(alone) -> None:
    """A repeated start or claim with the same claim id counts once."""
    document, claim = alone.document(), uuid.uuid4()
    for _ in range(3):
        alone.call("start_stage", document, "upload", p_claim_id=claim)
    alone.document()
    for _ in range(3):
        alone.claim(p_claim_id=uuid.UUID(int=5))
    assert flow(alone)["started"] == 2
