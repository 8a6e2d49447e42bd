"""Every form in which processors in the field call the tracker."""

import asyncio
import datetime as dt
import enum
import logging
import threading
import uuid
from typing import Any

import pytest

from processors_v2.errors import InvalidArgument, UnknownStage
from processors_v2.stage_tracker import StageContext, StageTracker

STAGES = [
    "upload",
    "text_extraction",
    "image_processing",
    "classification",
    "metadata_extraction",
    "storage",
    "embedding",
    "search_indexing",
]


class Stage(enum.Enum):
    """As the processors define it."""

    UPLOAD = "upload"
    TEXT_EXTRACTION = "text_extraction"
    EMBEDDING = "embedding"


class TextStage(str, enum.Enum):  # noqa: UP042 - as the processors define it
    """As they define it too."""

    STORAGE = "storage"


def test_upload_is_completed_without_ever_being_started(tracker: StageTracker, document: str, db: Any) -> None:
    """complete_stage with nothing but keywords completes a stage that was never started."""
    done = tracker.complete_stage(
        document_id=document,
        stage_name="upload",
        metadata={"file_hash": "9f2c", "file_size": 1048576, "page_count": 12},
    )
    assert done is True
    stage = db.stage(document, "upload")
    assert stage["status"] == "completed"
    assert stage["metadata"] == {"file_hash": "9f2c", "file_size": 1048576, "page_count": 12}
    assert stage["started_at"] is stage["duration_seconds"] is None


def test_upload_is_completed_again_on_force_reprocess(tracker: StageTracker, document: str, db: Any) -> None:
    """complete_stage on a completed stage answers True and merges the metadata."""
    tracker.complete_stage(document_id=document, stage_name="upload", metadata={"file_hash": "9f2c"})
    assert tracker.complete_stage(document_id=document, stage_name="upload", metadata={"page_count": 12}) is True
    assert db.stage(document, "upload")["metadata"] == {"file_hash": "9f2c", "page_count": 12}


def test_ids_go_as_text_and_as_uuid(tracker: StageTracker, document: str, db: Any) -> None:
    """A document is named by its UUID as an object and as text."""
    as_uuid = uuid.UUID(document)
    assert tracker.start_stage(as_uuid, "image_processing") is True
    assert tracker.fail_stage(str(as_uuid), "image_processing", "poppler is missing") is True
    assert db.stage(document, "image_processing")["error"] == "poppler is missing"
    assert tracker.start_stage(as_uuid, "image_processing") is True
    assert tracker.complete_stage(as_uuid, "image_processing", metadata={"images": 3}) is True
    assert tracker.get_stage_status(as_uuid)["image_processing"]["status"] == "completed"


def test_a_second_start_is_told_no_and_disturbs_nothing(tracker: StageTracker, document: str, db: Any) -> None:
    """start_stage answers False while the stage is held, and the first run can still be completed."""
    assert tracker.start_stage(document, "storage") is True
    first = db.stage(document, "storage")
    assert tracker.start_stage(document, "storage") is False
    assert db.stage(document, "storage") == first
    assert tracker.complete_stage(document, "storage", metadata={"urls": []}) is True


def test_stages_start_in_any_order(tracker: StageTracker, document: str) -> None:
    """start_stage does not ask for prerequisites."""
    assert tracker.start_stage(document, "search_indexing") is True


def test_the_alias_stores_a_fraction_as_percent(tracker: StageTracker, document: str, db: Any) -> None:
    """update_stage_progress is update_progress, and 0.5 means half a percent."""
    tracker.start_stage(str(document), "embedding")
    assert tracker.update_stage_progress(str(document), "embedding", 0.5, metadata={"chunks": 7}) is True
    stage = db.stage(document, "embedding")
    assert stage["progress"] == 0.5
    assert stage["metadata"] == {"chunks": 7}


def test_all_five_mutators_take_positions_and_enum_members(tracker: StageTracker, document: str, db: Any) -> None:
    """Enum members, with and without str as their base, name a stage; metadata may hold UUID and datetime."""
    when, who = dt.datetime(2025, 10, 4, 8, tzinfo=dt.UTC), uuid.uuid4()
    assert tracker.start_stage(document, Stage.TEXT_EXTRACTION) is True
    assert tracker.update_progress(document, Stage.TEXT_EXTRACTION, 45.5, {"at": when}) is True
    assert tracker.complete_stage(document, Stage.TEXT_EXTRACTION, {"product": who}) is True
    assert tracker.skip_stage(document, Stage.EMBEDDING, "no text") is True
    assert tracker.fail_stage(document, TextStage.STORAGE, "R2 is away", {"bucket": "images"}) is True
    text = db.stage(document, "text_extraction")
    assert text["metadata"] == {"at": "2025-10-04T08:00:00+00:00", "product": str(who)}
    assert db.stage(document, "embedding")["metadata"] == {"reason": "no text"}
    storage = db.stage(document, "storage")
    assert (storage["error"], storage["metadata"]) == ("R2 is away", {"bucket": "images"})


