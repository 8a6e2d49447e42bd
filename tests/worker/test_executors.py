"""Handlers in other places than the threads of the worker."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import elsewhere
import psutil
import pytest

from processors_v2._worker.processes import Processes
from processors_v2.errors import ConfigurationError
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker
from processors_v2.worker import RunContext, StageWorker

Documents = Callable[..., list[str]]
Work = Callable[..., StageWorker]


@pytest.fixture
def tracker(rest: StageTracker) -> StageTracker:
    """One tracker: what it goes through makes no difference to where handlers run."""
    return rest


@pytest.fixture(autouse=True)
def environment(local: LocalSupabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What handlers in other processes find in the environment; the file that they share with the test."""
    monkeypatch.setenv("WORKER_TEST_DATABASE", local.database_url)
    monkeypatch.setenv("WORKER_TEST_FILE", str(tmp_path / "begun"))
    return tmp_path / "begun"


def test_handlers_run_in_processes(documents: Documents, work: Work, db: Any) -> None:
    """Each place is a process of its own that outlasts a run; what a handler returns comes back."""
    ids = documents(12)
    worker = work({"upload": elsewhere.where}, executor="processes", concurrency=2)
    stored = [db.stage(document, "upload")["metadata"] for document in ids]
    assert worker.counts["completed"] == 12
    assert os.getpid() not in {metadata["pid"] for metadata in stored}
    assert 1 <= len({metadata["pid"] for metadata in stored}) <= 2
    assert {metadata["key"] for metadata in stored} == {f"{document}/upload/1" for document in ids}


@pytest.mark.parametrize(
    ("handler", "status", "part"),
    [
        (elsewhere.asynchronous, "completed", {"metadata": {"stage": "upload"}}),
        (elsewhere.permanent, "failed", {"error": "no PDF at all", "retry": False}),
        (elsewhere.skipping, "skipped", {"metadata": {"reason": "nothing to do"}}),
        (elsewhere.failing, "failed", {"error": "the disk is gone", "progress": 30, "metadata": {"pages": 3}}),
    ],
)
def test_every_end_comes_back(
    documents: Documents, work: Work, db: Any, handler: Any, status: str, part: dict[str, Any]
) -> None:
    """A coroutine, an error for good, a skip and a failure with progress end as they do in this process."""
    (document,) = documents()
    work({"upload": handler}, executor="processes", concurrency=1)
    stage = db.stage(document, "upload")
    assert stage["status"] == status
    for name, value in part.items():
        if name == "retry":
            assert (db.run(document, "upload", "retry_at") is not None) is value
        elif isinstance(value, dict):
            assert value.items() <= stage[name].items()
        else:
            assert stage[name] == value


def test_a_process_that_is_killed_takes_only_its_own_run_with_it(
    documents: Documents, tracker: StageTracker, db: Any, run_beside: Any, soon: Any, environment: Path
) -> None:
    """Its stage has failed and is tried again, in a new process; the other's goes on undisturbed."""
    ids = documents(2)
    handlers = {"upload": elsewhere.waiting}
    with run_beside(StageWorker(tracker, handlers, executor="processes", concurrency=2)) as worker:
        soon(lambda: environment.exists() and environment.read_text().count("\n") == 2)
        victim, survivor = map(int, environment.read_text().split())
        os.kill(victim, signal.SIGKILL)
        soon(lambda: worker.counts["failed"] == 1)
        environment.with_suffix(".go").touch()
        soon(lambda: worker.counts["completed"] == 1)
        db.connection.execute("update krai_core.stage_runs set available_at = now() where status = 'ready'")
        soon(lambda: worker.counts["completed"] == 2)
    stages = [db.stage(document, "upload") for document in ids]
    assert [stage["status"] for stage in stages] == ["completed"] * 2
    assert survivor in {stage["metadata"]["pid"] for stage in stages}
    assert victim not in {stage["metadata"]["pid"] for stage in stages}
    assert sorted(db.run(document, "upload", "attempt") for document in ids) == [1, 2]


def test_a_handler_that_kills_its_process_is_a_failure(documents: Documents, work: Work, db: Any) -> None:
    """Nothing else is lost, and the error says what happened."""
    ids = documents(6)
    worker = work({"upload": elsewhere.dying_once}, executor="processes", concurrency=1)
    assert (worker.counts["completed"], worker.counts["failed"]) == (5, 1)
    (error,) = {db.stage(document, "upload")["error"] for document in ids} - {None}
    assert "the process that ran this stage was lost" in error


