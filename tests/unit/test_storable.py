"""What metadata may hold, before anything is sent."""

import collections
from typing import Any

import pytest

from processors_v2._calls import storable
from processors_v2.errors import InvalidArgument


@pytest.mark.parametrize("key", [None, (1, 2), b"x", frozenset()], ids=repr)
def test_keys_that_are_no_names_are_refused(key: Any) -> None:
    """A key is text, or something with one obvious text."""
    with pytest.raises(InvalidArgument, match=r"a key of metadata\.deep cannot be stored"):
        storable.metadata({"deep": {key: 1}})


def test_a_structure_that_contains_itself_is_refused() -> None:
    """Metadata without an end is refused, however it comes back to itself."""
    loop: dict[str, Any] = {}
    loop["list"] = [{"back": loop}]
    with pytest.raises(InvalidArgument, match="nested too deeply or contains itself"):
        storable.metadata(loop)


def test_code_of_a_value_that_fails_is_an_invalid_argument() -> None:
    """Whatever a value raises while it is read, the caller hears InvalidArgument with the cause behind it."""

    class Row(collections.UserDict[str, object]):
        def __getitem__(self, key: str) -> object:
            raise OSError("connection to the old database is closed")

    with pytest.raises(InvalidArgument, match="metadata cannot be read: OSError") as caught:
        storable.metadata({"row": Row(a=1)})
    assert isinstance(caught.value.__cause__, OSError)


def test_the_callers_object_is_not_kept() -> None:
    """Metadata is copied in the call: what the caller does to it later counts for later calls only."""
    pages = [1]
    stored = storable.metadata({"pages": pages})
    pages.append(2)
    assert stored == {"pages": [1]}
