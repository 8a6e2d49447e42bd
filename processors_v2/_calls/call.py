"""What a request is, and how its answer is read."""

import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from processors_v2._errors import StageTrackerError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request.

    Attributes:
        path: Below the REST URL: ``rpc/<function>`` or a view with its query.
        arguments: Arguments of the function; None: read the view.
        parse: Makes the result of the decoded answer.
        repeatable: True when the call may be sent again without harm after an answer was lost.
        sql: The same as one query, where the path is a view.
        values: What stands in the query for each %s.
    """

    path: str
    arguments: Mapping[str, Any] | None
    parse: Callable[[Any], T]
    repeatable: bool
    sql: str = ""
    values: tuple[str, ...] = ()


def reader(function: str, arguments: dict[str, Any], parse: Callable[[Any], T]) -> Call[T]:
    """Return a call that changes nothing."""
    return Call(f"rpc/{function}", arguments, parse, repeatable=True)


def writer(
    function: str, arguments: dict[str, Any], claim_id: uuid.UUID | None, *, repeatable: bool = True
) -> Call[bool]:
    """Return a call that changes something and answers bool."""
    given = given_only(arguments)
    # Null means "no text" to these two, while leaving them out means the default, or no such function.
    given |= {
        name: None for name in ("p_error", "p_reason", "p_progress") if name in arguments and arguments[name] is None
    }
    if claim_id is not None:
        given["p_claim_id"] = str(claim_id)
    return Call(f"rpc/{function}", given, as_bool, repeatable=repeatable)


def given_only(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is None: the default of the function counts."""
    return {name: value for name, value in arguments.items() if value is not None}


def as_bool(answer: object) -> bool:
    if not isinstance(answer, bool):
        raise StageTrackerError(f"expected true or false from the database, got {answer!r}")
    return answer


def as_dict(answer: object) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise StageTrackerError(f"expected a JSON object from the database, got {answer!r}")
    return answer


def as_list(answer: object) -> list[dict[str, Any]]:
    if not isinstance(answer, list):
        raise StageTrackerError(f"expected a JSON array from the database, got {answer!r}")
    return answer


def ordered(stages: object, order: Iterable[str]) -> dict[str, Any]:
    """Return the stages by name, those of ``order`` first: a JSON object has no order of its own."""
    given = as_dict(stages)
    return {name: given[name] for name in dict.fromkeys([*order, *given]) if name in given}
