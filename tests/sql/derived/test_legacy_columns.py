"""processing_status and processing_stage, where the table has them: they follow the stages, and bind nobody."""

import itertools
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from processors_v2._local.project import migrations_folder

_NAMES = itertools.count(1)
STAGES = [
    "upload", "text_extraction", "image_processing", "classification",
    "metadata_extraction", "storage", "embedding", "search_indexing",
]  # fmt: skip


def _legacy(service, document: object) -> str:
    return service.value("select processing_status from krai_core.documents where id = %s", document)


def test_processing_status_follows_the_stages(service, bring: Callable) -> None:
    """pending while nothing began, failed as long as any stage is, completed when all are finished, else processing."""
    document = service.document()
    assert _legacy(service, document) == "pending"
    bring(document, "upload", "processing")
    assert _legacy(service, document) == "processing"
    service.call("complete_stage", document, "upload")
    assert _legacy(service, document) == "processing"
    bring(document, "embedding", "failed")
    assert _legacy(service, document) == "failed"
    for stage in STAGES:
        if stage != "embedding":
            service.call("complete_stage", document, stage)
            assert _legacy(service, document) == "failed"
    service.call("retry_stage", document, "embedding")
    assert _legacy(service, document) == "processing"
    service.call("skip_stage", document, "embedding")
    assert _legacy(service, document) == "completed"
    service.call("reset_stage", document, "upload", p_cascade=True)
    assert _legacy(service, document) == "pending"


def test_a_direct_edit_moves_processing_status_too(service) -> None:
    """The trigger derives it from whatever was written."""
    document = service.document()
    service.edit(document, dict.fromkeys(STAGES, "completed"))
    assert _legacy(service, document) == "completed"


def test_processing_status_is_left_alone_while_no_status_changes(service, bring: Callable) -> None:
    """A value of another system stays through progress and edits of metadata, and goes with the next change."""
    document = service.document()
    bring(document, "upload", "processing")
    service.run("update krai_core.documents set processing_status = 'reprocessing' where id = %s", document)
    service.call("update_stage_progress", document, "upload", 80, {"pages": 9})
    stages = service.stage_status(document)
    stages["storage"]["metadata"]["by"] = "hand"
    service.edit(document, stages)
    assert _legacy(service, document) == "reprocessing"
    service.call("complete_stage", document, "upload")
    assert _legacy(service, document) == "processing"


def test_an_inserted_document_keeps_its_processing_status(service) -> None:
    """An insert is no change of a stage: what was inserted stands."""
    assert _legacy(service, service.document(processing_status="uploaded")) == "uploaded"


Old = Callable[[str], Any]


