"""Fixtures that all tests share."""

import signal

import pytest

from processors_v2.local import LocalSupabase

pytest_plugins = ["processors_v2.pytest_plugin"]

# A background job of a shell script ignores Ctrl-C, and so would every program that these tests start and interrupt.
# What is handled here, and not ignored, is back at its default in them.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def local(local_supabase: LocalSupabase) -> LocalSupabase:
    """The stack of the session: Postgres 16, PostgREST, all migrations applied."""
    return local_supabase
