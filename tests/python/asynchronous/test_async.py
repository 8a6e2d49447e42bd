"""AsyncStageTracker and AsyncStageContext: what is not the same words as in the synchronous classes."""

import asyncio
import datetime as dt
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import supabase

from processors_v2._local.process import wait_until
from processors_v2.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    InvalidArgument,
    StageBusy,
    StageConflict,
    StageLost,
    UnknownStage,
)
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import AsyncStageContext, AsyncStageTracker, StageTracker

FOREVER = 3600.0


async def until(condition: Callable[[], Any], seconds: float = 20) -> bool:
    """Wait for a condition while the event loop goes on."""
    return await asyncio.to_thread(wait_until, condition, seconds)


def test_every_kind_of_call_answers(run: Any, document: str, db: Any) -> None:
    """Writers, readers, the queue and the pipeline answer as those of StageTracker do."""

    async def work(tracker: AsyncStageTracker) -> None:
        assert await tracker.start_stage(document, "upload") is True
        assert await tracker.start_stage(document, "upload") is False
        assert await tracker.update_progress(document, "upload", 45.5, {"a": 1}) is True
        assert await tracker.update_stage_progress(document, "upload", 50) is True
        assert await tracker.complete_stage(document, "upload", {"b": uuid.UUID(int=1)}) is True
        assert await tracker.fail_stage(document, "storage", ValueError("R2 is away")) is True
        assert await tracker.skip_stage(document, "embedding") is True
        assert await tracker.retry_stage(document, "storage") is True
        assert await tracker.reset_stage(document, "embedding") is True
        assert await tracker.get_progress(document) == 12.5
        assert await tracker.get_current_stage(document) == "text_extraction"
        assert await tracker.can_start_stage(document, "text_extraction") is True
        assert list(await tracker.get_stage_status(document)) == AsyncStageTracker.STAGES
        assert (await tracker.get_document_status(document))["progress"] == 12.5
        assert list(await tracker.get_statistics()) == AsyncStageTracker.STAGES
        assert [stage.name for stage in await tracker.list_stages()] == AsyncStageTracker.STAGES
        assert (await tracker.explain_stage(document, "text_extraction"))["reason"] == "ready"
        found = [row["id"] async for row in tracker.get_documents_ready_for("text_extraction")]
        assert document in found

    run(work)
    assert db.stage(document, "upload")["metadata"] == {"a": 1, "b": str(uuid.UUID(int=1))}


def test_every_question_is_answered(run: Any, document: str) -> None:
    """Lists, failures, what is stuck, who works, estimates and upkeep answer as those of StageTracker do."""

    async def work(tracker: AsyncStageTracker) -> None:
        await tracker.start_stage(document, "upload", worker="gpu-7")
        await tracker.fail_stage(document, "storage", "R2 is away")
        listed = [one["document_id"] async for one in tracker.list_documents("upload", "processing")]
        assert document in listed
        groups = (await tracker.get_failures("storage"))["groups"]
        assert "R2 is away" in {group["sample"]["error"] for group in groups}
        assert set(await tracker.get_stuck_stages()) == {"stalled", "slow", "starved"}
        assert "gpu-7" in {worker["worker"] for worker in await tracker.get_workers()}
        assert document in {row["document_id"] for row in await tracker.get_running_stages()}
        since = dt.datetime.now(dt.UTC) - dt.timedelta(hours=2)
        assert {row["stage_name"] for row in await tracker.get_stage_flow("upload", since)} == {"upload"}
        assert {one["stage_name"] for one in (await tracker.get_timeline(document))["runs"]} >= {"upload", "storage"}
        assert list((await tracker.get_eta(document))["stages"]) == AsyncStageTracker.STAGES
        assert await tracker.get_weighted_progress(document) == 0.0
        assert list((await tracker.get_forecast())["stages"]) == AsyncStageTracker.STAGES
        assert (await tracker.prune_runs(dt.timedelta(days=30)))["more"] is False
        assert await tracker.rebuild_statistics() == {"mended": 0}
        assert (await tracker.schedule_maintenance())["scheduled"] is False
        with pytest.raises(InvalidArgument, match="Name a stage"):
            [one async for one in tracker.list_documents(status="pending")]

    run(work)


def test_errors_are_those_of_the_rules(run: Any, document: str) -> None:
    """What is refused raises the same classes, with what to do."""

    async def work(tracker: AsyncStageTracker) -> None:
        with pytest.raises(UnknownStage, match="Stages are: upload"):
            await tracker.start_stage(document, "ocr")
        with pytest.raises(StageConflict):
            await tracker.update_progress(document, "upload", 5)

    run(work)


