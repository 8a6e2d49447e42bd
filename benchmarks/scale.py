"""How long every question takes with 10,000, 100,000 and 1,000,000 documents, and what a document takes on disk.

The tables are like those of a pipeline that has been at work for a month (_scale/mix.py): some 70 % of the documents
are finished, others wait or failed, 256 stages are being worked on by 32 workers, and there are runs that were
retried, lost and given back. Each size has a database of its own in one embedded Postgres with the settings that it
comes with, such as 4 MB of work_mem, but a quarter of the memory as shared buffers, as a hosted project has it. Each
question is asked with other arguments each time, of all databases in turns, in three ways:

    in the database       by psycopg over loopback, as service_role and prepared: from the sending of the statement
                          until the last row was received, unread
    on the processor      what of that time the server process was computing; it says more where the machine has
                          other things to do (Linux only)
    through supabase-py   by its own rpc and select over PostgREST, the answer decoded

The baseline of each is what the first description of this system would have one write (_scale/naive.py), on the same
rows, the least of a few runs; it is cut off after a minute. `select 1` says what any call costs.

What a document takes on disk is measured on others, which go through all stages by claim_stages and finish_stages; its
baseline are the same tables written anew without a gap.

--only takes 10k, 100k, 1m, and questions, size: --only 1m,questions
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TypeAlias

import psycopg

from benchmarks._scale import build, naive, size
from benchmarks._scale.measure import BARE, CLIENT, DATABASE, PROCESSOR, Place, Times, ask, open_place, percentile
from benchmarks._scale.questions import QUESTIONS
from benchmarks._shared.bench import Bench
from processors_v2._local import project
from processors_v2.local import LocalSupabase

SIZES = {"10k": 10_000, "100k": 100_000, "1m": 1_000_000}
QUICK_SIZES = {"10k": 2_000, "100k": 4_000, "1m": 8_000}
PARTS = (tuple(SIZES), ("questions", "size"))

TIMES, QUICK_TIMES = 200, 3
PROCESSED, QUICK_PROCESSED = 5_000, 40

MOST_MILLISECONDS = 5.0
MOST_GROWTH = 1.5
TIMES_FASTER = 1_000
STATISTICS = ("vw_stage_statistics", "get_stage_statistics()")

COLUMN_BYTES = 2_048
OTHER_BYTES = 3_072

# Milliseconds of naive statements by name of the question and documents.
Baselines: TypeAlias = dict[tuple[str, int], float]


def run(bench: Bench) -> None:
    """Measure both."""
    with LocalSupabase(migrations=None, settings=None if bench.quick else {"shared_buffers": quarter()}) as local:
        if bench.wants("questions", PARTS[1]):
            measure_questions(bench, local)
        if bench.wants("size", PARTS[1]):
            measure_size(bench, local)


def quarter() -> str:
    """A quarter of the memory of this machine, as Postgres reads it."""
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // 4 // 2**20}MB"


def measure_questions(bench: Bench, local: LocalSupabase) -> None:
    """Build the databases, and ask in all of them."""
    sizes = QUICK_SIZES if bench.quick else SIZES
    wanted = [documents for part, documents in sizes.items() if bench.wants(part, PARTS[0])]
    with ExitStack() as ends:
        for documents in wanted:
            make(bench, local, documents)
        places = [ends.enter_context(open_place(local, database(documents), documents)) for documents in wanted]
        times = ask(places, QUESTIONS, QUICK_TIMES if bench.quick else TIMES, bench.progress)
        bench.say(f"load {os.getloadavg()[0]:.1f} when the last question was answered")
        baselines = ask_naively(bench, places)
    for documents in wanted:
        local.drop_database(database(documents))
    report(bench, times, baselines, wanted)


def database(documents: int) -> str:
    """Name of the database."""
    return f"scale_{documents}"


def make(bench: Bench, local: LocalSupabase, documents: int) -> None:
    """Create and fill a database."""
    local.create_database(database(documents))
    local.apply_to(database(documents), project.migrations_folder())
    with build.unguarded(local.url_of(database(documents), "supabase_admin")) as connection:
        build.build(connection, documents, bench.progress)
        connection.execute(build.statement("naive"))


def ask_naively(bench: Bench, places: Sequence[Place]) -> Baselines:
    """Return the milliseconds of the naive statement, by name of the question and documents."""
    plan = [(place, question) for place in places for question in QUESTIONS]
    return {
        (question.name, place.documents): place.stopwatch.milliseconds(question.baseline, place.samples.running())
        for place, question in bench.progress(plan, "naive statements")
    }


def report(bench: Bench, times: Times, baselines: Baselines, sizes: Sequence[int]) -> None:
    """Show everything that was measured, and add the figures that have a target, of the largest table."""
    for line in lines(times, baselines, sizes):
        bench.say(line)
    few, many = min(sizes), max(sizes)
    judged = not bench.quick and many == SIZES["1m"]
    for question in QUESTIONS:
        name, naively = question.name, baselines[question.name, many]
        for way, share in ((DATABASE, 99), (CLIENT, 50)):
            value = percentile(times[name, many, way], share)
            aim = judged and way == DATABASE
            bench.add(
                f"{name}, {way}, p{share}",
                value,
                "ms",
                naively,
                value / naively,
                f"below {MOST_MILLISECONDS:g} ms" if aim else None,
                value < MOST_MILLISECONDS if aim else None,
            )
        if many > few:
            value, baseline = (percentile(times[name, documents, DATABASE], 50) for documents in (many, few))
            bench.add(
                f"{name}, {many:,} documents beside {few:,}, p50",
                value,
                "ms",
                baseline,
                value / baseline,
                f"at most {MOST_GROWTH:g} times" if judged else None,
                value / baseline <= MOST_GROWTH if judged else None,
            )
    for name in STATISTICS:
        value, naively = percentile(times[name, many, DATABASE], 50), baselines[name, many]
        bench.add(
            f"{name} beside the naive view, p50",
            value,
            "ms",
            naively,
            value / naively,
            f"at least {TIMES_FASTER:,} times faster" if judged else None,
            naively / value >= TIMES_FASTER if judged else None,
        )


def lines(times: Times, baselines: Baselines, sizes: Sequence[int]) -> Iterator[str]:
    """Write p50 and p99 in milliseconds of every question, size and way."""
    ways = [way for way in (DATABASE, PROCESSOR, CLIENT) if (BARE, sizes[0], way) in times]
    yield f"{'p50 and p99 in ms':52}{'documents':>10}{'naively':>14}" + "".join(f"{way:>24}" for way in ways)
    for name in (BARE, *(question.name for question in QUESTIONS)):
        for documents in sizes:
            # What is bare has no other form.
            naively = baselines.get((name, documents))
            was_cut = naively is not None and naively >= naive.LIMIT_SECONDS * 1000
            yield (
                f"{name:52}{documents:>10,}{'' if naively is None else f'{naively:,.1f}':>13}{'+' if was_cut else ' '}"
                + "".join(
                    "".join(f"{percentile(times[name, documents, way], share):12,.2f}" for share in (50, 99))
                    for way in ways
                )
            )
    yield f"+ cut off after {naive.LIMIT_SECONDS:g} s"


def measure_size(bench: Bench, local: LocalSupabase) -> None:
    """Process documents, and weigh what is left of them."""
    documents = QUICK_PROCESSED if bench.quick else PROCESSED
    local.create_database("scale_size")
    local.apply_to("scale_size", project.migrations_folder())
    with psycopg.connect(local.url_of("scale_size", "supabase_admin"), autocommit=True) as connection:
        size.process(local.url_of("scale_size"), connection, documents, bench.progress)
        column = size.of_column(connection)
        grown, compact = size.of_tables(connection), size.compact(connection)
    local.drop_database("scale_size")
    report_size(bench, documents, column, grown, compact)


def report_size(
    bench: Bench, documents: int, column: dict[str, float], grown: dict[str, int], compact: dict[str, int]
) -> None:
    """Add what a finished document takes."""
    for name in (size.COLUMN, size.COLUMN_STORED):
        value, baseline = column[name], column[size.COLUMN_AS_TEXT]
        aim = name == size.COLUMN and not bench.quick
        bench.add(
            f"{name}, a finished document",
            value,
            "bytes",
            baseline,
            value / baseline,
            f"at most {COLUMN_BYTES:,} bytes" if aim else None,
            value <= COLUMN_BYTES if aim else None,
        )

    def add(what: str, names: Sequence[str], most: int | None) -> None:
        value, baseline = (sum(sizes[name] for name in names) / documents for sizes in (grown, compact))
        bench.add(
            f"{what}, a finished document",
            value,
            "bytes",
            baseline,
            value / baseline if baseline else None,
            None if most is None else f"at most {most:,} bytes",
            None if most is None else value <= most,
        )

    for name in grown:
        add(name, [name], None)
    add("all of ours", list(grown), None)
    add(
        f"all of ours but {size.GIN}",
        [name for name in grown if name != size.GIN],
        None if bench.quick else OTHER_BYTES,
    )
