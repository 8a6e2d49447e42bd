"""What a handler does is what the database holds afterwards."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from processors_v2.errors import PermanentError
from processors_v2.stage_tracker import StageContext, StageTracker
from processors_v2.worker import RunContext, StageWorker

Documents = Callable[..., list[str]]
Work = Callable[..., StageWorker]


def test_a_handler_that_returns_completes_its_stage(documents: Documents, work: Work, db: Any) -> None:
    """A mapping that is returned becomes metadata of the completed stage, beside what was set before."""

    def handler(ctx: RunContext) -> dict[str, int]:
        ctx.set_metadata("set", 1)
        ctx.metadata["put"] = 2
        return {"returned": 3}

    (document,) = documents()
    worker = work({"upload": handler})
    stage = db.stage(document, "upload")
    assert (stage["status"], stage["progress"]) == ("completed", 100)
    assert stage["metadata"] == {"set": 1, "put": 2, "returned": 3}
    assert worker.counts == {
        "claimed": 1,
        "completed": 1,
        "failed": 0,
        "skipped": 0,
        "lost": 0,
        "cancelled": 0,
        "released": 0,
    }


def test_a_run_knows_what_it_is(documents: Documents, work: Work, tracker: StageTracker) -> None:
    """Document, file name, stage, attempt and key for services stand in the context; the row can be read."""
    seen: list[RunContext] = []
    rows: list[dict[str, Any]] = []
    documents()
    (document,) = documents()
    tracker.complete_stage(document, "upload")

    def handler(ctx: RunContext) -> None:
        seen.append(ctx)
        rows.append(ctx.document())

    work({"text_extraction": handler})
    (run,) = seen
    assert (run.document_id, run.filename, run.stage_name) == (document, "1.pdf", "text_extraction")
    assert (run.attempt, run.max_attempts, run.metadata) == (1, 5, {})
    assert run.idempotency_key == f"{document}/text_extraction/1"
    assert (rows[0]["id"], rows[0]["stage_status"]["upload"]["status"]) == (document, "completed")


def test_an_exception_is_tried_again(documents: Documents, work: Work, db: Any) -> None:
    """The stage has failed with the text of the exception and what was reported, and is due again after its backoff."""

    def handler(ctx: RunContext) -> None:
        ctx.update_progress(40, {"pages": 4})
        raise OSError("disk full")

    (document,) = documents()
    worker = work({"upload": handler})
    stage = db.stage(document, "upload")
    assert (stage["status"], stage["error"], stage["progress"]) == ("failed", "disk full", 40)
    assert stage["metadata"] == {"pages": 4}
    assert db.run(document, "upload", "retry_at") is not None
    assert worker.counts["failed"] == 1


def test_each_attempt_has_a_key_of_its_own(documents: Documents, work: Work, db: Any) -> None:
    """When the backoff is over the next worker gets the stage as the next attempt, until there is none left."""
    keys: list[str] = []

    def handler(ctx: RunContext) -> None:
        keys.append(ctx.idempotency_key)
        raise OSError

    (document,) = documents()
    for _ in range(6):
        work({"upload": handler})
        db.connection.execute("update krai_core.stage_runs set available_at = now() where status = 'ready'")
    assert keys == [f"{document}/upload/{attempt}" for attempt in (1, 2, 3, 4, 5)]
    assert db.stage(document, "upload")["status"] == "failed"


def test_a_permanent_error_is_not_tried_again(documents: Documents, work: Work, db: Any) -> None:
    """PermanentError leaves attempts unused."""

    def handler(_: RunContext) -> None:
        raise PermanentError("no PDF at all")

    (document,) = documents()
    work({"upload": handler})
    assert db.stage(document, "upload")["error"] == "no PDF at all"
    assert db.run(document, "upload", "retry_at") is None


@pytest.mark.parametrize("end", [lambda: None, lambda: 1 / 0])
def test_a_skip_holds_however_the_handler_ends(
    documents: Documents, work: Work, db: Any, end: Callable[[], None]
) -> None:
    """The stage is skipped with the reason, beside what was set."""

    def handler(ctx: RunContext) -> None:
        ctx.metadata["images"] = 0
        ctx.skip("No images found in PDF")
        end()

    (document,) = documents()
    worker = work({"upload": handler})
    stage = db.stage(document, "upload")
    assert stage["status"] == "skipped"
    assert stage["metadata"] == {"images": 0, "reason": "No images found in PDF"}
    assert (worker.counts["skipped"], worker.counts["failed"]) == (1, 0)


def test_asynchronous_handlers_share_one_event_loop(documents: Documents, work: Work, db: Any) -> None:
    """Coroutine functions run at once in one thread; a stage is done when its coroutine is."""
    meeting: list[asyncio.Event] = []
    threads: set[int] = set()

    async def handler(ctx: RunContext) -> dict[str, int]:
        threads.add(threading.get_ident())
        meeting.append(asyncio.Event())
        if len(meeting) == 2:
            for event in meeting:
                event.set()
        await meeting[0 if len(meeting) == 1 else 1].wait()
        return {"attempt": ctx.attempt}

    both = documents(2)
    work({"upload": handler}, concurrency=2)
    assert [db.stage(document, "upload")["metadata"] for document in both] == [{"attempt": 1}] * 2
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_what_a_function_returns_to_be_awaited_is_awaited(documents: Documents, work: Work, db: Any) -> None:
    """A plain function around a coroutine function completes nothing before the coroutine is done."""

    async def inner(stage: str) -> dict[str, str]:
        await asyncio.sleep(0)
        return {"of": stage}

    (document,) = documents()
    work({"upload": lambda ctx: inner(ctx.stage_name)})
    assert db.stage(document, "upload")["metadata"] == {"of": "upload"}


def test_metadata_that_cannot_be_stored_fails_the_stage(documents: Documents, work: Work, db: Any) -> None:
    """The error names the value."""
    (document,) = documents()
    work({"upload": lambda _: {"model": object()}})
    stage = db.stage(document, "upload")
    assert stage["status"] == "failed"
    assert "metadata.model cannot be stored as JSON: object" in stage["error"]


def test_a_result_that_is_no_mapping_is_said_and_left(
    documents: Documents, work: Work, db: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that returns something else completes its stage, and a warning says what was not stored."""
    (document,) = documents()
    work({"upload": lambda _: True})
    assert db.stage(document, "upload")["status"] == "completed"
    assert "returned a bool, which is not stored" in caplog.text


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_a_handler_ends_no_thread(documents: Documents, work: Work, error: BaseException) -> None:
    """What ends a program is a failure like any other here, and the next document is handled by the same worker."""

    def handler(_: RunContext) -> None:
        raise error

    documents(5)
    assert work({"upload": handler}, concurrency=1).counts["failed"] == 5


