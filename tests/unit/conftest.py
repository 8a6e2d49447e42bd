"""Tests without servers: pure Python, in seconds."""

from typing import NoReturn

import pytest


@pytest.fixture(scope="session")
def local_supabase() -> NoReturn:
    """Refuse the embedded stack to these tests, so that they stay quick."""
    pytest.fail("a test of tests/unit has no servers: it belongs to another folder")
