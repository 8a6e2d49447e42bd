"""What a tracker is made of."""

import traceback
from typing import Any

import httpx
import pytest

from processors_v2.errors import (
    ConfigurationError,
)
from processors_v2.stage_tracker import AsyncStageTracker, StageTracker


@pytest.mark.parametrize("other", [None, "https://x.supabase.co", object(), httpx], ids=lambda o: type(o).__name__)
def test_anything_else_is_refused(other: Any) -> None:
    """What is no client of supabase-py is refused with how to make one."""
    with pytest.raises(ConfigurationError, match=r"not a supabase client.*create_client.*from_env"):
        StageTracker(other)


SECRET = "p4ss:w@rd"


ODD_URLS = [
    "",
    "   ",
    None,
    17,
    "https://x.supabase.co",
    f"postgresql://postgres:{SECRET}@localhost:54x2/postgres",
    f"postgresql://postgres:%zz{SECRET}@localhost/postgres",
    f"postgresql://postgres:{SECRET}@localhost/postgres?nonsense=1",
    f"host=localhost password={SECRET} 'unterminated",
]


@pytest.mark.parametrize("url", ODD_URLS, ids=range(len(ODD_URLS)))
def test_an_odd_url_is_refused_and_not_shown(url: Any) -> None:
    """What is no URL of Postgres is refused with its form, and nothing of a password is repeated."""
    with pytest.raises(ConfigurationError, match=r"cannot be read.*postgresql://user:password@host") as caught:
        StageTracker.from_postgres(url)
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown
    assert caught.value.__context__ is None
    with pytest.raises(ConfigurationError):
        AsyncStageTracker.from_postgres(url)
