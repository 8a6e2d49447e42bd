"""Ready runs are what the truth asks for, however it was written; after each test the fixtures prove it again."""

import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest

FIRST = ["upload"]
AFTER_UPLOAD = ["image_processing", "text_extraction"]


def _ready(sql: Any, document: uuid.UUID) -> list[str]:
    return [
        stage
        for (stage,) in sql.rows(
            "select stage_name from krai_core.stage_runs where document_id = %s and status = 'ready' order by 1",
            document,
        )
    ]


def _set(sql: Any, document: uuid.UUID, stage: str, status: str) -> None:
    """Set one key of one stage, as people do it in Studio."""
    sql.run(
        "update krai_core.documents "
        "set stage_status = jsonb_set(stage_status, array[%s, 'status'], to_jsonb(%s::text)) "
        "where id = %s",
        stage, status, document,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "upload", "after"),
    [
        ("pending", FIRST, []),
        ("processing", [], []),
        ("completed", [], AFTER_UPLOAD),
        ("failed", [], []),
        ("skipped", [], AFTER_UPLOAD),
        ("in_progress", FIRST, []),
    ],
)
@pytest.mark.parametrize("before", ["pending", "completed", "failed"])
def test_an_edit_by_hand_moves_ready_runs_in_both_directions(
    service, before: str, status: str, upload: list, after: list
) -> None:
    """Whatever a stage is set to, it and those that wait for it enter the queue or leave it."""
    document = service.document()
    _set(service, document, "upload", before)
    _set(service, document, "upload", status)
    assert _ready(service, document) == sorted(upload + after)


@pytest.mark.parametrize("call", ["start_stage", "reset_stage", "edit", "fail_stage"])
def test_what_is_undone_upstream_leaves_the_queue(service, outcome: Callable, call: str) -> None:
    """A finished prerequisite that is started anew, reset or edited takes what waits for it back out."""
    document = service.document()
    service.finish(outcome(service.claim()[0], "completed"))
    assert _ready(service, document) == AFTER_UPLOAD
    if call == "edit":
        _set(service, document, "upload", "processing")
    else:
        service.call(call, document, "upload", *(["x"] if call == "fail_stage" else []))
    # A completed stage does not become failed by a late call.
    assert _ready(service, document) == {"reset_stage": FIRST, "fail_stage": AFTER_UPLOAD}.get(call, [])


def test_a_forced_reset_with_cascade_leaves_the_first_alone(service) -> None:
    """All that hung on the stage is out of the queue, and it is in it, though it ran."""
    document = service.document()
    service.done(document, "upload", "text_extraction")
    service.claim("embedding")
    assert _ready(service, document) == ["classification", "image_processing", "metadata_extraction"]
    service.call("reset_stage", document, "text_extraction", p_cascade=True, p_force=True)
    assert _ready(service, document) == AFTER_UPLOAD
    service.call("reset_stage", document, "upload", p_cascade=True)
    assert _ready(service, document) == FIRST


def test_many_documents_in_one_statement(alone) -> None:
    """Thousands of new documents, sound, odd and half done, have their ready runs when the insert is over."""
    alone.run(
        """
        insert into krai_core.documents (filename, stage_status)
        select 'x.pdf', case n % 4
            when 0 then krai_private.default_stage_status()
            when 1 then '{"upload": "completed"}'
            when 2 then '{"upload": {"status": "completed"}, "storage": "skipped"}'
            else '{"upload": {"status": "failed"}}' end
        from generate_series(1, 4000) n
        """
    )
    alone.run("insert into krai_core.documents (filename) select 'x.pdf' from generate_series(1, 4000)")
    assert alone.rows("select stage_name, status, count(*) from krai_core.stage_runs group by 1, 2 order by 1, 2") == [
        ("image_processing", "ready", 2000), ("text_extraction", "ready", 2000),
        ("upload", "completed", 2000), ("upload", "failed", 1000), ("upload", "ready", 5000),
    ]  # fmt: skip


def test_many_documents_edited_in_one_statement(alone) -> None:
    """A bulk edit moves the ready runs of all its documents, those that wait and those that enter."""
    alone.run("insert into krai_core.documents (filename) select n::text from generate_series(1, 1000) n")
    alone.run(
        "update krai_core.documents set stage_status = stage_status || "
        """case when filename::int % 2 = 0 then '{"upload": "completed"}' """
        """else '{"upload": {"status": "failed"}}' end::jsonb"""
    )
    assert alone.rows("select stage_name, status, count(*) from krai_core.stage_runs group by 1, 2 order by 1, 2") == [
        ("image_processing", "ready", 500), ("text_extraction", "ready", 500),
        ("upload", "completed", 500), ("upload", "failed", 500),
    ]  # fmt: skip


def test_an_insert_that_meets_a_conflict(alone) -> None:
    """insert ... on conflict opens the runs of what is new and follows the edit of what was there."""
    known, updated = alone.document(), alone.document()
    new = uuid.uuid4()
    alone.run(
        "insert into krai_core.documents (id, filename, stage_status) "
        """select id, 'y.pdf', '{"upload": "completed"}' from unnest(%s::uuid[]) id """
        "on conflict (id) do update set stage_status = excluded.stage_status",
        "{" + f"{updated},{new}" + "}",
    )
    alone.run("insert into krai_core.documents (id, filename) values (%s, 'z.pdf') on conflict do nothing", known)
    assert {one: _ready(alone, one) for one in (known, updated, new)} == {
        known: FIRST, updated: AFTER_UPLOAD, new: AFTER_UPLOAD,
    }  # fmt: skip


