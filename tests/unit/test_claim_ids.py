"""The claims that a tracker remembers."""

import uuid

import pytest

from processors_v2 import _claims


def test_claims_that_nobody_ends_are_forgotten_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracker keeps the newest claims, however many documents it was given and never closed."""
    monkeypatch.setattr(_claims, "_MOST", 3)
    claims = _claims.ClaimIds()
    for number in range(5):
        claims.remember(str(number), "upload", uuid.UUID(int=number))
    assert [claims.of(str(number), "upload") is not None for number in range(5)] == [False, False, True, True, True]
    assert [claims.start(str(number), "upload") is not None for number in range(5)] == [False, False, True, True, True]
