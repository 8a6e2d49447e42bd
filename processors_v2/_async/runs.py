"""A run from its start to its end."""

import inspect
import logging
import threading
import uuid
import weakref
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

from processors_v2._async.callbacks import deliver
from processors_v2._async.transport import AsyncTransport
from processors_v2._calls import arguments, runs
from processors_v2._calls.call import Call
from processors_v2._claims import ClaimIds
from processors_v2._errors import StageLost
from processors_v2._heart import Heart

if TYPE_CHECKING:
    from processors_v2._async.context import AsyncStageContext

_logger = logging.getLogger("processors_v2")

StageKey = tuple[str, str]
"""Document id and stage name."""


class AsyncRuns:
    """Methods of AsyncStageTracker."""

    _transport: AsyncTransport
    _heart: Heart
    websocket_callback: Callable[..., Any] | None

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # A run that nobody holds any more is not acted for.
        self._contexts: weakref.WeakValueDictionary[StageKey, AsyncStageContext] = weakref.WeakValueDictionary()
        self._claims = ClaimIds()

    async def start_stage(
        self,
        document_id: str | uuid.UUID,
        stage_name: str | Enum,
        *,
        claim_id: uuid.UUID | None = None,
        worker: str | None = None,
        lease_seconds: float | None = None,
    ) -> bool:
        """Start a stage.

        Args:
            document_id: Row of krai_core.documents.
            stage_name: Stage to start; its prerequisites are not checked, see can_start_stage.
            claim_id: Credential of the run, new for each; the call may then be repeated. Contexts make their own; None:
                that of get_next_document, where the document came from there.
            worker: Name to show for who works on it.
            lease_seconds: For how long the run is held without a sign of life; None: as the stage says, and at least
                an hour without claim id.

        Returns:
            True when the caller holds the stage, False when another run of it lives.

        Raises:
            StageLost: The run of claim_id was closed by somebody else.
        """
        document, stage = arguments.document_id(document_id), arguments.stage_name(stage_name)
        claimed = None if claim_id else self._claims.start(document, stage)
        try:
            call = runs.start_stage(document, stage, claim_id or claimed, worker, lease_seconds)
            return await self._transport.send(call)
        except StageLost:
            self._claims.forget(document, stage, claimed)
            raise
        except BaseException:
            if claimed is not None:
                self._claims.start_later(document, stage, claimed)
            raise

    async def update_progress(
        self,
        document_id: str | uuid.UUID,
        stage_name: str | Enum,
        progress: float | None,
        metadata: Mapping[str, Any] | None = None,
        *,
        claim_id: uuid.UUID | None = None,
    ) -> bool:
        """Store the progress of a running stage and renew its lease.

        Args:
            document_id: Row of krai_core.documents.
            stage_name: A stage that was started.
            progress: Percent, 0 to 100; never rescaled: 0.5 is half a percent; None keeps the stored one.
            metadata: Merged into what is stored.
            claim_id: Credential of the run, where it was started with one.

        Returns:
            True.

        Raises:
            StageConflict: The stage is not processing.
            StageLost: The run of claim_id is over.
        """
        document, stage = arguments.document_id(document_id), arguments.stage_name(stage_name)
        claim_id = claim_id or self._claim_of(document, stage)
        return await self._transport.send(runs.update_stage_progress(document, stage, progress, metadata, claim_id))

    async def update_stage_progress(
        self,
        document_id: str | uuid.UUID,
        stage_name: str | Enum,
        progress: float | None,
        metadata: Mapping[str, Any] | None = None,
        *,
        claim_id: uuid.UUID | None = None,
    ) -> bool:
        """Do what update_progress does."""
        return await self.update_progress(document_id, stage_name, progress, metadata, claim_id=claim_id)

    async def complete_stage(
        self,
        document_id: str | uuid.UUID,
        stage_name: str | Enum,
        metadata: Mapping[str, Any] | None = None,
        *,
        claim_id: uuid.UUID | None = None,
    ) -> bool:
        """Mark a stage as completed; one that was not started, too. Safe to repeat.

        Args:
            document_id: Row of krai_core.documents.
            stage_name: Stage that is done.
            metadata: Merged into what is stored.
            claim_id: Credential of the run, where it was started with one.

        Returns:
            True.

        Raises:
            StageConflict: The stage was skipped.
            StageLost: The run of claim_id is over.
        """
        document, stage = arguments.document_id(document_id), arguments.stage_name(stage_name)
        claim_id = claim_id or self._claim_of(document, stage)
        call = runs.complete_stage(document, stage, metadata, claim_id)
        done = await self._close(document, stage, claim_id, call, "completed")
        if done:
            await self._notify("stage_completed", stage, document, "completed")
        return done

    async def fail_stage(
        self,
        document_id: str | uuid.UUID,
        stage_name: str | Enum,
        error: str | BaseException | None,
        metadata: Mapping[str, Any] | None = None,
        *,
        claim_id: uuid.UUID | None = None,
        retry: bool = False,
    ) -> bool:
        """Mark a stage as failed. Safe to repeat.

        Args:
            document_id: Row of krai_core.documents.
            stage_name: Stage that failed.
            error: What happened, for people; an exception stands for its text.
            metadata: Merged into what is stored.
            claim_id: Credential of the run, where it was started with one.
            retry: Whether it is tried again by itself, after a pause, while attempts are left.

        Returns:
            True, or False without change when the stage is completed or skipped already.

        Raises:
            StageLost: The run of claim_id is over.
        """
        document, stage = arguments.document_id(document_id), arguments.stage_name(stage_name)
        claim_id = claim_id or self._claim_of(document, stage)
        call = runs.fail_stage(document, stage, error, metadata, claim_id, retry=retry)
        done = await self._close(document, stage, claim_id, call, "failed")
        if done:
            await self._notify("stage_failed", stage, document, "failed")
        return done

    async def skip_stage(
        self,
        document_id: str | uuid.UUID,
        stage_name: str | Enum,
        reason: str = "Not applicable",
        *,
        claim_id: uuid.UUID | None = None,
    ) -> bool:
        """Mark a stage as not applicable to this document; it counts as finished. Safe to repeat.

        Args:
            document_id: Row of krai_core.documents.
            stage_name: Stage to skip.
            reason: Kept in metadata["reason"].
            claim_id: Credential of the run, where it was started with one.

        Returns:
            True, or False without change when the stage is completed already.

        Raises:
            StageLost: The run of claim_id is over.
        """
        document, stage = arguments.document_id(document_id), arguments.stage_name(stage_name)
        claim_id = claim_id or self._claim_of(document, stage)
        return await self._close(
            document, stage, claim_id, runs.skip_stage(document, stage, reason, claim_id), "skipped"
        )

    def _enter(self, context: "AsyncStageContext") -> None:
        with self._lock:
            self._contexts[context.document_id, context.stage_name] = context

    def _leave(self, context: "AsyncStageContext") -> None:
        with self._lock:
            # After a take-over the entry may be that of the context that took over.
            if self._contexts.get((context.document_id, context.stage_name)) is context:
                del self._contexts[context.document_id, context.stage_name]

    def _claim_of(self, document: str, stage: str) -> uuid.UUID | None:
        context = self._contexts.get((document, stage))
        return self._claims.of(document, stage) if context is None else context.claim_id

    async def _close(self, document: str, stage: str, claim_id: uuid.UUID | None, call: Call[bool], to: str) -> bool:
        context = self._contexts.get((document, stage))
        is_its_own = context is not None and context.claim_id is not None and context.claim_id == claim_id
        if context is not None and is_its_own and context.closed_as is None:
            await context._flush()  # noqa: SLF001 - the two are one
        try:
            done = await self._transport.send(call)
        except StageLost:
            self._claims.forget(document, stage, claim_id)
            raise
        self._claims.forget(document, stage, claim_id)
        if context is not None and is_its_own:
            context._note_closed(to)  # noqa: SLF001
        return done

    def _is_closed(self, document: str, stage: str, claim_id: uuid.UUID, to: str) -> None:
        """Take note that a run was closed beside its context."""
        self._claims.forget(document, stage, claim_id)
        context = self._contexts.get((document, stage))
        if context is not None and context.claim_id == claim_id:
            context._running().stop()  # noqa: SLF001 - the two are one
            context._note_closed(to)  # noqa: SLF001

    async def _notify(self, event: str, stage: str, document: str, status: str) -> None:
        if self.websocket_callback is None:
            return
        try:
            result = self.websocket_callback(event, stage, document, status)
            if inspect.isawaitable(result):
                await deliver(result)
        except Exception:
            _logger.exception("websocket_callback failed for %s of %s", event, document)
