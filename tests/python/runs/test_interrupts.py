"""Ctrl-C in one thread does not stop the others."""

import gc
import threading
from collections.abc import Callable
from typing import Any

import httpcore._synchronization
import pytest
import supabase

from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker


@pytest.fixture
def interrupted_in_the_lock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Arm Ctrl-C: the next thread that has just taken the lock of a connection pool is interrupted there."""
    armed = threading.Event()
    enter = httpcore._synchronization.ThreadLock.__enter__

    def interrupted(self: Any) -> Any:
        lock = enter(self)
        if armed.is_set():
            armed.clear()
            raise KeyboardInterrupt
        return lock

    monkeypatch.setattr(httpcore._synchronization.ThreadLock, "__enter__", interrupted)
    return armed.set


# What was hit is left to the garbage collector: to close it would wait for the lock.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["own client", "client of the embedded stack"])
def test_an_interrupt_while_a_connection_pool_is_locked_leaves_other_threads_alone(
    kind: str,
    local: LocalSupabase,
    gateway_client: supabase.Client,
    document: str,
    interrupted_in_the_lock: Callable[[], None],
) -> None:
    """A thread that is interrupted while it holds the lock of a pool takes nothing with it that others wait for."""
    tracker = StageTracker(gateway_client if kind == "own client" else local.client())
    tracker.start_stage(document, "upload")
    interrupted_in_the_lock()
    with pytest.raises(KeyboardInterrupt):
        tracker.get_progress(document)
    done = threading.Event()

    def other() -> None:
        tracker.complete_stage(document, "upload")
        done.set()

    threading.Thread(target=other, daemon=True).start()
    assert done.wait(10)
    gc.collect()
