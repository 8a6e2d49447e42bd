"""The parts of the benchmark throughput: what its clients do, and what is no figure."""

from collections import Counter
from collections.abc import Iterator

import psycopg
import pytest
from rich.console import Console

from benchmarks import throughput
from benchmarks._shared.bench import Bench
from benchmarks._throughput import point, upkeep
from benchmarks._throughput.clients import Spent
from processors_v2.local import LocalSupabase


@pytest.fixture(scope="module")
def local() -> Iterator[LocalSupabase]:
    """A stack of its own, since the clients empty its tables."""
    with LocalSupabase() as stack, psycopg.connect(stack.database_url, autocommit=True) as connection:
        connection.execute(point.PREPARE)
        yield stack


@pytest.fixture
def connection(local: LocalSupabase) -> Iterator["psycopg.Connection[tuple[object, ...]]"]:
    """A connection of the owner."""
    with psycopg.connect(local.database_url, autocommit=True) as opened:
        yield opened


Connection = psycopg.Connection[tuple[object, ...]]


@pytest.mark.parametrize("name", throughput.CLIENTS)
def test_each_client_does_what_it_is_counted_for(local: LocalSupabase, connection: Connection, name: str) -> None:
    """Every completed run has an owner and its stage says so, each claim was full, and nobody met an error."""
    client = throughput.CLIENTS[name](local)
    measured = point.measure(local, connection, client, workers=3, batch=10, documents=3000, seconds=1)
    assert measured.rate > 0
    assert (measured.short, measured.refused, measured.deadlocks, measured.errors, measured.said) == (0, 0, 0, 0, "")
    assert measured.runs % 10 == 0
    assert 0 < measured.client_share < 1
    row = connection.execute(
        """
        select (select count(*) from krai_core.vw_document_stages where status = 'completed'),
            (select count(distinct worker) from krai_core.stage_runs where status = 'completed'),
            (select count(*) from krai_core.stage_runs where status = 'running')
        """
    ).fetchone()
    assert row == (measured.runs, 3, 0)


