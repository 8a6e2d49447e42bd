"""What each function would cost if the planner were told less: without its settings, and without each of its fences.

Each function that tells the planner something is copied without that, and both are asked the same, in turns, about
20,000 documents, in sessions of their own, in five situations:

    empty     the statistics are from when the tables were new and empty
    emptied   they are from when all documents but three had been deleted
    few       they are from when there were 40 documents
    cached    the session has planned with 40 documents, and its plans are kept
    full      the statistics are right

The value is what the copy costs, the baseline what the function itself does: of the situation where the ratio is
largest, in pages of shared memory or in milliseconds of the server process (lower quartile), whichever differs more. A
copy that takes four seconds is cut off. docs/planning.md draws its conclusions from this.

--only takes settings (all those of a function), each (one setting after the other), fences.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import psycopg

from benchmarks._fences.data import fill
from benchmarks._fences.measure import QUICK_TURNS, TURNS, Cost, Pair
from benchmarks._fences.variants import Catalog, Variant, variants
from benchmarks._shared.bench import Bench
from processors_v2._local import project
from processors_v2.local import LocalSupabase

Connection: TypeAlias = psycopg.Connection[Any]

PARTS = (("settings", "each", "fences"),)
DEFAULT = frozenset({"settings", "fences"})

DOCUMENTS, QUICK_DOCUMENTS, FEW = 20_000, 1_200, 40
# Less than this is noise, however large the ratio is.
LEAST_PAGES, LEAST_MILLISECONDS = 20, 0.1
SETTINGS = {"max_connections": "900", "autovacuum": "off"}


@dataclass(frozen=True)
class Difference:
    """What a situation makes of a variant.

    Attributes:
        variant, situation: what was compared, and when.
        with_it, without_it: the costs.
    """

    variant: Variant
    situation: str
    with_it: Cost
    without_it: Cost

    @property
    def pages(self) -> float:
        """How many times as many pages."""
        few = self.without_it.pages < self.with_it.pages + LEAST_PAGES
        return 1.0 if few else self.without_it.pages / max(self.with_it.pages, 1)

    @property
    def milliseconds(self) -> float:
        """How many times as much processor time."""
        short = abs(self.without_it.milliseconds - self.with_it.milliseconds) < LEAST_MILLISECONDS
        return 1.0 if short else self.without_it.milliseconds / self.with_it.milliseconds


def run(bench: Bench) -> None:
    """Measure in all situations, and show the worst of each."""
    documents = QUICK_DOCUMENTS if bench.quick else DOCUMENTS
    turns = QUICK_TURNS if bench.quick else TURNS
    with LocalSupabase(migrations=None, settings=SETTINGS) as local:
        found = [*grown(bench, local, documents, turns), *born_empty(bench, local, documents, turns)]
    for name, lacks in dict.fromkeys((one.variant.name, one.variant.lacks) for one in found):
        report(bench, [one for one in found if (one.variant.name, one.variant.lacks) == (name, lacks)])


def grown(bench: Bench, local: LocalSupabase, documents: int, turns: int) -> Iterator[Difference]:
    """Measure what is planned with few documents, or with what is known of few."""
    with make(local, "fences_grown") as connection, ExitStack() as ends:
        changes = prepare(bench, connection)
        words = fill(connection, 1, FEW)
        connection.execute("analyze")
        url = local.url_of("fences_grown")
        pairs = [ends.enter_context(closing(Pair(url, variant))) for variant in changes]
        for pair in bench.progress(pairs, "plans for 40 documents"):
            pair.prepare(words)
        words = fill(connection, FEW + 1, documents)
        for variant, pair in zip(changes, bench.progress(pairs, "cached"), strict=True):
            yield Difference(variant, "cached", *pair.compare(words, turns))
        yield from anew(bench, url, changes, words, turns, "few")


def born_empty(bench: Bench, local: LocalSupabase, documents: int, turns: int) -> Iterator[Difference]:
    """Measure what is planned with what is known of empty tables, and then of full ones."""
    with make(local, "fences_empty") as connection:
        changes = prepare(bench, connection)
        connection.execute("analyze")
        words = fill(connection, 1, documents)
        url = local.url_of("fences_empty")
        yield from anew(bench, url, changes, words, turns, "empty")
        empty(connection)
        words = fill(connection, 1, documents)
        yield from anew(bench, url, changes, words, turns, "emptied")
        connection.execute("vacuum analyze")
        yield from anew(bench, url, changes, words, turns, "full")


def empty(connection: Connection) -> None:
    """Delete all documents but three, and have the statistics say so: many pages, and nothing on them."""
    connection.execute("delete from krai_core.documents where filename !~ ' [123].pdf$'")
    connection.execute("analyze")


def anew(
    bench: Bench, url: str, changes: Sequence[Variant], words: Mapping[str, str], turns: int, situation: str
) -> Iterator[Difference]:
    """Compare in sessions that plan now."""
    for variant in bench.progress(changes, situation):
        with closing(Pair(url, variant)) as pair:
            pair.prepare(words)
            yield Difference(variant, situation, *pair.compare(words, turns))


@contextmanager
def make(local: LocalSupabase, name: str) -> Iterator[Connection]:
    """Create a database with the migrations, and connect to it as a superuser."""
    local.create_database(name)
    local.apply_to(name, project.migrations_folder())
    with psycopg.connect(local.url_of(name, "supabase_admin"), autocommit=True) as connection:
        yield connection


def prepare(bench: Bench, connection: Connection) -> list[Variant]:
    """Create the copies."""
    changes = variants(Catalog(connection), bench.only or DEFAULT)
    for variant in changes:
        for text in variant.objects:
            connection.execute(text)
    connection.execute("grant all on all functions in schema krai_core, krai_private to postgres")
    connection.execute("grant select on all tables in schema krai_core, krai_private to postgres")
    return changes


def report(bench: Bench, found: Sequence[Difference]) -> None:
    """Add the situation in which most is lost."""
    worst = max(found, key=lambda one: max(one.pages, one.milliseconds))
    in_pages = worst.pages >= worst.milliseconds
    with_it, without_it = (cost.pages if in_pages else cost.milliseconds for cost in (worst.with_it, worst.without_it))
    ratio = worst.pages if in_pages else worst.milliseconds
    bench.add(
        f"{worst.variant.name}, {worst.variant.lacks}, {worst.situation}",
        without_it,
        "pages" if in_pages else "ms",
        with_it,
        ratio,
    )