def test_reason_and_error_are_keywords(tracker: StageTracker, document: str, db: Any) -> None:
    """skip_stage takes reason=, fail_stage takes error=."""
    tracker.skip_stage(document, "classification", reason="Missing manufacturer_id")
    tracker.fail_stage(document, "embedding", error="model not loaded")
    assert db.stage(document, "classification")["metadata"]["reason"] == "Missing manufacturer_id"
    assert db.stage(document, "embedding")["error"] == "model not loaded"


def test_skip_without_a_reason_is_not_applicable(tracker: StageTracker, document: str, db: Any) -> None:
    """skip_stage has the reason of the SQL function by default."""
    assert tracker.skip_stage(document, "image_processing") is True
    assert db.stage(document, "image_processing")["metadata"] == {"reason": "Not applicable"}


def test_an_exception_may_be_given_as_the_error(tracker: StageTracker, document: str, db: Any) -> None:
    """fail_stage stores the text of an exception."""
    tracker.fail_stage(document, "storage", OSError(28, "No space left on device"))
    assert db.stage(document, "storage")["error"] == "[Errno 28] No space left on device"


def test_the_api_of_old_reads_with_four_calls(tracker: StageTracker, document: str) -> None:
    """get_current_stage, get_progress, get_stage_status and get_statistics answer in the types of old."""
    tracker.complete_stage(document, "upload")
    assert tracker.get_current_stage(document) == "text_extraction"
    progress = tracker.get_progress(document)
    assert (type(progress), progress) == (float, 12.5)
    status = tracker.get_stage_status(document)
    assert isinstance(status, dict)
    assert set(status) == set(STAGES)
    statistics = tracker.get_statistics()
    assert list(statistics) == STAGES
    assert {"pending", "processing", "completed", "failed", "skipped", "avg_duration"} <= set(statistics["upload"])


def test_stages_is_a_list_that_can_be_walked_backwards(tracker: StageTracker, document: str) -> None:
    """STAGES belongs to the class, in pipeline order, and finds the last stage that was completed."""
    tracker.complete_stage(document, "upload")
    tracker.complete_stage(document, "text_extraction")
    status = tracker.get_stage_status(document)
    last = next(s for s in reversed(StageTracker.STAGES) if status.get(s, {}).get("completed_at"))
    assert StageTracker.STAGES == STAGES
    assert isinstance(StageTracker.STAGES, list)
    assert last == "text_extraction"


def test_a_tracker_is_true(tracker: StageTracker) -> None:
    """Processors guard their calls with `if self.stage_tracker`."""
    assert tracker


def test_can_start_stage_answers_by_prerequisites(tracker: StageTracker, document: str) -> None:
    """can_start_stage is False until what the stage requires is finished."""
    assert tracker.can_start_stage(document, "text_extraction") is False
    tracker.skip_stage(document, "upload")
    assert tracker.can_start_stage(document, Stage.TEXT_EXTRACTION) is True


@pytest.mark.parametrize(
    "call",
    [
        lambda t, d: t.start_stage(d, "embeddings"),
        lambda t, d: t.update_stage_progress(d, "embeddings", 0.5, metadata={}),
        lambda t, d: t.complete_stage(d, "embeddings", metadata={}),
        lambda t, d: t.fail_stage(d, "embeddings", "error"),
        lambda t, d: t.skip_stage(d, "embeddings"),
        lambda t, d: t.retry_stage(d, "embeddings"),
        lambda t, d: t.reset_stage(d, "embeddings"),
        lambda t, d: t.can_start_stage(d, "embeddings"),
    ],
)
def test_a_wrong_stage_name_is_an_error(tracker: StageTracker, document: str, db: Any, call: Any) -> None:
    """A stage that does not exist raises UnknownStage with the names there are, and changes nothing."""
    before = db.one("select stage_status from krai_core.documents where id = %s", document)
    with pytest.raises(UnknownStage, match="unknown stage 'embeddings'.*Stages are: upload, text_extraction"):
        call(tracker, document)
    assert db.one("select stage_status from krai_core.documents where id = %s", document) == before


@pytest.mark.parametrize("missing", ["unknown", "None", "", None, 17])
def test_a_missing_id_is_an_error(tracker: StageTracker, missing: Any) -> None:
    """What is no UUID raises InvalidArgument before anything is sent."""
    with pytest.raises(InvalidArgument, match="is not a UUID") as caught:
        tracker.fail_stage(missing, "upload", "no document")
    assert caught.value.error == "invalid_document_id"


