"""StageWorker: claims stages, runs them, reports how they ended."""

import datetime as dt
import os
import pickle
import queue
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from enum import Enum
from typing import Any, NoReturn

from processors_v2._calls import arguments
from processors_v2._errors import ConfigurationError
from processors_v2._sync.tracker import StageTracker
from processors_v2._worker.context import RunContext
from processors_v2._worker.engine import Engine, Plan

_LARGEST_BATCH = 1000
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StageWorker:
    """Claims stages that are ready, runs their handlers, and reports how they ended; any number on any machines.

    ::

        def extract(ctx):
            pages = read(ctx.filename)
            for page in ctx.track(pages, unit="pages"):
                ...
            return {"characters": 12345}

        StageWorker(tracker, {"text_extraction": extract}, concurrency=8).run()

    A handler gets a RunContext; it may be a coroutine function, which then runs in an event loop in a thread of its
    own. What it returns as a mapping is stored as metadata and the stage completed. An exception is a failure that is
    tried again while attempts are left; ``processors_v2.errors.PermanentError`` one that is not; ``ctx.skip(reason)``
    marks the stage as not applicable. A stage that is lost or cancelled under way is told to the handler by ctx.

    What a handler in this process does with the same tracker, such as a StageContext of its own for this document and
    stage, acts for its run: processors that do their own bookkeeping can be handlers as they are. How they end their
    stage holds then; what they fail is not tried again by itself.

    The tracker's websocket_callback is called for each stage that was completed or failed, in a thread of the worker.

    Claims, signs of life and outcomes are sent many at a time, while handlers run. What the database could not be told
    is kept and told later, also after it or PostgREST was away. Whatever a worker that dies had in hand returns to the
    queue when its leases are over.

    Args:
        tracker: A StageTracker, over PostgREST or over Postgres.
        handlers: What to call for each stage, in order of preference: the first stage is claimed first.
        concurrency: How many handlers run at once; or, for each stage, how many of its handlers do.
        executor: Where they run. "threads": in this process. "processes": in processes of its own, one for each place,
            replaced when they die; a run whose process dies has failed, and is tried again; what the program does goes
            under ``if __name__ == "__main__":``, as always with processes. Or an Executor that is not
            shut down here: a ThreadPoolExecutor, a ProcessPoolExecutor, a Dask ``Client.get_executor()``. Handlers for
            other processes must be importable there.
        child_tracker: Where handlers run in other processes: what makes a tracker there, such as
            StageTracker.from_env, so that update_progress, cancelled and document() work; it is pickled, and must not
            hold a key. Without it metadata arrives with the end of the run, and progress not at all.
        name: Shown for who works on a stage; None: host name and process id.
        lease_seconds: For how long a stage is held without a sign of life, which is sent at a third of it; None: as
            the stage says.
        batch: How many stages are claimed or reported in one call, at most, 1 to 1000.
        idle_max: Seconds between two claims, at most, while nothing is ready.
        reap_seconds: Seconds between two looks, about, at what workers that died have left.
        drain_seconds: For how long handlers may go on after a stop; then their stages are released.
        prune_older_than: Delete runs that ended longer ago than that and were superseded since, as prune_runs does, but
            for failed ones; about every reap_seconds, in a thread of its own. None: nothing is deleted.

    Raises:
        ConfigurationError: An argument cannot be used; the message says which and why.
    """

    def __init__(
        self,
        tracker: StageTracker,
        handlers: Mapping[str | Enum, Callable[[RunContext], Any]] | Mapping[str, Callable[[RunContext], Any]],
        *,
        concurrency: int | Mapping[str, int] = 4,
        executor: Executor | str = "threads",
        child_tracker: Callable[[], StageTracker] | None = None,
        name: str | None = None,
        lease_seconds: float | None = None,
        batch: int = 100,
        idle_max: float = 2.0,
        reap_seconds: float = 30.0,
        drain_seconds: float = 20.0,
        prune_older_than: dt.timedelta | None = None,
    ) -> None:
        if not isinstance(tracker, StageTracker):
            raise ConfigurationError(
                f"StageWorker was given a {type(tracker).__name__}, not a StageTracker",
                hint="Pass a StageTracker; handlers may be coroutine functions all the same",
            )
        named = _checked_handlers(handlers)
        if not (isinstance(batch, int) and 1 <= batch <= _LARGEST_BATCH):
            raise ConfigurationError(f"batch={batch!r} is not a number of 1 to {_LARGEST_BATCH}")
        if not (idle_max > 0 and reap_seconds > 0 and drain_seconds >= 0):
            raise ConfigurationError(
                f"idle_max={idle_max} and reap_seconds={reap_seconds} must be above 0, drain_seconds={drain_seconds} "
                "not below"
            )
        if not isinstance(prune_older_than, dt.timedelta | None):
            raise ConfigurationError(
                f"prune_older_than={prune_older_than!r} is not a timedelta", hint="Pass datetime.timedelta(days=30)"
            )
        is_here = executor == "threads" or isinstance(executor, ThreadPoolExecutor)
        if not is_here and not isinstance(executor, Executor) and executor != "processes":
            raise ConfigurationError(
                f"executor={executor!r} is no executor", hint='Pass "threads", "processes" or an Executor'
            )
        if executor == "processes" or isinstance(executor, ProcessPoolExecutor):
            for stage, handler in named.items():
                _pickled(handler, f"the handler of stage {stage}")
        if is_here and child_tracker is not None:
            raise ConfigurationError("child_tracker is given, but the handlers run in this process, with its tracker")
        self._tracker = tracker
        self._counts: Counter[str] = Counter()
        self._inbox: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._is_running = threading.Lock()
        self._plan = Plan(
            handlers=named,
            concurrency=_checked_concurrency(concurrency, named),
            executor=executor,
            child_tracker=None if child_tracker is None else _pickled(child_tracker, "child_tracker"),
            name=name or f"{socket.gethostname()}:{os.getpid()}",
            lease_seconds=lease_seconds,
            batch=batch,
            idle_max=idle_max,
            reap_seconds=reap_seconds,
            drain_seconds=drain_seconds,
            prune_older_than=prune_older_than,
        )

    def __repr__(self) -> str:
        return f"StageWorker({self._tracker!r}, {list(self._plan.handlers)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a StageWorker is not pickled: make one in each process, with a tracker of its own")

    @property
    def counts(self) -> dict[str, int]:
        """How many runs were claimed, completed, failed, skipped, lost, cancelled, released; a copy.

        Failed are attempts that failed, tried again or not. Claimed is the sum of the others and of what the worker
        holds.
        """
        words = ("claimed", "completed", "failed", "skipped", "lost", "cancelled", "released")
        return {word: self._counts[word] for word in words}

    def run(self, *, until_empty: bool = False) -> None:
        """Work until stop() is called, or SIGTERM or SIGINT arrives, where this is the main thread.

        Then nothing more is claimed, what was not begun with is released at once, handlers that run have drain_seconds
        to end, and what is not done by then is released, too. A second signal ends at once, with KeyboardInterrupt or
        SystemExit.

        Args:
            until_empty: Return when this worker holds nothing and a claim finds nothing either, after a look at what
                others have left. What waits for the backoff of a retry, for another worker, or for a paused stage is
                not waited for.

        Raises:
            AccessDenied, SchemaNotExposed, MigrationMissing: The key or the database cannot be used.
            UnknownStage, InvalidArgument: The database knows no such stage, or takes no such lease or age.
            ConfigurationError: The executor takes no more jobs, or the worker runs already.
        """
        if not self._is_running.acquire(blocking=False):
            raise ConfigurationError("this worker is running already", hint="Make another StageWorker")
        try:
            engine = Engine(
                self._plan,
                self._tracker,
                self._counts,
                self._inbox,
                until_empty=until_empty,
            )
            with _signals(self._inbox):
                engine.run()
        finally:
            while not self._inbox.empty():
                self._inbox.get()
            self._is_running.release()

    def stop(self) -> None:
        """Let run() end, as SIGTERM does; from any thread; returns at once. Before run(): that one ends at once."""
        self._inbox.put(None)


