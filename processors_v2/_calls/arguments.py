"""Arguments as the SQL functions take them: ids, names, percent, texts, times."""

import datetime as dt
import decimal
import enum
import math
import numbers
import reprlib
import uuid

from processors_v2._calls import storable
from processors_v2._errors import InvalidArgument

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100


class TextArray(list[str]):
    """An argument of type text[]; other lists are jsonb."""


def document_id(value: str | uuid.UUID) -> str:
    """Return the id as text.

    Raises:
        InvalidArgument: It is no UUID.
    """
    try:
        return str(value if isinstance(value, uuid.UUID) else uuid.UUID(value))
    except (ValueError, AttributeError, TypeError):
        raise InvalidArgument(
            f"document id {brief(value)} is not a UUID",
            hint="Pass the id of a row of krai_core.documents",
            error="invalid_document_id",
        ) from None


def stage_name(value: str | enum.Enum) -> str:
    """Return the name of a stage given as text or as an Enum member with such a value.

    Raises:
        InvalidArgument: It is neither.
    """
    name = value.value if isinstance(value, enum.Enum) else value
    if not isinstance(name, str):
        raise InvalidArgument(
            f"stage name {brief(value)} is not a text",
            hint="Pass a name such as 'text_extraction', or an Enum member with such a value",
            error="unknown_stage",
        )
    return storable.text(name)


def percent(value: object) -> float | None:
    """Return the progress as a number that JSON can carry; its range is checked by the database.

    Raises:
        InvalidArgument: It is no finite number.
    """
    if value is None:
        return value
    if not isinstance(value, bool) and isinstance(value, numbers.Real | decimal.Decimal):
        try:
            number = float(value)
        except (OverflowError, ValueError):
            number = math.nan
        if math.isfinite(number):
            return int(number) if number.is_integer() else number
    raise InvalidArgument(
        f"progress {brief(value)} is not a number of percent",
        hint="Pass 0 to 100: 45.5 means 45.5 %",
        error="invalid_progress",
    )


def text_of(value: object) -> str | None:
    """Return a value as text that Postgres can store; None stays None."""
    return None if value is None else storable.text(str(value))


def error_text(error: BaseException) -> str:
    """Return what an operator should read of an exception: its text, or its type where it has none."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ must not hide that the stage failed
        text = ""
    kind = type(error).__name__
    if not text.strip():
        return kind
    # The text of a KeyError is nothing but the key, that of SystemExit the exit code.
    return f"{kind}: {text}" if isinstance(error, KeyError | SystemExit) else text


def failure_text(error: object) -> str | None:
    """Return what fail_stage is told: of an exception its text; None stays None."""
    return text_of(error_text(error) if isinstance(error, BaseException) else error)


def time_of(value: dt.datetime | None) -> str | None:
    """Return a time as text; None stays None.

    Raises:
        InvalidArgument: It has no time zone, or is no time.
    """
    if value is None:
        return None
    if not isinstance(value, dt.datetime) or value.tzinfo is None:
        raise InvalidArgument(
            f"since {brief(value)} is not a datetime with a time zone",
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
            f"age {brief(value)} is not a timedelta",
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
        raise InvalidArgument(f"{name} {brief(value)} is not a number of seconds", hint="Pass more than 0, such as 1.0")
    return float(value)


def brief(value: object) -> str:
    """The value as a message shows it: a whole row, given for its id, does not belong there."""
    return _short.repr(value)
