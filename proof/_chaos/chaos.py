"""A run of chaos from beginning to end: workers that are killed, stopped and cut off while they work, and a judge.

``crew`` and ``zygote`` make the worker processes, which run what is in ``worker``; what they ask and are answered is
written down by ``recorder``. They reach PostgREST through ``proxy``, which drops answers. ``faults`` does the rest of
what goes wrong. Meanwhile ``watcher`` looks whether all adds up. ``evidence`` collects all of it for ``judge``.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg

from processors_v2.local import LocalSupabase
from proof._chaos import evidence
from proof._chaos.crew import Crew
from proof._chaos.faults import Faults
from proof._chaos.judge import Verdict, judge, losses
from proof._chaos.proxy import Proxy
from proof._chaos.size import Size
from proof._chaos.watcher import Progress, Watch, Watcher

_LOOK_SECONDS = 0.05
# Longer than anything that is waited for: without an ended stage for so long, something is stuck.
_STUCK_SECONDS = 60.0

# Enough attempts for all the kills; and short waits, which make more collisions.
_PREPARE = """
update krai_core.stages set lease_seconds = 2, max_attempts = 1000, backoff_seconds = 1, backoff_max_seconds = 1;
insert into krai_core.documents (filename) select 'chaos ' || n || '.pdf' from generate_series(1, %s) n;
"""


@dataclass(frozen=True)
class Report:
    """What happened, and the verdicts.

    Attributes:
        seed: of all draws; the same seed draws the same faults.
        seconds: how long it took.
        facts: counts, by what was counted.
        verdicts: of the judge.
    """

    seed: int
    seconds: float
    facts: dict[str, int]
    verdicts: list[Verdict]


def run(size: Size, seed: int, look: Callable[[int], None] = lambda _: None) -> Report:
    """Let workers do all stages of new documents while all goes wrong, and judge what came of it.

    Args:
        size: how much of everything.
        seed: of all draws.
        look: is told how many stages have ended, now and then.
    """
    began = time.monotonic()
    # Sessions of workers, of the watcher and of holders beside the pool of PostgREST.
    with tempfile.TemporaryDirectory() as folder, LocalSupabase(settings={"max_connections": "60"}) as stack:
        with psycopg.connect(stack.admin_url, autocommit=True) as connection:
            for statement in _PREPARE.strip().splitlines():
                connection.execute(statement.replace("%s", str(size.documents)))
        proxy = Proxy(int(stack.url.rpartition(":")[2]), dropped=size.dropped, seed=seed)
        watcher = Watcher(stack.admin_url, size.documents)
        crew = Crew(size, url=proxy.url, key=stack.key(), folder=Path(folder), seed=seed)
        try:
            faults = Faults(size, seed, stack, crew)
            _go_on(size, stack.admin_url, watcher, faults, look)
            crew.end()
        finally:
            crew.close()
            proxy.close()
            watcher.close()
        found = evidence.read(
            stack.admin_url,
            Path(folder),
            lives=crew.lives,
            troubles=crew.troubles,
            happened=faults.happened,
            seen=watcher.seen,
            log=_log(stack),
        )
    facts = _facts(found, proxy, faults)
    return Report(seed, time.monotonic() - began, facts, judge(found))


def _go_on(size: Size, url: str, watcher: Watcher, faults: Faults, look: Callable[[int], None]) -> None:
    """Look and let things go wrong until all stages have ended, or nothing moves any more."""
    watch = Watch(watcher, size.stage_runs)
    progress = Progress(url)
    most, since = 0, time.monotonic()
    try:
        while watch.is_alive() and time.monotonic() - since < _STUCK_SECONDS:
            if (ended := progress.look()) > most:
                most, since = ended, time.monotonic()
                look(most)
            faults.do(most / size.stage_runs)
            time.sleep(_LOOK_SECONDS)
    finally:
        progress.close()
        faults.close()
        watch.close()
    watcher.look()


def _facts(found: evidence.Evidence, proxy: Proxy, faults: Faults) -> dict[str, int]:
    lost = losses(found)
    return {
        "stages ended": _ended(found),
        "runs, attempts of all kinds": sum(run.status != "ready" for run in found.runs),
        "workers killed": sum(life.killed_at is not None for life in found.lives),
        "workers stopped for longer than the lease": sum(len(life.stops) for life in found.lives),
        "Postgres restarted at once": len(found.happened.restarts),
        "PostgREST killed": len(found.happened.postgrest_kills),
        "documents locked by others": found.happened.holds,
        "answers passed on": sum(proxy.answers.values()),
        "answers dropped after the commit": sum(proxy.drops.values()),
        "late writes refused": sum(word.word == "lease_lost" for word in found.journals.words),
        "runs failed and tried again": sum(run.status == "failed" and run.is_retried for run in found.runs),
        "runs released": sum(run.status == "released" for run in found.runs),
        "runs opened by start_stage": sum(run.claim in found.journals.starts for run in found.runs),
        "runs lost: worker killed": lost["killed"],
        "runs lost: worker stopped": lost["stopped"],
        "runs lost: servers away": lost["outage"],
        "runs lost: worker late": lost["late"],
        "runs lost: no cause": sum(count for cause, count in lost.items() if " " in cause),
        "snapshots": found.seen.samples,
        "faults that did not come to pass": faults.left,
    }


def _log(stack: LocalSupabase) -> str:
    server = stack._postgres  # noqa: SLF001 - its log outlives restarts, its counters do not
    assert server is not None
    return (server.folder / "postgres.log").read_text(errors="replace")


def _ended(found: evidence.Evidence) -> int:
    return sum(
        stage["status"] in {"completed", "failed", "skipped"}
        for stages in found.documents.values()
        for stage in stages.values()
    )
