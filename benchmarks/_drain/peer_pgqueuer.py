"""Drain no-op jobs with pgqueuer: its asyncpg driver, uvloop, jobs taken and reported in batches, its drain mode.

The second argument is its durability: durable writes all of its tables to the log, volatile none of them.
"""

import os
import sys
import time
from typing import Any

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode

from benchmarks._drain.peer import Drained, serve

BATCH = 100


class TimedQueries(Queries):
    """Notes when jobs were last recorded as done, since the end of a drain waits for its background tasks."""

    recorded = 0.0

    async def log_jobs(self, *arguments: Any, **named: Any) -> None:
        """Record jobs as done."""
        await super().log_jobs(*arguments, **named)
        self.recorded = time.perf_counter()


async def drain(url: str, jobs: int) -> Drained:
    """Enqueue the jobs, then run a queue manager until there are none."""
    done = 0
    connection = await asyncpg.connect(url)
    driver = AsyncpgDriver(connection)
    queries = TimedQueries(driver)
    await queries.install()
    await queries.enqueue(["nothing"] * jobs, [None] * jobs, [0] * jobs)
    await connection.execute("analyze")
    worker = PgQueuer(driver, queries=queries)

    @worker.entrypoint("nothing")
    async def nothing(_: Job) -> None:
        nonlocal done
        done += 1

    begin = time.perf_counter()
    await worker.qm.run(batch_size=BATCH, mode=QueueExecutionMode.drain)
    await connection.close()
    return Drained(queries.recorded - begin, done)


if __name__ == "__main__":
    os.environ["PGQUEUER_DURABILITY"] = sys.argv[2]
    serve(lambda url, jobs: uvloop.run(drain(url, jobs)))
