"""An hour of steady work by eight workers: nothing grows that should not.

Documents come in all the while, 4 a second, 32 stage runs a second. Half of the workers use Postgres connections, half
PostgREST; some runs fail and are tried again, some are skipped, some report progress. Documents that are done are
deleted beyond the newest 5,000, the history is pruned, and the GIN index is built anew (concurrently) whenever half as
many documents were deleted as are kept. Every second the memory of the workers, the sessions of the database and the
deltas of the statistics are looked at. At the end all tables are written anew, to see how much room they took.

SOAK_MINUTES sets the time, SOAK_FILE where the samples go (one line of JSON each, written as they are taken).
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from benchmarks._shared.bench import Bench
from processors_v2._local.postgrest import cache_folder
from proof._soak import soak
from proof._soak.size import FULL, SHORT

TAKES = "an hour"


def advance(shown: Iterator[int], done: int) -> None:
    """Bring the progress bar to so many."""
    for number in shown:
        if number + 1 >= done:
            return


def run(bench: Bench) -> None:
    """Soak, and report."""
    size = SHORT if bench.quick else FULL
    if minutes := os.environ.get("SOAK_MINUTES"):
        size = dataclasses.replace(size, minutes=float(minutes))
    file = Path(os.environ.get("SOAK_FILE") or cache_folder() / "soak.jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    bench.say(f"{size.minutes:g} minutes; samples go to {file}")
    documents = round(size.seconds * size.documents_per_second)
    shown = bench.progress(range(documents), "documents")
    bench.results += soak.run(size, file, lambda done: advance(shown, done))
    # The bar goes away at its end only.
    advance(shown, documents + 1)
