"""Where handlers run outside of this process: any executor that takes a function and its arguments."""

import logging
import queue
import threading
from concurrent.futures import CancelledError, Executor, Future

from processors_v2._worker.context import RunContext
from processors_v2._worker.ending import Ending
from processors_v2._worker.job import job_of, work
from processors_v2._worker.processes import Processes
from processors_v2._worker.starters import Floor

_logger = logging.getLogger("processors_v2")

Done = tuple[RunContext, "Future[Ending]"]


class Remote:
    """Runs handlers on an executor whose workers are other processes.

    Jobs are submitted from a thread of its own: an executor calls back from threads, and under locks, in which it takes
    no jobs.

    Args:
        floor: The worker.
        executor: Where to.
        child_tracker: The pickled callable that makes a tracker there, or None.
    """

    def __init__(self, floor: Floor, executor: Executor, child_tracker: bytes | None) -> None:
        self._floor = floor
        self._executor = executor
        self._child_tracker = child_tracker
        self._inbox: queue.SimpleQueue[RunContext | Done | None] = queue.SimpleQueue()
        self._futures: dict[Future[Ending], RunContext] = {}
        self._thread: threading.Thread | None = None

    def start(self, run: RunContext) -> None:
        """Begin with a run as soon as the executor does."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="stage worker jobs", daemon=True)
            self._thread.start()
        self._inbox.put(run)

    def stop(self, seconds: float) -> None:
        """End the thread, and the processes where they are the worker's own."""
        if self._thread is not None:
            self._inbox.put(None)
            self._thread.join(seconds)
        for future in list(self._futures):
            future.cancel()
        if isinstance(self._executor, Processes):
            self._executor.stop(kill=bool(self._futures))

    def _serve(self) -> None:
        while (item := self._inbox.get()) is not None:
            if isinstance(item, RunContext):
                self._submit(item)
                continue
            run, future = item
            del self._futures[future]
            self._floor.end(run, _ending_of(run, future))
            following = self._floor.go_on(run)
            if following is not None:
                self._floor.start(following)

    def _submit(self, run: RunContext) -> None:
        run._begin()
        job = job_of(run, self._floor.handlers[run.stage_name], self._child_tracker)
        try:
            future = self._executor.submit(work, job)
        except Exception as error:  # noqa: BLE001 - executors raise what they like
            self._floor.put_back(run, error)
            return
        self._futures[future] = run
        future.add_done_callback(lambda done: self._inbox.put((run, done)))


def _ending_of(run: RunContext, future: "Future[Ending]") -> Ending:
    try:
        return future.result()
    except CancelledError:
        error = "the executor gave this run up"
    except BaseException as problem:  # noqa: BLE001 - whatever it is, it ends this run and not this thread
        error = f"the process that ran this stage was lost: {type(problem).__name__}: {problem}"
    _logger.warning("%r: %s", run, error)
    return Ending("failed", error=error)
