"""Fixtures that all tests share."""

import signal

import pytest

from processors_v2.local import LocalSupabase

pytest_plugins = ["processors_v2.pytest_plugin"]

# A background job of a shell script ignores Ctrl-C, and so would every program that these tests start and interrupt.
# What is handled here, and not ignored, is back at its default in them.
signal.signal(signal.SIGINT, signal.default_int_handler)

# They take minutes, for the most part waiting. Begun first, they are done before the others are.
_BEGUN_FIRST = ("test_soak.py", "test_short_chaos.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files before the others, whose order stays."""
    items.sort(key=lambda item: item.path.name not in _BEGUN_FIRST)


@pytest.fixture(scope="session")
def local(local_supabase: LocalSupabase) -> LocalSupabase:
    """The stack of the session: Postgres 16, PostgREST, all migrations applied."""
    return local_supabase
