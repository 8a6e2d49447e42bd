"""Processes: an executor of which each process is a pool of its own, so that one that dies takes no other with it."""

import collections
import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# A fork of a process that has threads inherits their locks, locked.
_SPAWN = multiprocessing.get_context("spawn")

# So many processes in a row that die before they have done anything are no accident.
_STILLBORN = 3


class Processes(Executor):
    """Runs each call in one of some processes; one that died is replaced, and the call it had raises BrokenExecutor.

    The processes end with this one, however it ends, and leave Ctrl-C to it.
    """

    def __init__(self) -> None:
        self._free: collections.deque[_Process] = collections.deque()
        self._all: set[_Process] = set()
        self._stillborn = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Begin with a call in a process that has nothing to do, or in a new one.

        Raises:
            BrokenExecutor: New processes die before they have begun.
        """
        if self._stillborn >= _STILLBORN:
            raise BrokenExecutor(
                'new processes do not start; is what the program runs under if __name__ == "__main__"?'
            )
        while True:
            process = self._take()
            try:
                future = process.pool.submit(fn, *args, **kwargs)
            except BrokenExecutor:
                # It died while it had nothing to do.
                self._all.discard(process)
                continue
            future.add_done_callback(functools.partial(self._ended, process))
            return future

    def stop(self, *, kill: bool) -> None:
        """End the processes.

        Args:
            kill: At once, whatever they do.
        """
        for process in list(self._all):
            process.end(kill=kill)
        self._all.clear()
        self._free.clear()

    def _take(self) -> "_Process":
        try:
            return self._free.pop()
        except IndexError:
            process = _Process()
            self._all.add(process)
            return process

    def _ended(self, process: "_Process", future: "Future[Any]") -> None:
        if not future.cancelled() and isinstance(future.exception(), BrokenExecutor):
            self._stillborn += not process.has_begun
            # Not to be shut down from here: it calls back under the lock which that takes. It ends by itself.
            self._all.discard(process)
        else:
            self._stillborn = 0
            self._free.append(process)


class _Process:
    """A pool of one process."""

    def __init__(self) -> None:
        self.pool = ProcessPoolExecutor(1, mp_context=_SPAWN, initializer=_begin)
        self._pid = self.pool.submit(os.getpid)

    @property
    def has_begun(self) -> bool:
        """Whether the process has ever done anything."""
        return self._pid.done() and not self._pid.cancelled() and self._pid.exception() is None

    def end(self, *, kill: bool) -> None:
        """End the process."""
        if kill and self.has_begun:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid.result(), signal.SIGKILL)
        self.pool.shutdown(wait=True, cancel_futures=True)


def _begin() -> None:
    """Begin a process of the pool."""
    # Ctrl-C in a terminal hits all of them; the worker lets them finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_worker, daemon=True).start()


def _end_with_the_worker() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