@pytest.mark.parametrize("name", [None, 3, Stage])
def test_a_stage_name_is_a_text(tracker: StageTracker, document: str, name: Any) -> None:
    """What is neither text nor an Enum member of text raises InvalidArgument."""
    with pytest.raises(InvalidArgument, match="stage name .* is not a text"):
        tracker.start_stage(document, name)


def test_the_synchronous_classes_cannot_be_awaited(tracker: StageTracker, document: str) -> None:
    """Awaiting a method, or `async with` on StageContext, is a TypeError: nothing is pretended."""

    async def awaited() -> None:
        await tracker.start_stage(document, "upload")  # type: ignore[misc]

    async def entered() -> None:
        async with StageContext(tracker, document, "embedding"):  # type: ignore[attr-defined]
            pass

    with pytest.raises(TypeError):
        asyncio.run(awaited())
    with pytest.raises(TypeError):
        asyncio.run(entered())


@pytest.fixture
def calling(make_tracker: Any) -> Any:
    """Make a tracker with a callback, given as the second positional argument."""
    return make_tracker


def test_a_callback_hears_of_completed_and_failed_stages(calling: Any, document: str) -> None:
    """websocket_callback is called with event, stage, document id and status."""
    heard: list[tuple[object, ...]] = []
    tracker = calling(lambda *event: heard.append(event))
    tracker.start_stage(document, Stage.UPLOAD)
    tracker.complete_stage(uuid.UUID(document), Stage.UPLOAD)
    tracker.fail_stage(document, "storage", "R2 is away")
    tracker.skip_stage(document, "embedding")
    assert heard == [
        ("stage_completed", "upload", document, "completed"),
        ("stage_failed", "storage", document, "failed"),
    ]


def test_a_callback_is_not_told_of_what_did_not_happen(calling: Any, document: str) -> None:
    """A fail_stage that comes too late and answers False calls nobody."""
    heard: list[tuple[object, ...]] = []
    tracker = calling(lambda *event: heard.append(event))
    tracker.complete_stage(document, "upload")
    assert tracker.fail_stage(document, "upload", "too late") is False
    assert [event for event, *_ in heard] == ["stage_completed"]


def test_a_context_calls_back_too(calling: Any, document: str) -> None:
    """The end of a StageContext is told to the callback."""
    heard: list[object] = []
    tracker = calling(lambda event, *_: heard.append(event))
    with StageContext(tracker, document, "upload"):
        pass
    with pytest.raises(ZeroDivisionError), StageContext(tracker, document, "storage"):
        raise ZeroDivisionError
    assert heard == ["stage_completed", "stage_failed"]


def test_an_asynchronous_callback_is_run_without_a_loop(calling: Any, document: str) -> None:
    """A coroutine function as callback has run when the call returns, in a thread without an event loop."""
    heard: list[object] = []

    async def callback(*event: object) -> None:
        await asyncio.sleep(0)
        heard.append(event)

    calling(callback).complete_stage(document, "upload")
    assert heard == [("stage_completed", "upload", document, "completed")]


def test_an_asynchronous_callback_runs_in_the_loop_of_the_caller(calling: Any, document: str) -> None:
    """Called from a running event loop, the coroutine becomes a task of that loop."""
    threads: list[int] = []

    async def main() -> None:
        done = asyncio.Event()

        async def callback(*_: object) -> None:
            threads.append(threading.get_ident())
            done.set()

        calling(callback).complete_stage(document, "upload")
        await asyncio.wait_for(done.wait(), 10)

    asyncio.run(main())
    assert threads == [threading.get_ident()]


@pytest.mark.parametrize("kind", ["sync", "async", "in a loop"])
def test_a_failing_callback_harms_nothing(
    calling: Any, document: str, db: Any, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """What a callback raises is logged; the call succeeds and the stage is completed."""

    def fails(*_: object) -> None:
        raise RuntimeError("nobody listens")

    async def fails_later(*_: object) -> None:
        raise RuntimeError("nobody listens")

    tracker = calling(fails if kind == "sync" else fails_later)

    async def main() -> bool:
        done: bool = tracker.complete_stage(document, "upload")
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)
        return done

    with caplog.at_level(logging.ERROR, "processors_v2"):
        done = asyncio.run(main()) if kind == "in a loop" else tracker.complete_stage(document, "upload")
    assert done is True
    assert db.stage(document, "upload")["status"] == "completed"
    assert "nobody listens" in caplog.text
    assert {record.name for record in caplog.records} == {"processors_v2"}
