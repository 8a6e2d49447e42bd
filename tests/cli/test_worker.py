"""stage-tracker worker runs handlers of a module of the user's."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from processors_v2._local.process import wait_until
from processors_v2.stage_tracker import StageTracker

pytestmark = pytest.mark.usefixtures("direct")

HANDLERS = """
import time


def extract(ctx):
    for page in ctx.track(range(5), unit="pages"):
        pass
    return {"characters": 1800}


def wait(ctx):
    while not ctx.cancelled:
        time.sleep(0.01)


HANDLERS = {"upload": extract, "text_extraction": extract}
WAITING = {"storage": wait}
UNKNOWN = {"ocr": extract}
NUMBER = 5
NO_FUNCTION = {"upload": 5}
"""


@pytest.fixture(autouse=True)
def module(folder: Path) -> None:
    """The module my_handlers in the working directory."""
    (folder / "my_handlers.py").write_text(HANDLERS, encoding="utf-8")


@contextmanager
def started(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A program of its own, ended with the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "processors_v2", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("executor", ["threads", "processes"])
def test_handlers_run_until_nothing_is_ready(db: Any, executor: str) -> None:
    """The mapping is found in the working directory, all that is ready is done, and the counts are the answer."""
    documents = [db.document() for _ in range(3)]
    with started(
        "worker", "my_handlers:HANDLERS", "--until-empty", "--executor", executor, "--concurrency", "2", "--json"
    ) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    counts = json.loads(out)
    assert (counts["claimed"], counts["completed"], counts["failed"]) == (6, 6, 0)
    assert "At work on upload, text_extraction, 2 at once." in err
    for document in documents:
        stage = db.stage(document, "text_extraction")
        assert (stage["status"], stage["metadata"]["characters"]) == ("completed", 1800)
        assert stage["metadata"]["pages_processed"] == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_ends_on_a_signal(db: Any, tracker: StageTracker, number: signal.Signals) -> None:
    """It gives back what it has in hand, and ends without an error."""
    document = db.document()
    for stage in ("upload", "image_processing"):
        tracker.complete_stage(document, stage)
    with started("worker", "my_handlers:WAITING", "--name", "my-worker", "--drain-seconds", "0") as process:
        assert wait_until(lambda: db.stage(document, "storage")["status"] == "processing", 30)
        assert tracker.get_workers()[0]["worker"] == "my-worker"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "1 released" in out
    assert "Traceback" not in err
    assert db.stage(document, "storage")["status"] == "pending"
    tracker.cancel_document(document)


def test_a_folder_of_the_same_name_is_found(db: Any, folder: Path) -> None:
    """Handlers may stand in a folder processors_v2 of the project."""
    (folder / "processors_v2").mkdir()
    (folder / "my_handlers.py").rename(folder / "processors_v2" / "own_handlers.py")
    document = db.document()
    # As the console script does it, which does not have the working directory on its path.
    program = "import sys; from processors_v2.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, "worker", "processors_v2.own_handlers:HANDLERS", "--until-empty"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert db.stage(document, "upload")["status"] == "completed"


@pytest.mark.usefixtures("imports")
@pytest.mark.parametrize(
    ("handlers", "code", "said"),
    [
        ("my_handlers", 2, "MODULE:HANDLERS"),
        ("nowhere:HANDLERS", 2, "there is no module nowhere; it is looked for in the working directory"),
        ("my_handlers.inner:HANDLERS", 2, "there is no module my_handlers.inner"),
        ("my_handlers:NOTHING", 2, "there is no NOTHING in my_handlers"),
        ("my_handlers:NUMBER", 2, "my_handlers:NUMBER is a int, not a mapping"),
        ("broken:HANDLERS", 2, "broken cannot be imported: ZeroDivisionError: division by zero ("),
        ("broken_import:HANDLERS", 2, "broken_import needs what is not there: No module named 'not_installed'"),
        ("my_handlers:NO_FUNCTION", 5, "the handler of stage upload is a int, not a function"),
        ("my_handlers:UNKNOWN", 3, "Stages are: upload"),
    ],
)
def test_wrong_handlers_are_named(run: Any, folder: Path, handlers: str, code: int, said: str) -> None:
    """A module, mapping, function or stage that is not there is an error in a sentence, before any work."""
    (folder / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    (folder / "broken_import.py").write_text("import not_installed\n", encoding="utf-8")
    done = run("worker", handlers, "--until-empty")
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert "Traceback" not in done.err


def test_old_history_is_pruned_beside_the_work(db: Any, tracker: StageTracker) -> None:
    """--prune-older-than reads an age, and superseded runs of that age go away while the worker runs."""
    document = db.document()
    for _ in range(2):
        tracker.complete_stage(document, "embedding")
        tracker.reset_stage(document, "embedding")
    count = "select count(*) from krai_core.stage_runs where document_id = %s and stage_name = 'embedding'"
    assert db.one(count, document) == 2
    options = ["--prune-older-than", "0s", "--reap-seconds", "0.1"]
    with started("worker", "my_handlers:WAITING", *options) as process:
        assert wait_until(lambda: db.one(count, document) == 1, 30)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
