"""Deltas are folded now and then, by whoever writes: seldom, by one at a time, and never in anybody's way."""

import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from truth import prove, wrong_statistics

DUE = 1100
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


def make_due(sql: Any, count: int = DUE, *, below: int | None = None) -> None:
    """Append so many deltas that change nothing; ``below``: the next one is that much below a thousandth."""
    if below is not None:
        last = sql.value("select last_value from krai_core.stage_deltas_id_seq")
        count += (-below - last - count - 1) % 1000
    sql.run("insert into krai_core.stage_deltas (stage_name) select '' from generate_series(1, %s)", count)


def deltas(sql: Any) -> int:
    """How many are not folded."""
    count: int = sql.value("select count(*) from krai_core.stage_deltas")
    return count


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
    alone.run("begin")
    alone.call("complete_stage", documents[0], "upload")
    alone.call("reap")
    assert deltas(alone) < 20
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
    folds, before = 0, 0
    for document in documents:
        make_due(alone, below=0)
        alone.call("complete_stage", document, "upload")
        alone.call("reap")
        left = deltas(alone)
        folds += left < before
        before = left
    alone.run("commit")
    assert folds <= 1
    prove(alone)
    alone.call("reap")
    assert deltas(alone) < 20


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


class Crowd:
    """Sessions that write and fold without pause until it is closed."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._over = threading.Event()
        self.done = [0, 0, 0]
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._go_on, args=(place, work, connect()), daemon=True)
            for place, work in enumerate((self._work, self._come_and_go, self._fold))
        ]
        for thread in self._threads:
            thread.start()

    def _go_on(self, place: int, work: Callable[[Any, int], None], sql: Any) -> None:
        try:
            while not self._over.is_set():
                work(sql, self.done[place])
                self.done[place] += 1
        except BaseException as error:  # noqa: BLE001 - raised by close()
            self._errors.append(error)

    @staticmethod
    def _work(sql: Any, _: int) -> None:
        runs = sql.claim(["upload", "text_extraction", "storage", "image_processing"], 3)
        kinds = ["completed", "failed", "skipped"]
        sql.finish(*({**{key: run[key] for key in ("document_id", "stage_name", "claim_id")}, "outcome": kinds[place],
                      "error": "x", "retry": True} for place, run in enumerate(runs)))  # fmt: skip
        if not runs:
            sql.call("retry_failed")

    @staticmethod
    def _come_and_go(sql: Any, number: int) -> None:
        document = sql.document()
        sql.edit(document, {"upload": "completed", "storage": {"status": "failed"}})
        sql.run("insert into krai_core.documents (filename) select 'x' from generate_series(1, 3)")
        if number % 3 == 0:
            sql.run("delete from krai_core.documents where id in (select id from krai_core.documents limit 10)")

    @staticmethod
    def _fold(sql: Any, _: int) -> None:
        make_due(sql, 400)
        sql.call("reap")

    def close(self) -> None:
        """End, and raise what went wrong."""
        self._over.set()
        for thread in self._threads:
            thread.join(30)
        for error in self._errors:
            raise error


@pytest.fixture
def crowd(alone, connect: Callable, local, own_database: str) -> Iterator[Crowd]:
    """Somebody who works, somebody who inserts, edits and deletes, and somebody who folds."""
    for _ in range(20):
        alone.document()
    crowd = Crowd(lambda: connect(None, url=local.url_of(own_database)))
    yield crowd
    crowd.close()


def test_a_reader_sees_the_truth_at_any_time(alone, crowd: Crowd) -> None:
    """In one snapshot the statistics are what the documents say, while others write and fold."""
    samples = 0
    while samples < 150 or min(crowd.done) < 15:
        assert wrong_statistics(alone) == []
        samples += 1
    crowd.close()
    prove(alone)


def test_the_sum_over_the_states_is_the_number_of_documents_at_any_time(alone, crowd: Crowd) -> None:
    """In a snapshot of a repeatable-read transaction each stage of get_stage_statistics() adds up to the documents."""
    samples = 0
    while samples < 150 or min(crowd.done) < 15:
        with alone.connection.transaction():
            alone.run("set transaction isolation level repeatable read")
            said = alone.call("get_stage_statistics")["stages"]
            count = alone.value("select count(*) from krai_core.documents")
        states = ("pending", "processing", "completed", "failed", "skipped")
        assert {sum(stage[state] for state in states) for stage in said.values()} == {count}
        assert all(stage[state] >= 0 for stage in said.values() for state in states)
        samples += 1


def test_a_rebuild_changes_nothing_while_others_write(alone, crowd: Crowd) -> None:
    """rebuild_statistics() compares in one snapshot: whatever is written and folded meanwhile, nothing is mended."""
    rounds = 0
    while rounds < 40 or min(crowd.done) < 15:
        assert alone.call("rebuild_statistics") == {"mended": 0}
        rounds += 1
    crowd.close()
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


def test_the_deltas_stay_few_while_others_write(alone, crowd: Crowd) -> None:
    """With three sessions at it there are never more than some thousand deltas left."""
    most = 0
    while min(crowd.done) < 15 or crowd.done[2] < 50:
        most = max(most, deltas(alone))
    assert most < 4000
