"""Calls of an endpoint, through whichever tracker it was given."""

from collections.abc import Iterable
from functools import partial
from typing import Any, TypeVar

from fastapi.concurrency import run_in_threadpool

from processors_v2._async.tracker import AsyncStageTracker
from processors_v2._calls import call as call_calls
from processors_v2._calls.call import Call
from processors_v2._sync.tracker import StageTracker

T = TypeVar("T")

AnyTracker = StageTracker | AsyncStageTracker


async def send(tracker: AnyTracker, call: Call[T], **options: Any) -> T:
    """Send a call while the event loop goes on.

    Args:
        tracker: A synchronous one waits in a thread.
        call: The request.
        **options: Of the transport.
    """
    if isinstance(tracker, AsyncStageTracker):
        return await tracker._transport.send(call, **options)  # noqa: SLF001 - what its methods do
    return await run_in_threadpool(partial(tracker._transport.send, call, **options))  # noqa: SLF001 - as above


def get_stage_statistics(order: Iterable[str]) -> Call[dict[str, Any]]:
    """krai_core.get_stage_statistics, whole, its stages in the given order."""

    def parse(answer: object) -> dict[str, Any]:
        statistics = call_calls.as_dict(answer)
        return {**statistics, "stages": call_calls.ordered(statistics["stages"], order)}

    return call_calls.reader("get_stage_statistics", {}, parse)
