"""A stack for workers alone, since they claim whatever is ready, and workers that run beside the test."""

import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from processors_v2._local.process import wait_until
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker
from processors_v2.worker import StageWorker

# The trackers, the database and the proxy of the tests of the SDK, here over the stack below.
_spec = importlib.util.spec_from_file_location(
    "sdk_fixtures", Path(__file__).resolve().parents[1] / "python" / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
_sdk = importlib.util.module_from_spec(_spec)
sys.modules["sdk_fixtures"] = _sdk
_spec.loader.exec_module(_sdk)

# Handlers that other processes import.
sys.path.insert(0, str(Path(__file__).resolve().parent))

db, look_into = _sdk.db, _sdk.look_into
make_tracker, tracker, rest = _sdk.make_tracker, _sdk.tracker, _sdk.rest
running_proxy, proxy, gateway_client, through = _sdk.running_proxy, _sdk.proxy, _sdk.gateway_client, _sdk.through

Look = Callable[[LocalSupabase], Any]


@pytest.fixture(scope="session")
def local() -> Iterator[LocalSupabase]:
    """A stack of their own."""
    with LocalSupabase() as stack:
        yield stack


@pytest.fixture
def documents(db: Any) -> Callable[..., list[str]]:
    """Insert documents, after those of other tests are gone, and return their ids in the order of the queue."""
    db.connection.execute("delete from krai_core.documents")

    def insert(count: int = 1) -> list[str]:
        rows = db.connection.execute(
            "insert into krai_core.documents (filename) select i || '.pdf' from generate_series(1, %s) i returning id",
            [count],
        ).fetchall()
        return [str(row[0]) for row in rows]

    return insert


@contextmanager
def working(worker: StageWorker) -> Iterator[StageWorker]:
    """Let a worker run in a thread, and stop it at the end; what run() raised is raised here."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            worker.run()
        except BaseException as error:  # noqa: BLE001 - raised below
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(40)
        assert not thread.is_alive()
    if raised:
        raise raised[0]


@pytest.fixture(scope="session")
def run_beside() -> Callable[[StageWorker], Any]:
    """Run a worker beside the test, for the length of a with block."""
    return working


@pytest.fixture(scope="session")
def soon() -> Callable[[Callable[[], bool]], None]:
    """Wait for something that has to come true."""

    def wait(condition: Callable[[], bool], seconds: float = 30) -> None:
        assert wait_until(condition, seconds)

    return wait


@pytest.fixture
def work(tracker: StageTracker) -> Callable[..., StageWorker]:
    """Run a worker until nothing is ready any more, and return it."""

    def run(handlers: Any, **options: Any) -> StageWorker:
        worker = StageWorker(tracker, handlers, **options)
        worker.run(until_empty=True)
        return worker

    return run
