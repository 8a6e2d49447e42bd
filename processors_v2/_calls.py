"""Every request to the database: path, arguments, how to read the answer. No I/O, no rules.

One function here is one SQL function or view there, under the same name; what it does and raises is said in the
comment on the SQL function.
"""

import decimal
import enum
import json
import math
import numbers
import reprlib
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from processors_v2 import _json
from processors_v2._errors import InvalidArgument, StageTrackerError
from processors_v2._models import DocumentStatus, Stage, StageStatus

T = TypeVar("T")

_STAGES = """
select coalesce(jsonb_agg(to_jsonb(s) || jsonb_build_object('requires', (
    select coalesce(jsonb_agg(jsonb_build_object('requires', p.requires)), '[]')
    from krai_core.stage_prerequisites p where p.stage_name = s.name
)) order by s.position), '[]') from krai_core.stages s
"""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100


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
            f"document id {shown(value)} is not a UUID",
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
            f"stage name {shown(value)} is not a text",
            hint="Pass a name such as 'text_extraction', or an Enum member with such a value",
            error="unknown_stage",
        )
    return _json.storable_text(name)


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
        f"progress {shown(value)} is not a number of percent",
        hint="Pass 0 to 100: 45.5 means 45.5 %",
        error="invalid_progress",
    )


def start_stage(
    document: str,
    stage: str,
    claim_id: uuid.UUID | None = None,
    worker: str | None = None,
    lease_seconds: float | None = None,
) -> Call[bool]:
    """krai_core.start_stage."""
    arguments = {
        "p_document_id": document,
        "p_stage_name": stage,
        "p_worker": text_of(worker),
        "p_lease_seconds": lease_seconds,
    }
    # Without a claim id the repeat of a start that took effect is told that the stage is held.
    return writer("start_stage", arguments, claim_id, repeatable=claim_id is not None)


def update_stage_progress(
    document: str,
    stage: str,
    progress: object,
    metadata: Mapping[str, Any] | None = None,
    claim_id: uuid.UUID | None = None,
) -> Call[bool]:
    """krai_core.update_stage_progress."""
    arguments = {
        "p_document_id": document,
        "p_stage_name": stage,
        "p_progress": percent(progress),
        "p_metadata": _json.metadata(metadata),
    }
    return writer("update_stage_progress", arguments, claim_id)


def complete_stage(
    document: str, stage: str, metadata: Mapping[str, Any] | None = None, claim_id: uuid.UUID | None = None
) -> Call[bool]:
    """krai_core.complete_stage."""
    arguments = {"p_document_id": document, "p_stage_name": stage, "p_metadata": _json.metadata(metadata)}
    return writer("complete_stage", arguments, claim_id)


def fail_stage(
    document: str,
    stage: str,
    error: object,
    metadata: Mapping[str, Any] | None = None,
    claim_id: uuid.UUID | None = None,
    *,
    retry: bool = False,
) -> Call[bool]:
    """krai_core.fail_stage; an exception may be given as the error."""
    arguments = {
        "p_document_id": document,
        "p_stage_name": stage,
        "p_error": _error(error),
        "p_metadata": _json.metadata(metadata),
        "p_retry": retry or None,
    }
    return writer("fail_stage", arguments, claim_id)


def skip_stage(document: str, stage: str, reason: str, claim_id: uuid.UUID | None = None) -> Call[bool]:
    """krai_core.skip_stage."""
    arguments = {
        "p_document_id": document,
        "p_stage_name": stage,
        "p_reason": text_of(reason),
    }
    return writer("skip_stage", arguments, claim_id)


def claim_stages(
    stages: list[str], worker: str, limit: int, lease_seconds: float | None, claim_id: uuid.UUID
) -> Call[list[dict[str, Any]]]:
    """krai_core.claim_stages."""
    arguments = {
        # A JSON array, which the function takes for a list in order of preference.
        "p_stage_name": json.dumps(stages),
        "p_worker": _json.storable_text(worker),
        "p_limit": limit,
        "p_lease_seconds": lease_seconds,
        "p_claim_id": str(claim_id),
    }
    return Call("rpc/claim_stages", arguments, as_list, repeatable=True)


def finish_stages(outcomes: list[dict[str, Any]]) -> Call[list[dict[str, Any]]]:
    """krai_core.finish_stages: outcomes of document_id, stage_name, claim_id, outcome and what belongs to it."""
    return Call("rpc/finish_stages", {"p_outcomes": outcomes}, as_list, repeatable=True)


def release_stages(runs: Iterable[tuple[str, str, uuid.UUID]]) -> Call[dict[str, list[dict[str, Any]]]]:
    """krai_core.release_stages, for runs given as document id, stage name and claim id."""
    return Call("rpc/release_stages", {"p_runs": _runs(runs)}, as_dict, repeatable=True)


def heartbeat(runs: Iterable[tuple[str, str, uuid.UUID]]) -> Call[dict[str, list[dict[str, Any]]]]:
    """krai_core.heartbeat, for runs given as document id, stage name and claim id."""
    return Call("rpc/heartbeat", {"p_runs": _runs(runs)}, as_dict, repeatable=True)


