# Made from _async/operations.py by tools/unasync.py: change that one.
"""What people do to stages and documents: retry, reset, cancel, prioritise, pause."""

import datetime as dt
import uuid
from enum import Enum
from typing import cast

from processors_v2._calls import arguments, operations
from processors_v2._shapes.operations import Retried
from processors_v2._sync.transport import Transport


class Operations:
    """Methods of StageTracker."""

    _transport: Transport

    def retry_stage(self, document_id: str | uuid.UUID, stage_name: str | Enum, *, actor: str | None = None) -> bool:
        """Bring a failed stage back to pending, its attempts counted anew.

        Args:
            document_id: Row of krai_core.documents.
            stage_name: Stage that failed.
            actor: Who asks for it; kept.

        Returns:
            True.

        Raises:
            StageConflict: The stage is processing, completed or skipped.
        """
        document, stage = arguments.document_id(document_id), arguments.stage_name(stage_name)
        return self._transport.send(operations.retry_stage(document, stage, actor))

    def retry_failed(
        self,
        stage_name: str | Enum | None = None,
        error: str | None = None,
        since: dt.datetime | None = None,
        limit: int = 1000,
        *,
        dry_run: bool = False,
        actor: str | None = None,
    ) -> Retried:
        """Bring many failed stages back to pending, as retry_stage does.

        Args:
            stage_name: Of this stage only; None: of all.
            error: Only where the error matches this pattern; see krai_core.retry_failed.
            since: Only what failed since then; with a time zone.
            limit: Most stages at once; while ``more`` is True, call again.
            dry_run: Change nothing, show what would be.
            actor: Who asks for it; kept.

        Returns:
            How many, whether there are more, and which.
        """
        stage = None if stage_name is None else arguments.stage_name(stage_name)
        call = operations.retry_failed(stage, error, since, limit, actor, dry_run=dry_run)
        return cast("Retried", self._transport.send(call))

    def reset_stage(
        self,
        document_id: str | uuid.UUID,
        stage_name: str | Enum,
        *,
        cascade: bool = False,
        force: bool = False,
        actor: str | None = None,
    ) -> bool:
        """Bring a stage back to pending from any state, so that it is run again.

        Args:
            document_id: Row of krai_core.documents.
            stage_name: Stage to reset.
            cascade: Also every stage that depends on it.
            force: Also where it is processing; the worker loses the run.
            actor: Who asks for it; kept.

        Returns:
            True.

        Raises:
            StageConflict: One of the stages is processing and force is False.
        """
        document, stage = arguments.document_id(document_id), arguments.stage_name(stage_name)
        return self._transport.send(operations.reset_stage(document, stage, cascade=cascade, force=force, actor=actor))

    def cancel_document(
        self, document_id: str | uuid.UUID, reason: str = "Cancelled", *, actor: str | None = None
    ) -> bool:
        """Skip all that is unfinished of a document; whoever works on it hears StageCancelled.

        Args:
            document_id: Row of krai_core.documents.
            reason: Kept in metadata["reason"] of each stage.
            actor: Who asks for it; kept.

        Returns:
            True.
        """
        return self._transport.send(operations.cancel_document(arguments.document_id(document_id), reason, actor))

    def set_priority(self, document_id: str | uuid.UUID, priority: int, *, actor: str | None = None) -> bool:
        """Set how soon the stages of a document are handed out, also those that become ready later.

        Args:
            document_id: Row of krai_core.documents.
            priority: Higher is sooner; 0 is usual.
            actor: Who asks for it; kept.

        Returns:
            True.
        """
        return self._transport.send(operations.set_priority(arguments.document_id(document_id), priority, actor))

    def pause_stage(self, stage_name: str | Enum, *, actor: str | None = None) -> bool:
        """Hand out nothing of a stage until resume_stage; what runs goes on. Returns True."""
        return self._transport.send(operations.pause_stage(arguments.stage_name(stage_name), actor))

    def resume_stage(self, stage_name: str | Enum, *, actor: str | None = None) -> bool:
        """Hand out a paused stage again. Returns True."""
        return self._transport.send(operations.resume_stage(arguments.stage_name(stage_name), actor))
