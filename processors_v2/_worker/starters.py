"""Where handlers run within this process: threads, and an event loop in a thread of its own.

The threads are daemons, other than those of concurrent.futures: a handler that does not come to its end cannot keep the
process from ending.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from processors_v2._worker import ending as _ending
from processors_v2._worker.context import RunContext
from processors_v2._worker.ending import Ending, Handler
from processors_v2._worker.lanes import Lane

_CANCEL_SECONDS = 1.0


class Floor(Protocol):
    """What a starter needs to know of the worker around it."""

    handlers: dict[str, Handler]
    lane_of: dict[str, Lane]

    def begin(self, run: RunContext) -> None:
        """Take note that a handler of this process begins."""

    def end(self, run: RunContext, ending: Ending) -> None:
        """Take the end of a run."""

    def start(self, run: RunContext) -> None:
        """Begin with a run, wherever its handler runs."""

    def go_on(self, run: RunContext) -> RunContext | None:
        """Say that a run has ended, and return the one to take its place."""

    def is_mine(self, run: RunContext, starter: object) -> bool:
        """Whether the handler of a run runs there."""

    def wait_for(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the event loop and return its result."""

    def put_back(self, run: RunContext, error: Exception) -> None:
        """Take a run back that its executor did not take, and end the worker."""


class Threads:
    """Runs handlers in threads of this process, as many as there are places.

    Args:
        floor: The worker.
        places: How many threads at most.
    """

    def __init__(self, floor: Floor, places: int) -> None:
        self._floor = floor
        self._places = places
        self._queue: queue.SimpleQueue[RunContext | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def start(self, run: RunContext) -> None:
        """Begin with a run as soon as a thread is free, which one is where a place is."""
        self._queue.put(run)
        # One more for each run until there are enough: to know whether one is idle would need a lock.
        if len(self._threads) < self._places:
            with self._lock:
                if len(self._threads) < self._places:
                    name = f"stage worker {len(self._threads)}"
                    thread = threading.Thread(target=self._serve, name=name, daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def stop(self, seconds: float) -> None:
        """End the threads; one whose handler goes on is left alone after some seconds."""
        for _ in self._threads:
            self._queue.put(None)
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _serve(self) -> None:
        while (run := self._queue.get()) is not None:
            chain(self._floor, self, run)


class Pool:
    """Runs handlers in a ThreadPoolExecutor that was handed in.

    Args:
        floor: The worker.
        executor: The pool.
    """

    def __init__(self, floor: Floor, executor: ThreadPoolExecutor) -> None:
        self._floor = floor
        self._executor = executor

    def start(self, run: RunContext) -> None:
        """Begin with a run as soon as the pool has a thread for it."""
        try:
            self._executor.submit(self._serve, run)
        except RuntimeError as error:
            self._floor.put_back(run, error)

    def stop(self, seconds: float) -> None:
        """Leave the pool to whoever made it."""

    def _serve(self, run: RunContext) -> None:
        # One run for each job, so that others get their turn in a pool that is shared.
        following = handle(self._floor, run)
        if following is not None:
            self._floor.start(following)


class Loop:
    """Runs asynchronous handlers in an event loop, in a thread of its own that begins with the first of them.

    Args:
        floor: The worker.
    """

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._lock = threading.Lock()

    def start(self, run: RunContext) -> None:
        """Begin with a run."""
        self._running().call_soon_threadsafe(self._begin, run)

    def wait_for(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine there and wait for its result in this thread."""
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self._running())
        return future.result()

    def stop(self, seconds: float) -> None:
        """End the loop; what still runs in it is cancelled, and left alone if it will not hear of it."""
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._cancel(), self._loop)
        self._thread.join(seconds + _CANCEL_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="stage worker loop", daemon=True)
                self._thread.start()
            return self._loop

    def _begin(self, run: RunContext) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(run))
        # The loop itself holds tasks weakly.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, run: RunContext) -> None:
        following: RunContext | None = run
        while following is not None:
            run = following
            self._floor.begin(run)
            self._floor.end(run, await _ending.perform_async(self._floor.handlers[run.stage_name], run))
            following = self._floor.go_on(run)
            if following is not None and not self._floor.is_mine(following, self):
                self._floor.start(following)
                return
            # Handlers that never wait for anything must not keep the others from theirs.
            await asyncio.sleep(0)

    async def _cancel(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)
        loop = asyncio.get_running_loop()
        await loop.shutdown_asyncgens()
        loop.stop()


def chain(floor: Floor, starter: object, run: RunContext) -> None:
    """Handle a run in this thread, and those that follow in its place."""
    following: RunContext | None = run
    while following is not None:
        if not floor.is_mine(following, starter):
            floor.start(following)
            return
        following = handle(floor, following)


def handle(floor: Floor, run: RunContext) -> RunContext | None:
    """Handle a run in this thread, and return the one to take its place."""
    floor.begin(run)
    floor.end(run, _ending.perform(floor.handlers[run.stage_name], run, floor.wait_for))
    return floor.go_on(run)
