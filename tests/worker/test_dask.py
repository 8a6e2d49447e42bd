"""Handlers on a Dask cluster: a real scheduler and two worker processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import elsewhere
import pytest
from dask.distributed import Client, LocalCluster

from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker
from processors_v2.worker import StageWorker

Documents = Callable[..., list[str]]
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "distributed_dask.py"

# What Dask and tornado leave open when they end is theirs.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def shared(tmp_path: Path, local: LocalSupabase, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that handlers on the cluster write to; they also find the database in the environment."""
    monkeypatch.setenv("WORKER_TEST_FILE", str(tmp_path / "done"))
    monkeypatch.setenv("WORKER_TEST_DATABASE", local.database_url)
    return tmp_path / "done"


@pytest.fixture
def dask(shared: Path) -> Iterator[Client]:
    """A client of a cluster with two processes of one thread each."""
    assert shared
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_a_killed_dask_worker_loses_nothing(
    documents: Documents, rest: StageTracker, db: Any, dask: Client, shared: Path, run_beside: Any, soon: Any
) -> None:
    """kill -9 of one of two processes under way: each stage is completed, once, in its first attempt."""
    ids = documents(40)
    processes = dask.run(os.getpid)
    assert len(set(processes.values())) == 2
    worker = StageWorker(rest, {"upload": elsewhere.a_moment}, executor=dask.get_executor(), concurrency=4)
    with run_beside(worker):
        soon(lambda: worker.counts["completed"] >= 8)
        victim = min(processes.values())
        os.kill(victim, signal.SIGKILL)
        soon(lambda: worker.counts["completed"] == 40, 60)
    assert [db.stage(document, "upload")["status"] for document in ids] == ["completed"] * 40
    by = {db.stage(document, "upload")["metadata"]["pid"] for document in ids}
    assert victim in by
    assert len(by) >= 2
    once = (
        "select count(*) from krai_core.stage_runs where stage_name = 'upload' and status = 'completed' and attempt = 1"
    )
    assert db.one(once) == 40
    assert worker.counts["claimed"] == 40
    # What a process had done but not handed over yet may be done again, by the other one, with the same key.
    assert {line.split()[0] for line in shared.read_text().splitlines()} == set(ids)


def test_progress_comes_from_the_cluster(
    documents: Documents, rest: StageTracker, db: Any, dask: Client, shared: Path, run_beside: Any, soon: Any
) -> None:
    """With a child_tracker a handler on the cluster reports while it runs."""
    (document,) = documents()
    worker = StageWorker(
        rest, {"upload": elsewhere.waiting}, executor=dask.get_executor(), child_tracker=elsewhere.tracker
    )
    with run_beside(worker):
        soon(lambda: db.stage(document, "upload")["progress"] == 50)
        shared.with_suffix(".go").touch()
        soon(lambda: worker.counts["completed"] == 1)


def test_a_cluster_that_is_gone_ends_the_worker(
    documents: Documents, rest: StageTracker, db: Any, dask: Client
) -> None:
    """A client that was closed takes no jobs: run() raises, and what was claimed is given back or tried again."""
    ids = documents(3)
    executor = dask.get_executor()
    executor.shutdown()
    worker = StageWorker(rest, {"upload": elsewhere.where}, executor=executor)
    with pytest.raises(ValueError, match="takes no more jobs"):
        worker.run()
    assert {db.stage(document, "upload")["status"] for document in ids} == {"pending"}


def test_the_example_runs_from_beginning_to_end() -> None:
    """A process of the cluster is killed, and everything is completed or skipped."""
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert "Killed process" in done.stdout
    lines = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert lines["text_extraction"] == ["40", "completed", "0", "skipped", "0", "failed"]
    images = lines["image_processing"]
    assert int(images[0]) + int(images[2]) == 40
    assert images[4] == "0"