def _completed(claimed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = ("document_id", "stage_name", "claim_id")
    return [{**{name: run[name] for name in names}, "outcome": "completed"} for run in claimed]


@pytest.fixture
def over(local: Any, connect: Callable) -> Iterator[Old]:
    """Makes a database with a documents table of its own, migrates it, and connects to it."""
    made = []

    def build(columns: str) -> Any:
        name = f"sql_legacy_{next(_NAMES)}"
        local.create_database(name)
        made.append(name)
        connection = connect(None, local.url_of(name))
        connection.run("create schema krai_core")
        connection.run("create type public.old_status as enum ('pending', 'done')")
        connection.run(
            "create table krai_core.documents "
            f"(id uuid primary key default gen_random_uuid(), filename text not null{columns})"
        )
        local.apply_to(name, migrations_folder())
        return connection

    yield build
    for name in made:
        local.drop_database(name)


def test_processing_status_follows_where_a_trigger_writes_the_row_again(over: Old) -> None:
    """Another trigger moves each row that claims and outcomes write: they find it, and lose nothing."""
    old = over(", processing_status text default 'pending', touched integer default 0")
    old.run(
        "create function public.touch() returns trigger language plpgsql as $$ begin "
        "update krai_core.documents set touched = touched + 1 where id = new.id; return null; end $$"
    )
    old.run(
        "create trigger touch after update of stage_status on krai_core.documents for each row "
        "execute function public.touch()"
    )
    documents = [old.document() for _ in range(3)]
    for stage in STAGES:
        claimed = old.claim(stage, 3)
        assert {_legacy(old, document) for document in documents} == {"processing"}
        assert all(answer["ok"] for answer in old.finish(*_completed(claimed)))
    assert {_legacy(old, document) for document in documents} == {"completed"}
    assert old.value("select min(touched) from krai_core.documents") >= 2 * len(STAGES)


@pytest.mark.parametrize(
    "column",
    [
        "processing_status text default 'pending' check (processing_status in ('pending', 'done'))",
        "processing_status varchar(7) default 'pending'",
        "processing_status varchar(20) default 'pending' check (processing_status::public.old_status is not null)",
        "processing_status text not null default 'pending' unique",
    ],
    ids=["check", "varchar", "cast to enum", "unique"],
)
def test_a_value_that_the_table_refuses_is_left_alone_with_a_warning(over: Old, column: str) -> None:
    """The call of the stage succeeds, the old value stays, and a WARNING says so."""
    old = over(f", {column}")
    documents = [old.document(processing_status="done" if "done" in column else "pending")]
    if "unique" in column:
        documents = [old.document(processing_status="a"), old.document(processing_status="b")]
        old.call("start_stage", documents[0], "upload")
    document = documents[-1]
    before = _legacy(old, document)
    assert old.call("start_stage", document, "upload") is True
    assert old.stage(document, "upload")["status"] == "processing"
    assert _legacy(old, document) == before
    assert any("processing_status" in warning for warning in old.warnings)


def test_an_enum_column_is_left_alone(over: Old) -> None:
    """A processing_status that is no text is not ours to write: calls work and leave it as it is, without a word."""
    old = over(", processing_status public.old_status default 'pending'")
    document = old.document()
    assert old.call("complete_stage", document, "upload") is True
    assert _legacy(old, document) == "pending"
    assert old.warnings == []


def test_processing_stage_follows_the_current_stage(over: Old) -> None:
    """Where the column exists as text it holds the first stage that is not finished, and completed at the end."""
    old = over(", processing_status text, processing_stage text")
    document = old.document()
    for place, stage in enumerate(STAGES):
        old.call("start_stage", document, stage)
        assert old.value("select processing_stage from krai_core.documents where id = %s", document) == stage
        old.call("complete_stage", document, stage)
        following = [*STAGES, "completed"][place + 1]
        assert old.value("select processing_stage from krai_core.documents where id = %s", document) == following
    assert _legacy(old, document) == "completed"


def test_processing_stage_follows_claims_and_reports_in_batches(over: Old) -> None:
    """A report that leaves the document processing moves the column on to the next stage."""
    old = over(", processing_status text, processing_stage text")
    document = old.document()
    for place, stage in enumerate(STAGES):
        (run,) = old.call("claim_stages", stage, "w")
        assert old.call("finish_stages", [run | {"outcome": "completed", "metadata": {}}]) == [{"ok": True}]
        following = [*STAGES, "completed"][place + 1]
        assert old.value("select processing_stage from krai_core.documents where id = %s", document) == following
    assert _legacy(old, document) == "completed"


def test_a_table_without_legacy_columns_needs_none(over: Old) -> None:
    """With id and filename alone everything works."""
    old = over("")
    document = old.document()
    assert old.call("start_stage", document, "upload") is True
    old.edit(document, {"upload": "completed"})
    assert old.call("get_document_status", document)["status"] == "processing"


@pytest.mark.parametrize("last_step", ["claim", "finish"])
def test_a_failure_that_counts_again_is_seen_by_the_next_call(alone: Any, last_step: str) -> None:
    """A stage that failed while it was disabled counts once it is enabled: the next report or claim makes it failed."""
    document = alone.document()
    alone.call("register_stage", "upload")
    alone.call("complete_stage", document, "upload")
    alone.call("disable_stage", "text_extraction")
    alone.call("fail_stage", document, "text_extraction", "bad page")
    claim = uuid.uuid4()
    if last_step == "finish":
        alone.call("claim_stages", "image_processing", "w", p_claim_id=claim)
    alone.call("register_stage", "text_extraction")
    if last_step == "claim":
        alone.call("claim_stages", "image_processing", "w", p_claim_id=claim)
    else:
        outcome = {
            "document_id": str(document),
            "stage_name": "image_processing",
            "claim_id": str(claim),
            "outcome": "completed",
        }
        assert alone.call("finish_stages", [outcome]) == [{"ok": True}]
    assert alone.value("select processing_status from krai_core.documents") == "failed"


def test_what_a_disabled_stage_ends_leaves_a_document_pending(alone: Any) -> None:
    """A document of which only a disabled stage was finished is pending, whichever way that was reported."""
    document = alone.document()
    claim = uuid.uuid4()
    alone.call("claim_stages", "upload", "w", p_claim_id=claim)
    alone.call("disable_stage", "upload")
    outcome = {"document_id": str(document), "stage_name": "upload", "claim_id": str(claim), "outcome": "completed"}
    assert alone.call("finish_stages", [outcome]) == [{"ok": True}]
    assert alone.value("select processing_status from krai_core.documents") == "pending"
