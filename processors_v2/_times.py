"""Points in time and ages as text that Postgres reads, and pauses."""

import datetime as dt
import math

from processors_v2._calls import shown
from processors_v2._errors import InvalidArgument


def time_of(value: dt.datetime | None) -> str | None:
    """Return a time as text; None stays None.

    Raises:
        InvalidArgument: It has no time zone, or is no time.
    """
    if value is None:
        return None
    if not isinstance(value, dt.datetime) or value.tzinfo is None:
        raise InvalidArgument(
            f"since {shown(value)} is not a datetime with a time zone",
            hint="Pass datetime.now(timezone.utc) or the like",
        )
    return value.isoformat()


def interval_of(value: dt.timedelta) -> str:
    """Return an age as text that Postgres reads as an interval; its range is checked there.

    Raises:
        InvalidArgument: It is no timedelta.
    """
    if not isinstance(value, dt.timedelta):
        raise InvalidArgument(
            f"age {shown(value)} is not a timedelta",
            hint="Pass datetime.timedelta(days=30) or the like",
            error="invalid_age",
        )
    return f"{value.days} days {value.seconds} seconds {value.microseconds} microseconds"


def seconds_of(name: str, value: float) -> float:
    """Return a pause in seconds.

    Raises:
        InvalidArgument: It is no finite number above 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise InvalidArgument(f"{name} {shown(value)} is not a number of seconds", hint="Pass more than 0, such as 1.0")
    return float(value)
