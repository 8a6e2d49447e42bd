"""How each question is answered with 20,000 documents: by which index, and by touching how many pages."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from processors_v2.local import LocalSupabase

CLAIM = uuid.UUID(int=77)
# Finished, failed, half done and new ones; built without triggers, since they came long ago.
BUILD = """
insert into krai_core.documents (filename, stage_status)
select 'manual ' || n || '.pdf', krai_private.default_stage_status() || case
    when n % 10 < 6 then (
        select jsonb_object_agg(s.name, krai_private.pending_stage() || jsonb_build_object(
            'status', case when s.name = 'image_processing' and n % 20 = 1 then 'skipped' else 'completed' end,
            'completed_at', krai_private.iso_time(t.at + s.position * interval '1 s'),
            'duration_seconds', s.position + n % 7))
        from krai_core.stages s)
    when n % 10 < 8 then jsonb_build_object('upload', done.stage, 'text_extraction', case n % 10
        when 6 then krai_private.pending_stage() || jsonb_build_object(
            'status', 'failed', 'completed_at', krai_private.iso_time(t.at),
            -- Few kinds, so that for one of them it would do to read them all.
            'error', format('page %s of a %s is empty', n, (array['manual', 'catalogue', 'leaflet'])[n % 3 + 1]))
        else krai_private.pending_stage() end)
    else '{}' end
from generate_series(1, 20000) n
cross join lateral (select '2025-10-04T08:00:00Z'::timestamptz + n * interval '1 min' as at) t
cross join lateral (
    select krai_private.pending_stage()
        || jsonb_build_object('status', 'completed', 'completed_at', krai_private.iso_time(t.at)) as stage
) done;
insert into krai_core.stage_runs (document_id, stage_name, status, finished_at, error, error_fingerprint, is_current)
select d.id, s.key, case k.n when 1 then s.value ->> 'status' else 'released' end,
    (s.value ->> 'completed_at')::timestamptz, s.value ->> 'error',
    krai_private.error_fingerprint(s.value ->> 'error'), k.n = 1
from krai_core.documents d
cross join lateral jsonb_each(d.stage_status) s
-- Each upload has been given back once.
cross join generate_series(0, 1) k (n)
where s.value ->> 'status' in ('completed', 'failed', 'skipped') and (k.n = 1 or s.key = 'upload');
insert into krai_core.stage_runs (document_id, stage_name, status, available_at)
select t.document_id, t.stage_name, 'ready', now() from krai_private.startable_stages t where not t.is_failed;
"""
SCANS = """
select c.relname::text, pg_stat_get_xact_numscans(c.oid) from pg_class c
where c.relnamespace = 'krai_core'::regnamespace and c.relkind in ('r', 'i')
"""


def _schema_of(question: str) -> str:
    return "krai_private" if question.startswith("derive_") else "krai_core"


@dataclass
class Answer:
    """How a question was answered: what was scanned (tables: from end to end), how many pages were touched."""

    scanned: set[str]
    pages: int


class Asked:
    """20,000 documents, of which a hundred are being worked on, and the questions about them."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        run = self._connection.execute
        run("set session_replication_role = replica")
        run(BUILD)
        run("set session_replication_role = origin")
        run("select krai_core.rebuild_statistics()")
        run("select krai_core.claim_stages('[\"upload\", \"text_extraction\"]', 'anna', 100, null, %s)", [CLAIM])
        run("vacuum analyze")
        self._words = {
            "claim": CLAIM,
            "document": self._one("select document_id from krai_core.stage_runs where status = 'running' limit 1"),
            # One whose ready run is missing.
            "waiting": self._one(
                "delete from krai_core.stage_runs where id = (select min(id) from krai_core.stage_runs"
                " where status = 'ready') returning document_id"
            ),
            "kind": self._one("select error_fingerprint from krai_core.stage_runs where status = 'failed' limit 1"),
        }

    def _one(self, query: str) -> Any:
        row = self._connection.execute(query).fetchone()
        assert row is not None
        return row[0]

    def _scans(self) -> dict[str, int]:
        return dict(self._connection.execute(SCANS).fetchall())

    def ask(self, question: str) -> Answer:
        """Ask the second time, when what is cached for a session is there, and take back what it did."""
        for _ in range(2):
            with self._connection.transaction(force_rollback=True):
                before = self._scans()
                called = f"{_schema_of(question)}.{question.format(**self._words)}"
                plan = self._one(f"explain (analyze, buffers, format json) select {called}")[0]["Plan"]
                after = self._scans()
        scanned = {name for name, count in after.items() if count > before[name]}
        return Answer(scanned, plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])

    def indexes(self) -> set[str]:
        """Of the runs and the documents."""
        rows = self._connection.execute(
            "select indexrelid::regclass::text from pg_index "
            "where indrelid in ('krai_core.stage_runs'::regclass, 'krai_core.documents'::regclass)"
        )
        return {name.removeprefix("krai_core.") for (name,) in rows.fetchall()}

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@pytest.fixture(scope="module")
def asked(local: LocalSupabase, template: str) -> Iterator[Asked]:
    """A database of its own for these tests."""
    name = "sql_plans"
    local.create_database(name, template)
    asked = Asked(local.url_of(name, "supabase_admin"))
    yield asked
    asked.close()
    local.drop_database(name)


