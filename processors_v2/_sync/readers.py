# Made from _async/readers.py by tools/unasync.py: change that one.
"""The calls that read."""

import uuid
from collections.abc import Iterator
from enum import Enum
from typing import Any, ClassVar, cast

from processors_v2 import _calls, _display, _operator_calls
from processors_v2._models import DocumentStatus, Stage, StageExplanation, StageStatus
from processors_v2._sync import pages
from processors_v2._sync.transports import Transport


class Readers:
    """Methods of StageTracker."""

    STAGES: ClassVar[list[str]]

    _transport: Transport

    def get_progress(self, document_id: str | uuid.UUID) -> float:
        """Return the finished stages in percent of the enabled ones: 37.5 for 3 of 8."""
        return self._transport.send(_calls.get_document_progress(_calls.document_id(document_id)))

    def get_current_stage(self, document_id: str | uuid.UUID) -> str:
        """Return the first stage in pipeline order that is not finished, or ``completed``."""
        return self._transport.send(_calls.get_current_stage(_calls.document_id(document_id)))

    def can_start_stage(self, document_id: str | uuid.UUID, stage_name: str | Enum) -> bool:
        """Return whether the stage is pending or failed and everything that it requires is finished."""
        call = _calls.can_start_stage(_calls.document_id(document_id), _calls.stage_name(stage_name))
        return self._transport.send(call)

    def get_stage_status(self, document_id: str | uuid.UUID) -> dict[str, StageStatus]:
        """Return every stage of a document by name: status, times, progress (percent), error, metadata."""
        call = _calls.get_stage_status(_calls.document_id(document_id), self.STAGES)
        return _display.shown(_display.StageTable, self._transport.send(call))

    def get_document_status(self, document_id: str | uuid.UUID) -> DocumentStatus:
        """Return everything about one document: status, current stage, progress, times, error, stage_status."""
        call = _calls.get_document_status(_calls.document_id(document_id), self.STAGES)
        return _display.shown(_display.DocumentTable, self._transport.send(call))

    def list_stages(self) -> list[Stage]:
        """Return the pipeline as the database has it, in order."""
        return self._transport.send(_calls.list_stages())

    def explain_stage(self, document_id: str | uuid.UUID, stage_name: str | Enum) -> StageExplanation:
        """Return why a stage of a document stands where it stands, as a sentence and as data."""
        call = _operator_calls.explain_stage(_calls.document_id(document_id), _calls.stage_name(stage_name))
        return cast("StageExplanation", self._transport.send(call))

    def get_documents_ready_for(self, stage_name: str | Enum, *, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """Go through the documents that are ready for a stage, in the order of the queue; nothing is claimed by it.

        Args:
            stage_name: A stage; a paused or disabled one has none.
            limit: Most documents to give; None: all.

        Yields:
            Whole rows of krai_core.documents. What becomes ready or is claimed meanwhile may be among them or not.
        """
        stage = _calls.stage_name(stage_name)
        found = pages.documents(
            self._transport,
            lambda size, after: _operator_calls.get_documents_ready_for(stage, size, after),
            limit,
        )
        for document in found:
            yield document
