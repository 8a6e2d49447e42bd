"""Light clients: so many connections that claim and finish one after the other, at nearly no cost of their own.

Over Postgres connections it is pgbench, with script.sql; through PostgREST it is the program http_client. Both are
children of this process, so that the kernel tells what they cost.
"""

import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from psycopg.conninfo import conninfo_to_dict

from processors_v2._local.postgres import find_installation
from processors_v2._local.process import clean_environment
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker

# In the order of the pipeline all work at documents that are new; in the opposite order those that have begun are
# finished first, and several workers are at stages of one document at any time.
IN_ORDER, LAST_FIRST = json.dumps(StageTracker.STAGES), json.dumps(StageTracker.STAGES[::-1])
# Behind the time that was asked for: the longest turn of all that are under way.
_PATIENCE_SECONDS = 120.0
# What pgbench says.
_NOTHING = "transactions actually processed: 0\n"


@dataclass(frozen=True)
class Spent:
    """What a client cost and said.

    Attributes:
        cpu_seconds: of its processes.
        errors: how many workers or requests ended in one.
        said: the first of these.
        turned_away: how often there was no connection free, and it had to ask again.
    """

    cpu_seconds: float
    errors: int
    said: str
    turned_away: int = 0


class Client(Protocol):
    """Somebody who claims and finishes."""

    def work(self, workers: int, batch: int, seconds: float) -> Spent:
        """Let so many workers work for so long, and for the turns that they have begun with."""


def _run(command: list[str], environment: dict[str, str], text: str, seconds: float) -> tuple[str, str, int, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command,
        check=False,
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        timeout=seconds + _PATIENCE_SECONDS,
        cwd=Path(__file__).parents[2],
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, done.stderr, done.returncode, spent


class Direct:
    """Over Postgres connections, one for each worker.

    Args:
        local: the stack.
        stages: in order of preference.
        settings: of the sessions, as options of libpq.
    """

    def __init__(self, local: LocalSupabase, stages: str = IN_ORDER, settings: str = "") -> None:
        self._stages = stages
        names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
        parts = conninfo_to_dict(local.database_url)
        # Not among the arguments, which are there for all to read.
        given = {names[name]: str(parts[name]) for name in names if name in parts}
        self._environment = clean_environment() | given | {"PGOPTIONS": settings}
        self._program = find_installation(16).bin / "pgbench"
        self._script = Path(__file__).parent / "script.sql"

    def work(self, workers: int, batch: int, seconds: float) -> Spent:  # noqa: D102 (as in Client, here and below)
        options = [f"--client={workers}", f"--jobs={min(workers, 2)}", f"--time={max(1, round(seconds))}"]
        given = [f"--define=batch={batch}", f"--define=stages={self._stages}"]
        command = [str(self._program), "--no-vacuum", "--protocol=extended", *options, *given, f"--file={self._script}"]
        output, errors, code, spent = _run(command, self._environment, "", seconds)
        if code == 0 and _NOTHING in output:
            # Its time begins before its connections are there, which is long on a busy machine.
            return self.work(workers, batch, 2 * seconds)
        lines = [line for line in errors.splitlines() if "error" in line.lower() or "abort" in line]
        return Spent(spent, max(len(lines), int(code != 0)), lines[0] if lines else "")


class Rest:
    """Through PostgREST, a connection for each worker.

    Args:
        local: the stack.
        pool: how many connections to Postgres PostgREST has for all of them.
    """

    def __init__(self, local: LocalSupabase, pool: int = 20) -> None:
        assert local._postgrest is not None  # noqa: SLF001 - nobody else is to choose its pool
        self._server = local._postgrest  # noqa: SLF001
        self._pool = {"PGRST_DB_POOL": str(pool)}
        self._orders = {"url": local.url, "key": local.key(), "stages": IN_ORDER}

    def work(self, workers: int, batch: int, seconds: float) -> Spent:  # noqa: D102
        self._server.stop()
        self._server.start(self._server.port, self._pool)
        orders = {**self._orders, "workers": workers, "batch": batch, "seconds": seconds}
        command = [sys.executable, "-m", "benchmarks._throughput.http_client"]
        output, errors, code, spent = _run(command, dict(os.environ), json.dumps(orders), seconds)
        if code != 0:
            return Spent(spent, 1, errors.strip().splitlines()[-1])
        found = json.loads(output)
        return Spent(spent, len(found["errors"]), next(iter(found["errors"]), ""), found["turned_away"])
