"""A soak from beginning to end.

``crew`` makes the worker processes, which run what is in ``worker``; ``feeder`` brings them documents and takes those
away that are done; ``sampler`` looks at all of them every second. At the end ``bloat`` measures what is left, and
``judge`` says what came of it.
"""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg

from benchmarks._shared.bench import Result
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker
from proof._soak import bloat
from proof._soak.crew import Crew, Done
from proof._soak.feeder import Feeder
from proof._soak.judge import Evidence, judge
from proof._soak.sampler import Sampler
from proof._soak.size import Size

_LOOK_SECONDS = 0.5
# What fails is to be done before the end.
_PREPARE = "update krai_core.stages set backoff_seconds = 2, backoff_max_seconds = 4"
_REBUILD = """
select (select coalesce(sum(value::int), 0) from jsonb_each_text(krai_core.rebuild_ready_runs()))
    + (krai_core.rebuild_statistics() ->> 'mended')::int
"""


def run(size: Size, file: Path, look: Callable[[int], None] = lambda _: None) -> list[Result]:
    """Let workers work for so long, and judge what came of it.

    Args:
        size: how much of everything.
        file: where the samples go.
        look: is told how many documents have come in, now and then.
    """
    with LocalSupabase() as stack, psycopg.connect(stack.admin_url, autocommit=True) as connection:
        connection.execute(_PREPARE)
        crew = Crew(size, stack)
        try:
            feeder, sampler = _go_on(size, stack, crew, file, look)
            workers = crew.end()
        finally:
            crew.close()
        evidence = _evidence(feeder, sampler, workers, connection)
    return judge(size, evidence)


def _go_on(
    size: Size, stack: LocalSupabase, crew: Crew, file: Path, look: Callable[[int], None]
) -> tuple[Feeder, Sampler]:
    """Let documents come in until the time is over and all are done."""
    feeder = Feeder(size, stack.database_url)
    tracker = StageTracker(stack.client())
    sampler = Sampler(size, stack.admin_url, tracker, crew.memory, file)
    with closing(feeder), closing(sampler):
        sampler.start()
        feeder.start()
        while feeder.is_alive() and sampler.is_alive():
            feeder.join(_LOOK_SECONDS)
            look(feeder.inserted)
    return feeder, sampler


def _evidence(
    feeder: Feeder, sampler: Sampler, workers: list[Done], connection: "psycopg.Connection[tuple[object, ...]]"
) -> Evidence:
    row = connection.execute(_REBUILD).fetchone()
    assert row is not None
    return Evidence(
        samples=sampler.samples,
        workers=workers,
        relations=bloat.measure(connection),
        documents=feeder.inserted,
        deleted=feeder.deleted,
        pruned=feeder.pruned,
        reindexed=feeder.reindexed,
        unended=feeder.unended,
        is_stuck=feeder.is_stuck,
        rebuilt=int(str(row[0])),
    )
