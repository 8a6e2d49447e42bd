"""Handlers and trackers for other processes, which import them by their names."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from processors_v2.errors import PermanentError, StageLost
from processors_v2.stage_tracker import StageTracker
from processors_v2.worker import RunContext


def tracker() -> StageTracker:
    """A tracker as a process of its own makes it."""
    return StageTracker.from_postgres(os.environ["WORKER_TEST_DATABASE"])


def where(ctx: RunContext) -> dict[str, Any]:
    """Return the process, and what is known of the run."""
    return {"pid": os.getpid(), "key": ctx.idempotency_key, "filename": ctx.filename}


async def asynchronous(ctx: RunContext) -> dict[str, Any]:
    """Return the process, from a coroutine."""
    return {"pid": os.getpid(), "stage": ctx.stage_name}


def permanent(_: RunContext) -> None:
    """Fail for good."""
    raise PermanentError("no PDF at all")


def skipping(ctx: RunContext) -> None:
    """Skip."""
    ctx.skip("nothing to do")


def failing(ctx: RunContext) -> None:
    """Fail with progress."""
    ctx.update_progress(30, {"pages": 3})
    raise ConnectionResetError("the disk is gone")


def dying_once(_: RunContext) -> None:
    """Die as by kill -9, the first time of all."""
    try:
        Path(os.environ["WORKER_TEST_FILE"]).open("x").close()
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def waiting(ctx: RunContext) -> dict[str, int]:
    """Say that it has begun, report progress, and go on when it may."""
    file = Path(os.environ["WORKER_TEST_FILE"])
    with file.open("a") as begun:
        begun.write(f"{os.getpid()}\n")
    ctx.update_progress(50, {"page": 1})
    while not file.with_suffix(".go").exists():
        time.sleep(0.01)
    return {"pid": os.getpid()}


def until_cancelled(ctx: RunContext) -> None:
    """Go on until the run is over; note what was heard, behind what earlier runs heard."""
    with Path(os.environ["WORKER_TEST_FILE"]).open("a") as heard:
        heard.write("begun\n")
    try:
        while True:
            ctx.raise_if_cancelled()
            time.sleep(0.01)
    except StageLost as error:
        with Path(os.environ["WORKER_TEST_FILE"]).open("a") as heard:
            heard.write(f"{type(error).__name__}\n")
        raise


def reading(ctx: RunContext) -> dict[str, Any]:
    """Read the document."""
    return {"name": ctx.document()["filename"]}


def a_moment(ctx: RunContext) -> dict[str, int]:
    """Take a tenth of a second; note in the shared folder that it was done, by whom."""
    time.sleep(0.1)
    with Path(os.environ["WORKER_TEST_FILE"]).open("a") as done:
        done.write(f"{ctx.document_id} {os.getpid()}\n")
    return {"pid": os.getpid()}
