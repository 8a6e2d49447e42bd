"""Who goes on working while the migration runs, and how long each of his statements took."""

import itertools
import random
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import psycopg

from proof._migration.field import EDITED, HELD, RENAMED, document_id

PAUSE_SECONDS = 0.004
# A transaction with a row of its own that stays open, and a reader that stays much longer.
HELD_SECONDS = 0.3
READ_SECONDS = 2.5
READER_PAUSE_SECONDS = 6.0
LOOK_SECONDS = 0.05

WAITING = """
    select coalesce(max(extract(epoch from clock_timestamp() - l.waitstart)), 0)
    from pg_locks l where not l.granted and l.pid = any (%s)
"""


@dataclass
class Waits:
    """What the writers lived through during one step.

    Attributes:
        statements: how many.
        longest: the longest of them, seconds.
        what: which one that was.
        locked: the longest that one of them was seen waiting for a lock, seconds.
    """

    statements: int = 0
    longest: float = 0.0
    what: str = ""
    locked: float = 0.0


@dataclass
class Told:
    """What the database has acknowledged: it must be there at the end."""

    inserted: list[uuid.UUID] = field(default_factory=list)
    filenames: dict[uuid.UUID, str] = field(default_factory=dict)
    edits: dict[uuid.UUID, tuple[str, int]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


class Traffic:
    """Three writers, one that holds rows, a reader, and somebody who looks at their locks; started by ``with``.

    Args:
        url: of the database.
        documents: how many there are from before.
        seed: of the draws.
    """

    def __init__(self, url: str, documents: int, seed: int) -> None:
        self.told = Told()
        self.waits: dict[str, Waits] = defaultdict(Waits)
        self._url = url
        self._documents = documents
        self._seed = seed
        self._step = ""
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._pids: list[int] = []
        works = {"insert": self._insert, "rename": self._rename, "edit": self._edit, "hold": self._hold}
        self._threads = [threading.Thread(target=self._write, args=item) for item in works.items()]
        self._threads += [threading.Thread(target=self._read), threading.Thread(target=self._watch)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def enter(self, step: str) -> None:
        """Say what is going on from now on."""
        self._step = step

    def _connect(self) -> psycopg.Connection[Any]:
        connection = psycopg.connect(self._url, autocommit=True)
        with self._lock:
            self._pids.append(connection.info.backend_pid)
        return connection

    def _note(self, steps: tuple[str, str], what: str, seconds: float) -> None:
        with self._lock:
            for step in set(steps):
                waits = self.waits[step]
                waits.statements += 1
                if seconds > waits.longest:
                    waits.longest, waits.what = seconds, what

    def _write(self, what: str, work: Callable[[psycopg.Connection[Any], random.Random, int], None]) -> None:
        draws = random.Random(f"{self._seed} {what}")
        with self._connect() as connection:
            for number in itertools.count():
                if self._stop.wait(PAUSE_SECONDS):
                    return
                step, begin = self._step, time.perf_counter()
                try:
                    work(connection, draws, number)
                except psycopg.Error as error:
                    self.told.errors.append(f"{what} during {step}: {error}")
                # Who holds a row does so by himself.
                own = HELD_SECONDS if what == "hold" else 0.0
                self._note((step, self._step), what, time.perf_counter() - begin - own)

    def _draw(self, draws: random.Random, remainders: tuple[int, int]) -> uuid.UUID:
        hundreds = max(self._documents // 100, 1)
        return document_id(draws.randrange(hundreds) * 100 + draws.choice(remainders))

    def _insert(self, connection: psycopg.Connection[Any], _: random.Random, number: int) -> None:
        document = uuid.uuid4()
        connection.execute(
            "insert into krai_core.documents (id, filename) values (%s, %s)", [document, f"new {number}"]
        )
        self.told.inserted.append(document)

    def _rename(self, connection: psycopg.Connection[Any], draws: random.Random, number: int) -> None:
        document, name = self._draw(draws, RENAMED), f"renamed {number}.pdf"
        connection.execute("update krai_core.documents set filename = %s where id = %s", [name, document])
        self.told.filenames[document] = name

    def _edit(self, connection: psycopg.Connection[Any], draws: random.Random, number: int) -> None:
        document, status = self._draw(draws, EDITED), draws.choice(["skipped", "pending", "completed"])
        try:
            connection.execute(
                """
                update krai_core.documents
                set stage_status = jsonb_set(jsonb_set(stage_status, '{embedding,status}', to_jsonb(%s::text)),
                    '{embedding,metadata}', jsonb_build_object('number', %s::integer))
                where id = %s
                """,
                [status, number, document],
            )
        except psycopg.errors.UndefinedColumn:
            # Not yet; the application that knows the column comes with the migration.
            connection.execute("update krai_core.documents set language = 'de' where id = %s", [document])
        else:
            self.told.edits[document] = (status, number)

    def _hold(self, connection: psycopg.Connection[Any], draws: random.Random, number: int) -> None:
        document, name = self._draw(draws, HELD), f"held {number}.pdf"
        with connection.transaction():
            connection.execute("update krai_core.documents set filename = %s where id = %s", [name, document])
            self._stop.wait(HELD_SECONDS)
        self.told.filenames[document] = name

    def _read(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._stop.wait(READER_PAUSE_SECONDS):
                with connection.transaction():
                    connection.execute("select count(*) from (select from krai_core.documents limit 1000) d")
                    self._stop.wait(READ_SECONDS)

    def _watch(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._stop.wait(LOOK_SECONDS):
                step = self._step
                row = connection.execute(WAITING, [self._pids]).fetchone()
                assert row is not None
                with self._lock:
                    self.waits[step].locked = max(self.waits[step].locked, float(row[0]))
