"""What metadata may hold, and how it is stored."""

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import math
import pathlib
import types
import uuid
from typing import Any

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from processors_v2._calls import storable
from processors_v2.errors import InvalidArgument
from processors_v2.stage_tracker import StageTracker

ID = uuid.UUID("814acd3a-bde0-43c9-a75d-a36d0308ef0e")


class Color(enum.Enum):
    """Enums of several kinds of values."""

    RED = "red"
    PAIR = (1, ID)


class Level(enum.IntEnum):
    """An Enum of numbers."""

    HIGH = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """A dataclass in a dataclass."""

    number: int
    size: "tuple[float, float]"
    next: "Page | None" = None


class Found(pydantic.BaseModel):
    """A pydantic model with values that are no JSON."""

    file: pathlib.Path
    at: dt.date
    pages: list[Page] = []


class Names(pydantic.RootModel[list[str]]):
    """A pydantic model that is no object."""


TOKYO = dt.timezone(dt.timedelta(hours=9))

KINDS: dict[str, tuple[Any, Any]] = {
    "none": (None, None),
    "bool": (True, True),
    "int": (10**400, 10**400),
    "float": (1.5e-300, 1.5e-300),
    "fraction": (fractions.Fraction(1, 4), 0.25),
    "text": ("Prüfung 📄", "Prüfung 📄"),
    "nul": ("a\0b", "a\ufffdb"),
    "surrogate": ("a\udc80b", "a\ufffdb"),
    "uuid": (ID, str(ID)),
    "datetime": (dt.datetime(2025, 10, 4, 8, tzinfo=TOKYO), "2025-10-04T08:00:00+09:00"),
    "naive datetime": (dt.datetime(2025, 10, 4, 8, 0, 0, 5), "2025-10-04T08:00:00.000005"),  # noqa: DTZ001
    "date": (dt.date(2025, 10, 4), "2025-10-04"),
    "path": (pathlib.PurePosixPath("/srv/a.pdf"), "/srv/a.pdf"),
    "windows path": (pathlib.PureWindowsPath("C:/a.pdf"), "C:\\a.pdf"),
    "whole decimal": (decimal.Decimal("12.00"), 12),
    "decimal": (decimal.Decimal("45.5"), 45.5),
    "enum": (Color.RED, "red"),
    "enum of a tuple": (Color.PAIR, [1, str(ID)]),
    "int enum": (Level.HIGH, 3),
    "set": ({3, 1, 2}, [1, 2, 3]),
    "frozenset": (frozenset({"b", "a"}), ["a", "b"]),
    "mixed set": ({"a", 1}, [1, "a"]),
    "tuple": ((1, (2, "x")), [1, [2, "x"]]),
    "named tuple": (collections.namedtuple("Size", "w h")(1, 2), [1, 2]),  # noqa: PYI024
    "dataclass": (Page(1, (2.5, 3.5), Page(2, (0, 0))), {
        "number": 1, "size": [2.5, 3.5], "next": {"number": 2, "size": [0, 0], "next": None},
    }),
    "model": (Found(file=pathlib.Path("a.pdf"), at=dt.date(2025, 1, 2), pages=[Page(1, (1, 2))]), {
        "file": "a.pdf", "at": "2025-01-02", "pages": [{"number": 1, "size": [1, 2], "next": None}],
    }),
    "root model": (Names(["a", "b"]), ["a", "b"]),
    "mapping": (types.MappingProxyType({"a": collections.OrderedDict(b={1})}), {"a": {"b": [1]}}),
    "keys": ({1: "a", 2.5: "b", ID: "c", Color.RED: "d", dt.date(2025, 1, 2): "e"},
             {"1": "a", "2.5": "b", str(ID): "c", "red": "d", "2025-01-02": "e"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_stored(tracker: StageTracker, document: str, db: Any, kind: str) -> None:
    """UUID, times, Path, Decimal, Enum, set, dataclass, model and what contains them become the JSON one expects."""
    given_value, stored = KINDS[kind]
    tracker.complete_stage(document, "upload", {"deep": [{"value": given_value}]})
    assert db.stage(document, "upload")["metadata"] == {"deep": [{"value": stored}]}


NAN = float("nan")

REFUSED: dict[str, tuple[Any, str]] = {
    "object": (object(), "object"),
    "bytes": (b"x", "bytes"),
    "class": (Page, "type"),
    "time": (dt.time(8), "time"),
    "timedelta": (dt.timedelta(1), "timedelta"),
    "complex": (1j, "complex"),
    "generator": ((n for n in ()), "generator"),
    "range": (range(3), "range"),
    "secret": (pydantic.SecretStr("hidden"), "SecretStr"),
    "nan": (NAN, "nan"),
    "inf": (-math.inf, "-inf"),
    "decimal nan": (decimal.Decimal("NaN"), r"Decimal\('NaN'\)"),
    "decimal signalling nan": (decimal.Decimal("sNaN"), r"Decimal\('sNaN'\)"),
    "decimal beyond float": (decimal.Decimal("1e400"), r"Decimal\('1E\+400'\)"),
    "endless integer": (10**5000, "int"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_each_refused_kind_is_named_with_its_place(tracker: StageTracker, document: str, db: Any, kind: str) -> None:
    """Anything else raises in the call, with the path of keys to it and its kind, and nothing is changed."""
    value, shown = REFUSED[kind]
    with pytest.raises(
        InvalidArgument, match=rf"metadata\.pages\[1\]\.odd cannot be stored as JSON: {shown}"
    ) as caught:
        tracker.complete_stage(document, "upload", {"fine": 1, "pages": [{}, {"odd": value}]})
    assert caught.value.error == "invalid_metadata"
    assert "hidden" not in str(caught.value)
    assert db.stage(document, "upload")["status"] == "pending"


@pytest.mark.parametrize("value", [[1], "text", 5, {1}, Page(1, (1, 1))], ids=lambda value: type(value).__name__)
def test_metadata_is_a_mapping(tracker: StageTracker, document: str, value: Any) -> None:
    """What is no mapping is refused by every call that takes metadata."""
    for call in (
        lambda: tracker.update_progress(document, "upload", 1, value),
        lambda: tracker.complete_stage(document, "upload", value),
        lambda: tracker.fail_stage(document, "upload", "error", value),
    ):
        with pytest.raises(InvalidArgument, match="metadata must be a mapping, not"):
            call()


def test_a_deep_structure_is_stored_or_refused(tracker: StageTracker, document: str, db: Any) -> None:
    """Nesting as deep as is accepted is stored."""
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    tracker.complete_stage(document, "upload", {"deep": deep})
    assert db.stage(document, "upload")["metadata"] == {"deep": deep}


TEXT = st.text(st.characters(), max_size=20)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXT,
    st.uuids(),
    st.datetimes(timezones=st.none() | st.just(TOKYO)),
    st.dates(),
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**12), max_value=10**12),
    st.sampled_from([Color.RED, Level.HIGH]),
    st.builds(pathlib.PurePosixPath, TEXT),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXT, inner, max_size=4)
        | st.tuples(inner, inner)
        | st.sets(st.integers(), max_size=4)
    ),
    max_leaves=12,
)


