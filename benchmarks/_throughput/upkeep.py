"""What it takes to keep tables of some size in order: vacuum, the GIN index built anew, the history pruned."""

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg

from benchmarks._drain.ours import Ours, fill
from benchmarks._shared.bench import Bench
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker

FEW, MANY = 5_000, 20_000
QUICK_FEW, QUICK_MANY = 500, 1_000
_BATCH = 500
_INDEX = "reindex index concurrently krai_core.idx_documents_stage_status"
_VACUUM = "vacuum (analyze) krai_core.documents, krai_core.stage_runs"
# Each document has one run that was given back, and superseded by the one that did the work.
_GIVE_BACK = """
select jsonb_array_length(krai_core.release_stages(coalesce(jsonb_agg(run), '[]')) -> 'released')
from jsonb_array_elements(krai_core.claim_stages('upload', 'upkeep', 1000)) run
"""
_PRUNE = "select (krai_core.prune_runs('0 s', p_limit => 10000) ->> 'pruned')::int"

Connection = psycopg.Connection[Any]


def measure(bench: Bench, local: LocalSupabase) -> None:
    """Measure with two numbers of documents, to see how it grows, and add the figures."""
    sizes = (QUICK_FEW, QUICK_MANY) if bench.quick else (FEW, MANY)
    found = {documents: dict(_measure(bench, local, documents)) for documents in sizes}
    few, many = (found[documents] for documents in sizes)
    for what, seconds in many.items():
        name = f"upkeep, {sizes[1]:,} finished documents beside {sizes[0]:,}, {what}"
        bench.add(name, seconds, "s", few[what], seconds / few[what])


def _measure(bench: Bench, local: LocalSupabase, documents: int) -> Iterator[tuple[str, float]]:
    url = local.database_url
    with (
        closing(Ours("upkeep", StageTracker.from_postgres(url), url)) as worker,
        closing(psycopg.connect(url, autocommit=True)) as connection,
    ):
        fill(connection, documents)
        _give_back(connection, documents)
        for _ in bench.progress(range(8 * documents // _BATCH), f"{documents:,} documents go through"):
            worker.finish(worker.claim(_BATCH))
        while runs := worker.claim(_BATCH):
            worker.finish(runs)
        yield "vacuum", _timed(connection, _VACUUM)
        yield "vacuum with nothing to do", _timed(connection, _VACUUM)
        yield "GIN index built anew with 64 MB", _timed(connection, _INDEX)
        connection.execute("set maintenance_work_mem = '1GB'")
        yield "GIN index built anew with 1 GB", _timed(connection, _INDEX)
        yield "a run pruned of each", _prune(connection, documents)


def _give_back(connection: Connection, documents: int) -> None:
    given_back = 0
    while given_back < documents:
        row = connection.execute(_GIVE_BACK).fetchone()
        if row is None or not row[0]:
            raise RuntimeError(f"Only {given_back} of {documents} runs could be given back.")
        given_back += row[0]


def _prune(connection: Connection, documents: int) -> float:
    began, pruned = time.perf_counter(), 0
    while row := connection.execute(_PRUNE).fetchone():
        pruned += row[0]
        if not row[0]:
            break
    seconds = time.perf_counter() - began
    if pruned != documents:
        raise RuntimeError(f"{pruned} runs were pruned, and {documents} were superseded.")
    return seconds


def _timed(connection: Connection, statement: str) -> float:
    began = time.perf_counter()
    connection.execute(statement.encode())
    return time.perf_counter() - began
