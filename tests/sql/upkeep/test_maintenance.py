"""prune_runs and schedule_maintenance: what keeps the history small, and what it never touches."""

import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from truth import prove

NOW = "0 s"


def history(sql: Any, *, documents: int = 1, attempts: int = 4) -> list[uuid.UUID]:
    """Documents whose upload failed some times, was completed, reset, and completed again; all of it old."""
    made = [sql.document() for _ in range(documents)]
    for document in made:
        for _ in range(attempts):
            sql.call("start_stage", document, "upload")
            sql.call("fail_stage", document, "upload", "x")
        sql.call("start_stage", document, "upload")
        sql.call("complete_stage", document, "upload")
        sql.call("reset_stage", document, "upload")
        sql.call("start_stage", document, "upload")
        sql.call("complete_stage", document, "upload")
    sql.run(
        "update krai_core.stage_runs set finished_at = finished_at - interval '60 days' where finished_at is not null"
    )
    return made


def statuses(sql: Any) -> Counter[str]:
    """How many runs of each kind there are."""
    return Counter(dict(sql.rows("select status, count(*) from krai_core.stage_runs group by 1")))


def test_superseded_runs_are_deleted_and_failures_kept(alone) -> None:
    """By default the first completion goes, and failures, the last run and what is open stay."""
    history(alone)
    before = statuses(alone)
    assert alone.call("prune_runs") == {"pruned": 1, "more": False}
    assert statuses(alone) == before - Counter({"completed": 1})
    assert alone.call("prune_runs") == {"pruned": 0, "more": False}


def test_failures_are_deleted_when_asked_for(alone) -> None:
    """With p_keep_failures false only the current runs and what is open are left."""
    history(alone)
    assert alone.call("prune_runs", p_keep_failures=False)["pruned"] == 5
    assert statuses(alone) == Counter({"completed": 1, "ready": 2})


def test_what_is_younger_stays(alone) -> None:
    """Only what ended longer ago than p_older_than goes; without one that is 30 days."""
    history(alone)
    alone.run(
        "update krai_core.stage_runs set finished_at = finished_at + interval '31 days' where finished_at is not null"
    )
    assert alone.call("prune_runs", p_keep_failures=False)["pruned"] == 0
    assert alone.call("prune_runs", "1 year", False)["pruned"] == 0
    assert alone.call("prune_runs", "28 days", False)["pruned"] == 5


@pytest.mark.parametrize(
    "ending", ["completed", "failed", "skipped", "pending", "processing", "released", "retry", "cancelled"]
)
def test_the_last_and_the_current_run_are_never_deleted(alone, ending: str) -> None:
    """However a stage stands, what it stands on and the last that was closed outlive pruning with any age."""
    alone.run("update krai_core.stages set backoff_seconds = 0")
    document = alone.document()
    alone.call("start_stage", document, "upload")
    alone.call("fail_stage", document, "upload", "x", p_retry=ending == "retry")
    if ending == "pending":
        alone.call("retry_stage", document, "upload")
    elif ending == "released":
        alone.call("retry_stage", document, "upload")
        alone.call("release_stages", alone.claim())
    elif ending == "cancelled":
        alone.call("cancel_document", document)
    elif ending in {"completed", "skipped", "processing"}:
        alone.call("start_stage", document, "upload")
        if ending != "processing":
            alone.call("complete_stage" if ending == "completed" else "skip_stage", document, "upload")
    last = alone.value(
        "select max(id) from krai_core.stage_runs where stage_name = 'upload' and status not in ('ready', 'running')"
    )
    before = alone.rows("select id from krai_core.stage_runs where is_current or status in ('ready', 'running')")
    alone.call("prune_runs", NOW, False)
    left = alone.rows("select id from krai_core.stage_runs")
    assert set(before) | {(last,)} <= set(left)
    prove(alone)


def test_attempts_go_on_counting_after_pruning(alone) -> None:
    """The next attempt has the number that it would have had."""
    document = alone.document()
    for _ in range(3):
        alone.call("start_stage", document, "upload")
        alone.call("fail_stage", document, "upload", "x")
    alone.call("prune_runs", NOW, False)
    alone.call("start_stage", document, "upload")
    assert alone.value("select attempt from krai_core.stage_runs where status = 'running'") == 4


def test_a_claim_is_repeated_as_before_after_pruning(alone) -> None:
    """What still runs is never pruned, so that the repeat of its claim answers with it."""
    alone.document()
    claim = uuid.uuid4()
    first = alone.claim(p_claim_id=claim)
    alone.call("prune_runs", NOW, False)
    assert [run["document_id"] for run in alone.claim(p_claim_id=claim)] == [first[0]["document_id"]]


