"""pytest plugin: the session fixture ``local_supabase``, an embedded Supabase for tests of your processors.

Loaded by pytest in every environment that has this package, so nothing heavy is imported before the fixture
is used.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from processors_v2._local.stack import LocalSupabase


@pytest.fixture(scope="session")
def local_supabase() -> "Iterator[LocalSupabase]":
    """A running LocalSupabase with the migrations of this project, shared by all tests of the session.

    Needs the extra ``local``. Tests that need another version or other migrations open a ``LocalSupabase``
    themselves.
    """
    from processors_v2._local.stack import LocalSupabase

    with LocalSupabase() as local:
        yield local
