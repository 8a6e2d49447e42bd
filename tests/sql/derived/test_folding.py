"""Deltas are folded now and then, by whoever writes: seldom, by one at a time, and never in anybody's way."""

import itertools
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from pending_deltas import deltas, make_due
from truth import prove

FOLDERS: dict[str, Callable[[Any, uuid.UUID], object]] = {
    "start_stage": lambda sql, document: sql.call("start_stage", document, "upload"),
    "complete_stage": lambda sql, document: sql.call("complete_stage", document, "upload"),
    "fail_stage": lambda sql, document: sql.call("fail_stage", document, "upload", "x"),
    "skip_stage": lambda sql, document: sql.call("skip_stage", document, "upload"),
    "finish_stages": lambda sql, _: sql.finish(
        *({**{key: run[key] for key in ("document_id", "stage_name", "claim_id")}, "outcome": "completed"}
          for run in sql.claim())
    ),
    "reap": lambda sql, _: sql.call("reap"),
}  # fmt: skip
TABLES = ("stage_deltas", "stage_counters", "stage_flow", "stage_fold")


@pytest.fixture
def second(connect: Callable, local, own_database: str) -> Any:
    """Another connection to the database of alone; it gives up where it would have to wait."""
    connection = connect(None, url=local.url_of(own_database))
    connection.run("set lock_timeout = '2s'")
    return connection


@pytest.mark.parametrize("folder", FOLDERS)
def test_whoever_writes_folds_when_a_thousand_are_there(alone, folder: str) -> None:
    """A single writer, finish_stages and reap leave few of more than a thousand deltas, and the same figures."""
    documents = 0
    # A call may append more than one delta, and any of them may be the thousandth.
    for below in range(4):
        document = alone.document()
        documents += 1
        make_due(alone, below=below)
        FOLDERS[folder](alone, document)
        if deltas(alone) < 20:
            break
    assert deltas(alone) < 20
    assert alone.value("select documents from krai_core.stage_counters where stage_name = ''") == documents
    prove(alone)


WRITES = {
    "insert": "insert into krai_core.documents (filename) values ('x')",
    "edit": """update krai_core.documents set stage_status = '{"storage": "completed"}' where id = %s""",
    "delete": "delete from krai_core.documents where id = %s",
}


@pytest.mark.parametrize("write", WRITES)
def test_writes_without_any_call_are_folded_too(alone, write: str) -> None:
    """Where only rows are inserted, edited or deleted, and nobody calls a function, deltas stay few as well."""
    for below in range(4):
        document = alone.document()
        make_due(alone, below=below)
        alone.run(WRITES[write], *([document] if "%s" in WRITES[write] else []))
        if deltas(alone) < 20:
            break
    assert deltas(alone) < 20
    prove(alone)


def test_deltas_are_folded_at_most_once_in_a_thousand(alone) -> None:
    """Over 5,000 deltas, in calls that add a hundred at a time, there are four or five folds."""
    folds, before = 0, 0
    for _ in range(50):
        document = alone.document()
        make_due(alone, 100)
        alone.call("start_stage", document, "upload")
        alone.call("reap")
        left = deltas(alone)
        folds += left < before
        before = left
    assert folds in {4, 5}
    prove(alone)


@pytest.mark.parametrize("table", TABLES)
def test_a_fold_waits_for_nobody_who_holds_rows(alone, second, background: Callable, table: str) -> None:
    """While somebody holds all rows of a table of the statistics, calls go on, and what they did is counted."""
    for _ in range(4):
        alone.document()
    make_due(alone)
    alone.call("reap")
    make_due(alone)
    # Whoever waits here waits for the end of the test.
    second.run("set lock_timeout = 0")
    alone.run("begin")
    alone.run(f"select from krai_core.{table} for update")

    def go_on() -> None:
        for _ in range(3):
            document = second.document()
            second.call("complete_stage", document, "upload")
            second.call("reap")
            make_due(second)
            prove(second)

    background(go_on).outcome()
    alone.run("commit")
    second.call("reap")
    assert deltas(second) < 20
    prove(second)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_fold_that_is_not_over_keeps_nobody_waiting(alone, second, end: str) -> None:
    """A transaction that has folded and stays open is in nobody's way, and however it ends, all is counted once."""
    documents = [alone.document() for _ in range(5)]
    make_due(alone)
    alone.run("begin; select krai_core.reap()")
    assert deltas(alone) < 20
    alone.call("complete_stage", documents[0], "upload")
    for document in documents[1:]:
        make_due(second)
        second.call("complete_stage", document, "upload")
        second.call("reap")
        prove(second)
    alone.run(end)
    prove(alone)
    second.call("reap")
    prove(second)
    assert deltas(second) < 20


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_transaction_with_an_old_snapshot_is_not_ended_by_folding(alone, second, level: str) -> None:
    """Where another has folded since the snapshot, a call in repeatable read or serializable does its work."""
    documents = [alone.document() for _ in range(3)]
    make_due(alone)
    alone.run(f"begin isolation level {level}")
    alone.rows("select from krai_core.documents")
    second.call("complete_stage", documents[0], "upload")
    second.call("reap")
    assert deltas(second) < 20
    make_due(second, below=0)
    alone.call("complete_stage", documents[1], "upload")
    make_due(second, below=0)
    alone.call("fail_stage", documents[2], "upload", "x")
    alone.call("reap")
    alone.run("commit")
    prove(second)


