"""How a worker ends: what runs may end, what waits is given back, and nothing is claimed any more."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from processors_v2.errors import StageLost
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker
from processors_v2.worker import RunContext, StageWorker

Documents = Callable[..., list[str]]

PROGRAM = """
import logging, sys, threading, time
from processors_v2.stage_tracker import StageTracker
from processors_v2.worker import StageWorker

def handler(ctx):
    print("begun", flush=True)
    if sys.argv[1] == "stubborn":
        threading.Event().wait()
    time.sleep(0.5)

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
drain_seconds = float(sys.argv[2])
worker = StageWorker(StageTracker.from_env(), {"upload": handler}, concurrency=1, drain_seconds=drain_seconds)
worker.run()
print("ended", {name: count for name, count in worker.counts.items() if count}, flush=True)
"""


@pytest.fixture
def tracker(rest: StageTracker) -> StageTracker:
    """One tracker: what it goes through makes no difference to how a worker ends."""
    return rest


@contextmanager
def program(local: LocalSupabase, proxy: Any, tmp_path: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A worker as a program of its own, which has begun with a stage."""
    file = tmp_path / "work.py"
    file.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(file), *arguments],
        env={**os.environ, "SUPABASE_URL": proxy.url, "SUPABASE_SECRET_KEY": local.key()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        while process.stdout.readline() != "begun\n":
            assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def held(db: Any) -> int:
    """How many runs somebody holds."""
    count: int = db.one("select count(*) from krai_core.stage_runs where status = 'running'")
    return count


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_handlers_end(
    documents: Documents, local: LocalSupabase, proxy: Any, db: Any, tmp_path: Path, number: signal.Signals
) -> None:
    """What runs is completed within the time for it, the program goes on after run(), and nothing stays held."""
    documents(3)
    with program(local, proxy, tmp_path, "short", "20") as process:
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert "ended {'claimed': 1, 'completed': 1}" in output
    assert held(db) == 0


def test_a_handler_that_does_not_end_is_released(
    documents: Documents, local: LocalSupabase, proxy: Any, db: Any, tmp_path: Path
) -> None:
    """When the time is over its stage is ready again, no attempt burned, and the program ends all the same."""
    (document,) = documents()
    with program(local, proxy, tmp_path, "stubborn", "0.2") as process:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert "ended {'claimed': 1, 'released': 1}" in output
    assert db.stage(document, "upload")["status"] == "pending"
    runs = "select array_agg(status || attempt order by id) from krai_core.stage_runs where document_id = %s"
    assert db.one(runs, document) == ["released1", "ready1"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_second_signal_ends_at_once(
    documents: Documents, local: LocalSupabase, proxy: Any, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Whatever the handlers do, and however long they may."""
    documents()
    with program(local, proxy, tmp_path, "stubborn", "3600") as process:
        process.send_signal(number)
        assert process.stdout is not None
        while "claims no more" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait(20) == code


def test_handlers_of_signals_are_put_back(documents: Documents, work: Any) -> None:
    """After run() signals do what they did before."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    during: list[Any] = []
    documents()
    work({"upload": lambda _: during.extend(signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT))})
    assert during[0] == during[1] != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_what_waits_for_its_turn_is_given_back_at_once(
    documents: Documents, tracker: StageTracker, db: Any, soon: Any
) -> None:
    """A stop releases what was claimed ahead while the handler that runs goes on."""
    slow, go_on = threading.Event(), threading.Event()
    count = 0

    def handler(_: RunContext) -> None:
        nonlocal count
        count += 1
        if count == 20:
            slow.set()
            go_on.wait(30)

    documents(500)
    worker = StageWorker(tracker, {"upload": handler}, concurrency=1)
    thread = threading.Thread(target=worker.run)
    thread.start()
    assert slow.wait(20)
    soon(lambda: held(db) > 50)
    worker.stop()
    soon(lambda: held(db) == 1)
    assert thread.is_alive()
    go_on.set()
    thread.join(30)
    assert not thread.is_alive()
    counts = worker.counts
    assert counts["completed"] == 20
    assert counts["claimed"] == 20 + counts["released"]
    assert db.one("select max(attempt) from krai_core.stage_runs") == 1


def test_a_released_handler_hears_it(documents: Documents, tracker: StageTracker) -> None:
    """A handler beyond its time finds ctx.cancelled, and what it says afterwards is dropped."""
    begun, heard = threading.Event(), threading.Event()

    def handler(ctx: RunContext) -> None:
        begun.set()
        while not ctx.cancelled:
            threading.Event().wait(0.01)
        with pytest.raises(StageLost, match="the worker stops"):
            ctx.update_progress(50)
        heard.set()

    documents()
    worker = StageWorker(tracker, {"upload": handler}, drain_seconds=0.1)
    thread = threading.Thread(target=worker.run)
    thread.start()
    assert begun.wait(20)
    worker.stop()
    thread.join(30)
    assert heard.wait(20)
    assert (worker.counts["released"], worker.counts["completed"]) == (1, 0)


def test_a_coroutine_beyond_its_time_is_cancelled(documents: Documents, tracker: StageTracker) -> None:
    """An asynchronous handler is cancelled where it waits."""
    begun, cancelled = threading.Event(), threading.Event()

    async def handler(_: RunContext) -> None:
        import asyncio  # noqa: PLC0415

        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    documents()
    worker = StageWorker(tracker, {"upload": handler}, drain_seconds=0.1)
    thread = threading.Thread(target=worker.run)
    thread.start()
    assert begun.wait(20)
    worker.stop()
    thread.join(30)
    assert cancelled.is_set()
    assert worker.counts["released"] == 1


def test_a_stop_before_the_start_counts(documents: Documents, tracker: StageTracker) -> None:
    """Whoever stops a worker that is about to begin is heard; the next run() works again."""
    documents()
    worker = StageWorker(tracker, {"upload": lambda _: None})
    worker.stop()
    worker.run()
    worker.run(until_empty=True)
    assert worker.counts["completed"] == 1


def test_no_thread_is_left(documents: Documents, work: Any) -> None:
    """After run() all threads of the worker have ended."""

    async def asynchronous(_: RunContext) -> None: ...

    before = {thread for thread in threading.enumerate() if "stage" in thread.name}
    documents(3)
    work({"upload": lambda _: None, "text_extraction": asynchronous})
    assert {thread for thread in threading.enumerate() if "stage" in thread.name} <= before
