"""Python values as JSON values that Postgres can store."""

import dataclasses
import datetime as dt
import decimal
import enum
import math
import numbers
import pathlib
import re
import uuid
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import pydantic

from processors_v2._errors import InvalidArgument

# Postgres stores neither NUL nor half a surrogate pair, and text from PDF files and OCR has both.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_REPLACEMENT = "\ufffd"

# Python writes no longer integers as text, and no reader of JSON wants them.
_LONGEST_INTEGER_BITS = 14_000

_HINT = (
    "Metadata may hold JSON values, UUID, datetime, date, Path, Decimal, Enum, set, tuple, dataclasses and "
    "pydantic models"
)


def text(value: str) -> str:
    """Return the text with NUL and lone surrogates replaced by U+FFFD."""
    return value if value.isascii() and "\x00" not in value else _UNSTORABLE.sub(_REPLACEMENT, value)


def metadata(value: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return metadata as a JSON object that Postgres can store.

    Args:
        value: A mapping of str keys, or None, which means an empty one.

    Raises:
        InvalidArgument: Not a mapping, or something in it cannot be stored; the message names the key.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidArgument(
            f"metadata must be a mapping, not {type(value).__name__}", hint=_HINT, error="invalid_metadata"
        )
    try:
        return _mapping(value, "metadata")
    except InvalidArgument:
        raise
    except RecursionError:
        raise InvalidArgument(
            "metadata is nested too deeply or contains itself", hint=_HINT, error="invalid_metadata"
        ) from None
    except Exception as error:
        # Values bring code of their own, and whatever it raises must not leave a stage in processing.
        raise InvalidArgument(
            f"metadata cannot be read: {type(error).__name__}", hint=_HINT, error="invalid_metadata"
        ) from error


def _mapping(value: Mapping[Any, Any], path: str) -> dict[str, Any]:
    converted: dict[str, Any] = {}
    for key, item in value.items():
        name = key if type(key) is str else _key(key, path)
        kind = type(item)
        # The usual kinds first: a progress loop comes through here for each page.
        if kind is bool or item is None:
            converted[text(name)] = item
        else:
            converted[text(name)] = _value(item, f"{path}.{name}")
    return converted


def _key(key: object, path: str) -> str:
    if isinstance(key, enum.Enum):
        return _key(key.value, path)
    if isinstance(key, str | int | float | uuid.UUID | dt.date):
        return str(key)
    raise _refused(key, f"a key of {path}")


def _value(value: Any, path: str) -> Any:  # noqa: C901, PLR0911, PLR0912 - one line for each kind reads best
    if isinstance(value, str) and not isinstance(value, enum.Enum):
        return text(value)
    if isinstance(value, enum.Enum):
        return _value(value.value, path)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        number = int(value)
        if number.bit_length() > _LONGEST_INTEGER_BITS:
            raise _refused(value, path)
        return number
    if isinstance(value, numbers.Real | decimal.Decimal):
        return _real(value, path)
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, dt.date):
        return value.isoformat()
    if isinstance(value, pathlib.PurePath):
        return text(str(value))
    if isinstance(value, Mapping):
        return _mapping(value, path)
    if isinstance(value, list | tuple):
        return [_value(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, AbstractSet):
        # In a stable order, so that a repeated call sends the same.
        return sorted((_value(item, path) for item in value), key=_order)
    if isinstance(value, pydantic.BaseModel):
        return _value(value.model_dump(), path)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _mapping({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, path)
    raise _refused(value, path)


def _order(item: Any) -> tuple[int, Any]:
    """Numbers by value, then texts, then the rest."""
    if isinstance(item, int | float):
        return 0, item
    return (1, item) if isinstance(item, str) else (2, str(item))


def _real(value: Any, path: str) -> float:
    if isinstance(value, decimal.Decimal) and not value.is_finite():
        raise _refused(value, path)
    number = float(value)
    if not math.isfinite(number):
        raise _refused(value, path)
    return int(value) if isinstance(value, decimal.Decimal) and value == value.to_integral_value() else number


def _refused(value: object, path: str) -> InvalidArgument:
    shown = repr(value) if isinstance(value, float | decimal.Decimal) else type(value).__name__
    return InvalidArgument(f"{path} cannot be stored as JSON: {shown}", hint=_HINT, error="invalid_metadata")