def test_a_block_that_ends_completes_the_stage(run: Any, document: str, db: Any) -> None:
    """The stage is processing inside of the block and completed after it, with what was reported."""

    async def work(tracker: AsyncStageTracker) -> None:
        async with AsyncStageContext(tracker, document, "upload") as ctx:
            assert db.stage(document, "upload")["status"] == "processing"
            ctx.update_progress(40, {"pages": 3})
            ctx.set_metadata("more", True)
            with pytest.raises(StageBusy):
                async with AsyncStageContext(tracker, document, "upload"):
                    pytest.fail("ran")
        with pytest.raises(ValueError, match="page 7"):
            async with AsyncStageContext(tracker, document, "storage") as ctx:
                ctx.update_progress(30)
                raise ValueError("page 7")
        async with AsyncStageContext(tracker, document, "embedding") as ctx:
            await ctx.skip("no text")

    run(work)
    upload, storage = db.stage(document, "upload"), db.stage(document, "storage")
    assert (upload["status"], upload["metadata"]) == ("completed", {"pages": 3, "more": True})
    assert (storage["status"], storage["error"], storage["progress"]) == ("failed", "page 7", 30)
    assert db.stage(document, "embedding")["metadata"] == {"reason": "no text"}


def test_progress_is_written_while_the_body_waits(run: Any, document: str, db: Any) -> None:
    """The first value is in the database while the body awaits something else."""

    async def work(tracker: AsyncStageTracker) -> None:
        async with AsyncStageContext(tracker, document, "upload", interval=FOREVER) as ctx:
            ctx.update_progress(12.5)
            assert await until(lambda: db.stage(document, "upload")["progress"] == 12.5)

    run(work)


def test_a_blocked_event_loop_keeps_its_lease(run: Any, document: str, db: Any) -> None:
    """A body that blocks the event loop for several leases still holds the stage, and its progress is written."""

    async def work(tracker: AsyncStageTracker) -> None:
        async with AsyncStageContext(tracker, document, "upload", lease_seconds=1) as ctx:
            ctx.update_progress(7)
            began = db.run(document, "upload", "lease_expires_at")
            # No await in here.
            assert wait_until(
                lambda: (db.run(document, "upload", "lease_expires_at") - began).total_seconds() > 2.5, 30
            )
            assert db.stage(document, "upload")["progress"] == 7

    run(work)
    assert db.stage(document, "upload")["status"] == "completed"


def test_the_heartbeat_tells_of_a_loss(run: Any, document: str, local: LocalSupabase) -> None:
    """A run that was taken away raises StageLost at the next call of its body."""
    other = StageTracker(local.client())

    async def work(tracker: AsyncStageTracker) -> None:
        with pytest.raises(StageLost):
            async with AsyncStageContext(tracker, document, "upload", lease_seconds=1) as ctx:
                other.reset_stage(document, "upload", force=True)
                pulse = ctx._pulse
                assert pulse is not None
                assert await until(lambda: pulse.error is not None)
                ctx.update_progress(1)

    run(work)


def test_many_tasks_share_a_tracker_without_loss(run: Any, document: str, db: Any) -> None:
    """Calls of many tasks at once all take effect."""

    async def work(tracker: AsyncStageTracker) -> None:
        await tracker.start_stage(document, "upload")
        async with asyncio.TaskGroup() as tasks:
            for number in range(20):
                tasks.create_task(tracker.update_progress(document, "upload", None, {f"key{number}": number}))

    run(work)
    assert db.stage(document, "upload")["metadata"] == {f"key{number}": number for number in range(20)}


def test_a_tracker_is_used_in_one_event_loop_after_another(local: LocalSupabase, document: str) -> None:
    """Connections belong to an event loop; a tracker opens others in the next one."""
    tracker = AsyncStageTracker.from_postgres(local.database_url)

    async def work() -> float:
        async with tracker:
            return await tracker.get_progress(document)

    assert [asyncio.run(work()) for _ in range(3)] == [0.0, 0.0, 0.0]


def test_the_key_is_read_at_each_call_in_the_background_too(
    proxy: Any, local: LocalSupabase, document: str, db: Any
) -> None:
    """Heartbeats and progress go through an HTTP client of the thread's own, with the key of the moment."""

    async def work() -> None:
        client = await supabase.acreate_client(proxy.url, local.key())
        tracker = AsyncStageTracker(client)
        async with tracker, AsyncStageContext(tracker, document, "upload", interval=0) as ctx:
            client.options.headers["X-Refreshed"] = "yes"
            ctx.update_progress(5)
            assert await until(lambda: db.stage(document, "upload")["progress"] == 5)

    asyncio.run(work())
    (progress,) = [
        headers for path, headers in zip(proxy.requests, proxy.headers, strict=True) if path == "update_stage_progress"
    ]
    assert progress["X-Refreshed"] == "yes"


