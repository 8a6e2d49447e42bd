"""Asks all questions in several databases, in turns, so that all meet the same noise."""

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
from postgrest import SyncPostgrestClient

from benchmarks._scale import build, naive
from benchmarks._scale.build import Progress
from benchmarks._scale.questions import Question
from benchmarks._scale.samples import Samples
from processors_v2.local import LocalSupabase

DATABASE, PROCESSOR, CLIENT = "in the database", "on the processor", "through supabase-py"

# Milliseconds by name of the question, documents and way.
Times: TypeAlias = dict[tuple[str, int, str], list[float]]

# Work that goes on for longer would look as if it were stuck.
TURNS_A_RUN = 10

# What any call costs, whatever is asked.
BARE = "select 1"
BARE_FUNCTION = """
create or replace function krai_core.bare() returns integer language sql set search_path = '' as 'select 1';
grant execute on function krai_core.bare() to service_role;
"""


@dataclass
class Place:
    """A database of some size, and two ways to it.

    Attributes:
        documents: how many it has.
        connection: as service_role, with prepared statements.
        schema: a client of supabase-py, for our schema.
        samples: what to ask about.
        stopwatch: what the naive statements take.
        begin_anew: lets others take the places of the running stages.
    """

    documents: int
    connection: psycopg.Connection[Any]
    schema: SyncPostgrestClient
    samples: Samples
    stopwatch: naive.Stopwatch
    begin_anew: Callable[[], None]


@contextmanager
def open_place(local: LocalSupabase, name: str, documents: int) -> Iterator[Place]:
    """Connect to a database, with a PostgREST of its own in front of it."""
    with ExitStack() as ends:
        admin = ends.enter_context(build.unguarded(local.url_of(name, "supabase_admin")))
        admin.execute(BARE_FUNCTION)
        build.bring_up_to_date(admin)
        connection = ends.enter_context(
            closing(psycopg.connect(local.url_of(name), autocommit=True, prepare_threshold=0))
        )
        connection.execute("set role service_role")
        served = ends.enter_context(LocalSupabase(database_url=local.url_of(name, "supabase_admin"), migrations=None))
        schema = served.client().schema("krai_core")
        samples = Samples(connection, documents)
        stopwatch = naive.Stopwatch(connection)
        yield Place(documents, connection, schema, samples, stopwatch, partial(build.begin_anew, admin))


def ask(places: Sequence[Place], questions: Sequence[Question], times: int, progress: Progress) -> Times:
    """Ask each question so many times everywhere; what is asked first is not counted."""
    found: Times = defaultdict(list)
    warm = max(times // 10, 2)
    order = random.Random(2)
    for way in (DATABASE, CLIENT):
        for number in progress(range(times + warm), way):
            if number % TURNS_A_RUN == 0:
                for place in places:
                    place.begin_anew()
            turn: list[tuple[Question | None, Place]] = [
                (question, place) for question in (None, *questions) for place in places
            ]
            # No question always comes behind the one that has just thrown its pages out of the cache.
            order.shuffle(turn)
            for question, place in turn:
                for measured, taken in once(place, question, way).items():
                    if number >= warm:
                        name = BARE if question is None else question.name
                        found[name, place.documents, measured].append(taken)
    return found


def once(place: Place, question: Question | None, way: str) -> dict[str, float]:
    """Ask once, and return the milliseconds until the whole answer was there; of the server process, too."""
    arguments = {} if question is None else question.draw(place.samples)
    if way == CLIENT:
        begin = time.perf_counter()
        if question is None:
            place.schema.rpc("bare", {}).execute()
        else:
            question.send(place.schema, arguments)
        return {CLIENT: (time.perf_counter() - begin) * 1000}
    sql = BARE if question is None else question.sql(arguments)
    cursor = place.connection.cursor()
    worked = processor_milliseconds(place.connection)
    begin = time.perf_counter()
    cursor.execute(sql, arguments)
    taken = {DATABASE: (time.perf_counter() - begin) * 1000}
    if worked is not None:
        taken[PROCESSOR] = (processor_milliseconds(place.connection) or worked) - worked
    return taken


def processor_milliseconds(connection: psycopg.Connection[Any]) -> float | None:
    """For how long the server process of a connection has been computing; None where the system does not tell."""
    try:
        return int(Path(f"/proc/{connection.info.backend_pid}/schedstat").read_text().split()[0]) / 1e6
    except OSError:
        return None


def percentile(values: Sequence[float], share: int) -> float:
    """Nearest rank of the sorted values."""
    ranked = sorted(values)
    return ranked[min(len(ranked) * share // 100, len(ranked) - 1)]
