"""What a call is told, before anything is sent."""

import datetime as dt
import decimal
import fractions
import uuid
from typing import Any

import pytest

from processors_v2._calls import arguments
from processors_v2.errors import InvalidArgument

ROW = {"id": uuid.uuid4(), "filename": "manual.pdf", "stage_status": {"upload": {"metadata": {"text": "x" * 5000}}}}


@pytest.mark.parametrize("read", [arguments.document_id, arguments.stage_name, arguments.percent, arguments.time_of])
@pytest.mark.parametrize("value", [ROW, [ROW] * 50, object()], ids=["row", "rows", "object"])
def test_a_message_shows_the_beginning_of_a_value(read: Any, value: object) -> None:
    """A whole row, given in place of its id, is named and not poured into the message."""
    with pytest.raises(InvalidArgument) as caught:
        read(value)
    assert len(caught.value.message) < 1500
    assert "xxx" not in caught.value.message or "..." in caught.value.message


def test_a_text_is_shown_up_to_a_hundred_letters() -> None:
    """A name of usual length is shown whole, a page of text is not."""
    assert arguments.brief("y" * 90) == repr("y" * 90)
    assert len(arguments.brief("y" * 5000)) == 100


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (50, "50"),
        (50.0, "50"),
        (45.5, "45.5"),
        (decimal.Decimal("12.5"), "12.5"),
        (fractions.Fraction(1, 2), "0.5"),
        (None, "None"),
    ],
)
def test_percent_is_a_number_of_json(value: Any, sent: str) -> None:
    """A whole number is sent as one, whatever type of number it was."""
    assert repr(arguments.percent(value)) == sent


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "1", None])
def test_a_pause_is_a_number_above_0(value: Any) -> None:
    """A pause of nothing would ask without end."""
    with pytest.raises(InvalidArgument, match="every .* is not a number of seconds"):
        arguments.seconds_of("every", value)


def test_a_time_has_a_zone() -> None:
    """What no two machines read the same is refused."""
    assert arguments.time_of(dt.datetime(2026, 1, 1, tzinfo=dt.UTC)) == "2026-01-01T00:00:00+00:00"
    with pytest.raises(InvalidArgument, match="time zone"):
        arguments.time_of(dt.datetime(2026, 1, 1))  # noqa: DTZ001 - what is refused


class Mute(Exception):
    """An error whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("R2 is away"), "R2 is away"),
        (ValueError(), "ValueError"),
        (KeyError("page"), "KeyError: 'page'"),
        (SystemExit(3), "SystemExit: 3"),
        (Mute(), "Mute"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_exception_is_told_by_its_text_or_its_type(error: BaseException, text: str) -> None:
    """An operator reads what happened, also where the text alone says nothing."""
    assert arguments.error_text(error) == text