def test_a_transaction_folds_at_most_once(alone) -> None:
    """However many deltas a transaction adds, it folds once; the next one folds the rest."""
    documents = [alone.document() for _ in range(6)]
    alone.run("begin")
    folds = 0
    for document in documents:
        make_due(alone, below=0)
        before = deltas(alone)
        alone.call("complete_stage", document, "upload")
        alone.call("reap")
        folds += deltas(alone) < before
    alone.run("commit")
    assert folds <= 1
    prove(alone)
    alone.call("reap")
    assert deltas(alone) < 20


def test_a_transaction_that_goes_on_for_long_leaves_folding_to_others(alone, until: Callable) -> None:
    """Whoever has been at it for more than a second, as an import is, folds nothing, and so keeps nobody from it."""
    alone.run("begin")
    document = alone.document()
    until(lambda: alone.value("select clock_timestamp() - transaction_timestamp() > interval '1.1 s'"))
    make_due(alone, below=0)
    alone.call("complete_stage", document, "upload")
    alone.call("reap")
    assert deltas(alone) > 1000
    alone.run("commit")
    alone.call("reap")
    assert deltas(alone) < 20
    prove(alone)


def test_many_deltas_are_folded_bit_by_bit(alone) -> None:
    """Of 100,000 deltas at once, as after an import in one transaction, each call folds a bounded number, soon.

    The timeout is far above what that takes, and far below what the square of their number would take.
    """
    alone.document()
    make_due(alone, 100_000)
    alone.run("set statement_timeout = '15s'")
    calls, left = 0, [deltas(alone)]
    while left[-1] > 1000 and calls < 50:
        alone.call("reap")
        left.append(deltas(alone))
        calls += 1
    alone.run("reset statement_timeout")
    assert left[-1] < 1000
    assert max(before - after for before, after in itertools.pairwise(left)) <= 20_000
    prove(alone)


def test_a_duration_that_moves_within_its_bucket_is_folded(alone) -> None:
    """A correction by hand that changes no count, but the sum of durations, is not lost when it is folded."""
    alone.document(stage_status={"upload": {"status": "completed", "duration_seconds": 100}})
    make_due(alone)
    alone.call("reap")
    alone.run(
        "update krai_core.documents set stage_status = jsonb_set(stage_status, '{upload,duration_seconds}', '100.5')"
    )
    make_due(alone)
    alone.call("reap")
    assert deltas(alone) < 20
    assert float(alone.call("get_stage_statistics")["stages"]["upload"]["avg_duration"]) == 100.5
    prove(alone)


def test_two_who_fold_at_once_count_nothing_twice(alone, second, background: Callable) -> None:
    """Two sessions that fold in a loop, while both write, leave the figures right."""
    make_due(alone)

    def work(sql: Any) -> None:
        for _ in range(40):
            document = sql.document()
            make_due(sql, 300)
            sql.call("complete_stage", document, "upload")
            sql.call("reap")

    first = background(lambda: work(second))
    work(alone)
    first.outcome()
    prove(alone)
    assert alone.call("get_stage_statistics")["stages"]["upload"]["completed"] == 80


COST = """
select sum(pg_stat_get_xact_blocks_fetched(c.oid))::bigint from pg_class c
where c.relnamespace = 'krai_core'::regnamespace and c.relkind in ('r', 'i')
"""


@pytest.mark.timeout(300)
def test_the_cost_of_a_call_does_not_grow_within_a_transaction(alone) -> None:
    """The last 2,000 of 20,000 calls in one transaction touch hardly more pages than the first 2,000."""
    alone.run("insert into krai_core.documents (filename) select 'x' from generate_series(1, 20000)")
    alone.run("analyze")
    alone.run("create temp table documents_left as select id, row_number() over () as n from krai_core.documents")
    alone.run("create index on documents_left (n)")
    alone.run("begin")
    touched = []
    for round_number in range(10):
        before = alone.value(COST)
        alone.run(
            "do $$ declare v_id uuid; begin for v_id in select id from documents_left "
            f"where n between {round_number * 2000 + 1} and {round_number * 2000 + 2000} loop "
            "perform krai_core.complete_stage(v_id, 'storage'); end loop; end $$"
        )
        touched.append(alone.value(COST) - before)
    alone.run("commit")
    assert touched[-1] < 1.3 * touched[0], touched
    prove(alone)


def test_two_rebuilds_at_once_mend_once(alone, second, background: Callable, until_waiting: Callable) -> None:
    """Of two sessions that find the same sum wrong the later one waits, and finds it mended."""
    alone.document()
    alone.run("insert into krai_core.stage_deltas (stage_name, failed) values ('upload', 5)")
    second.run("set lock_timeout = 0")
    alone.run("begin")
    assert alone.call("rebuild_statistics") == {"mended": 1}
    later = background(lambda: second.call("rebuild_statistics"))
    until_waiting(second)
    alone.run("commit")
    assert later.outcome() == {"mended": 0}
    prove(alone)