@pytest.mark.parametrize("handler", [lambda _: None, elsewhere.where.__get__(threading.Lock())])
def test_a_handler_that_cannot_travel_is_refused_at_once(tracker: StageTracker, handler: Any) -> None:
    """The message names the stage and the remedy, before anything is claimed."""
    with pytest.raises(ConfigurationError, match="the handler of stage upload cannot be sent") as caught:
        StageWorker(tracker, {"upload": handler}, executor="processes")
    assert "no lambda" in str(caught.value)


def test_progress_from_another_process_is_written_there(
    documents: Documents, tracker: StageTracker, db: Any, run_beside: Any, soon: Any, environment: Path
) -> None:
    """With a child_tracker it is seen while the handler runs."""
    (document,) = documents()
    worker = StageWorker(tracker, {"upload": elsewhere.waiting}, executor="processes", child_tracker=elsewhere.tracker)
    with run_beside(worker):
        soon(lambda: db.stage(document, "upload")["progress"] == 50)
        assert db.stage(document, "upload")["metadata"] == {"page": 1}
        environment.with_suffix(".go").touch()
        soon(lambda: worker.counts["completed"] == 1)


def test_without_a_tracker_over_there_metadata_comes_with_the_end(
    documents: Documents, tracker: StageTracker, db: Any, run_beside: Any, soon: Any, environment: Path
) -> None:
    """Progress is not seen meanwhile, and nothing that was reported is lost."""
    (document,) = documents()
    with run_beside(StageWorker(tracker, {"upload": elsewhere.waiting}, executor="processes")) as worker:
        soon(environment.exists)
        environment.with_suffix(".go").touch()
        soon(lambda: worker.counts["completed"] == 1)
    assert db.stage(document, "upload")["metadata"]["page"] == 1


def test_a_handler_over_there_hears_that_its_run_was_cancelled(
    documents: Documents, tracker: StageTracker, run_beside: Any, soon: Any, environment: Path
) -> None:
    """With a child_tracker it asks the database itself."""
    (document,) = documents()
    worker = StageWorker(
        tracker,
        {"upload": elsewhere.until_cancelled},
        executor="processes",
        concurrency=1,
        child_tracker=elsewhere.tracker,
        drain_seconds=0.1,
    )
    with run_beside(worker):
        soon(environment.exists)
        tracker.reset_stage(document, "upload", force=True)
        # The stage is pending again, so that the next run may have begun before anybody looks.
        soon(lambda: environment.read_text().startswith("begun\nStageCancelled\n"))


def test_the_document_is_read_over_there(documents: Documents, work: Work, db: Any) -> None:
    """With a child_tracker ctx.document() is the row; without one the error names the remedy."""
    (document,) = documents()
    work({"upload": elsewhere.reading}, executor="processes", concurrency=1, child_tracker=elsewhere.tracker)
    assert db.stage(document, "upload")["metadata"] == {"name": "1.pdf"}
    (document,) = documents()
    work({"upload": elsewhere.reading}, executor="processes", concurrency=1)
    assert "Give StageWorker a child_tracker" in db.stage(document, "upload")["error"]


def test_a_child_tracker_that_holds_a_key_cannot_be_given(tracker: StageTracker) -> None:
    """A method of a tracker would carry its key; it is refused without showing it."""
    with pytest.raises(ConfigurationError, match="child_tracker cannot be sent") as caught:
        StageWorker(tracker, {"upload": elsewhere.where}, executor="processes", child_tracker=tracker.list_stages)
    assert "holds a key" in str(caught.value)


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_an_executor_that_is_handed_in_is_used_and_left_alone(
    documents: Documents, work: Work, db: Any, pool: Any
) -> None:
    """It goes on after the worker, whose it is not."""
    ids = documents(20)
    with pool(2) as executor:
        work({"upload": elsewhere.where}, executor=executor, concurrency=2)
        assert executor.submit(abs, -1).result() == 1
    pids = {db.stage(document, "upload")["metadata"]["pid"] for document in ids}
    assert (pids == {os.getpid()}) is (pool is ThreadPoolExecutor)


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_an_executor_that_takes_nothing_more_ends_the_worker(
    documents: Documents, tracker: StageTracker, db: Any, pool: Any
) -> None:
    """run() raises, and what was claimed is given back with no attempt burned."""
    ids = documents(5)
    executor = pool(1)
    executor.shutdown()
    # Nothing runs that would be worth waiting for.
    worker = StageWorker(tracker, {"upload": elsewhere.where}, executor=executor, drain_seconds=3600)
    with pytest.raises(ConfigurationError, match="takes no more jobs"):
        worker.run()
    assert worker.counts["claimed"] == worker.counts["released"] > 0
    assert {db.stage(document, "upload")["status"] for document in ids} == {"pending"}


