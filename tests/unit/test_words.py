"""Durations and numbers are told as people tell them, and read as they write them."""

import datetime as dt

import pytest
import typer

from processors_v2._cli import words


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, ""), (0, "0.0 s"), (-1, "0.0 s"), (0.44, "0.4 s"), (9.94, "9.9 s"), (10, "10 s"), (59.4, "59 s"),
     (59.7, "1 min"), (200, "3 min 20 s"), (3599.6, "1 h"), (7500, "2 h 5 min"), (86_390, "1 d"),
     (273_600, "3 d 4 h"), (86_400_000, "1,000 d")],
)  # fmt: skip
def test_a_duration_has_two_units_at_most(seconds: float | None, said: str) -> None:
    """The smaller unit is left out where it is 0."""
    assert words.duration(seconds) == said


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(None, 1, ""), (5, 5, "5.0 s"), (190, 324, "3.2 to 5.4 min"), (50, 4320, "50 s to 1.2 h"),
     (90_000, 200_000, "1.0 to 2.3 d"), (0, 0.04, "0.0 s")],
)  # fmt: skip
def test_a_range_names_a_common_unit_once(low: float | None, high: float, said: str) -> None:
    """And is one value where both are told alike."""
    assert words.span(low, high) == said


@pytest.mark.parametrize(("value", "said"), [(100, "100 %"), (99.97, "99.9 %"), (45.5, "45.5 %"), (0, "0 %")])
def test_all_is_said_of_all_only(value: float, said: str) -> None:
    """A share is cut off and not rounded: 99.97 % is not 100 %."""
    assert words.percent(value) == said


@pytest.mark.parametrize(("value", "said"), [(1234567, "1,234,567"), (4.25, "4.2"), (0.0, "0"), (6518.4, "6,518")])
def test_numbers_are_readable(value: float, said: str) -> None:
    """Thousands are grouped, tenths are told of small ones."""
    assert words.number(value) == said


def test_times_are_of_one_zone() -> None:
    """A time of the database is told in UTC, and says so."""
    assert words.moment("2026-10-04T10:00:00+02:00") == "2026-10-04 08:00:00 UTC"


@pytest.mark.parametrize(
    ("text", "age"), [("30d", dt.timedelta(30)), ("2w", dt.timedelta(14)), (" 45m", dt.timedelta(0, 2700))]
)
def test_ages_are_a_number_and_a_letter(text: str, age: dt.timedelta) -> None:
    """s, m, h, d and w."""
    assert words.age(text) == age


@pytest.mark.parametrize("text", ["", "30", "d", "1.5h", "-1d", "30 days", "9999999d"])
def test_what_is_no_age_is_named(text: str) -> None:
    """The error shows the value and the form."""
    with pytest.raises(typer.BadParameter, match="is no age: write 45m"):
        words.age(text)


def test_a_time_is_an_age_or_has_a_zone() -> None:
    """What no two machines read the same is refused."""
    assert words.since("2026-10-04T10:00:00+02:00") == dt.datetime(2026, 10, 4, 8, tzinfo=dt.UTC)
    before = dt.datetime.now(dt.UTC)
    assert before <= words.since("2h") + dt.timedelta(hours=2) <= dt.datetime.now(dt.UTC)
    with pytest.raises(typer.BadParameter, match="has no time zone: write 2026-10-04T10:00:00Z"):
        words.since("2026-10-04 10:00")
