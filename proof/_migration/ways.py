"""How the migrations get into a database: by psql, file by file, or by `supabase db push`."""

import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from processors_v2._local.postgres import find_psql
from processors_v2._local.process import clean_environment
from processors_v2._local.project import migration_files, migrations_folder
from proof._migration import supabase_cli

# What the sessions of the migration call themselves.
NAME = "migration"
# Behind a long reader a file gives up its lock, to be run again.
ATTEMPTS = 60
_NOTICE = re.compile(r"NOTICE.*?:\s+(\d+ documents [a-z ]+)")
_APPLYING = re.compile(r"Applying migration (\d+_\w+)")


@dataclass
class Step:
    """One file: how long it took over all its attempts, and what it said."""

    seconds: float = 0.0
    attempts: int = 0
    said: list[str] = field(default_factory=list)


class Stopped(Exception):
    """A run that ended before its end, for instance because somebody killed it."""


Enter = Callable[[str], None]


class Psql:
    """psql on one database, file by file as the docs say.

    Args:
        url: of the database.
        name: what the sessions call themselves, so that they are found.
    """

    def __init__(self, url: str, name: str = NAME) -> None:
        parts = conninfo_to_dict(url)
        names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
        self._environment = {names[key]: str(value) for key, value in parts.items() if key in names}
        self._environment["PGAPPNAME"] = name
        self._process: subprocess.Popen[str] | None = None

    def run(self, path: Path, *options: str) -> tuple[int, str]:
        """Run a file, and return the exit code and what psql said."""
        self._process = subprocess.Popen(
            [str(find_psql()), "-X", "-v", "ON_ERROR_STOP=1", *options, "-f", str(path)],
            env=clean_environment() | self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        _, said = self._process.communicate()
        return self._process.returncode, said

    def kill(self) -> bool:
        """Kill the psql that runs just now; its session goes on until it would say something."""
        process = self._process
        if process is None or process.returncode is not None:
            return False
        process.kill()
        return True

    def apply(self, enter: Enter, steps: dict[str, Step]) -> None:
        """Run all files, each again while it does not get its lock.

        Args:
            enter: is told which file begins.
            steps: what is noted, by file.

        Raises:
            Stopped: a file failed for another reason, or too often.
        """
        for path in migration_files(migrations_folder()):
            step = steps.setdefault(path.stem, Step())
            enter(path.stem)
            for attempt in range(ATTEMPTS):
                step.attempts += 1
                begin = time.perf_counter()
                code, said = self.run(path)
                step.seconds += time.perf_counter() - begin
                step.said += _NOTICE.findall(said)
                if code == 0:
                    break
                if "lock timeout" not in said or attempt == ATTEMPTS - 1:
                    raise Stopped(f"{path.name}: {said.strip()[-300:]}")
                # What holds the lock goes on for a while.
                time.sleep(0.5)


def push(url: str, folder: Path, enter: Enter, steps: dict[str, Step]) -> None:
    """Push all files with the Supabase CLI, again while a file does not get its lock.

    Raises:
        Stopped: it failed for another reason, or too often.
    """
    project = supabase_cli.Project(folder)
    for _ in range(ATTEMPTS):
        said: list[str] = []
        name, begin = "", time.perf_counter()
        for line in project.lines(url, "db", "push", "--yes"):
            said.append(line)
            if applying := _APPLYING.search(line):
                now = time.perf_counter()
                if name:
                    steps[name].seconds += now - begin
                name, begin = applying[1], now
                steps.setdefault(name, Step()).attempts += 1
                enter(name)
            elif name:
                steps[name].said += _NOTICE.findall(line)
        if name:
            steps[name].seconds += time.perf_counter() - begin
        if project.code == 0:
            return
        if "lock timeout" not in "".join(said):
            raise Stopped("".join(said)[-600:])
    raise Stopped(f"the push did not get its lock in {ATTEMPTS} attempts")


def sessions(connection: psycopg.Connection[Any]) -> list[int]:
    """The server processes that work for the migration in this database, also those whose psql is gone."""
    query = "select pid from pg_stat_activity where datname = current_database() and application_name = %s"
    return [pid for (pid,) in connection.execute(query, [NAME])]
