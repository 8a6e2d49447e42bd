"""Requests about what has changed. No I/O, no rules."""

from collections.abc import Iterable, Mapping
from typing import Any

from processors_v2._calls.call import Call, as_dict, ordered, reader
from processors_v2._errors import UnknownDocument
from processors_v2._shapes.events import WatchEvent


def get_document_events(documents: Mapping[str, Any], order: Iterable[str]) -> Call[dict[str, Any]]:
    """krai_core.get_document_events, the stages of each state in the given order."""

    def parse(answer: object) -> dict[str, Any]:
        events = as_dict(answer)
        for event in events.values():
            if event["state"] is not None:
                event["state"]["stage_status"] = ordered(event["state"]["stage_status"], order)
        return events

    return reader("get_document_events", {"p_documents": documents}, parse)


def event_of(document: str, answer: dict[str, Any]) -> tuple[WatchEvent, dict[str, Any]]:
    """Return the event in the answer of get_document_events for a document, and what to send for the next one.

    Raises:
        UnknownDocument: There is no such document, or no longer.
    """
    if answer["state"] is None:
        raise UnknownDocument(
            f"there is no document {document}, or no longer",
            hint="As a signed-in user, check that the policies of krai_core.documents let you see it",
            error="unknown_document",
            details={"document_id": document},
        )
    known = {"seen": answer["seen"], "version": answer["version"]}
    event = WatchEvent(id=answer["seen"], changes=answer["changes"], status=answer["state"], is_open=answer["is_open"])
    return event, known
