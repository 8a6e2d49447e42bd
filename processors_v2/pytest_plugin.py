"""pytest plugin: the session fixture ``local_supabase``, an embedded Supabase for tests of your processors.

Name it in the ``conftest.py`` at the top of your tests::

    pytest_plugins = ["processors_v2.pytest_plugin"]

It is no entry point, which pytest would import before your conftest could put a folder ``processors_v2`` of your own on
the path.
"""

from collections.abc import Iterator

import pytest

from processors_v2._local.stack import LocalSupabase


@pytest.fixture(scope="session")
def local_supabase() -> Iterator[LocalSupabase]:
    """A running LocalSupabase with the migrations of this project, shared by all tests of the session.

    Needs the extra ``local``. Tests that need another version or other migrations open a ``LocalSupabase``
    themselves.
    """
    with LocalSupabase() as local:
        yield local
