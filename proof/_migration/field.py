"""Databases as they are before the migration: documents of an earlier tracker, or of none."""

import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from processors_v2.local import LocalSupabase

# The tables are those of the tests of the migrations.
SQL = Path(__file__).parents[2] / "tests" / "migrations" / "sql"
LAYERS = {"field": ("field.sql",), "v1": ("field.sql", "v1.sql")}
AT_ONCE = 50_000

# What a document is like is told by its number, which is kept in page_count. Who writes to some of them while the
# migration runs has numbers of his own, so that all others must be afterwards what they were made as.
RENAMED, EDITED, HELD = (7, 33), (11, 14), (53, 95)
UNTOUCHED = f"d.page_count > 0 and d.page_count % 100 <> all ('{{{', '.join(map(str, RENAMED + EDITED + HELD))}}}')"

_STATUS = """
    case when n % 20 in (0, 1, 2, 3, 4, 5, 6, 7, 8, 16) then 'completed' when n % 20 = 17 then 'failed'
         when n % 20 in (9, 10, 11, 12) then 'pending' else 'processing' end
"""
# An archive that was never tracked, fresh ones, some at work, tracked to the end, failed, odd in three ways, running.
_STAGES = """
    case when n % 20 <= 12 then fresh.stages
         when n % 20 <= 15 then fresh.stages || jsonb_build_object(
             'upload', upload.stage, 'text_extraction', upload.stage, 'image_processing', jsonb
             '{"status": "skipped", "metadata": {"reason": "No images found"}}')
         when n % 20 = 16 then (select jsonb_object_agg(key, upload.stage) from jsonb_object_keys(fresh.stages) key)
         when n % 20 = 17 then fresh.stages || jsonb_build_object('upload', upload.stage, 'text_extraction', jsonb
             '{"status": "failed", "started_at": "2026-11-23 17:09:20+00", "error": "OCR engine timeout",
               "progress": 80, "metadata": {"page": 7}}')
         when n % 20 = 18 then (array[null, '["upload", "storage"]',
             '{"upload": "completed", "text_extraction": "in_progress", "storage": "failed"}']::jsonb[])[1 + n / 20 % 3]
         else fresh.stages || jsonb_build_object('upload', upload.stage,
             'text_extraction', jsonb '{"status": "processing", "started_at": "2026-11-23 17:09:20.958275+00",
               "progress": 45.5, "metadata": {}}') end
"""
_FRESH = """
    cross join (
        select pg_catalog.pg_get_expr(a.adbin, a.adrelid) as text from pg_attrdef a
        join pg_attribute c on c.attrelid = a.adrelid and c.attnum = a.adnum
        where a.adrelid = 'krai_core.documents'::regclass and c.attname = 'stage_status'
    ) as column_default
    cross join lateral (select substr(column_default.text, 2, length(column_default.text) - 9)::jsonb as stages) fresh
    cross join lateral (select jsonb_build_object('status', 'completed', 'progress', 100, 'error', null,
        'started_at', '2026-11-23 17:09:20.958275+00', 'completed_at', '2026-11-23 17:10:10.958275+00',
        'duration_seconds', n % 500 / 10.0,
        'metadata', jsonb_build_object('page_count', n % 700)) as stage) upload
"""
# The first two letters of the status of each stage, in order.
EXPECTED = {
    "v1": """
        case when n % 20 <= 8 or n % 20 = 16 then 'cocococococococo' when n % 20 <= 12 then 'pepepepepepepepe'
             when n % 20 <= 15 then 'cocoskpepepepepe' when n % 20 = 17 then 'cofapepepepepepe'
             when n % 20 = 18 and n / 20 % 3 = 2 then 'copepepepepepepe' when n % 20 = 18 then 'pepepepepepepepe'
             else 'coprpepepepepepe' end
    """,
    "field": "case when n % 20 <= 8 or n % 20 = 16 then 'cocococococococo' else 'pepepepepepepepe' end",
}
# What must not have been lost of what the stages said.
KEPT = {
    "v1": """
        case when n % 20 <= 12 then true
             when n % 20 <= 17 then (d.stage_status #>> '{upload,duration_seconds}')::numeric = n % 500 / 10.0
                 and (d.stage_status #>> '{upload,metadata,page_count}')::integer = n % 700
                 and (n % 20 <> 17 or d.stage_status #>> '{text_extraction,error}' = 'OCR engine timeout')
             when n % 20 = 18 and n / 20 % 3 = 2 then d.stage_status #>> '{storage,metadata,v1}' = 'failed'
             when n % 20 = 18 then true
             else (d.stage_status #>> '{text_extraction,progress}')::numeric = 45.5 end
    """,
    "field": "true",
}


def document_id(number: int) -> uuid.UUID:
    """The id of a document that was there before."""
    return uuid.UUID(hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest())


def chunks(documents: int) -> list[tuple[int, int]]:
    """The numbers from which and up to which documents are inserted in one statement."""
    return [(first, min(first + AT_ONCE, documents + 1) - 1) for first in range(1, documents + 1, AT_ONCE)]


def fill(connection: psycopg.Connection[Any], kind: str, documents: int) -> Iterator[None]:
    """Make the tables of a kind with so many documents, and yield after each chunk of them."""
    for name in LAYERS[kind]:
        connection.execute((SQL / name).read_bytes())
    has_stages = kind == "v1"
    if has_stages:
        # Built at once when all rows are there.
        connection.execute("drop index krai_core.idx_documents_stage_status")
    columns = "id, filename, page_count, file_hash, content_text, processing_status, processing_error"
    insert = f"""
        insert into krai_core.documents ({columns}{", stage_status" if has_stages else ""})
        select md5(n::text)::uuid, n || '.pdf', n, md5(n::text), repeat(md5(n::text), 25), {_STATUS},
            case when n % 20 = 17 then 'OCR engine timeout' end {"," + _STAGES if has_stages else ""}
        from generate_series(%s::integer, %s::integer) n {_FRESH if has_stages else ""}
    """.replace("%", "%%").replace("%%s", "%s")
    connection.execute("delete from krai_system.processing_queue")
    connection.execute("delete from krai_core.documents")
    for first, last in chunks(documents):
        connection.execute(insert, [first, last])
        yield
    if has_stages:
        connection.execute("set maintenance_work_mem = '512MB'")
        connection.execute("create index idx_documents_stage_status on krai_core.documents using gin (stage_status)")
    connection.execute("analyze krai_core.documents")


def copy(local: LocalSupabase, template: str, name: str) -> None:
    """Copy a database file by file, which is faster than through the log where it is large."""
    with psycopg.connect(local.admin_url, autocommit=True) as admin:
        names = (sql.Identifier(name), sql.Identifier(template))
        admin.execute(sql.SQL("create database {} template {} strategy file_copy owner postgres").format(*names))
