"""What to ask about: documents, stages, days, kinds of failures, places deep down in lists."""

import hashlib
import random
import uuid
from datetime import datetime
from typing import Any, TypeAlias

import psycopg

Connection: TypeAlias = psycopg.Connection[Any]

# How far down the deep pages are: so many pages of a thousand.
DEEP_PAGES = 20


def document_id(number: int) -> str:
    """Return the id of a document by its number, as the builder gives it."""
    return str(uuid.UUID(hashlib.md5(f"document {number}".encode(), usedforsecurity=False).hexdigest()))


class Samples:
    """What to ask about in one database, the same in each run of the benchmark.

    Args:
        connection: as service_role.
        documents: how many there are.
    """

    def __init__(self, connection: Connection, documents: int) -> None:
        self._random = random.Random(1)
        self._documents = documents
        self._running = column(
            connection, "select distinct document_id::text from krai_core.vw_running_stages order by 1"
        )
        (failures,) = column(connection, "select krai_core.get_failures()")
        self._failures = [(group["stage_name"], group["fingerprint"]) for group in failures["groups"]]
        self._days = column(
            connection, "select date_trunc('day', now()) - n * interval '1 day' from generate_series(1, 360) n"
        )
        self._lists = {
            (stage, status): walk(connection, "list_documents", stage, status)
            for stage, status in (("embedding", "completed"), ("search_indexing", "pending"), (None, None))
        }
        self._queue = walk(connection, "get_documents_ready_for", "text_extraction")

    def document(self) -> str:
        """Any document."""
        return document_id(self._random.randint(1, self._documents))

    def running(self) -> str:
        """One that is being worked on."""
        return str(self._random.choice(self._running))

    def stage(self) -> str:
        """Some stage that comes after others."""
        return self._random.choice(("classification", "storage", "embedding", "search_indexing"))

    def failure(self) -> tuple[str, str]:
        """A stage, and a kind of failure of it."""
        return self._random.choice(self._failures)

    def day(self) -> datetime:
        """The beginning of a day of the last year."""
        day: datetime = self._random.choice(self._days)
        return day

    def deep(self, stage: str | None, status: str | None) -> str | None:
        """A place deep down in a list."""
        return self._random.choice(self._lists[stage, status])

    def deep_in_queue(self) -> str | None:
        """A place deep down in the queue."""
        return self._random.choice(self._queue)


def column(connection: Connection, sql: str) -> list[Any]:
    """Return the first column."""
    return [row[0] for row in connection.execute(sql)]


def walk(connection: Connection, function: str, *arguments: str | None) -> list[str | None]:
    """Page down, and return the deeper half of the places that one comes by; of a short list its beginning."""
    places: list[str | None] = [None]
    marks = "%s, " * len(arguments)
    while len(places) <= DEEP_PAGES:
        ((found, place),) = connection.execute(
            f"""
            select jsonb_array_length(x.answer -> 'documents'), x.answer ->> 'next'
            from (select krai_core.{function}({marks} p_limit => 1000, p_after => %s) as answer offset 0) x
            """,
            [*arguments, places[-1]],
        ).fetchall()
        if not found:
            # The page before was the last one, and happened to be full.
            places.pop()
        if place is None:
            break
        places.append(place)
    return places[len(places) // 2 :]