def test_a_process_that_dies_is_replaced_whatever_it_was_doing(soon: Any) -> None:
    """At work, it raises for its call alone; idle, nobody notices; either way it is forgotten."""
    processes = Processes()
    try:
        pid = processes.submit(os.getpid).result()
        (process,) = processes._all
        os.kill(pid, signal.SIGKILL)
        soon(lambda: process.pool._broken)
        other = processes.submit(os.getpid).result()
        assert other != pid
        with pytest.raises(BrokenExecutor):
            processes.submit(os.kill, other, signal.SIGKILL).result()
        soon(lambda: not processes._all)
        assert processes.submit(os.getpid).result() not in {pid, other}
    finally:
        processes.stop(kill=False)


PROGRAM = """
import elsewhere
from processors_v2.worker import StageWorker

if __name__ == "__main__":
    StageWorker(elsewhere.tracker(), {"upload": elsewhere.waiting}, executor="processes", concurrency=2).run()
"""


def test_processes_end_with_a_worker_that_is_killed(
    documents: Documents, soon: Any, environment: Path, tmp_path: Path
) -> None:
    """kill -9 of the worker leaves none of its processes behind."""
    documents(2)
    file = tmp_path / "work.py"
    file.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(file)], env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    )
    try:
        soon(lambda: environment.exists() and environment.read_text().count("\n") == 2)
        children = [psutil.Process(int(pid)) for pid in environment.read_text().split()]
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_processes_that_never_start_end_the_worker(documents: Documents, db: Any, tmp_path: Path) -> None:
    """A program that would start itself again in each process is told so, before it has failed the whole queue."""
    documents(50)
    file = tmp_path / "work.py"
    file.write_text(PROGRAM.replace('if __name__ == "__main__":', "if True:").replace("concurrency=2", "concurrency=1"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, str(file)], env=environment, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "ConfigurationError: the executor takes no more jobs" in done.stderr
    assert 'under if __name__ == "__main__"' in done.stderr
    assert (
        db.one("select count(*) from krai_core.documents where stage_status -> 'upload' ->> 'status' = 'failed'") == 3
    )


def test_processes_beyond_their_time_are_killed(
    documents: Documents, tracker: StageTracker, soon: Any, environment: Path, db: Any
) -> None:
    """When drain_seconds are over run() returns, their stages are ready again, and no process is left."""
    ids = documents(2)
    worker = StageWorker(tracker, {"upload": elsewhere.waiting}, executor="processes", concurrency=2, drain_seconds=0.1)
    thread = threading.Thread(target=worker.run)
    thread.start()
    soon(lambda: environment.exists() and environment.read_text().count("\n") == 2)
    children = [psutil.Process(int(pid)) for pid in environment.read_text().split()]
    worker.stop()
    thread.join(30)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    assert worker.counts["released"] == 2
    assert [db.stage(document, "upload")["status"] for document in ids] == ["pending"] * 2


def test_asynchronous_handlers_stay_here_beside_a_pool_of_threads(documents: Documents, work: Work) -> None:
    """Both kinds in one worker share its places, each where it belongs."""
    threads: dict[str, set[str]] = {"upload": set(), "text_extraction": set()}

    def here(ctx: RunContext) -> None:
        threads[ctx.stage_name].add(threading.current_thread().name)

    async def there(ctx: RunContext) -> None:
        threads[ctx.stage_name].add(threading.current_thread().name)

    documents(30)
    worker = work({"upload": here, "text_extraction": there}, concurrency=3)
    assert worker.counts["completed"] == 60
    assert threads["text_extraction"] == {"stage worker loop"}
    assert "stage worker loop" not in threads["upload"]