# The question, the index that answers it, and twice the pages that it touched when this was written.
QUESTIONS = [
    ("list_documents()", "stage_runs_completed", 2000),
    ("list_documents('embedding', 'completed')", "stage_runs_completed", 1400),
    ("list_documents('image_processing', 'skipped')", "stage_runs_skipped", 1400),
    ("list_documents('text_extraction', 'failed')", "stage_runs_failed", 1400),
    ("list_documents('upload', 'processing')", "stage_runs_running", 1000),
    ("list_documents('upload', 'pending')", "stage_runs_ready", 1400),
    ("list_documents('search_indexing', 'pending')", "stage_runs_ready", 3200),
    ("list_documents(null, 'failed')", "stage_runs_failures", 1400),
    ("list_documents(null, 'processing')", "stage_runs_running", 1600),
    ("list_documents(null, null, 50, null, 'catalogue')", "stage_runs_failures", 2600),
    ("list_documents(null, null, 50, null, null, '{kind}')", "stage_runs_fingerprint", 1600),
    ("get_failures()", "stage_runs_failures", 370),
    ("get_failures(null, '2025-10-17T20:00:00Z')", "stage_runs_failures", 100),
    ("get_failures('text_extraction')", "stage_runs_failed", 370),
    ("get_stuck_stages()", "stage_runs_running", 1000),
    ("get_workers()", "stage_runs_running", 50),
    ("get_stage_statistics()", "stage_runs_ready", 200),
    ("get_forecast()", "stage_flow_pkey", 150),
    ("get_document_timeline('{document}')", "stage_runs_document_open_stage", 60),
    ("get_document_eta('{document}')", "stage_runs_document_open_stage", 200),
    ("get_weighted_progress('{document}')", "stage_runs_document_open_stage", 90),
    ("get_document_status('{document}')", "documents_pkey", 30),
    ("get_document_events(jsonb_build_object('{document}', null))", "stage_runs_document_open_stage", 40),
    (
        "get_document_events(jsonb_build_object('{document}', jsonb_build_object('seen', '0')))",
        "stage_runs_document_open_stage",
        44,
    ),
    ("explain_stage('{document}', 'storage')", "stage_runs_document_open_stage", 60),
    ("get_documents_ready_for('upload')", "stage_runs_ready", 700),
    ("claim_stages('upload', 'w', 10)", "stage_runs_ready", 2000),
    ("claim_stages('upload', 'w', 10, null, '{claim}')", "stage_runs_claim", 8000),
    ("derive_ready_runs(array['{waiting}'::uuid])", "stage_runs_superseded_of_document", 100),
    ("prune_runs('1 day', true, 100)", "stage_runs_superseded", 2000),
    ("retry_failed('text_extraction', p_limit => 10, p_dry_run => true)", "idx_documents_stage_status", 12000),
]
questions = pytest.mark.parametrize(
    ("question", "index", "pages"), QUESTIONS, ids=[question for question, *_ in QUESTIONS]
)


@questions
def test_a_question_is_answered_from_its_index(asked: Asked, question: str, index: str, pages: int) -> None:  # noqa: ARG001
    """The index made for it is used, and neither documents nor runs are read from end to end."""
    answer = asked.ask(question)
    assert index in answer.scanned
    assert answer.scanned & {"documents", "stage_runs"} == set()


@questions
def test_a_question_touches_few_pages(asked: Asked, question: str, index: str, pages: int) -> None:  # noqa: ARG001
    """As many pages as its answer is long, where the documents alone fill thousands."""
    assert 0 < asked.ask(question).pages <= pages


def test_every_index_has_its_question(asked: Asked) -> None:
    """No index is kept that answers nothing; the key of the runs is how one of them is found."""
    assert asked.indexes() == {index for _, index, _ in QUESTIONS} - {"stage_flow_pkey"} | {"stage_runs_pkey"}


def test_the_next_pages_cost_as_much_as_the_first(asked: Asked) -> None:
    """Behind 5,000 documents a page touches as many pages of the table as at the beginning."""
    first = asked.ask("list_documents('upload', 'completed', 50)").pages
    deep = asked._one(
        "select format('%s %s', krai_private.iso_time(finished_at), id) from krai_core.stage_runs "
        "where stage_name = 'upload' and status = 'completed' order by finished_at desc offset 5000 limit 1"
    )
    assert asked.ask(f"list_documents('upload', 'completed', 50, '{deep}')").pages <= first + 50
