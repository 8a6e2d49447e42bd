"""Requests of workers: runs out of the queue, and many of them at once. No I/O, no rules."""

import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from processors_v2._calls import storable
from processors_v2._calls.arguments import brief, document_id, failure_text, percent, stage_name, text_of
from processors_v2._calls.call import Call, as_dict, as_list
from processors_v2._errors import InvalidArgument


def claim_stages(
    stages: list[str], worker: str, limit: int, lease_seconds: float | None, claim_id: uuid.UUID
) -> Call[list[dict[str, Any]]]:
    """krai_core.claim_stages."""
    arguments = {
        # A JSON array, which the function takes for a list in order of preference.
        "p_stage_name": json.dumps(stages),
        "p_worker": storable.text(worker),
        "p_limit": limit,
        "p_lease_seconds": lease_seconds,
        "p_claim_id": str(claim_id),
    }
    return Call("rpc/claim_stages", arguments, as_list, repeatable=True)


def get_next_document(stage: str, worker: str, claim_id: uuid.UUID) -> Call[dict[str, Any] | None]:
    """krai_core.get_next_document."""
    arguments = {"p_stage_name": stage, "p_worker": text_of(worker), "p_claim_id": str(claim_id)}
    return Call("rpc/get_next_document", arguments, lambda row: None if row is None else as_dict(row), repeatable=True)


def heartbeat(runs: Iterable[tuple[str, str, uuid.UUID]]) -> Call[dict[str, list[dict[str, Any]]]]:
    """krai_core.heartbeat, for runs given as document id, stage name and claim id."""
    return Call("rpc/heartbeat", {"p_runs": _runs(runs)}, as_dict, repeatable=True)


def release_stages(runs: Iterable[tuple[str, str, uuid.UUID]]) -> Call[dict[str, list[dict[str, Any]]]]:
    """krai_core.release_stages, for runs given as document id, stage name and claim id."""
    return Call("rpc/release_stages", {"p_runs": _runs(runs)}, as_dict, repeatable=True)


def finish_stages(outcomes: list[dict[str, Any]]) -> Call[list[dict[str, Any]]]:
    """krai_core.finish_stages: outcomes of document_id, stage_name, claim_id, outcome and what belongs to it."""
    return Call("rpc/finish_stages", {"p_outcomes": outcomes}, as_list, repeatable=True)


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
        **({"metadata": storable.metadata(value["metadata"])} if "metadata" in value else {}),
        **({"error": failure_text(value["error"])} if "error" in value else {}),
        **({"reason": text_of(value["reason"])} if "reason" in value else {}),
        **({"progress": percent(value["progress"])} if "progress" in value else {}),
    }


def _claim(value: object) -> str:
    try:
        return str(uuid.UUID(str(value)))
    except ValueError:
        raise InvalidArgument(
            f"claim id {brief(value)} is not a UUID",
            hint="Pass the claim_id of the run",
            error="invalid_outcomes",
        ) from None


def _runs(runs: Iterable[tuple[str, str, uuid.UUID]]) -> list[dict[str, str]]:
    return [{"document_id": d, "stage_name": s, "claim_id": str(c)} for d, s, c in runs]