def clean(text: str) -> str:
    """The text as Postgres can hold it."""
    return "".join("\ufffd" if c == "\0" or 0xD800 <= ord(c) < 0xE000 else c for c in text)


def is_equal(stored: Any, value: Any) -> bool:  # noqa: PLR0911 - one line for each kind
    """Whether what came back means what was given."""
    match value:
        case None | bool():
            return stored is value
        case enum.Enum():
            return is_equal(stored, value.value)
        case float() | decimal.Decimal():
            return type(stored) in (int, float) and float(stored) == float(value)
        case int():
            return type(stored) is int and stored == value
        case dict():
            expected = {clean(key): item for key, item in value.items()}
            return set(stored) == set(expected) and all(is_equal(stored[key], item) for key, item in expected.items())
        case list() | tuple():
            return len(stored) == len(value) and all(map(is_equal, stored, value))
        case set():
            return stored == sorted(stored) and set(stored) == value
        case dt.date():
            return bool(stored == value.isoformat())
        case _:
            return bool(stored == clean(str(value)))


PROPERTY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@PROPERTY
@given(value=VALUES)
def test_what_is_accepted_is_read_back_equal(tracker: StageTracker, document: str, db: Any, value: Any) -> None:
    """Whatever metadata is accepted comes back from the database with the same meaning."""
    tracker.complete_stage(document, "upload", {"value": value})
    assert is_equal(db.stage(document, "upload")["metadata"]["value"], value)


ODD = st.one_of(
    st.binary(max_size=3),
    st.complex_numbers(),
    st.floats(),
    st.decimals(),
    st.fractions(),
    st.integers(min_value=-(10**5000), max_value=10**5000),
    st.timedeltas(),
    st.times(),
    st.functions(),
    st.sets(st.text(max_size=3), max_size=3),
    st.frozensets(st.one_of(st.integers(), st.none(), st.binary(max_size=2)), max_size=3),
    st.dictionaries(st.one_of(st.none(), st.binary(max_size=2), st.floats(), st.text(st.characters())), st.none()),
)


@PROPERTY
@given(value=st.lists(ODD, max_size=3))
def test_anything_is_stored_or_refused(tracker: StageTracker, document: str, value: Any) -> None:
    """There is no value that raises anything but InvalidArgument, in the call or in the database."""
    try:
        converted = storable.metadata({"value": value})
    except InvalidArgument:
        return
    assert tracker.complete_stage(document, "upload", converted) is True
