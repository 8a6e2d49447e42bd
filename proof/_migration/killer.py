"""Ends the migration at moments drawn at random."""

import random
import threading
from typing import Any, Self

import psycopg

from proof._migration.ways import NAME, Psql

SESSION = """
    select pid from pg_stat_activity where datname = current_database() and application_name = %s
    order by backend_start desc limit 1
"""


class Killer:
    """Ends the session of the migration, or kills its psql, which leaves the session to go on alone for a while.

    Args:
        url: of the database.
        psql: what is to be killed.
        kills: how many, one in each run.
        within: the longest that a run is let go on before, seconds.
        draws: where moments and kinds come from.
    """

    def __init__(self, url: str, psql: Psql, kills: int, within: float, draws: random.Random) -> None:
        self.done = 0
        self.kinds = {"sessions ended": 0, "psql killed": 0}
        self._url = url
        self._psql = psql
        self._kills = kills
        self._within = within
        self._draws = draws
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            while self.done < self._kills:
                if self._stop.wait(self._draws.uniform(0.1, self._within)):
                    return
                # Between two files there is nobody for a moment.
                while not self._kill(connection):
                    if self._stop.wait(0.01):
                        return
                self.done += 1

    def _kill(self, connection: psycopg.Connection[Any]) -> bool:
        row = connection.execute(SESSION, [NAME]).fetchone()
        if row is None:
            return False
        kind = self._draws.choice([*self.kinds])
        if kind == "sessions ended":
            connection.execute("select pg_terminate_backend(%s)", row)
        elif not self._psql.kill():
            return False
        self.kinds[kind] += 1
        return True

    @staticmethod
    def was_it(said: str) -> bool:
        """Say whether a run ended as those do that are killed."""
        lost = ("terminating connection", "connection to server was lost", "server closed the connection")
        return any(sign in said for sign in lost) or not said.partition(": ")[2].strip()