def test_a_call_is_repeated_without_blocking_the_loop(proxy: Any, local: LocalSupabase, document: str) -> None:
    """Faults of the network are survived, and other tasks go on between the tries."""

    async def work() -> tuple[bool, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        proxy.faults = ["html", "cut", "drop"]
        client = await supabase.acreate_client(proxy.url, local.key())
        async with AsyncStageTracker(client) as tracker:
            done = await tracker.complete_stage(document, "upload")
        ticking.cancel()
        return done, ticks

    done, ticks = asyncio.run(work())
    assert done is True
    assert len(proxy.requests) == 4
    assert ticks > 10


@pytest.mark.parametrize("kind", ["fails", "coroutine"])
def test_a_callback_is_awaited(run: Any, document: str, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """A coroutine function as callback has run when the call returns; what it raises is logged."""
    heard: list[object] = []

    async def callback(*event: object) -> None:
        await asyncio.sleep(0)
        heard.append(event)
        if kind == "fails":
            raise RuntimeError("nobody listens")

    async def work(tracker: AsyncStageTracker) -> None:
        assert await tracker.complete_stage(document, "upload") is True
        assert heard == [("stage_completed", "upload", document, "completed")]

    run(work, websocket_callback=callback)
    assert ("nobody listens" in caplog.text) is (kind == "fails")


def test_tracking_goes_over_both_kinds_of_iterables(run: Any, document: str, db: Any) -> None:
    """track takes what is iterated by `for` and by `async for`, and counts both."""

    async def numbers() -> AsyncIterator[int]:
        for number in range(4):
            await asyncio.sleep(0)
            yield number

    async def work(tracker: AsyncStageTracker) -> None:
        async with AsyncStageContext(tracker, document, "upload") as ctx:
            assert [n for n in ctx.track([1, 2], unit="pages")] == [1, 2]  # noqa: C416 - it is iterated
            assert [n async for n in ctx.track(numbers(), total=4, unit="rows")] == [0, 1, 2, 3]
            with pytest.raises(InvalidArgument, match="needs a total"):
                ctx.track(numbers())

    run(work)
    assert db.stage(document, "upload")["metadata"] == {
        "pages_processed": 2, "total_pages": 2, "rows_processed": 4, "total_rows": 4,
    }  # fmt: skip


def test_leaving_a_tracked_async_loop_early_keeps_the_last_count(run: Any, document: str, db: Any) -> None:
    """A break out of an `async for` loop leaves the item at hand uncounted."""

    async def numbers() -> AsyncIterator[int]:
        for number in range(10):
            yield number

    async def work(tracker: AsyncStageTracker) -> None:
        async with AsyncStageContext(tracker, document, "upload") as ctx:
            async for number in ctx.track(numbers(), total=10, unit="rows"):
                if number == 4:
                    break

    run(work)
    assert db.stage(document, "upload")["metadata"] == {"rows_processed": 4, "total_rows": 10}


def test_a_synchronous_client_is_refused(local: LocalSupabase) -> None:
    """A Client is refused with the class that it fits, and how to make the other kind."""
    with pytest.raises(ConfigurationError, match=r"synchronous Client\. Use StageTracker .*acreate_client"):
        AsyncStageTracker(local.client())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"not a supabase client.*AsyncStageTracker\.from_env"):
        AsyncStageTracker(httpx)  # type: ignore[arg-type]


def test_from_env_is_awaited(monkeypatch: pytest.MonkeyPatch, proxy: Any, local: LocalSupabase, document: str) -> None:
    """from_env makes a tracker with an AsyncClient for the project of the environment."""
    monkeypatch.setenv("SUPABASE_URL", proxy.url)
    monkeypatch.setenv("SUPABASE_SECRET_KEY", local.key())

    async def work() -> bool:
        async with await AsyncStageTracker.from_env(retry_for=1) as tracker:
            assert isinstance(tracker.supabase, supabase.AsyncClient)
            return await tracker.start_stage(document, "upload")

    assert asyncio.run(work()) is True


def test_the_wait_for_a_write_under_way_does_not_block_the_loop(run: Any, document: str, db: Any) -> None:
    """A block that ends while progress is on its way waits for it, and other tasks go on meanwhile."""

    async def work(tracker: AsyncStageTracker) -> None:
        sending, go_on, send = threading.Event(), threading.Event(), tracker._heart._send
        waited: list[bool] = []

        def slow(call: Any, **options: Any) -> Any:
            if call.path == "rpc/update_stage_progress":
                sending.set()
                waited.append(go_on.wait(10))
            return send(call, **options)

        tracker._heart._send = slow

        async def let_go(ending: asyncio.Event) -> None:
            await ending.wait()
            await asyncio.sleep(0.05)
            go_on.set()

        ending = asyncio.Event()
        task = asyncio.create_task(let_go(ending))
        async with AsyncStageContext(tracker, document, "upload") as ctx:
            ctx.update_progress(20)
            assert await until(sending.is_set)
            ending.set()
        await task
        assert waited == [True]

    run(work)
    assert db.stage(document, "upload")["status"] == "completed"


def test_nobody_listens(document: str) -> None:
    """A database that is not there ends the call with DatabaseUnavailable."""

    async def work() -> None:
        tracker = AsyncStageTracker.from_postgres("postgresql://postgres@127.0.0.1:9/postgres", retry_for=0.2)
        with pytest.raises(DatabaseUnavailable, match=r"no answer from 127\.0\.0\.1"):
            await tracker.start_stage(document, "upload")

    asyncio.run(work())