class Thirsty:
    """A client that takes all that is ready, and leaves the rest to others."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def work(self, workers: int, batch: int, seconds: float) -> Spent:  # noqa: ARG002
        """Do the work of one claim, of a thousand."""
        self._connection.execute(
            """
            select krai_core.finish_stages(jsonb_agg(run || '{"outcome": "completed"}'))
            from jsonb_array_elements(krai_core.claim_stages('upload', 'thirsty', 1000)) run
            """
        )
        self._connection.execute("delete from krai_core.stage_runs where status = 'ready'")
        return Spent(0.1, 0, "")


class Idle:
    """A client that cannot do anything."""

    def work(self, workers: int, batch: int, seconds: float) -> Spent:  # noqa: ARG002
        """Do nothing."""
        return Spent(0.0, 1, "no connection")


def test_a_queue_that_runs_dry_is_no_figure(local: LocalSupabase, connection: Connection) -> None:
    """Where less is left than the workers can take, some of them had nothing to do."""
    with pytest.raises(RuntimeError, match="4 workers with batch 10 have left 0 runs ready: the queue ran dry"):
        point.measure(local, connection, Thirsty(connection), workers=4, batch=10, documents=1500, seconds=1)


def test_a_client_that_does_nothing_is_no_figure(local: LocalSupabase, connection: Connection) -> None:
    """What it said is in the error."""
    with pytest.raises(RuntimeError, match="1 workers with batch 10 did nothing: no connection"):
        point.measure(local, connection, Idle(), workers=1, batch=10, documents=100, seconds=1)


@pytest.mark.parametrize(("name", "short"), [("direct", 2), ("postgrest", 2)])
def test_claims_that_find_too_little_are_noticed(
    local: LocalSupabase, connection: Connection, name: str, short: int
) -> None:
    """A claim that does not fill its batch is counted, also an empty one."""
    point.fill(connection, 0)
    connection.execute("insert into krai_core.documents (filename) select 'x' from generate_series(1, 5)")
    connection.execute("update krai_core.stages set paused = name <> 'upload'")
    throughput.CLIENTS[name](local).work(1, 10, 1)
    connection.execute("update krai_core.stages set paused = false")
    got = [row[0] for row in connection.execute("select got from public.short_claims order by got desc").fetchall()]
    assert len(got) >= short
    assert got[0] == 5
    assert set(got[1:]) == {0}


def test_the_upkeep_is_that_of_finished_documents(local: LocalSupabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """All stages are completed, each with its one run, when they are vacuumed, indexed anew and pruned."""
    monkeypatch.setattr(upkeep, "QUICK_FEW", 20)
    monkeypatch.setattr(upkeep, "QUICK_MANY", 70)
    bench = Bench(quick=True, console=Console())
    upkeep.measure(bench, local)
    assert [result.name.rpartition(", ")[2] for result in bench.results] == [
        "vacuum",
        "vacuum with nothing to do",
        "GIN index built anew with 64 MB",
        "GIN index built anew with 1 GB",
        "a run pruned of each",
    ]
    assert all(result.value > 0 and result.ratio for result in bench.results)
    with psycopg.connect(local.database_url) as opened:
        runs = opened.execute("select status, count(*) from krai_core.stage_runs group by status").fetchall()
    assert runs == [("completed", 560)]


def test_what_cannot_be_pruned_is_no_figure(connection: Connection) -> None:
    """Fewer pruned runs than there were to prune would look fast."""
    point.fill(connection, 10)
    with pytest.raises(RuntimeError, match="0 runs were pruned, and 10 were superseded"):
        upkeep._prune(connection, 10)


def measured(rate: float, **other: object) -> point.Point:
    """Return a point of that rate."""
    waits = Counter({"processor": 9, "Lock tuple": 1})
    plain = {"waits": waits, "short": 0, "refused": 0, "deadlocks": 0, "errors": 0, "wal": 300_000}
    return point.Point(**{"runs": round(rate), "seconds": 1.0, "client_share": 0.1, "said": "", **plain, **other})  # type: ignore[arg-type]


def test_each_point_stands_beside_one_worker_of_its_round() -> None:
    """Ratios are taken within a round, and the figure is their median."""
    bench = Bench(quick=False, console=Console())
    points = {
        ("direct", 10, 1): [measured(100), measured(50), measured(100)],
        ("direct", 10, 8): [measured(300), measured(150), measured(200)],
        ("relaxed", 10, 1): [measured(100), measured(100), measured(100)],
        ("relaxed", 10, 8): [measured(600), measured(150), measured(400)],
    }
    throughput.report(bench, points)
    found = {result.name: result for result in bench.results}
    figure = found["direct, batch 10, 8 workers"]
    assert (figure.value, figure.baseline, figure.ratio) == (200, 100, 3)
    assert found["relaxed beside direct, batch 10, 8 workers"].ratio == 2
    assert found["direct, batch 10, WAL of a run"].value == 2500
    assert found["direct, 8 workers, active sessions that wait for a row of another"].value == pytest.approx(10)
    assert all(result.ok is not False for result in bench.results)


@pytest.mark.parametrize(
    ("trouble", "name"),
    [
        ({"short": 1}, "direct, claims that did not fill their batch"),
        ({"refused": 1}, "direct, outcomes refused"),
        ({"deadlocks": 1}, "direct, deadlocks"),
        ({"errors": 1, "said": "gone"}, "direct, errors"),
    ],
)
def test_trouble_misses_the_target(trouble: dict[str, object], name: str) -> None:
    """Speed with deadlocks, refusals, errors or workers without work is none."""
    bench = Bench(quick=False, console=Console())
    throughput.report(bench, {("direct", 10, 1): [measured(100, **trouble)]})
    assert [result.name for result in bench.results if result.ok is False] == [name]
