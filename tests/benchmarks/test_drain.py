"""The parts of the benchmark drain: what they leave in the database, and what they say when something is wrong."""

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import pairwise, permutations

import psycopg
import pytest
from rich.console import Console

from benchmarks import drain
from benchmarks._drain import ours, peers
from benchmarks._drain.floor import BareTable, Floor
from benchmarks._drain.lanes import race
from benchmarks._shared.bench import Bench
from processors_v2.local import LocalSupabase


@pytest.fixture(scope="module")
def local() -> Iterator[LocalSupabase]:
    """A stack of its own, since the lanes empty the tables."""
    with LocalSupabase() as stack:
        yield stack


def stages(url: str) -> list[dict[str, object]]:
    """Return what the documents say of each of their stages."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("select s.value from krai_core.documents, jsonb_each(stage_status) s")
        return [row[0] for row in rows]


def shape(stage: dict[str, object]) -> str:
    """Return all that a stage says, and of its times only in which form they are there."""
    return repr({
        key: len(str(value)) if key in {"started_at", "completed_at"} else type(value) if "seconds" in key else value
        for key, value in sorted(stage.items())
    })  # fmt: skip


def test_everybody_does_the_same_work(local: LocalSupabase) -> None:
    """Each lane drains all of its jobs, and the floor writes what the tracker writes."""
    lanes = [make(local) for make in drain.LANES.values()]
    rates = race(lanes, jobs=80, batch=10, turns=2)
    for lane in lanes:
        lane.close()
    assert set(rates) == {"floor", "two columns", "direct", "PostgREST"}
    assert all(rate > 0 for rate in rates.values())
    written = [stages(local.url_of(name)) for name in ("drain_floor", "drain_direct", "postgres")]
    assert [len(rows) for rows in written] == [80, 80, 80]
    shapes = [set(map(shape, rows)) for rows in written]
    assert shapes[0] == shapes[1] == shapes[2]
    assert len(shapes[0]) == 1


@pytest.mark.parametrize("count", [2, 3])
def test_no_lane_comes_behind_itself(local: LocalSupabase, count: int) -> None:
    """Nobody finds his own data in the caches still, and of three each comes behind both of the others."""
    turns: list[str] = []

    class Noted(BareTable):
        def __init__(self, name: str) -> None:
            self.name = name
            self.database = f"drain_noted_{count}_{name}"
            super().__init__(local)

        def drain(self, jobs: int, batch: int) -> float:
            turns.append(self.name)
            return super().drain(jobs, batch)

    with ExitStack() as ends:
        race([ends.enter_context(closing(Noted(name))) for name in "abc"[:count]], jobs=60, batch=10, turns=6)
    pairs = set(pairwise(turns))
    assert len(turns) == 6 * count
    assert pairs == set(permutations("abc"[:count], 2))


def test_jobs_that_get_lost_are_no_speed(local: LocalSupabase) -> None:
    """A lane that claims without finishing is told so, and has no rate."""

    class Forgetful(BareTable):
        database = "drain_forgetful"

        def finish(self, claimed: Sequence[int]) -> None:
            super().finish(claimed[1:])

    with (
        closing(Forgetful(local)) as lane,
        pytest.raises(RuntimeError, match="two columns: only 9 of 10 jobs are done"),
    ):
        race([lane], jobs=10, batch=10, turns=1)


def test_a_stage_without_its_run_is_no_finished_job(local: LocalSupabase) -> None:
    """A stage counts only where it is completed and its history says so, too."""
    with (
        closing(ours.Ours.postgrest(local)) as lane,
        psycopg.connect(local.database_url, autocommit=True) as connection,
    ):
        lane.fill(16)
        lane.drain(2, batch=2)
        assert lane.count_done() == 2
        connection.execute("""delete from krai_core.stage_runs where id = (
            select min(id) from krai_core.stage_runs where status = 'completed')""")
        assert lane.count_done() == 1


@pytest.mark.parametrize("batch", drain.BATCHES.values())
def test_a_quick_run_drains_each_size_of_batches(local: LocalSupabase, batch: int) -> None:
    """No batch of the floor holds two stages of one document, of which it would write one only."""

    class Quick(Floor):
        database = f"drain_quick_{batch}"

    bench = Bench(quick=True, console=Console(), only=["floor", str(batch)])
    with closing(Quick(local)) as floor:
        assert [step()["floor"] > 0 for _, _, step in drain.plan(bench, local, {"floor": floor})] == [True]


def test_the_floor_has_no_triggers_of_ours(local: LocalSupabase) -> None:
    """Nothing is derived in the floor, while table, default and indexes are those of the migrations."""
    questions = (
        "select count(*) from pg_trigger where tgrelid = 'krai_core.documents'::regclass and not tgisinternal",
        "select string_agg(indexdef, ';' order by indexdef) from pg_indexes where tablename = 'documents'",
        "select stage_status from krai_core.documents limit 1",
    )

    class Other(Floor):
        database = "drain_second_floor"

    with closing(Other(local)) as floor, psycopg.connect(local.database_url, autocommit=True) as connection:
        floor.fill(8)
        ours.fill(connection, 1)
        found = [
            [each.execute(question).fetchone() for question in questions] for each in (floor._connection, connection)
        ]
    assert found[0][0] == (0,)
    assert found[1][0] != (0,)
    assert found[0][1:] == found[1][1:]


@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
def test_each_peer_that_is_installed_drains_its_jobs(local: LocalSupabase, peer: peers.Peer) -> None:
    """All jobs are done, and its database is gone again."""
    if not all(map(importlib.util.find_spec, (peer.package, *peer.needs))):
        pytest.skip(f"{peer.package} is not installed: it is of the extra bench")
    drained = peers.drain(local, peer, 30)
    assert drained.jobs == 30
    assert drained.seconds > 0
    with psycopg.connect(local.database_url) as connection:
        left = connection.execute("select from pg_database where datname = %s", [f"drain_{peer.package}"]).fetchall()
    assert left == []


@pytest.mark.parametrize(
    ("package", "reason"),
    [
        ("unheard_of", "unheard_of is not installed"),
        # There is a package of the name, and no program for it here.
        ("json", "its program failed with exit code 1 and said: .*No module named benchmarks._drain.peer_json"),
    ],
)
def test_a_peer_that_cannot_run_is_left_out_with_one_line(
    local: LocalSupabase, package: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The benchmark goes on without it."""
    bench = Bench(quick=True, console=Console(width=300))
    assert drain.drain_peer(bench, local, peers.Peer(package, package), 10) == {}
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert said.startswith(f"{package} is left out: ")
    with pytest.raises(peers.PeerFailed, match=reason):
        peers.drain(local, peers.Peer(package, package), 10)


@pytest.mark.parametrize(("quick", "verdicts"), [(False, [True, False]), (True, [None, None])])
def test_a_target_is_met_by_the_median_of_the_ratios(*, quick: bool, verdicts: list[bool | None]) -> None:
    """Ratios are taken within a round, and a quick run judges nobody."""
    bench = Bench(quick=quick, console=Console())
    rounds = [
        {"floor": 1000.0, "direct": 600.0, "StageWorker, direct": 600.0, "PostgREST": 360.0},
        {"floor": 500.0, "direct": 300.0, "StageWorker, direct": 300.0, "PostgREST": 180.0},
        {"floor": 1000.0, "direct": 100.0, "StageWorker, direct": 100.0, "PostgREST": 100.0},
    ]
    drain.report(bench, 100, rounds)
    found = {result.name: result for result in bench.results}
    floor, direct = (
        found[f"{name}, batch 100"] for name in ("StageWorker, direct beside floor", "PostgREST beside direct")
    )
    assert (floor.ratio, direct.ratio) == (0.6, 0.6)
    assert [floor.ok, direct.ok] == verdicts
    assert found["floor, batch 100"].value == 1000
