"""Direct edits of stage_status: they count as they stand, except on stages that a worker holds."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from psycopg.types.json import Jsonb


@pytest.mark.parametrize("state", ["pending", "processing", "completed", "failed", "skipped"])
def test_a_direct_edit_counts_as_it_stands(service, state: str) -> None:
    """What a sound edit says is what the column, the views and the functions say afterwards."""
    document = service.document()
    stages = service.stage_status(document)
    stages["upload"] |= {"status": state, "error": "by hand", "metadata": {"by": "studio"}}
    service.edit(document, stages)
    assert service.stage_status(document) == stages
    assert service.call("get_document_status", document)["stage_status"] == stages
    assert service.warnings == []


def test_an_edit_of_one_key_by_jsonb_set_counts(service, bring: Callable) -> None:
    """The form that SQL snippets use, jsonb_set on one key of one stage, changes that key alone."""
    document = service.document()
    bring(document, "embedding", "failed")
    before = service.stage_status(document)
    service.run(
        "update krai_core.documents set stage_status = jsonb_set(stage_status, '{embedding,status}', '\"pending\"') "
        "where id = %s",
        document,
    )
    assert service.stage_status(document) == before | {"embedding": before["embedding"] | {"status": "pending"}}


def test_a_held_stage_keeps_its_value_with_a_warning(service, bring: Callable) -> None:
    """An old script that writes back a stale column does not undo running work, and is told so."""
    document, claim = service.document(), uuid.uuid4()
    stale = service.stage_status(document)
    bring(document, "embedding", "processing", claim)
    held = service.stage(document, "embedding")
    stale["upload"]["status"] = "completed"
    service.edit(document, stale)
    assert service.stage(document, "embedding") == held
    assert service.stage(document, "upload")["status"] == "completed"
    (warning,) = service.warnings
    assert "embedding" in warning
    assert str(document) in warning
    assert service.call("complete_stage", document, "embedding", p_claim_id=claim) is True


def test_a_held_stage_survives_a_column_of_another_shape(service, bring: Callable) -> None:
    """Setting the column to null or to text keeps the stages that are held, too."""
    document, claim = service.document(), uuid.uuid4()
    bring(document, "embedding", "processing", claim)
    held = service.stage(document, "embedding")
    for value in (None, Jsonb("completed"), Jsonb([]), Jsonb({})):
        service.run("update krai_core.documents set stage_status = %s where id = %s", value, document)
        assert service.stage(document, "embedding") == held
    assert service.call("update_stage_progress", document, "embedding", 50, p_claim_id=claim) is True


@pytest.mark.parametrize(
    "claim", [None, uuid.UUID("0b0c0d00-0000-4000-8000-000000000002")], ids=["claimless", "expired"]
)
def test_a_stage_that_nobody_holds_is_taken_out_of_work(service, bring: Callable, claim: uuid.UUID | None) -> None:
    """A run without claim id, or whose lease is over, is cancelled when an edit ends its processing."""
    document = service.document()
    stale = service.stage_status(document)
    bring(document, "embedding", "processing", claim)
    bring(document, "storage", "processing", uuid.uuid4())
    if claim is not None:
        service.end_lease(document, "embedding")
    service.edit(document, stale)
    assert service.stage(document, "embedding")["status"] == "pending"
    (run,) = service.runs(document, "embedding")
    assert run["status"] == "cancelled"
    assert run["finished_at"] is not None
    assert [run["status"] for run in service.runs(document, "storage")] == ["running"]
    if claim is not None:
        assert service.refused("complete_stage", document, "embedding", p_claim_id=claim).word == "lease_lost"
    assert service.call("start_stage", document, "embedding") is True


def test_an_edit_that_leaves_a_stage_processing_leaves_its_run(service, bring: Callable) -> None:
    """Metadata added by hand to a stage in work stays, and so does the run."""
    document = service.document()
    bring(document, "embedding", "processing")
    stages = service.stage_status(document)
    stages["embedding"]["metadata"]["note"] = "look here"
    service.edit(document, stages)
    assert [run["status"] for run in service.runs(document, "embedding")] == ["running"]
    service.call("complete_stage", document, "embedding")
    assert service.stage(document, "embedding")["metadata"]["note"] == "look here"


def test_one_statement_edits_many_documents(service, bring: Callable) -> None:
    """In a bulk edit each document is judged by its own runs."""
    held, free, idle = (service.document() for _ in range(3))
    bring(held, "upload", "processing", uuid.uuid4())
    bring(free, "upload", "processing")
    service.run(
        "update krai_core.documents set stage_status = jsonb_set(stage_status, '{upload,status}', '\"completed\"') "
        "where id = any (%s::uuid[])",
        "{" + f"{held},{free},{idle}" + "}",
    )
    assert [service.stage(one, "upload")["status"] for one in (held, free, idle)] == [
        "processing",
        "completed",
        "completed",
    ]
    assert [[run["status"] for run in service.runs(one, "upload")] for one in (held, free, idle)] == [
        ["running"],
        ["cancelled", "completed"],
        ["completed"],
    ]
    assert len(service.warnings) == 1


def test_an_update_of_other_columns_touches_no_run(service, bring: Callable) -> None:
    """A new file name leaves stage_status, runs and legacy status as they are."""
    document = service.document()
    bring(document, "upload", "failed")
    bring(document, "embedding", "processing")
    row, runs = service.everything(document)
    service.run("update krai_core.documents set filename = 'other.pdf' where id = %s", document)
    row_after, runs_after = service.everything(document)
    assert runs_after == runs
    assert {**row_after, "xmin": 0} == {**row, "filename": "other.pdf", "xmin": 0}


def test_an_edit_after_a_call_in_the_same_transaction_is_a_direct_edit(service, connect: Callable) -> None:
    """What a writer tells the triggers does not reach the statements that follow in its transaction."""
    session = connect()
    document = service.document()
    with session.connection.transaction():
        session.call("start_stage", document, "upload")
        session.edit(document, {"upload": "in_progress"})
    assert session.stage(document, "upload")["metadata"] == {"v1": "in_progress"}
    assert [run["status"] for run in session.runs(document, "upload")] == ["cancelled", "ready"]


def test_an_edit_after_a_refused_call_is_a_direct_edit(service) -> None:
    """So it is after a call that was refused and caught."""
    document = service.document()
    service.run(
        f"""do $$ begin
            begin perform krai_core.retry_stage('{document}', 'nonsense'); exception when others then null; end;
            update krai_core.documents set stage_status = '"x"' where id = '{document}';
        end $$"""
    )
    assert service.stage(document, "upload")["metadata"] == {"v1": "x"}


def test_a_document_that_is_inserted_as_completed_is_completed_throughout(service) -> None:
    """processing_status completed on insert, as the first tracker wrote it: nobody processes that archive again."""
    document = service.document(processing_status="completed")
    for stage in service.stage_status(document).values():
        assert (stage["status"], stage["progress"]) == ("completed", 100)
        assert (stage["started_at"], stage["completed_at"], stage["duration_seconds"]) == (None, None, None)
    assert service.call("get_document_status", document)["status"] == "completed"
    runs = service.rows(
        "select status, is_current, started_at from krai_core.stage_runs where document_id = %s", document
    )
    assert runs == [("completed", True, None)] * 8


@pytest.mark.parametrize("status", ["pending", "processing", "failed", "uploaded", None])
def test_any_other_inserted_status_says_nothing_about_stages(service, status: str | None) -> None:
    """Only completed is believed: all else starts with pending stages."""
    document = service.document(processing_status=status)
    assert service.stage_status(document) == service.call("krai_private.default_stage_status")


def test_delete_takes_the_runs_along(service, bring: Callable) -> None:
    """No run outlives its document, and no other document loses one."""
    gone, other = service.document(), service.document()
    for document in (gone, other):
        bring(document, "upload", "completed")
        bring(document, "embedding", "processing", uuid.uuid4())
    service.call("set_priority", gone, 5)
    service.call("set_priority", other, 5)
    before = service.everything(other)
    service.run("delete from krai_core.documents where id = %s", gone)
    assert service.everything(other) == before
    for table in ("stage_runs", "document_priorities"):
        count = f"select count(*) from krai_core.{table} where document_id = %s"
        assert (service.value(count, gone), service.value(count, other) > 0) == (0, True)


def test_truncate_takes_all_runs_along(alone) -> None:
    """Truncate of documents empties stage_runs and the priorities."""
    document = alone.document()
    alone.call("start_stage", document, "upload")
    alone.call("set_priority", document, 5)
    alone.run("truncate krai_core.documents")
    assert alone.value("select count(*) from krai_core.stage_runs") == 0
    assert alone.value("select count(*) from krai_core.document_priorities") == 0


@pytest.fixture
def signed_in(alone, connect: Callable, local: Any, own_database: str) -> Any:
    """A connection of a signed-in user who may read and change documents, in a database of its own."""
    alone.run("grant select, insert, update, delete on krai_core.documents to authenticated")
    alone.run("create policy everybody on krai_core.documents for all to authenticated using (true) with check (true)")
    return connect("authenticated", local.url_of(own_database))


def test_a_signed_in_user_may_change_a_file_name(alone, signed_in) -> None:
    """A plain update of a user who may not touch stage_runs passes through our triggers."""
    document = alone.document()
    alone.call("start_stage", document, "upload")
    signed_in.run("update krai_core.documents set filename = 'mine.pdf' where id = %s", document)
    assert alone.value("select filename from krai_core.documents where id = %s", document) == "mine.pdf"


def test_a_signed_in_user_may_edit_a_stage_where_the_table_lets_him(alone, signed_in) -> None:
    """His edit is repaired, closes the run, moves the legacy status; an insert and a delete work, too."""
    document = alone.document()
    alone.call("start_stage", document, "upload")
    signed_in.run(
        'update krai_core.documents set stage_status = stage_status || \'{"upload": "completed"}\' where id = %s',
        document,
    )
    assert alone.stage(document, "upload")["status"] == "completed"
    assert [run["status"] for run in alone.runs(document, "upload")] == ["cancelled", "completed"]
    assert alone.value("select processing_status from krai_core.documents where id = %s", document) == "processing"
    own = signed_in.document(stage_status={"upload": "completed"}, processing_status="completed")
    assert signed_in.call("get_document_progress", own) == 100
    signed_in.run("delete from krai_core.documents where id = %s", document)
    assert alone.value("select count(*) from krai_core.stage_runs where document_id = %s", document) == 0
