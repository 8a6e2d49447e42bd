"""Run real PDF files through all eight stages on an embedded Supabase stack, and watch them.

    ./dev demo [FOLDER] [--search WORDS] [--password TEXT]

Or `python examples/quickstart.py`, which needs the extras local and demo. What to copy from:
`pipeline/text_extraction.py` shows a processor, `run_pending` below how stages of many documents run in parallel,
each as soon as it may.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from display import LiveStatus, Screen, read_documents, read_statistics, stages_of
from pipeline import PROCESSORS, Workspace, register
from pipeline.search import by_vector, common_word, full_text
from pipeline.workspace import StoppedError
from rich.console import Console
from supabase import Client

from processors_v2.errors import StageTrackerError
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker

HERE = Path(__file__).resolve().parent
DOCUMENTS = HERE / "documents"
KNOWN_PASSWORDS = {"halvorn-x900.pdf": "spare-parts"}
SEARCH = "C-2557 or 30.03.01"
SIMILAR = "toner does not stick on recycling papers"
WORKERS = 4


def run_pending(work: Workspace, client: Client, screen: Screen, document_ids: list[str]) -> None:
    """Run every pending stage of these documents, each as soon as the stages before it are finished."""
    with ThreadPoolExecutor(WORKERS) as pool, LiveStatus(screen, client, document_ids) as live:
        pending = {
            row["id"]: [name for name, stage in stages_of(row).items() if stage["status"] == "pending"]
            for row in live.rows
        }
        running: dict[Future[None], str] = {}

        def start_ready(document_id: str) -> None:
            for stage in list(pending[document_id]):
                if work.tracker.can_start_stage(document_id, stage):
                    pending[document_id].remove(stage)
                    running[pool.submit(PROCESSORS[stage], work, document_id)] = document_id

        try:
            for document_id in work.until_stopped(document_ids):
                start_ready(document_id)
                live.refresh()
            while running and not work.stopped.is_set():
                done, _ = wait(running, timeout=0.25, return_when=FIRST_COMPLETED)
                for future in done:
                    document_id = running.pop(future)
                    # What went wrong in a processor is in the table by now: StageContext has recorded it.
                    # What went wrong in recording is not, and must not pass unseen.
                    if isinstance(future.exception(), StageTrackerError):
                        future.result()
                    start_ready(document_id)
                live.refresh()
        except BaseException:
            work.stopped.set()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if work.stopped.is_set():
        raise StoppedError("Stopped by the operator")


@contextmanager
def interrupts_noted(stopped: threading.Event) -> Iterator[None]:
    """Make Ctrl-C and a polite kill set the event, and only the second one raise at once.

    An exception in the middle of a call may leave a lock held that the worker threads wait for, such as the one
    of a shared HTTP client. So the main thread ends where it holds none.
    """

    def note(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            signal.default_int_handler(number, frame)
        stopped.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(folder: Path, files: list[Path], screen: Screen, search: str | None, password: str | None) -> None:
    """Show it all, from an empty database to the searches."""
    screen.say("Starting Postgres and PostgREST on this machine, and applying the migrations ...")
    begin = time.monotonic()
    with ExitStack() as stack:
        local = stack.enter_context(LocalSupabase())
        local.apply([HERE / "quickstart.sql"])
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quickstart-")))
        client = local.client()
        work = Workspace(StageTracker(client), local.database_url, temporary / "scratch", temporary / "objects")
        stack.enter_context(interrupts_noted(work.stopped))
        shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
        screen.say(f"Ready after {time.monotonic() - begin:.1f} s. PDF files in {shown}: {len(files)}\n")

        begin = time.monotonic()
        run_pending(work, client, screen, [register(work, client, path) for path in work.until_stopped(files)])
        screen.say(f"\nFirst run: {time.monotonic() - begin:.1f} s. {count_failed(client)} stages failed.", "bold")

        retry_with_password(work, client, screen, password)

        screen.say("\nDocuments x stages, from vw_documents_by_stage\n", "bold")
        screen.show_documents(read_documents(client))
        screen.say("\nStages, from vw_stage_statistics\n", "bold")
        screen.show_statistics(read_statistics(client))
        show_searches(work, screen, search, own_files=folder == DOCUMENTS)


def count_failed(client: Client) -> int:
    """Return how many stages of all documents have failed."""
    return sum(stage["status"] == "failed" for row in read_documents(client) for stage in stages_of(row).values())


def retry_with_password(work: Workspace, client: Client, screen: Screen, password: str | None) -> None:
    """Do what an operator does: mend the cause, then retry just what failed. What is done stays done."""
    retried = []
    for row in read_documents(client):
        stages = stages_of(row)
        failed = [name for name, stage in stages.items() if stage["status"] == "failed"]
        if not failed or not stages["upload"]["metadata"].get("encrypted"):
            continue
        screen.point("✗", f"{row['filename']}: {', '.join(failed)}: {stages[failed[0]]['error']}", "bold red")
        secret = password or KNOWN_PASSWORDS.get(row["filename"])
        if secret is None:
            screen.point(" ", "To read it: ./dev demo FOLDER --password TEXT")
            continue
        screen.point("▸", f"The operator gives the password, and retries {' and '.join(failed)}.\n")
        work.passwords[row["id"]] = secret
        for stage in failed:
            work.tracker.retry_stage(row["id"], stage)
        retried.append(row["id"])
    if retried:
        run_pending(work, client, screen, retried)


def show_searches(work: Workspace, screen: Screen, search: str | None, *, own_files: bool) -> None:
    """Search once by words and once by vector."""
    with work.database() as db:
        words = search or (SEARCH if own_files else common_word(db))
        if words is None:
            screen.say("\nNo text was found, so there is nothing to search.")
            return
        sentence = SIMILAR if own_files and search is None else words
        screen.say(f"\nFull-text search: {words}\n", "bold")
        screen.show_hits(full_text(db, words))
        screen.say(f"\nNearest by vector: {sentence}\n", "bold")
        screen.show_hits(by_vector(db, sentence))


def pdf_files(folder: Path) -> list[Path]:
    """Return the PDF files of a folder by name.

    Raises:
        SystemExit: With a sentence that says why there are none.
    """
    if not folder.exists():
        raise SystemExit(f"There is no folder {folder}")
    if not folder.is_dir():
        raise SystemExit(f"{folder} is a file; give the folder that holds it")
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".pdf" and path.is_file())
    except PermissionError as error:
        raise SystemExit(f"The folder {folder} cannot be read: {error.strerror}") from error
    if not files:
        raise SystemExit(f"No PDF files in {folder} (folders inside it are not searched)")
    return files


def main() -> int:
    """Read the command line, run, and return the exit code."""
    parser = argparse.ArgumentParser(description="Run PDF files through all stages and watch them.")
    parser.add_argument("folder", nargs="?", type=Path, default=DOCUMENTS, help="folder with PDF files")
    parser.add_argument("--search", metavar="WORDS", help="what to search for at the end")
    parser.add_argument("--password", metavar="TEXT", help="opens the encrypted files of the folder")
    arguments = parser.parse_args()
    folder = arguments.folder.expanduser().resolve()
    files = pdf_files(folder)
    # pypdf warns of every oddity that it could work round; what it could not is the error of the stage.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    # A polite kill takes the same way out as Ctrl-C, past all the with blocks.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    screen = Screen(Console(highlight=False))
    try:
        run(folder, files, screen, arguments.search, arguments.password)
    except (KeyboardInterrupt, StoppedError):
        # Not through rich, which may have been interrupted in the middle of a line.
        print("\nStopped. Nothing was kept.", flush=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
