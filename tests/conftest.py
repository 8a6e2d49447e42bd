"""Fixtures that all tests share."""

import pytest

from processors_v2.local import LocalSupabase


@pytest.fixture(scope="session")
def local(local_supabase: LocalSupabase) -> LocalSupabase:
    """The stack of the session: Postgres 16, PostgREST, all migrations applied."""
    return local_supabase