def test_a_merge_and_a_writing_cte(alone) -> None:
    """Other forms of one statement that inserts, updates and deletes leave the queue right too."""
    kept, gone = alone.document(), alone.document()
    alone.run(
        "merge into krai_core.documents d using (select %s::uuid as id, false as stays union all select %s, true "
        "union all select gen_random_uuid(), true) s on d.id = s.id "
        "when matched and not s.stays then delete "
        "when matched then update set stage_status = '{\"upload\": \"completed\"}' "
        "when not matched then insert (id, filename) values (s.id, 'new.pdf')",
        gone, kept,
    )  # fmt: skip
    alone.run(
        "with made as (insert into krai_core.documents (filename) values ('cte.pdf') returning id) "
        "update krai_core.documents set stage_status = '{\"upload\": \"completed\"}' where filename = 'new.pdf'"
    )
    assert alone.rows("select stage_name, status, count(*) from krai_core.stage_runs group by 1, 2 order by 1, 2") == [
        ("image_processing", "ready", 2), ("text_extraction", "ready", 2), ("upload", "completed", 2),
        ("upload", "ready", 1),
    ]  # fmt: skip


def test_deletes_and_truncate_empty_the_queue(alone) -> None:
    """No ready run outlives its document."""
    documents = [alone.document() for _ in range(3)]
    alone.run("delete from krai_core.documents where id = %s", documents[0])
    assert alone.value("select count(*) from krai_core.stage_runs") == 2
    alone.run("truncate krai_core.documents")
    assert alone.value("select count(*) from krai_core.stage_runs") == 0


@pytest.mark.parametrize("end", ["rollback", "rollback to savepoint s; commit"])
def test_what_is_rolled_back_leaves_the_queue_as_it_was(service, connect: Callable, end: str) -> None:
    """An edit and a call that are taken back take their ready runs along."""
    document, session = service.document(), connect()
    session.run("begin; savepoint s")
    _set(session, document, "upload", "completed")
    session.done(document, "text_extraction")
    session.run(end)
    assert _ready(service, document) == FIRST


def test_a_failed_retry_waits_for_what_it_requires(service, outcome: Callable) -> None:
    """A stage with a retry to come leaves the queue when a prerequisite is undone, and comes back at its time."""
    document = service.document()
    service.done(document, "upload")
    (answer,) = service.finish(outcome(service.claim("text_extraction")[0], "failed", error="x", retry=True))
    service.call("reset_stage", document, "upload")
    assert _ready(service, document) == FIRST
    service.done(document, "upload")
    assert _ready(service, document) == AFTER_UPLOAD
    retry = service.runs(document, "text_extraction")[-1]
    assert retry["attempt"] == 2
    assert (
        service.value("select krai_private.iso_time(%s::timestamptz)", retry["available_at"]) == answer["next_retry_at"]
    )


@pytest.mark.triggers_off
def test_a_restore_without_triggers_is_mended(service, bypass) -> None:
    """rebuild_ready_runs adds what is missing, removes what is too much, adopts what nobody runs, and says how many."""
    lacking, surplus, orphaned, right = (service.document() for _ in range(4))
    stages = service.stage_status(right)
    bypass.edit(lacking, stages | {"upload": stages["upload"] | {"status": "completed"}})
    bypass.edit(surplus, stages | {"upload": stages["upload"] | {"status": "failed"}})
    bypass.edit(orphaned, stages | {"upload": stages["upload"] | {"status": "processing"}})
    before = service.everything(right)
    # Of lacking: two more, one less; of surplus and orphaned: one less each, the latter by its adopted run.
    mended = service.call("rebuild_ready_runs")
    # Nobody had run what is completed, failed and processing now.
    assert (mended["added"], mended["adopted"]) == (2, 3)
    assert mended["removed"] in (2, 3)
    assert [_ready(service, one) for one in (lacking, surplus, orphaned, right)] == [AFTER_UPLOAD, [], [], FIRST]
    assert [run["status"] for run in service.runs(orphaned, "upload")] == ["running"]
    assert service.everything(right) == before
    assert service.call("rebuild_ready_runs") == {"added": 0, "removed": 0, "adopted": 0}


ROUNDS = 150


def test_two_prerequisites_that_end_at_once_make_one_ready_run(service, connect: Callable, background: type) -> None:
    """In 150 rounds of two connections the stage that joins both becomes ready exactly once, never twice, never not."""
    service.run(
        "insert into krai_core.documents (filename, stage_status) select 'x.pdf', "
        """'{"upload": "completed", "text_extraction": "completed", "classification": "completed"}' """
        "from generate_series(1, %s)",
        ROUNDS,
    )
    claimed = {
        stage: {run["document_id"]: run for run in service.claim(stage, ROUNDS)}
        for stage in ("embedding", "metadata_extraction")
    }
    documents = sorted(claimed["embedding"])
    sessions, gate = [connect(), connect()], threading.Barrier(2)

    def finish_all(which: int, stage: str) -> None:
        for number, document in enumerate(documents):
            run = claimed[stage][document]
            gate.wait(20)
            if number % 2:
                sessions[which].call("complete_stage", document, stage, p_claim_id=run["claim_id"])
            else:
                ids = {name: run[name] for name in ("document_id", "stage_name", "claim_id")}
                assert sessions[which].finish(ids | {"outcome": "completed"}) == [{"ok": True}]

    threads = [background(lambda w=w, s=s: finish_all(w, s)) for w, s in enumerate(claimed)]
    for thread in threads:
        thread.outcome()
    assert service.rows(
        "select status, count(*), count(distinct document_id) from krai_core.stage_runs "
        "where stage_name = 'search_indexing' group by 1"
    ) == [("ready", ROUNDS, ROUNDS)]
