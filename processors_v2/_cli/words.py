"""Durations, times and numbers as people read them, and back."""

import datetime as dt
import math
import re

import typer

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def duration(seconds: float | None) -> str:
    """Say a duration: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min, 3 d 4 h; nothing for None."""
    if seconds is None:
        return ""
    if seconds < 10:  # noqa: PLR2004 - tenths say something below it
        return f"{max(seconds, 0):.1f} s"
    # From here on as whole seconds or minutes, so that 59.7 s is 1 min and not 60 s.
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return _two(whole, _MINUTE, "min", 1, "s")
    minutes = round(whole / _MINUTE) * _MINUTE
    if minutes < _DAY:
        return _two(minutes, _HOUR, "h", _MINUTE, "min")
    return _two(round(whole / _HOUR) * _HOUR, _DAY, "d", _HOUR, "h")


def _two(amount: int, large: int, large_name: str, small: int, small_name: str) -> str:
    rest = amount % large // small
    return f"{amount // large:,} {large_name}" + (f" {rest} {small_name}" if rest else "")


def tick(seconds: float) -> str:
    """Say a place on a time axis: 0, 0.5 s, 2 s, 10 min."""
    if not seconds:
        return "0"
    return f"{seconds:g} s" if seconds < _MINUTE else duration(seconds)


def short(seconds: float | None) -> str:
    """Say an estimate in one unit: 0.4 s, 12 s, 7.4 min, 1.8 h, 2.1 d; nothing for None."""
    return "" if seconds is None else " ".join(_in_one(seconds))


def _in_one(seconds: float) -> tuple[str, str]:
    units = (("s", 1, _MINUTE), ("min", _MINUTE, _HOUR), ("h", _HOUR, _DAY), ("d", _DAY, math.inf))
    name, size = next((name, size) for name, size, end in units if seconds < end)
    amount = max(seconds, 0) / size
    return (f"{amount:.1f}" if amount < 10 else f"{amount:,.0f}"), name  # noqa: PLR2004 - tenths say something below it


def span(low: float | None, high: float | None) -> str:
    """Say a range: 3.1 to 5.4 min, or 50 s to 1.2 h; nothing where it is unknown."""
    if low is None or high is None:
        return ""
    (one, unit), (other, other_unit) = _in_one(low), _in_one(high)
    if unit != other_unit:
        return f"{one} {unit} to {other} {other_unit}"
    return f"{one} {unit}" if one == other else f"{one} to {other} {unit}"


def number(value: float) -> str:
    """Say a number: 12,345, or 4.2 where it is small and not whole."""
    return f"{value:,.1f}" if value < 10 and value != int(value) else f"{value:,.0f}"  # noqa: PLR2004 - as above


def percent(value: float) -> str:
    """Say a share of 0 to 100: 45.5 %, never 100 % before all is done."""
    shown = math.floor(float(value) * 10) / 10
    return f"{shown:.0f} %" if shown == int(shown) else f"{shown:.1f} %"


def moment(value: str | None) -> str:
    """Say a time of the database: 2026-10-04 08:00:00 UTC; nothing for None."""
    return "" if value is None else f"{dt.datetime.fromisoformat(value).astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC"


def plural(count: int, one: str, many: str | None = None) -> str:
    """Say how many there are: 1 stage, 2 stages."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def age(text: str) -> dt.timedelta:
    """Read an age such as 30d, 12h or 45m.

    Raises:
        typer.BadParameter: It is none.
    """
    found = re.fullmatch(r"(\d{1,6})([smhdw])", text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no age: write 45m, 12h, 30d or the like (s, m, h, d, w).")
    return dt.timedelta(**{_UNITS[found[2]]: int(found[1])})


def since(text: str) -> dt.datetime:
    """Read a time: an age before now, such as 2h, or ISO 8601 with a time zone.

    Raises:
        typer.BadParameter: It is neither.
    """
    try:
        at = dt.datetime.fromisoformat(text.strip())
    except ValueError:
        return dt.datetime.now(dt.UTC) - age(text)
    if at.tzinfo is None:
        raise typer.BadParameter(f"{text!r} has no time zone: write {at.isoformat()}Z for UTC, or an age such as 2h.")
    return at


def ago(length: dt.timedelta) -> str:
    """Say the time so long before now: 2026-10-04 08:00 UTC."""
    return f"{dt.datetime.now(dt.UTC) - length:%Y-%m-%d %H:%M} UTC"
