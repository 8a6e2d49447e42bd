"""A tracker from the options and the environment."""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from processors_v2._cli.output import Output
from processors_v2._errors import ConfigurationError
from processors_v2._transport import environment

if TYPE_CHECKING:
    from processors_v2._sync.tracker import StageTracker

Way = Literal["rest", "postgres"]
"""Through PostgREST, or over a Postgres URL."""

_DATABASE_URLS = ("SUPABASE_DB_URL", "DATABASE_URL")


def project_url() -> str | None:
    """Return SUPABASE_URL: of the environment, else of a file .env in the working directory or above it; or None."""
    return environment.find_variable("SUPABASE_URL")


def database_url() -> str | None:
    """Return the Postgres URL, from the same places, or None."""
    return environment.find_variable(*_DATABASE_URLS)


def open_tracker(way: Way, *, timeout: float = 10.0, retry_for: float = 30.0) -> "StageTracker":
    """Return a tracker for what the environment names; pickled by its name, and so without a key or a password.

    Raises:
        ConfigurationError: A variable is missing or cannot be used.
    """
    # supabase takes a while to import, for which --help does not wait.
    from processors_v2._sync.tracker import StageTracker  # noqa: PLC0415

    if way == "rest":
        return StageTracker.from_env(timeout=timeout, retry_for=retry_for)
    url = database_url()
    if url is None:
        raise ConfigurationError(f"none of {', '.join(_DATABASE_URLS)} is set", hint="Set it to a Postgres URL")
    return StageTracker.from_postgres(url, timeout=timeout, retry_for=retry_for)


@dataclass
class Session:
    """What every command is given: where it prints, and whom it asks.

    Args:
        output: Where it prints.
        url: SUPABASE_URL from the command line, or None.
        database_url: SUPABASE_DB_URL from the command line, or None.
        timeout: Seconds to wait for the database.
    """

    output: Output
    url: str | None = None
    database_url: str | None = None
    timeout: float = 10.0

    def __post_init__(self) -> None:
        """Let options count as the variables that they stand for, in the processes of a worker too."""
        if self.url and self.database_url:
            raise ConfigurationError("--url and --database-url name two ways to the database", hint="Give one of them")
        if self.url:
            os.environ["SUPABASE_URL"] = self.url
        if self.database_url:
            os.environ["SUPABASE_DB_URL"] = self.database_url

    @property
    def way(self) -> Way:
        """The way that was chosen: by option, else by what is set, PostgREST first.

        Raises:
            ConfigurationError: Nothing is set.
        """
        if self.database_url:
            return "postgres"
        if self.url or project_url():
            return "rest"
        if database_url():
            return "postgres"
        raise ConfigurationError(
            "no database is named",
            hint="Set SUPABASE_URL and SUPABASE_SECRET_KEY, or SUPABASE_DB_URL, in the environment or in a file .env",
        )

    @cached_property
    def tracker(self) -> "StageTracker":
        """The tracker, made at first use."""
        return open_tracker(self.way, timeout=self.timeout, retry_for=self.timeout)

    def close(self) -> None:
        """Close the connections of the tracker, if it was used."""
        if "tracker" in self.__dict__:
            self.tracker.close()
