"""Odd values in stage_status: written directly they are repaired, stored past the triggers they break nothing."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from psycopg.types.json import Jsonb

KEYS = {"status", "started_at", "completed_at", "duration_seconds", "progress", "error", "metadata"}
PENDING = {
    "status": "pending",
    "started_at": None,
    "completed_at": None,
    "duration_seconds": None,
    "progress": 0,
    "error": None,
    "metadata": {},
}
DONE = PENDING | {"status": "completed", "progress": 100}
_WITHOUT_METADATA = {key: value for key, value in DONE.items() if key != "metadata"}
START, END = "2025-10-04T08:00:00.000000Z", "2025-10-04T08:00:01.500000Z"
BACKSLASHES = "\\ud800 \" ' $$ %s \\"

# A stored stage, the state that it means, and what repair makes of it beyond a pending (or completed) stage. v1: the
# original is kept in metadata.v1.
STAGES: dict[str, tuple[Any, str, dict[str, Any], bool]] = {
    "null": (None, "pending", {}, False),
    "text completed": ("completed", "completed", {}, True),
    "text in_progress": ("in_progress", "pending", {}, True),
    "text failed": ("failed", "pending", {}, True),
    "text with quotes": (BACKSLASHES, "pending", {}, True),
    "number": (5, "pending", {}, True),
    "boolean": (True, "pending", {}, True),
    "array": (["completed"], "pending", {}, True),
    "array of a sound stage": ([DONE], "pending", {}, True),
    "empty array": ([], "pending", {}, True),
    "empty object": ({}, "pending", {}, False),
    "status alone": ({"status": "failed"}, "failed", {}, False),
    "completed alone": ({"status": "completed"}, "completed", {}, False),
    "status null": ({**PENDING, "status": None}, "pending", {}, False),
    "foreign status": ({**PENDING, "status": "in_progress", "progress": 30}, "pending", {}, True),
    "foreign status with metadata": (
        {"status": "running", "metadata": {"a": 1}}, "pending", {"metadata": {"a": 1}}, True),
    "status in an array": ({**DONE, "status": ["completed"]}, "pending", {}, True),
    "status a number": ({**PENDING, "status": 1}, "pending", {}, True),
    "progress over 100": ({**PENDING, "status": "processing", "progress": 150}, "processing", {}, True),
    "progress negative": ({**PENDING, "status": "processing", "progress": -1}, "processing", {}, True),
    "progress a text": ({**PENDING, "status": "processing", "progress": "NaN"}, "processing", {}, True),
    "progress in an array": ({**PENDING, "status": "failed", "progress": [50]}, "failed", {}, True),
    "progress null": ({**DONE, "progress": None}, "completed", {}, False),
    "duration a text": ({**DONE, "duration_seconds": "1:20"}, "completed", {}, True),
    "duration negative": ({**DONE, "duration_seconds": -5}, "completed", {}, True),
    "duration in an array": ({**DONE, "duration_seconds": [None]}, "completed", {}, True),
    "time of the first tracker": (
        {**DONE, "started_at": "2025-10-04 08:00:00+00", "completed_at": "2025-10-04 17:00:01.5+09"},
        "completed", {"started_at": START, "completed_at": END}, False),
    "time without a zone": (
        {**DONE, "started_at": "2025-10-04 08:00:00"}, "completed", {"started_at": START}, False),
    "time of Python": ({**DONE, "started_at": "2025-10-04T10:00:00+02:00"}, "completed", {"started_at": START}, False),
    "time a word": ({**DONE, "started_at": "yesterday"}, "completed", {}, True),
    "time now": ({**DONE, "started_at": "now"}, "completed", {}, True),
    "time a number": ({**DONE, "started_at": 1759564800}, "completed", {}, True),
    "time infinite": ({**DONE, "started_at": "infinity"}, "completed", {}, True),
    "time before our era": ({**DONE, "started_at": "0044-03-15 12:00:00 BC"}, "completed", {}, True),
    "time beyond year 9999": ({**DONE, "started_at": "12025-10-04T08:00:00Z"}, "completed", {}, True),
    "time on no day": ({**DONE, "started_at": "2025-02-30T08:00:00.000000Z"}, "completed", {}, True),
    "time in year 0": ({**DONE, "started_at": "0000-01-01T08:00:00.000000Z"}, "completed", {}, True),
    "time in month 1x": ({**DONE, "started_at": "2025-1x-04T08:00:00.000000Z"}, "completed", {}, True),
    "time an array": ({**DONE, "started_at": [START]}, "completed", {}, True),
    "error an object": (
        {**PENDING, "status": "failed", "error": {"code": 7}}, "failed", {"error": '{"code": 7}'}, False),
    "error an array": ({**PENDING, "status": "failed", "error": ["x"]}, "failed", {"error": '["x"]'}, False),
    "metadata null": ({**DONE, "metadata": None}, "completed", {}, False),
    "metadata a text": ({**DONE, "metadata": "none"}, "completed", {}, True),
    "metadata an array": ({**DONE, "metadata": [{"a": 1}]}, "completed", {}, True),
    "metadata with its own v1": (
        {**DONE, "metadata": {"v1": "mine"}, "progress": "x"}, "completed",
        {"metadata": {"v1": {**_WITHOUT_METADATA, "progress": "x", "v1": "mine"}}}, False),
    "a further key": ({**DONE, "ticket": 1}, "completed", {"ticket": 1}, False),
}  # fmt: skip
ROOTS: dict[str, Any] = {
    "null": None,
    "empty object": {},
    "partial": {"upload": DONE},
    "empty array": [],
    "array": ["upload", 1],
    "text": "completed",
    "number": 5,
    "boolean": True,
    "unknown keys": {"chunking": "completed", "product_extraction": {"x": [1]}, "upload": "completed"},
}
STAGE_CASES = [pytest.param(*case, id=name) for name, case in STAGES.items()]
ROOT_CASES = [pytest.param(root, id=name) for name, root in ROOTS.items()]
WRITERS: dict[str, tuple[Any, ...]] = {
    "start_stage": (),
    "update_stage_progress": (None,),
    "complete_stage": (),
    "fail_stage": ("broken",),
    "skip_stage": (),
    "retry_stage": (),
    "reset_stage": (),
}


def _expected(stored: Any, state: str, changes: dict[str, Any], keeps_original: bool) -> dict[str, Any]:
    stage = {**PENDING, "status": state, "progress": 100 if state == "completed" else 0, **changes}
    if keeps_original:
        stage["metadata"] = {**stage["metadata"], "v1": stored}
    return stage


@pytest.mark.parametrize(("stored", "state", "changes", "keeps_original"), STAGE_CASES)
def test_an_odd_stage_that_is_written_directly_is_repaired(
    service, stored: Any, state: str, changes: dict[str, Any], keeps_original: bool
) -> None:
    """A direct edit ends as a sound stage, and what found no place in it is kept in metadata.v1; so does an insert."""
    expected = _expected(stored, state, changes, keeps_original)
    edited, inserted = service.document(), service.document(stage_status={"embedding": stored})
    service.edit(edited, {**service.stage_status(edited), "embedding": stored})
    for document in (edited, inserted):
        assert service.stage(document, "embedding") == expected
        assert service.call("krai_private.is_sound", service.stage_status(document)) is True


@pytest.mark.parametrize("root", ROOT_CASES)
def test_an_odd_column_that_is_written_directly_is_repaired(service, root: Any) -> None:
    """Whatever stands in place of the object, all eight stages are there afterwards, and the original is not lost."""
    document = service.document()
    service.run(
        "update krai_core.documents set stage_status = %s where id = %s",
        root if root is None else Jsonb(root),
        document,
    )
    stages = service.stage_status(document)
    assert service.call("krai_private.is_sound", stages) is True
    if isinstance(root, dict):
        assert {name: stages[name] for name in root if name in ("chunking", "product_extraction")} == {
            name: root[name] for name in root if name in ("chunking", "product_extraction")
        }
        assert stages["upload"]["status"] == ("completed" if "upload" in root else "pending")
    else:
        assert stages["upload"]["metadata"] == ({} if root is None else {"v1": root})


def test_an_sql_null_is_repaired(service) -> None:
    """stage_status set to null, and a document inserted with null, become the eight pending stages."""
    edited, inserted = service.document(), service.document(stage_status=None)
    service.run("update krai_core.documents set stage_status = null where id = %s", edited)
    for document in (edited, inserted):
        assert service.stage_status(document) == service.call("krai_private.default_stage_status")


@pytest.mark.parametrize(("stored", "state", "changes", "keeps_original"), STAGE_CASES)
def test_readers_take_an_odd_stage_for_what_it_means(
    service, bypass, stored: Any, state: str, changes: dict[str, Any], keeps_original: bool
) -> None:
    """Views and functions agree on the state of an odd stage, show it in the seven keys, and never break."""
    document = service.document()
    bypass.edit(document, {**service.stage_status(document), "embedding": stored})
    expected = _expected(stored, state, changes, keeps_original)
    (seen,) = service.rows(
        "select status, krai_private.stage_state(stage), krai_private.stage_state(krai_private.repaired_stage(stage)) "
        "from krai_core.vw_document_stages where document_id = %s and stage_name = 'embedding'",
        document,
    )
    assert seen == (state, state, state)
    status = service.call("get_document_status", document)
    assert status["stage_status"]["embedding"] == expected
    assert status["status"] == {"completed": "processing"}.get(state, state)
    assert status["progress"] == (12.5 if state == "completed" else 0)
    shown, by_stage = service.rows(
        "select embedding_status, to_jsonb(v) from krai_core.vw_documents_by_stage v where id = %s", document
    )[0]
    assert shown["status"] == state
    assert by_stage["document_status"] == status["status"]
    assert service.call("get_document_progress", document) == status["progress"]
    assert service.call("get_current_stage", document) == "upload"
    assert service.call("can_start_stage", document, "embedding") is False
    assert service.call("can_start_stage", document, "upload") is True


@pytest.mark.parametrize("root", ROOT_CASES)
def test_readers_take_an_odd_column_for_what_it_means(service, bypass, root: Any) -> None:
    """A column of any shape is read as the stages that can be found in it, the others pending."""
    document = service.document()
    bypass.run(
        "update krai_core.documents set stage_status = %s where id = %s",
        root if root is None else Jsonb(root),
        document,
    )
    done = isinstance(root, dict) and "upload" in root
    status = service.call("get_document_status", document)
    assert {
        name for name, stage in status["stage_status"].items() if isinstance(stage, dict) and set(stage) == KEYS
    } == set(service.call("krai_private.default_stage_status"))
    assert (status["status"], status["progress"]) == (("processing", 12.5) if done else ("pending", 0))
    assert service.call("get_current_stage", document) == ("text_extraction" if done else "upload")
    assert service.call("can_start_stage", document, "upload") is not done
    assert service.value(
        "select count(*) from krai_core.vw_document_stages where document_id = %s and status = 'pending'", document
    ) == (7 if done else 8)


@pytest.mark.triggers_off
def test_statistics_count_every_odd_row(alone) -> None:
    """One row of each odd kind: nothing breaks, every stage counts every document, bad durations are left out."""
    alone.run("alter table krai_core.documents disable trigger user")
    for stored, *_ in STAGES.values():
        alone.document(stage_status={"embedding": stored})
    for root in ROOTS.values():
        alone.document(stage_status=root if root is None else Jsonb(root))
    alone.call("rebuild_statistics")
    documents = len(STAGES) + len(ROOTS)
    states = [state for _, state, *_ in STAGES.values()]
    for stage, row in alone.call("get_stage_statistics")["stages"].items():
        counts = {name: row[name] for name in ("pending", "processing", "completed", "failed", "skipped")}
        assert sum(counts.values()) == documents
        assert row["avg_duration"] is None
        if stage == "embedding":
            assert {name: states.count(name) for name in counts} == {
                **counts,
                "pending": counts["pending"] - len(ROOTS),
            }


@pytest.mark.parametrize("place", ["embedding", "upload"])
@pytest.mark.parametrize("function", WRITERS)
def test_every_writer_bears_an_odd_stage_and_heals_the_row(service, bypass, function: str, place: str) -> None:
    """On an odd stage, or beside one, each writer acts by what it means; what it writes is sound, and v1 is kept."""
    for name, (stored, _, _, keeps_original) in STAGES.items():
        document = service.document()
        bypass.edit(document, {**service.stage_status(document), place: stored, "further": "left alone"})
        before = service.everything(document)
        service.attempt(function, document, "embedding", *WRITERS[function])
        if service.everything(document) == before:
            continue
        stages = service.stage_status(document)
        assert stages["further"] == "left alone"
        assert service.call("krai_private.is_sound", stages) is True, name
        if keeps_original:
            assert _has_v1([stages, service.runs(document, "embedding")], stored), name


def _has_v1(value: Any, original: Any) -> bool:
    if isinstance(value, list):
        return any(_has_v1(item, original) for item in value)
    if isinstance(value, dict):
        return value.get("v1") == original or any(_has_v1(item, original) for item in value.values())
    return False


@pytest.mark.parametrize("function", WRITERS)
@pytest.mark.parametrize("root", ROOT_CASES)
def test_every_writer_bears_an_odd_column(service, bypass, root: Any, function: str) -> None:
    """A writer on a column of any shape works, or is refused as on a pending stage, and leaves a sound row."""
    document = service.document()
    bypass.run(
        "update krai_core.documents set stage_status = %s where id = %s",
        root if root is None else Jsonb(root),
        document,
    )
    before = service.everything(document)
    if function == "update_stage_progress":
        assert service.refused(function, document, "embedding", 5).word == "conflict"
    else:
        assert service.call(function, document, "embedding", *WRITERS[function]) is True
    if service.everything(document) != before:
        assert service.call("krai_private.is_sound", service.stage_status(document)) is True


def test_a_second_odd_edit_loses_neither_the_first_original_nor_its_own(service) -> None:
    """metadata.v1 that is there already takes the further original in, without growing on each repeat."""
    document: uuid.UUID = service.document()
    for odd in ("in_progress", {"status": "x", "note": 1}, {"status": "y"}, {"status": "y"}):
        stages = service.stage_status(document)
        kept = stages["storage"]["metadata"]
        service.edit(document, {**stages, "storage": {**odd, "metadata": kept} if isinstance(odd, dict) else odd})
    assert service.stage(document, "storage")["metadata"] == {"v1": {"status": "y", "note": 1, "v1": "in_progress"}}


def test_an_odd_edit_of_one_stage_leaves_sound_ones_alone(service, bring: Callable) -> None:
    """Repair of a row changes no stage that is sound."""
    document = service.document()
    bring(document, "upload", "completed")
    bring(document, "text_extraction", "failed")
    before = service.stage_status(document)
    service.edit(document, {**before, "storage": "completed"})
    after = service.stage_status(document)
    assert after.pop("storage")["status"] == "completed"
    assert after == {name: stage for name, stage in before.items() if name != "storage"}