def _checked_handlers(handlers: Mapping[Any, Callable[[RunContext], Any]]) -> dict[str, Callable[[RunContext], Any]]:
    if not isinstance(handlers, Mapping) or not handlers:
        raise ConfigurationError("there are no handlers", hint='Pass a mapping such as {"text_extraction": extract}')
    named = {arguments.stage_name(stage): handler for stage, handler in handlers.items()}
    for stage, handler in named.items():
        if not callable(handler):
            raise ConfigurationError(f"the handler of stage {stage} is a {type(handler).__name__}, not a function")
    return named


def _checked_concurrency(concurrency: int | Mapping[str, int], handlers: Mapping[str, object]) -> int | dict[str, int]:
    if not isinstance(concurrency, Mapping):
        return _places(concurrency)
    named = {arguments.stage_name(stage): _places(count) for stage, count in concurrency.items()}
    if named.keys() != handlers.keys():
        raise ConfigurationError(
            f"concurrency names the stages {sorted(named)}, handlers {sorted(handlers)}",
            hint="Name the same in both, or give one number for all",
        )
    return named


def _places(count: object) -> int:
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ConfigurationError(f"concurrency {count!r} is not a whole number of 1 or more")
    return count


def _pickled(thing: Callable[..., Any], name: str) -> bytes:
    try:
        return pickle.dumps(thing)
    except Exception as error:
        raise ConfigurationError(
            f"{name} cannot be sent to another process: {type(error).__name__}: {error}",
            hint="Use a function that stands in a module by its name, no lambda and no inner function",
        ) from error


@contextmanager
def _signals(inbox: "queue.SimpleQueue[BaseException | None]") -> Iterator[None]:
    """Let the first SIGTERM or SIGINT stop the worker, and the second end it; where this is the main thread."""
    previous = {}
    heard: list[int] = []

    def hear(number: int, _: object) -> None:
        heard.append(number)
        if len(heard) == 1:
            # No lock is taken here, since the main thread may be holding it.
            inbox.put(None)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            sys.exit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            # A background job of a shell ignores Ctrl-C, and one that was not set from Python cannot be put back.
            if handler not in {signal.SIG_IGN, None}:
                previous[number] = signal.signal(number, hear)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


StageWorker.__module__ = "processors_v2.worker"
