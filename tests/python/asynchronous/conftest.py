"""An asynchronous tracker over both transports."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import AsyncStageTracker

Work = Callable[[AsyncStageTracker], Coroutine[Any, Any, Any]]


@pytest.fixture(params=["rest", "postgres"])
def run(request: pytest.FixtureRequest, local: LocalSupabase) -> Callable[[Work], Any]:
    """Run a coroutine function in an event loop of its own, with a tracker."""

    async def main(work: Work, options: dict[str, Any]) -> Any:
        if request.param == "rest":
            tracker = AsyncStageTracker(await local.async_client(), **options)
        else:
            tracker = AsyncStageTracker.from_postgres(local.database_url, **options)
        async with tracker:
            return await work(tracker)

    return lambda work, **options: asyncio.run(main(work, options))
