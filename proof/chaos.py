"""Workers under kill -9, SIGSTOP, restarts and dropped answers: nothing lost, nothing twice.

Eight workers do 20,000 stages through supabase-py and PostgREST while they are killed and stopped, Postgres and
PostgREST are restarted, and 10 % of the answers are dropped after their commit; half of the workers are StageWorkers,
the others a loop over all calls. A judge then holds the rows of the database against what the workers wrote down.
CHAOS_SEED repeats the draws of an earlier run.
"""

import os
import random
from collections.abc import Iterator

from benchmarks._shared.bench import Bench
from proof._chaos import chaos
from proof._chaos.size import FULL, SHORT

TAKES = "3 minutes"


def advance(shown: Iterator[int], ended: int) -> None:
    """Bring the progress bar to so many."""
    for number in shown:
        if number + 1 >= ended:
            return


def run(bench: Bench) -> None:
    """Do the work under faults, and give the verdicts."""
    size = SHORT if bench.quick else FULL
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"CHAOS_SEED={seed}")
    shown = bench.progress(range(size.stage_runs), "stages")
    report = chaos.run(size, seed, lambda ended: advance(shown, ended))
    # The bar goes away at its end only.
    advance(shown, size.stage_runs + 1)
    bench.add("seed", report.seed, "")
    bench.add("time", report.seconds, "s")
    asked = {
        "stages ended": size.stage_runs,
        "workers killed": size.kills,
        "workers stopped for longer than the lease": size.stops,
        "Postgres restarted at once": size.restarts,
        "PostgREST killed": size.postgrest_kills,
    }
    for name, value in report.facts.items():
        bench.add(name, value, "", target=asked.get(name), ok=value == asked[name] if name in asked else None)
    for verdict in report.verdicts:
        target = f"none in {verdict.checked:,}"
        bench.add(f"violations: {verdict.name}", len(verdict.violations), "", target=target, ok=verdict.ok)
        for violation in verdict.violations[:5]:
            print(f"{verdict.name}: {violation}")
