"""StageTracker: each method is one call of one SQL function."""

import asyncio
import inspect
import logging
import threading
import uuid
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self

import supabase

from processors_v2 import _calls, _settings
from processors_v2._models import DocumentStatus, Stage, StageCounts, StageStatus
from processors_v2._transports import RestTransport

if TYPE_CHECKING:
    from processors_v2._sync.context import StageContext

_logger = logging.getLogger("processors_v2")


class StageTracker:
    """Status of every stage of every document, kept by the database.

    May be shared by threads. What a method does and raises beyond this is said in the comment on the SQL function of
    the same name (``krai_core.start_stage`` and so on), which is the source of truth. Document ids are UUID or text,
    stage names text or Enum members with such a value. All methods raise UnknownDocument, UnknownStage,
    InvalidArgument, AccessDenied and DatabaseUnavailable from ``processors_v2.errors`` where these apply; nothing is
    changed then.

    Inside a StageContext of the same tracker, complete_stage, fail_stage and skip_stage act for its run.

    Args:
        supabase_client: Result of ``supabase.create_client`` with the secret (or service_role) key; its default schema
            does not matter.
        websocket_callback: Called as ``(event, stage, document_id, status)`` after complete_stage and fail_stage, with
            event ``stage_completed`` or ``stage_failed``, where these changed something; may be a coroutine
            function. What it raises is logged.
        timeout: Seconds to wait for one answer of the database.
        retry_for: Seconds in all for one call. Calls that are safe to repeat are sent again with growing pauses until
            then; 0: never.
    """

    STAGES: ClassVar[list[str]] = [
        "upload",
        "text_extraction",
        "image_processing",
        "classification",
        "metadata_extraction",
        "storage",
        "embedding",
        "search_indexing",
    ]

    def __init__(
        self,
        supabase_client: supabase.Client,
        websocket_callback: Callable[..., Any] | None = None,
        *,
        timeout: float = 10.0,
        retry_for: float = 30.0,
    ) -> None:
        self._transport = RestTransport(supabase_client, timeout=timeout, retry_for=retry_for)
        self.supabase = supabase_client
        self.websocket_callback = websocket_callback
        self._contexts: dict[tuple[str, str], StageContext] = {}
        self._contexts_lock = threading.Lock()

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """Return a tracker for the project that the environment names.

        Reads SUPABASE_URL and the first of SUPABASE_SECRET_KEYS (a JSON object, its entry "default"),
        SUPABASE_SECRET_KEY, SUPABASE_SERVICE_ROLE_KEY and SUPABASE_KEY, from the environment, else from a file .env in
        the working directory or above it.

        Args:
            **options: As for StageTracker, without the client.

        Raises:
            ConfigurationError: A variable is missing, or the key is an anon or publishable one.
        """
        url, key = _settings.project_from_env()
        return cls(supabase.create_client(url, key), **options)

    def __repr__(self) -> str:
        return f"StageTracker({self._transport!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a StageTracker holds a key and is not pickled: build it in the other process, "
            "for instance by StageTracker.from_env()"
        )

    def start_stage(
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
            claim_id: Credential of the run, new for each; the call may then be repeated. StageContext makes its own.
            worker: Name to show for who works on it.
            lease_seconds: For how long the run is held without a sign of life; None: as the stage says, and at least
                an hour without claim id.

        Returns:
            True when the caller holds the stage, False when another run of it lives.

        Raises:
            StageLost: The run of claim_id was closed by somebody else.
        """
        document, stage = _calls.document_id(document_id), _calls.stage_name(stage_name)
        return self._transport.send(_calls.start_stage(document, stage, claim_id, worker, lease_seconds))

    def update_progress(
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
        document, stage = _calls.document_id(document_id), _calls.stage_name(stage_name)
        claim_id = claim_id or self._claim_of(document, stage)
        return self._transport.send(_calls.update_stage_progress(document, stage, progress, metadata, claim_id))

    def update_stage_progress(
        self,
        document_id: str | uuid.UUID,
        stage_name: str | Enum,
        progress: float | None,
        metadata: Mapping[str, Any] | None = None,
        *,
        claim_id: uuid.UUID | None = None,
    ) -> bool:
        """Do what update_progress does."""
        return self.update_progress(document_id, stage_name, progress, metadata, claim_id=claim_id)

    def complete_stage(
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
        document, stage = _calls.document_id(document_id), _calls.stage_name(stage_name)
        claim_id = claim_id or self._claim_of(document, stage)
        call = _calls.complete_stage(document, stage, metadata, claim_id)
        done = self._close(document, stage, claim_id, call, "completed")
        if done:
            self._notify("stage_completed", stage, document, "completed")
        return done

    def fail_stage(
        self,
        document_id: str | uuid.UUID,
        stage_name: str | Enum,
        error: str | BaseException | None,
        metadata: Mapping[str, Any] | None = None,
        *,
        claim_id: uuid.UUID | None = None,
    ) -> bool:
        """Mark a stage as failed. Safe to repeat.

        Args:
            document_id: Row of krai_core.documents.
            stage_name: Stage that failed.
            error: What happened, for people; an exception stands for its text.
            metadata: Merged into what is stored.
            claim_id: Credential of the run, where it was started with one.

        Returns:
            True, or False without change when the stage is completed or skipped already.

        Raises:
            StageLost: The run of claim_id is over.
        """
        document, stage = _calls.document_id(document_id), _calls.stage_name(stage_name)
        claim_id = claim_id or self._claim_of(document, stage)
        call = _calls.fail_stage(document, stage, error, metadata, claim_id)
        done = self._close(document, stage, claim_id, call, "failed")
        if done:
            self._notify("stage_failed", stage, document, "failed")
        return done

    def skip_stage(
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
        document, stage = _calls.document_id(document_id), _calls.stage_name(stage_name)
        claim_id = claim_id or self._claim_of(document, stage)
        return self._close(document, stage, claim_id, _calls.skip_stage(document, stage, reason, claim_id), "skipped")

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
        document, stage = _calls.document_id(document_id), _calls.stage_name(stage_name)
        return self._transport.send(_calls.retry_stage(document, stage, actor))

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
        document, stage = _calls.document_id(document_id), _calls.stage_name(stage_name)
        return self._transport.send(_calls.reset_stage(document, stage, cascade=cascade, force=force, actor=actor))

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
        return self._transport.send(_calls.get_stage_status(_calls.document_id(document_id), self.STAGES))

    def get_document_status(self, document_id: str | uuid.UUID) -> DocumentStatus:
        """Return everything about one document: status, current stage, progress, times, error, stage_status."""
        return self._transport.send(_calls.get_document_status(_calls.document_id(document_id), self.STAGES))

    def get_statistics(self) -> dict[str, StageCounts]:
        """Return the counts by state and the average duration (seconds) of every stage, in pipeline order."""
        return self._transport.send(_calls.get_statistics(self.STAGES))

    def list_stages(self) -> list[Stage]:
        """Return the pipeline as the database has it, in order."""
        return self._transport.send(_calls.list_stages())

    def _enter(self, context: "StageContext") -> None:
        with self._contexts_lock:
            self._contexts[context.document_id, context.stage_name] = context

    def _leave(self, context: "StageContext") -> None:
        with self._contexts_lock:
            # After a take-over the entry may be that of the context that took over.
            if self._contexts.get((context.document_id, context.stage_name)) is context:
                del self._contexts[context.document_id, context.stage_name]

    def _claim_of(self, document: str, stage: str) -> uuid.UUID | None:
        context = self._contexts.get((document, stage))
        return None if context is None else context.claim_id

    def _close(self, document: str, stage: str, claim_id: uuid.UUID | None, call: _calls.Call[bool], to: str) -> bool:
        context = self._contexts.get((document, stage))
        if context is None or context.claim_id != claim_id:
            return self._transport.send(call)
        context._flush()  # noqa: SLF001 - the two are one
        done = self._transport.send(call)
        context.closed_as = to
        return done

    def _notify(self, event: str, stage: str, document: str, status: str) -> None:
        if self.websocket_callback is None:
            return
        try:
            result = self.websocket_callback(event, stage, document, status)
            if inspect.isawaitable(result):
                _deliver(result)
        except Exception:
            _logger.exception("websocket_callback failed for %s of %s", event, document)


_deliveries: set[asyncio.Future[Any]] = set()


def _deliver(result: Any) -> None:
    """Run what an asynchronous callback returned: in the event loop of this thread, else here and now."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(_awaited(result))
        return
    task = asyncio.ensure_future(result)
    # The loop itself holds tasks weakly.
    _deliveries.add(task)
    task.add_done_callback(_delivered)


def _delivered(task: asyncio.Future[Any]) -> None:
    _deliveries.discard(task)
    if not task.cancelled() and task.exception() is not None:
        _logger.error("websocket_callback failed", exc_info=task.exception())


async def _awaited(result: Any) -> None:
    await result