def test_pruning_is_bounded_and_says_whether_there_is_more(alone) -> None:
    """At most p_limit at once; repeated until more is false, all is gone that may go, the oldest first."""
    history(alone, documents=4)
    pruned = []
    while True:
        answer = alone.call("prune_runs", p_keep_failures=False, p_limit=6)
        pruned.append(answer["pruned"])
        if not answer["more"]:
            break
    assert pruned in ([6, 6, 6, 2], [6, 6, 6, 2, 0])
    assert statuses(alone)["failed"] == 0


def test_statistics_outlive_the_runs(alone) -> None:
    """Counts, durations, flow and lists are the same before and after."""
    history(alone, documents=3)
    questions = (
        "select to_jsonb(v) - 'oldest_waiting_seconds' - 'throughput_per_hour' from krai_core.vw_stage_statistics v",
        "select to_jsonb(v) from krai_core.vw_stage_flow v order by v.stage_name, v.hour",
        "select krai_core.list_documents('upload', 'completed')",
        "select krai_core.get_failures()",
    )
    before = [alone.rows(one) for one in questions]
    assert alone.call("prune_runs", p_keep_failures=False)["pruned"] > 0
    assert [alone.rows(one) for one in questions] == before
    assert alone.call("rebuild_statistics") == {"mended": 0}
    prove(alone)


def test_runs_that_somebody_writes_are_passed_over(alone, connect: Callable, local, own_database: str) -> None:
    """Pruning waits for nobody: what is locked goes the next time."""
    history(alone)
    other = connect(url=local.url_of(own_database))
    alone.run("begin")
    alone.run("select from krai_core.stage_runs where status = 'failed' for update")
    other.run("set lock_timeout = '2s'")
    assert other.call("prune_runs", p_keep_failures=False)["pruned"] == 1
    alone.run("commit")
    assert other.call("prune_runs", p_keep_failures=False)["pruned"] == 4


def test_pruning_runs_beside_itself_and_beside_workers(
    alone, connect: Callable, background: Callable, local, own_database: str
) -> None:
    """Two that prune and one that works get into nobody's way, and delete each run once."""
    alone.run("update krai_core.stages set backoff_seconds = 0, max_attempts = 1000")
    history(alone, documents=12, attempts=6)
    others = [connect(url=local.url_of(own_database)) for _ in range(3)]

    def prune(sql: Any) -> int:
        return sum(sql.call("prune_runs", "1 day", False, 2)["pruned"] for _ in range(60))

    def work(sql: Any) -> None:
        for _ in range(60):
            runs = sql.claim(["text_extraction", "image_processing", "storage"], 3)
            sql.finish(*({key: run[key] for key in ("document_id", "stage_name", "claim_id")}
                         | {"outcome": "failed", "error": "x", "retry": True} for run in runs))  # fmt: skip

    workers = [background(lambda: work(others[2])), background(lambda: prune(others[0]))]
    pruned = prune(others[1]) + workers[1].outcome()
    workers[0].outcome()
    pruned += alone.call("prune_runs", "1 day", False)["pruned"]
    assert pruned == 12 * 7
    prove(alone)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("-1 day",), "invalid_age"),
        ((None,), "invalid_age"),
        (("1 day", True, 0), "invalid_limit"),
        (("1 day", True, 1_000_000), "invalid_limit"),
    ],
)
def test_wrong_arguments_are_refused(service, arguments: tuple, word: str) -> None:
    """A negative age, none at all and a limit out of range are 22023."""
    refusal = service.refused("prune_runs", *arguments)
    assert (refusal.sqlstate, refusal.word) == ("22023", word)


def test_without_pg_cron_nothing_is_scheduled(service, owner) -> None:
    """schedule_maintenance says so, names no job, and leaves the database as it was."""
    before = owner.rows("select oid from pg_class union all select oid from pg_proc order by 1")
    for arguments in ((), ("7 days", False)):
        answer = service.call("schedule_maintenance", *arguments)
        assert set(answer) == {"scheduled", "jobs", "message"}
        assert (answer["scheduled"], answer["jobs"]) == (False, [])
        assert "pg_cron" in answer["message"]
    assert owner.rows("select oid from pg_class union all select oid from pg_proc order by 1") == before
    assert service.refused("schedule_maintenance", "-7 days").word == "invalid_age"
