"""Points in time and ages as text that Postgres reads."""

import datetime as dt

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
