"""What must be so when the migration has ended."""

from collections.abc import Iterator
from typing import Any

import psycopg

from benchmarks._migration.field import EXPECTED, KEPT, UNTOUCHED
from benchmarks._migration.traffic import Told

AT_ONCE = 10_000
VERDICTS = 11
# Of the rows that nobody wrote to meanwhile: all columns but the one that the migration is about.
OTHERS = f"""
    select count(*), sum(hashtextextended(concat_ws('|', d.filename, d.page_count, d.file_hash, d.content_text,
        d.processing_status, d.processing_error, d.language, d.created_at, d.updated_at), 0)::numeric)
    from krai_core.documents d where {UNTOUCHED}
"""
STATES = """
    (select string_agg(left(d.stage_status -> s.name ->> 'status', 2), '' order by s.position) from krai_core.stages s)
"""
# A run for each stage that is or was worked on; a current one for each that has ended.
HISTORY = """
    select count(*) from krai_core.documents d cross join krai_core.stages s
    cross join lateral (select d.stage_status -> s.name ->> 'status' as status offset 0) stage
    where stage.status <> 'pending' and (
        select count(*) from krai_core.stage_runs r where r.document_id = d.id and r.stage_name = s.name
          and case when stage.status = 'processing' then r.status = 'running' else r.is_current end) <> 1
"""
UNFINISHED = """
    select (select count(*) from krai_core.stages s where s.fill_after is not null)
        + (select count(*) from pg_index i join pg_class c on c.oid = i.indrelid
           where c.relnamespace = 'krai_core'::regnamespace and not i.indisvalid)
        + case when to_regclass('krai_core.idx_documents_stage_status') is null then 1 else 0 end
"""
COUNTED = """
    select count(*) from (
        select s.stage_name,
            s.pending_count + s.processing_count + s.completed_count + s.failed_count + s.skipped_count as states
        from krai_core.vw_stage_statistics s) x
    where x.states <> (select count(*) from krai_core.documents)
"""

Connection = psycopg.Connection[Any]


def one(connection: Connection, query: str, parameters: list[Any] | None = None) -> Any:
    """The first value of a query."""
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]


def others(connection: Connection) -> tuple[Any, ...]:
    """What the rows say beside stage_status, to be compared before and after."""
    row = connection.execute(OTHERS).fetchone()
    assert row is not None
    return tuple(row)


def verdicts(connection: Connection, kind: str, before: tuple[Any, ...], told: Told) -> Iterator[tuple[str, int]]:
    """Each thing that must be so, and how often it is not."""
    yield "refused to a writer", len(told.errors)
    yield "left to be done", one(connection, UNFINISHED)
    yield (
        "documents out of shape",
        one(connection, "select count(*) from krai_core.documents d where not krai_private.is_sound(d.stage_status)"),
    )
    numbered = (
        f"select count(*) from krai_core.documents d cross join lateral (select d.page_count as n) x where {UNTOUCHED}"
    )
    yield (
        "documents with other stages than they were made with",
        one(connection, f"{numbered} and {STATES} is distinct from {EXPECTED[kind]}"),
    )
    yield "documents that lost what a stage held", one(connection, f"{numbered} and ({KEPT[kind]}) is not true")
    yield "rows or other columns changed", int(others(connection) != before)
    yield "acknowledged writes lost", lost(connection, told)
    yield "stages without their run", one(connection, HISTORY)
    yield "stages whose counts are not those of the documents", one(connection, COUNTED)
    # These two mend what they find.
    rebuilt = one(connection, "select krai_core.rebuild_ready_runs()")
    yield "ready runs rebuilt", sum(rebuilt.values())
    yield "statistics rebuilt", one(connection, "select krai_core.rebuild_statistics()")["mended"]


def lost(connection: Connection, told: Told) -> int:
    """How many acknowledged writes are not there."""
    missing = 0
    for start in range(0, len(told.inserted), AT_ONCE):
        part = told.inserted[start : start + AT_ONCE]
        missing += len(part) - one(connection, "select count(*) from krai_core.documents where id = any (%s)", [part])
    names = [[*told.filenames], [*told.filenames.values()]]
    missing += one(
        connection,
        """
        select count(*) from unnest(%s::uuid[], %s::text[]) as told (id, filename)
        left join krai_core.documents d using (id) where d.filename is distinct from told.filename
        """,
        names,
    )
    edits = [[*told.edits], *([*column] for column in zip(*told.edits.values(), strict=True))] if told.edits else None
    if edits:
        missing += one(
            connection,
            """
            select count(*) from unnest(%s::uuid[], %s::text[], %s::integer[]) as told (id, status, number)
            left join krai_core.documents d using (id)
            where (d.stage_status #>> '{embedding,status}', d.stage_status #>> '{embedding,metadata,number}')
                is distinct from (told.status, told.number::text)
            """,
            edits,
        )
    return missing