def test_progress_is_written_while_the_handler_runs(
    documents: Documents, tracker: StageTracker, db: Any, run_beside: Any, soon: Any
) -> None:
    """The first value is written at once, later ones gathered, the last one too, without a further call."""
    go_on, begun = threading.Event(), threading.Event()

    def handler(ctx: RunContext) -> None:
        for number in range(1000):
            ctx.update_progress(number / 10, {f"page{number % 3}": number})
        begun.set()
        go_on.wait(60)

    (document,) = documents()
    with run_beside(StageWorker(tracker, {"upload": handler})):
        soon(lambda: db.stage(document, "upload")["progress"] == 99.9)
        assert db.stage(document, "upload")["metadata"] == {"page0": 999, "page1": 997, "page2": 998}
        assert db.stage(document, "upload")["status"] == "processing"
        go_on.set()
    assert db.stage(document, "upload")["progress"] == 100


def test_progress_of_many_pages_costs_few_calls(
    documents: Documents, through: StageTracker, proxy: Any, db: Any, soon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first value goes out at once, and no other before the interval is over but the end itself."""
    monkeypatch.setattr("processors_v2._worker.reports._INTERVAL", 3600)
    (document,) = documents()

    def handler(ctx: RunContext) -> None:
        for page in ctx.track(range(50_000), unit="pages"):
            if page == 1:
                soon(lambda: db.stage(document, "upload")["progress"] > 0)

    StageWorker(through, {"upload": handler}).run(until_empty=True)
    assert db.stage(document, "upload")["metadata"] == {"pages_processed": 50_000, "total_pages": 50_000}
    assert proxy.requests.count("finish_stages") == 2


def test_progress_outside_of_its_range_is_refused_at_the_call(documents: Documents, work: Work, db: Any) -> None:
    """The handler hears it, where the value comes from."""
    (document,) = documents()
    work({"upload": lambda ctx: ctx.update_progress(101)})
    assert "progress 101 is outside of 0 to 100 percent" in db.stage(document, "upload")["error"]


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (lambda _: None, "completed"),
        (lambda ctx: ctx.tracker.skip_stage(ctx.document_id, ctx.stage_name, "No images"), "skipped"),
        (lambda _: 1 / 0, "failed"),
    ],
)
def test_a_processor_that_keeps_its_own_books_can_be_a_handler(
    documents: Documents, tracker: StageTracker, work: Work, db: Any, end: Callable[[StageContext], Any], status: str
) -> None:
    """A StageContext of the worker's tracker acts for the run that the worker has claimed, and its end holds."""

    def processor(document_id: str) -> None:
        with StageContext(tracker, document_id, "upload") as ctx:
            ctx.set_metadata("by", "the processor")
            end(ctx)

    (document,) = documents()
    worker = work({"upload": lambda run: processor(run.document_id)})
    stage = db.stage(document, "upload")
    assert (stage["status"], stage["metadata"]["by"]) == (status, "the processor")
    assert db.run(document, "upload", "attempt") == 1
    assert worker.counts[status] == 1
    assert tracker._claims.of(document, "upload") is None


def test_the_callback_of_the_tracker_is_told(documents: Documents, make_tracker: Any) -> None:
    """Each stage that was completed or failed reaches websocket_callback, as from complete_stage and fail_stage."""
    told: list[tuple[str, ...]] = []

    def handler(ctx: RunContext) -> None:
        if ctx.document_id == ids[1]:
            raise OSError
        if ctx.document_id == ids[2]:
            ctx.skip()

    ids = documents(3)
    tracker = make_tracker(lambda *event: told.append(event))
    StageWorker(tracker, {"upload": handler}).run(until_empty=True)
    assert sorted(told) == sorted(
        [("stage_completed", "upload", ids[0], "completed"), ("stage_failed", "upload", ids[1], "failed")]
    )
