"""Asks with and without what was taken away, in turns, and tells pages and time of the server process."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import psycopg

from benchmarks._fences.variants import Variant
from benchmarks._scale.measure import processor_milliseconds

Connection: TypeAlias = psycopg.Connection[Any]

# A session plans anew for the arguments of five calls before it may keep a plan.
WARM = 7
TURNS, QUICK_TURNS = 12, 2
LIMIT_MILLISECONDS = 4_000
# Nobody measures a difference that takes so long again and again.
ENOUGH_SECONDS = 3.0


@dataclass(frozen=True)
class Cost:
    """What a call takes.

    Attributes:
        pages: of shared memory that it touches.
        milliseconds: of the server process.
    """

    pages: float
    milliseconds: float


class Session:
    """A connection that asks one question.

    Args:
        url: of the database.
        question: SQL with words in braces.
    """

    def __init__(self, url: str, question: str) -> None:
        self._connection: Connection = psycopg.connect(url, autocommit=True)
        self._connection.execute(f"set statement_timeout = {LIMIT_MILLISECONDS}")
        self._question = question
        self._words: Mapping[str, str] = {}
        self.is_cut = False

    def prepare(self, words: Mapping[str, str]) -> None:
        """Ask until the session keeps its plans, about what there is now."""
        self._words = words
        for _ in range(WARM):
            self.ask()

    def about(self, words: Mapping[str, str]) -> None:
        """Ask about something else from now on."""
        self._words = words

    def ask(self) -> float:
        """Ask, take back what was done, and return milliseconds of the server process."""
        return self._run("", processor=True)

    def pages(self) -> float:
        """Ask, and return the pages of shared memory that were touched."""
        return self._run("explain (analyze, buffers, format json) ", processor=False)

    def _run(self, prefix: str, *, processor: bool) -> float:
        if self.is_cut:
            return float("inf")
        sql = prefix + self._question.format(**self._words)
        try:
            with self._connection.transaction(force_rollback=True):
                before = processor_milliseconds(self._connection)
                begin = time.perf_counter()
                cursor = self._connection.execute(sql)
                taken = (time.perf_counter() - begin) * 1000
                after = processor_milliseconds(self._connection)
                rows = cursor.fetchall()
        except psycopg.errors.QueryCanceled:
            self.is_cut = True
            return float("inf")
        if processor:
            return taken if before is None or after is None else after - before
        plan = rows[0][0][0]["Plan"]
        return float(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Pair:
    """Two sessions, one with and one without something.

    Args:
        url: of the database.
        variant: what is compared.
    """

    def __init__(self, url: str, variant: Variant) -> None:
        self._both = (Session(url, variant.original), Session(url, variant.changed))

    def prepare(self, words: Mapping[str, str]) -> None:
        """Let both keep their plans."""
        for session in self._both:
            session.prepare(words)

    def compare(self, words: Mapping[str, str], turns: int) -> tuple[Cost, Cost]:
        """Return the costs with and without, each the lower quartile of its calls."""
        pages: tuple[list[float], list[float]] = ([], [])
        times: tuple[list[float], list[float]] = ([], [])
        for session in self._both:
            session.about(words)
            # What the cache of pages and the catalog lack is fetched once.
            session.ask()
        end = time.monotonic() + ENOUGH_SECONDS
        for turn in range(turns):
            for side in (0, 1) if turn % 2 else (1, 0):
                times[side].append(self._both[side].ask())
            if turn in (0, turns - 1):
                for side in (0, 1):
                    pages[side].append(self._both[side].pages())
            if turn and time.monotonic() > end:
                break
        with_it, without_it = (Cost(max(pages[side]), statistics.quantiles(times[side], n=4)[0]) for side in (0, 1))
        return with_it, without_it

    def close(self) -> None:
        """Close both."""
        for session in self._both:
            session.close()
