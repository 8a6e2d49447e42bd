"""Cancelled tasks: nothing is left half done, and nobody is held up for long."""

import asyncio
import functools
import gc
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from processors_v2._local.process import wait_until
from processors_v2.stage_tracker import AsyncStageContext, AsyncStageTracker


async def until(condition: Callable[[], Any], seconds: float = 20) -> bool:
    """Wait for a condition while the event loop goes on."""
    return await asyncio.to_thread(wait_until, condition, seconds)


def test_a_cancelled_body_is_recorded_as_failed(run: Any, document: str, db: Any) -> None:
    """Cancelling the task fails the stage, and CancelledError goes on."""

    async def work(tracker: AsyncStageTracker) -> None:
        inside = asyncio.Event()

        async def body() -> None:
            async with AsyncStageContext(tracker, document, "upload") as ctx:
                ctx.update_progress(33)
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(body())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stage = db.stage(document, "upload")
        assert (stage["status"], stage["error"], stage["progress"]) == ("failed", "CancelledError", 33)

    run(work)


def test_a_body_that_is_cancelled_again_while_it_is_recorded_is_recorded(run: Any, document: str, db: Any) -> None:
    """Neither further cancellations nor one that comes while the stage is completed leave it in processing."""

    async def work(tracker: AsyncStageTracker, stage: str, outcome: str) -> None:
        inside, ending, send = asyncio.Event(), asyncio.Event(), tracker._transport.send

        async def slow(call: Any, **options: Any) -> Any:
            if call.path in {"rpc/fail_stage", "rpc/complete_stage"}:
                ending.set()
                await asyncio.sleep(0.1)
            return await send(call, **options)

        async def body() -> None:
            async with AsyncStageContext(tracker, document, stage):
                inside.set()
                if outcome == "failed":
                    await asyncio.Event().wait()

        tracker._transport.send = slow  # type: ignore[method-assign]
        task = asyncio.create_task(body())
        await inside.wait()
        if outcome == "failed":
            task.cancel()
        await ending.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for stage, outcome in (("upload", "failed"), ("storage", "completed")):
        run(functools.partial(work, stage=stage, outcome=outcome))
        assert db.stage(document, stage)["status"] == outcome


def test_recording_a_cancellation_is_bounded(
    run: Any, document: str, monkeypatch: pytest.MonkeyPatch, db: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A cancelled task is not held up for longer than the bound by a database that does not answer."""
    from processors_v2._async import cancellation  # noqa: PLC0415 - what is bounded

    monkeypatch.setattr(cancellation.shielded, "__kwdefaults__", {"seconds": 0.1})

    async def work(tracker: AsyncStageTracker) -> None:
        with pytest.raises(asyncio.CancelledError):
            async with AsyncStageContext(tracker, document, "upload"):
                tracker._transport._exchange = lambda *_: asyncio.Event().wait()  # type: ignore[method-assign,assignment]
                raise asyncio.CancelledError

    run(work)
    assert db.stage(document, "upload")["status"] == "processing"
    assert "was not recorded within 0.1 s" in caplog.text


def test_a_start_that_is_cancelled_gives_the_stage_back(run: Any, document: str, db: Any) -> None:
    """A task that is cancelled while it enters a context holds nothing, and no attempt was used up."""

    async def work(tracker: AsyncStageTracker) -> None:
        starting, send = asyncio.Event(), tracker._transport.send

        async def slow(call: Any, **options: Any) -> Any:
            if call.path == "rpc/start_stage":
                starting.set()
                await asyncio.sleep(0.1)
            return await send(call, **options)

        async def body() -> None:
            async with AsyncStageContext(tracker, document, "upload"):
                pytest.fail("ran")

        tracker._transport.send = slow  # type: ignore[method-assign]
        task = asyncio.create_task(body())
        await starting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(work)
    assert db.run(document, "upload", "status") == "released"
    assert db.stage(document, "upload")["status"] == "pending"


@pytest.mark.parametrize("kind", ["claim", "get_next_document"])
def test_a_claim_that_is_cancelled_gives_back_what_it_got(run: Any, db: Any, kind: str) -> None:
    """A task that is cancelled while it claims holds nothing, and no attempt was used up."""
    document = db.document()
    db.one("select krai_core.set_priority(%s, 4000)", document)

    async def work(tracker: AsyncStageTracker) -> None:
        claiming, send = asyncio.Event(), tracker._transport.send

        async def slow(call: Any, **options: Any) -> Any:
            if call.path in {"rpc/claim_stages", "rpc/get_next_document"}:
                claiming.set()
                await asyncio.sleep(0.1)
            return await send(call, **options)

        tracker._transport.send = slow  # type: ignore[method-assign]
        task = asyncio.create_task(getattr(tracker, kind)("upload"))
        await claiming.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(work)
    assert db.run(document, "upload", "status") == "released"
    assert db.stage(document, "upload")["status"] == "pending"
    db.one("select krai_core.skip_stage(%s, 'upload')", document)


# A socket that was about to be connected is left to the garbage collector by the HTTP library.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_cancelled_call_harms_no_other(run: Any, document: str, db: Any) -> None:
    """A connection whose call was cancelled is not used again, and the next call works."""

    async def work(tracker: AsyncStageTracker) -> None:
        for _ in range(10):
            task = asyncio.create_task(tracker.start_stage(document, "upload", claim_id=uuid.uuid4()))
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert await tracker.get_progress(document) == 0.0

    run(work)
    gc.collect()
    assert db.stage(document, "upload")["status"] in {"pending", "processing"}
