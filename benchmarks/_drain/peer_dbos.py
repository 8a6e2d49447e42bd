"""Drain no-op workflows with dbos: one queue that is polled often, and as many threads as database connections.

More threads than that make it slower, as do async workflows. A first workflow is enqueued through its client onto a
queue that nobody listens to, and the others are copies of it, made by one statement: the worker sees all of them at
once, when the clock starts.
"""

import threading
import time

import psycopg
from dbos import DBOS, DBOSClient, DBOSConfig, EnqueueOptions

from benchmarks._drain.peer import Drained, serve

QUEUE = "drain"
POLLING_SECONDS = 0.01
WORKER_CONCURRENCY = 1000
THREADS = 8

MULTIPLY = """
with copies as (
    insert into dbos.workflow_status
    select (jsonb_populate_record(w, jsonb_build_object('workflow_uuid', gen_random_uuid(), 'queue_name', %s::text))).*
    from dbos.workflow_status w, generate_series(1, %s)
    where w.workflow_uuid = %s
    returning workflow_uuid
)
insert into dbos.workflow_input
select (jsonb_populate_record(i, jsonb_build_object('workflow_uuid', c.workflow_uuid))).*
from dbos.workflow_input i, copies c
where i.workflow_uuid = %s
"""
UNFINISHED = "select count(*) from dbos.workflow_status where queue_name = %s and status <> 'SUCCESS'"


def drain(url: str, jobs: int) -> Drained:
    """Let the jobs go at once, and wait until each is recorded as a success."""
    done = 0
    counting = threading.Lock()
    last = threading.Event()
    config: DBOSConfig = {
        "name": "drain",
        "system_database_url": url,
        "sys_db_pool_size": THREADS,
        "max_executor_threads": THREADS,
        "log_level": "ERROR",
        "application_version": "1",
    }
    DBOS(config=config)

    @DBOS.workflow(name="nothing")
    def nothing() -> None:
        nonlocal done
        with counting:
            done += 1
            if done == jobs:
                last.set()

    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=WORKER_CONCURRENCY, polling_interval_sec=POLLING_SECONDS)
    client = DBOSClient(system_database_url=url)
    options: EnqueueOptions = {
        "workflow_name": "nothing",
        "queue_name": "held",
        "app_version": "1",
        "application_name": "drain",
    }
    first = client.enqueue(options).workflow_id
    client.destroy()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(MULTIPLY, [QUEUE, jobs, first, first])
        begin = time.perf_counter()
        last.wait()
        # The last ones have run, and are about to be recorded.
        while connection.execute(UNFINISHED, [QUEUE]).fetchone() != (0,):
            time.sleep(0.01)
        seconds = time.perf_counter() - begin
    DBOS.destroy()
    return Drained(seconds, done)


if __name__ == "__main__":
    serve(drain)
