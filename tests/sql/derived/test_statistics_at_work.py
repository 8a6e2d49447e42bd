"""What statistics say while others write and fold: in every snapshot the truth."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pending_deltas import make_due
from truth import prove, wrong_statistics


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