def reap(limit: int = 1000) -> Call[dict[str, Any]]:
    """krai_core.reap."""
    return Call("rpc/reap", {"p_limit": limit}, as_dict, repeatable=True)


def fill_ready_runs(limit: int = 1000) -> Call[int]:
    """krai_core.fill_ready_runs."""
    return Call("rpc/fill_ready_runs", {"p_limit": limit}, int, repeatable=True)


def get_next_document(stage: str, worker: str, claim_id: uuid.UUID) -> Call[dict[str, Any] | None]:
    """krai_core.get_next_document."""
    arguments = {"p_stage_name": stage, "p_worker": text_of(worker), "p_claim_id": str(claim_id)}
    return Call("rpc/get_next_document", arguments, lambda row: None if row is None else as_dict(row), repeatable=True)


def get_document_progress(document: str) -> Call[float]:
    """krai_core.get_document_progress."""
    return reader("get_document_progress", {"p_document_id": document}, float)


def get_current_stage(document: str) -> Call[str]:
    """krai_core.get_current_stage."""
    return reader("get_current_stage", {"p_document_id": document}, str)


def can_start_stage(document: str, stage: str) -> Call[bool]:
    """krai_core.can_start_stage."""
    return reader("can_start_stage", {"p_document_id": document, "p_stage_name": stage}, as_bool)


def get_document_status(document: str, order: Iterable[str]) -> Call[DocumentStatus]:
    """krai_core.get_document_status, its stages in the given order."""

    def parse(answer: object) -> DocumentStatus:
        status = as_dict(answer)
        return cast("DocumentStatus", {**status, "stage_status": ordered(status["stage_status"], order)})

    return reader("get_document_status", {"p_document_id": document}, parse)


def get_stage_status(document: str, order: Iterable[str]) -> Call[dict[str, StageStatus]]:
    """stage_status out of krai_core.get_document_status, in the given order."""
    return reader(
        "get_document_status",
        {"p_document_id": document},
        lambda answer: ordered(as_dict(answer)["stage_status"], order),
    )


def list_stages() -> Call[list[Stage]]:
    """krai_core.stages with their prerequisites, in pipeline order."""

    def parse(answer: object) -> list[Stage]:
        rows = answer if isinstance(answer, list) else []
        return [
            Stage.model_validate({**row, "requires": sorted(r["requires"] for r in row["requires"])}) for row in rows
        ]

    query = "select=*,requires:stage_prerequisites!stage_prerequisites_stage_name_fkey(requires)&order=position"
    return Call(f"stages?{query}", None, parse, repeatable=True, sql=_STAGES)


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


def run(value: Mapping[str, Any]) -> tuple[str, str, uuid.UUID]:
    """Return document id, stage name and claim id of a run given as a mapping."""
    claim_id = value.get("claim_id")
    return (
        document_id(value.get("document_id", "")),
        stage_name(value.get("stage_name", "")),
        claim_id if isinstance(claim_id, uuid.UUID) else uuid.UUID(_claim(claim_id)),
    )


def outcome(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return an outcome for finish_stages as JSON that Postgres can store; what it may be is checked there.

    Raises:
        InvalidArgument: An id is none, or metadata or progress cannot be carried by JSON.
    """
    document, stage, claim_id = run(value)
    return {
        **value,
        "document_id": document,
        "stage_name": stage,
        "claim_id": str(claim_id),
        **({"metadata": _json.metadata(value["metadata"])} if "metadata" in value else {}),
        **({"error": _error(value["error"])} if "error" in value else {}),
        **({"reason": text_of(value["reason"])} if "reason" in value else {}),
        **({"progress": percent(value["progress"])} if "progress" in value else {}),
    }


def _claim(value: object) -> str:
    try:
        return str(uuid.UUID(str(value)))
    except ValueError:
        raise InvalidArgument(
            f"claim id {shown(value)} is not a UUID",
            hint="Pass the claim_id of the run",
            error="invalid_outcomes",
        ) from None


def _error(error: object) -> str | None:
    return text_of(error_text(error) if isinstance(error, BaseException) else error)


def text_of(value: object) -> str | None:
    """Return a value as text that Postgres can store; None stays None."""
    return None if value is None else _json.storable_text(str(value))


def given_only(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is None: the default of the function counts."""
    return {name: value for name, value in arguments.items() if value is not None}


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


def schema_version() -> Call[str]:
    """krai_core.schema_version."""
    return reader("schema_version", {}, str)


def reader(function: str, arguments: dict[str, Any], parse: Callable[[Any], T]) -> Call[T]:
    """Return a call that changes nothing."""
    return Call(f"rpc/{function}", arguments, parse, repeatable=True)


def _runs(runs: Iterable[tuple[str, str, uuid.UUID]]) -> list[dict[str, str]]:
    return [{"document_id": d, "stage_name": s, "claim_id": str(c)} for d, s, c in runs]


def shown(value: object) -> str:
    """The value as a message shows it: a whole row, given for its id, does not belong there."""
    return _short.repr(value)


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
