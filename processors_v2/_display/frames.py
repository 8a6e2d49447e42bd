"""Rows as a pandas DataFrame, whose columns are the keys of the TypedDict that describes a row."""

import importlib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from processors_v2._errors import ConfigurationError


class _Column(NamedTuple):
    name: str
    path: tuple[str, ...]
    kind: object
    """Type of its values."""


def frame(rows: Iterable[Mapping[str, Any]], kind: type, stages: Sequence[str] | None = None) -> Any:
    """Make a DataFrame: times as UTC timestamps, numbers that may be missing as float, nested objects side by side.

    Args:
        rows: What the database answered.
        kind: The TypedDict of a row.
        stages: Stage of each row, for the index; None: the rows are numbered.

    Raises:
        ConfigurationError: pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        raise ConfigurationError(
            f"to_pandas needs pandas: {error}", hint="pip install 'stage-tracker[pandas]'"
        ) from error
    columns = list(_columns(kind))
    index = None if stages is None else pandas.Index(stages, name="stage_name", dtype="object")
    values = [[_value(row, column.path) for column in columns] for row in rows]
    made = pandas.DataFrame(values, columns=[column.name for column in columns], index=index, dtype="object")
    for column in columns:
        if column.name == "hour" or column.name.endswith("_at"):
            times = pandas.to_datetime(made[column.name], utc=True, format="ISO8601")
            made[column.name] = times.astype("datetime64[ns, UTC]")
        elif column.kind in _NUMBERS:
            made[column.name] = made[column.name].astype(_NUMBERS[column.kind])
    return made


_NUMBERS: Mapping[object, str] = {int: "int64", float: "float64", float | None: "float64"}


def _columns(kind: type, path: tuple[str, ...] = ()) -> Iterator[_Column]:
    for name, hint in typing.get_type_hints(kind).items():
        here = (*path, name)
        nested = next((part for part in (hint, *_parts(hint)) if typing.is_typeddict(part)), None)
        if nested is None:
            yield _Column("_".join(here), here, hint)
        else:
            yield from _columns(nested, here)


def _parts(hint: object) -> tuple[Any, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else ()


def _value(row: Mapping[str, Any], path: Sequence[str]) -> Any:
    found: Any = row
    for name in path:
        # A nested object may be missing as a whole.
        found = None if found is None else found[name]
    return found
