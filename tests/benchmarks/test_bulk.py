"""The parts of the benchmark bulk."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from rich.console import Console

from benchmarks import bulk
from benchmarks._drain.floor import drop_triggers
from benchmarks._shared.bench import Bench
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker


@pytest.fixture(scope="module")
def local() -> Iterator[LocalSupabase]:
    """A stack of its own, for databases of any name."""
    with LocalSupabase() as stack:
        yield stack


def test_an_insert_that_derives_nothing_is_no_figure(local: LocalSupabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ready runs of every document have to be there."""
    new_database = bulk.new_database

    def without_triggers(stack: LocalSupabase, name: str) -> bulk.Connection:
        connection = new_database(stack, name)
        drop_triggers(connection)
        return connection

    monkeypatch.setattr(bulk, "new_database", without_triggers)
    with pytest.raises(RuntimeError, match="After an insert of 2000 documents 0 runs are ready"):
        bulk.measure_inserts(Bench(quick=True, console=Console()), local)


def test_the_queues_stay_as_long_as_they_are_said_to_be(local: LocalSupabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the claims of a round took is there again before the next one."""
    monkeypatch.setattr(bulk, "FEW", 200)
    monkeypatch.setattr(bulk, "MANY", 4000)
    monkeypatch.setattr(bulk, "AT_ONCE", 200)
    monkeypatch.setattr(bulk, "CLAIMS", {10: 2, 1: 3})
    bench = Bench(quick=True, console=Console())
    bulk.measure_claims(bench, local)
    for backlog in (200, 400):
        with psycopg.connect(local.url_of(f"bulk_{backlog}")) as connection:
            assert bulk.count_ready(connection) == backlog
    assert [result.name for result in bench.results] == [
        "claim of 10, 400 ready beside 200, median",
        "claim of 1, 400 ready beside 200, median",
    ]
    assert all(result.ratio and result.ok is None for result in bench.results)


def test_a_claim_that_finds_too_little_is_no_figure(local: LocalSupabase) -> None:
    """An empty queue answers fast, which says nothing."""
    with closing(bulk.new_database(local, "bulk_empty")):
        trackers = {1: StageTracker.from_postgres(local.url_of("bulk_empty"))}
        with pytest.raises(RuntimeError, match="0 of 100 documents were claimed"):
            bulk.claim_in_turns(trackers, defaultdict(list))
