"""What the description of this system suggests to write for each question, and how long that takes on the same rows."""

import time
from typing import Any, TypeAlias

import psycopg

Connection: TypeAlias = psycopg.Connection[Any]

# A naive statement is run so often, or until so much time has passed; one that takes longer than the limit is cut off.
TIMES, SECONDS, LIMIT_SECONDS = 3, 2.0, 60.0

STATISTICS = "select * from naive.vw_stage_statistics"
# Those of a stage in a status, newest first.
LIST = """
select * from naive.vw_documents_by_stage where embedding_status ->> 'status' = 'completed'
order by created_at desc limit 50
"""
LIST_ALL = "select * from naive.vw_documents_by_stage order by created_at desc limit 50"
DEEP = """
select * from naive.vw_documents_by_stage where embedding_status ->> 'status' = 'completed'
order by created_at desc limit 50 offset 5000
"""
FAILED = """
select d.id, d.filename, s.key, s.value ->> 'error' from krai_core.documents d, jsonb_each(d.stage_status) s
where s.value ->> 'status' = 'failed'
"""
FAILED_LIKE = f"{FAILED} and s.value ->> 'error' ilike '%%timeout%%' order by d.created_at desc limit 50"
FAILURES = f"""
select f.key, regexp_replace(f.error, '[0-9]+', 'n', 'g') as kind, count(*) from ({FAILED}) f (id, filename, key, error)
group by 1, 2 order by 3 desc
"""
RUNNING = """
select d.id, d.filename, s.key, s.value from krai_core.documents d, jsonb_each(d.stage_status) s
where s.value ->> 'status' = 'processing' order by s.value ->> 'started_at'
"""
FLOW = """
select date_trunc('hour', (d.stage_status -> 'embedding' ->> 'completed_at')::timestamptz), count(*)
from krai_core.documents d
where (d.stage_status -> 'embedding' ->> 'completed_at')::timestamptz > now() - interval '1 day' group by 1
"""
READY = """
select d.* from krai_core.documents d
where d.stage_status -> 'search_indexing' ->> 'status' = 'pending' and naive.can_start_stage(d.id, 'search_indexing')
order by d.created_at limit 100
"""
ONE = "select stage_status from krai_core.documents where id = %(document)s"
ONE_IN_VIEW = "select * from naive.vw_documents_by_stage where id = %(document)s"
FIRST_IN_VIEW = "select * from naive.vw_documents_by_stage where id > %(document)s order by id limit 50"
PROGRESS = "select naive.get_document_progress(%(document)s)"
CURRENT = "select naive.get_current_stage(%(document)s)"
CAN_START = "select naive.can_start_stage(%(document)s, 'search_indexing')"
TIMELINE = """
select s.key, s.value from krai_core.documents d, jsonb_each(d.stage_status) s
where d.id = %(document)s order by s.value ->> 'started_at'
"""
# The usual time of each stage that is not done, summed up.
ETA = f"""
select sum(v.avg_duration_seconds) from krai_core.documents d, jsonb_each(d.stage_status) s, ({STATISTICS}) v
where d.id = %(document)s and s.value ->> 'status' not in ('completed', 'skipped') and v.stage_name = s.key
"""


class Stopwatch:
    """Milliseconds that naive statements take in one database; each is measured once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: dict[str, float] = {}

    def milliseconds(self, sql: str, document: str) -> float:
        """Return the least of a few runs; for one that was cut off the limit, which it takes at least."""
        if sql not in self._known:
            self._known[sql] = self._measure(sql, document)
        return self._known[sql]

    def _measure(self, sql: str, document: str) -> float:
        times: list[float] = []
        with self._connection.transaction():
            self._connection.execute(f"set local statement_timeout = '{LIMIT_SECONDS:.0f}s'")
            while len(times) < TIMES and sum(times) < SECONDS:
                begin = time.perf_counter()
                try:
                    with self._connection.transaction():
                        self._connection.execute(sql, {"document": document}, prepare=False)
                except psycopg.errors.QueryCanceled:
                    return LIMIT_SECONDS * 1000
                times.append(time.perf_counter() - begin)
        return min(times) * 1000
