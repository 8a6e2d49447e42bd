"""What the calls of the tracker cost over PostgREST, beside a bare `select 1` in the same run.

Every call is sent once per round, the bare one between them, so that all meet the same noise. Twice over: through
supabase-py's own `client.rpc(...)`, where the targets are, and through StageTracker, which sends less per call.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import psycopg

from benchmarks._shared.bench import Bench
from processors_v2._calls.call import Call
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageContext, StageTracker

READERS = 1.3
TRANSITIONS = 2.0
MICROSECONDS_A_VALUE = 10.0

TARGETS = {
    "start_stage": TRANSITIONS,
    "update_stage_progress": READERS,
    "complete_stage": TRANSITIONS,
    "fail_stage": TRANSITIONS,
    "skip_stage": TRANSITIONS,
    "get_document_progress": READERS,
    "get_current_stage": READERS,
    "can_start_stage": READERS,
    "get_document_status": READERS,
}

BARE = """
create function krai_core.bare() returns integer language sql set search_path = '' as 'select 1';
grant execute on function krai_core.bare() to service_role;
notify pgrst, 'reload schema';
"""


def run(bench: Bench) -> None:
    """Measure both ways, then a progress loop inside a context."""
    with LocalSupabase() as local:
        with psycopg.connect(local.database_url, autocommit=True) as connection:
            connection.execute(BARE)
        local.reload_schema()
        rounds = 40 if bench.quick else 600
        tracker = StageTracker(local.client())
        rpc = local.client().schema("krai_core").rpc

        def through_supabase_py(function: str, arguments: dict[str, Any]) -> object:
            return rpc(function, arguments).execute().data

        def through_tracker(function: str, arguments: dict[str, Any]) -> object:
            # The bare call has no method of its own.
            call = Call(f"rpc/{function}", arguments, lambda answer: answer, repeatable=True)
            return tracker._transport.send(call)  # noqa: SLF001

        for way, send in (("supabase-py", through_supabase_py), ("StageTracker", through_tracker)):
            documents = [new_document(local, f"{way} {number}.pdf") for number in range(rounds)]
            times = measure(bench, way, documents, send)
            report(bench, way, times)
        progress_in_a_context(bench, tracker, new_document(local, "loop.pdf"))


def new_document(local: LocalSupabase, filename: str) -> str:
    """Insert a document and return its id."""
    with psycopg.connect(local.database_url, autocommit=True) as connection:
        row = connection.execute(
            "insert into krai_core.documents (filename) values (%s) returning id", [filename]
        ).fetchone()
    assert row is not None
    return str(row[0])


def measure(
    bench: Bench, way: str, documents: list[str], send: Callable[[str, dict[str, Any]], object]
) -> dict[str, list[float]]:
    """Return the milliseconds of every call, by function."""
    times: dict[str, list[float]] = defaultdict(list)

    def timed(function: str, **arguments: object) -> None:
        begin = time.perf_counter()
        send(function, arguments)
        times[function].append((time.perf_counter() - begin) * 1000)

    for number, document in enumerate(bench.progress(documents, way)):
        if number == len(documents) // 10:
            # Until here connections were opened and statements planned for the first time.
            times.clear()
        upload = {"p_document_id": document, "p_stage_name": "upload"}
        timed("bare")
        timed("start_stage", **upload)
        timed("update_stage_progress", **upload, p_progress=45.5, p_metadata={"pages_processed": 2000})
        timed("bare")
        timed("complete_stage", **upload, p_metadata={"total_pages": 4386})
        timed("fail_stage", p_document_id=document, p_stage_name="text_extraction", p_error="OCR engine timeout")
        timed("skip_stage", p_document_id=document, p_stage_name="image_processing", p_reason="No images found in PDF")
        timed("bare")
        timed("get_document_progress", p_document_id=document)
        timed("get_current_stage", p_document_id=document)
        timed("can_start_stage", p_document_id=document, p_stage_name="embedding")
        timed("bare")
        timed("get_document_status", p_document_id=document)
    return times


def report(bench: Bench, way: str, times: dict[str, list[float]]) -> None:
    """Add p50 and p99 of each call beside those of the bare one."""
    for share in (50, 99):
        bare = percentile(times["bare"], share)
        bench.add(f"select 1, {way}, p{share}", bare, "ms")
        for function, target in TARGETS.items():
            value = percentile(times[function], share)
            ratio = value / bare
            asked = target if share == 50 and way == "supabase-py" else None
            bench.add(
                f"{function}, {way}, p{share}",
                value,
                "ms",
                bare,
                ratio,
                asked,
                None if asked is None else ratio <= asked,
            )


def percentile(values: list[float], share: int) -> float:
    """Nearest rank of the sorted values."""
    ranked = sorted(values)
    return ranked[min(len(ranked) * share // 100, len(ranked) - 1)]


def progress_in_a_context(bench: Bench, tracker: StageTracker, document: str) -> None:
    """Time update_progress in a tight loop, with the metadata that a page loop has."""
    pages = 10_000 if bench.quick else 100_000
    rounds = []
    for _ in bench.progress(range(3 if bench.quick else 10), "progress loop"):
        with StageContext(tracker, document, "text_extraction") as ctx:
            begin = time.perf_counter()
            for page in range(pages):
                ctx.update_progress(100 * page / pages, {"pages_processed": page})
            rounds.append((time.perf_counter() - begin) / pages * 1e6)
    value = percentile(rounds, 50)
    bench.add(
        "ctx.update_progress, a value", value, "us", target=MICROSECONDS_A_VALUE, ok=value <= MICROSECONDS_A_VALUE
    )
