"""Drain no-op jobs with procrastinate: its psycopg connector, deferred in batches, many at a time in one worker.

Jobs are deleted as they succeed, and nothing is listened for.
"""

import asyncio
import time

import procrastinate

from benchmarks._drain.peer import Drained, serve

CONCURRENCY = 30
DEFER_AT_ONCE = 1000


async def drain(url: str, jobs: int) -> Drained:
    """Defer the jobs, then run a worker until it has caught up."""
    done = 0
    connector = procrastinate.PsycopgConnector(conninfo=url, min_size=4, max_size=20)
    app = procrastinate.App(connector=connector)

    @app.task
    async def nothing() -> None:
        nonlocal done
        done += 1

    async with app.open_async():
        if not await app.check_connection_async():
            await app.schema_manager.apply_schema_async()
        for begin in range(0, jobs, DEFER_AT_ONCE):
            await nothing.batch_defer_async(*[{} for _ in range(min(DEFER_AT_ONCE, jobs - begin))])
        await connector.execute_query_async("analyze procrastinate_jobs")
        begin_seconds = time.perf_counter()
        await app.run_worker_async(
            wait=False,
            concurrency=CONCURRENCY,
            delete_jobs="successful",
            listen_notify=False,
            install_signal_handlers=False,
        )
        return Drained(time.perf_counter() - begin_seconds, done)


if __name__ == "__main__":
    serve(lambda url, jobs: asyncio.run(drain(url, jobs)))
