"""Fixtures that all tests share."""

import pytest

from processors_v2.local import LocalSupabase

pytest_plugins = ["processors_v2.pytest_plugin"]


@pytest.fixture(scope="session")
def local(local_supabase: LocalSupabase) -> LocalSupabase:
    """The stack of the session: Postgres 16, PostgREST, all migrations applied."""
    return local_supabase
