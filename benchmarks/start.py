"""How long the embedded stack takes from nothing to the first answered call, downloads being there already.

Each time is that of a new Python process: imports, initdb, Postgres, roles, all migrations, PostgREST, client, call.
"""

import statistics
import subprocess
import sys
import time

from benchmarks._shared.bench import Bench

TARGET_SECONDS = 3.0

PROGRAM = """
import sys, time
from processors_v2.local import LocalSupabase
with LocalSupabase(postgres=int(sys.argv[1])) as local:
    local.client().schema("krai_core").rpc("get_stage_statistics", {}).execute()
    print(time.time())
"""


def seconds_to_first_call(version: int) -> float:
    """Start one stack in a process of its own and return when its first call was answered."""
    begin = time.time()
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(version)], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout) - begin


def run(bench: Bench) -> None:
    """Measure both versions."""
    for version in (16, 18):
        # The first one fetches what is missing and compiles the modules.
        seconds_to_first_call(version)
        rounds = range(2 if bench.quick else 10)
        times = [seconds_to_first_call(version) for _ in bench.progress(rounds, f"Postgres {version}")]
        median = statistics.median(times)
        target = f"at most {TARGET_SECONDS:g} s"
        bench.add(f"Postgres {version}, median", median, "s", target=target, ok=median <= TARGET_SECONDS)
        bench.add(f"Postgres {version}, slowest of {len(times)}", max(times), "s")
