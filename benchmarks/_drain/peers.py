"""Drain with the peers, each in a process and a database of its own on the server of everybody else."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

from benchmarks._drain.peer import URL_VARIABLE, Drained
from processors_v2.local import LocalSupabase

# Long enough for the slowest on a busy machine; whoever hangs must not hold up the others.
LIMIT_SECONDS = 300


@dataclasses.dataclass(frozen=True)
class Peer:
    """Another queue on Postgres.

    Attributes:
        name: what it and its settings are called.
        package: the package from PyPI.
        needs: further packages, under the names they are imported by.
        arguments: what its program takes behind the number of jobs.
    """

    name: str
    package: str
    needs: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


PEERS = (
    Peer("procrastinate", "procrastinate", ("psycopg_pool",)),
    Peer("pgqueuer, durable", "pgqueuer", ("asyncpg", "uvloop"), ("durable",)),
    Peer("pgqueuer, volatile", "pgqueuer", ("asyncpg", "uvloop"), ("volatile",)),
    Peer("dbos", "dbos"),
)


class PeerFailed(Exception):
    """A peer cannot be measured; the message says why, in one line."""


def drain(local: LocalSupabase, peer: Peer, jobs: int) -> Drained:
    """Let a peer drain.

    Raises:
        PeerFailed: it is not installed, or its program failed.
    """
    missing = [name for name in (peer.package, *peer.needs) if importlib.util.find_spec(name) is None]
    if missing:
        raise PeerFailed(f"{', '.join(missing)} is not installed")
    database = f"drain_{peer.package}"
    local.create_database(database)
    try:
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks._drain.peer_{peer.package}", str(jobs), *peer.arguments],
            check=False,
            env={**os.environ, URL_VARIABLE: local.url_of(database)},
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise PeerFailed(f"it was not done with {jobs} jobs after {LIMIT_SECONDS} s") from None
    finally:
        local.drop_database(database)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise PeerFailed(f"its program failed with exit code {done.returncode} and said: {said[-1]}")
    drained = Drained(**json.loads(done.stdout.splitlines()[-1]))
    if drained.jobs != jobs:
        raise PeerFailed(f"it did {drained.jobs} of {jobs} jobs")
    return drained
