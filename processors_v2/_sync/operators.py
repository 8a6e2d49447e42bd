# Made from _async/operators.py by tools/unasync.py: change that one.
"""The calls of people and of schedulers: what runs, in which order, and again."""

import datetime as dt
import uuid
from collections.abc import Iterable
from enum import Enum
from typing import cast

from processors_v2 import _calls, _operator_calls
from processors_v2._models import Reaped, Rebuilt, Retried
from processors_v2._monitoring_models import Maintenance, Pruned, RebuiltStatistics
from processors_v2._sync.transports import Transport


class Operators:
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
        document, stage = _calls.document_id(document_id), _calls.stage_name(stage_name)
        return self._transport.send(_operator_calls.retry_stage(document, stage, actor))

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
        return self._transport.send(
            _operator_calls.reset_stage(document, stage, cascade=cascade, force=force, actor=actor)
        )

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
        stage = None if stage_name is None else _calls.stage_name(stage_name)
        call = _operator_calls.retry_failed(stage, error, since, limit, actor, dry_run=dry_run)
        return cast("Retried", self._transport.send(call))

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
        return self._transport.send(_operator_calls.cancel_document(_calls.document_id(document_id), reason, actor))

    def set_priority(self, document_id: str | uuid.UUID, priority: int, *, actor: str | None = None) -> bool:
        """Set how soon the stages of a document are handed out, also those that become ready later.

        Args:
            document_id: Row of krai_core.documents.
            priority: Higher is sooner; 0 is usual.
            actor: Who asks for it; kept.

        Returns:
            True.
        """
        return self._transport.send(_operator_calls.set_priority(_calls.document_id(document_id), priority, actor))

    def pause_stage(self, stage_name: str | Enum, *, actor: str | None = None) -> bool:
        """Hand out nothing of a stage until resume_stage; what runs goes on. Returns True."""
        return self._transport.send(_operator_calls.pause_stage(_calls.stage_name(stage_name), actor))

    def resume_stage(self, stage_name: str | Enum, *, actor: str | None = None) -> bool:
        """Hand out a paused stage again. Returns True."""
        return self._transport.send(_operator_calls.resume_stage(_calls.stage_name(stage_name), actor))

    def register_stage(
        self,
        stage_name: str | Enum,
        requires: Iterable[str | Enum] | None = None,
        *,
        position: int | None = None,
        description: str | None = None,
        weight: float | None = None,
        lease_seconds: int | None = None,
        timeout_seconds: int | None = None,
        max_attempts: int | None = None,
        backoff_seconds: int | None = None,
        actor: str | None = None,
    ) -> bool:
        """Add a stage to the pipeline, change one, or enable one again, while workers run; None keeps what is there.

        Args:
            stage_name: Its name.
            requires: Stages that must be finished before it, in place of those so far.
            position: Place in the pipeline; None for a new one: the last.
            description: What it does, for people.
            weight: Share in the weighted progress of a document.
            lease_seconds: For how long a run is held without a sign of life.
            timeout_seconds: For how long a run may last.
            max_attempts: Attempts before it stays failed.
            backoff_seconds: Pause before the first automatic retry; doubled for each further one.
            actor: Who asks for it; kept.

        Returns:
            True. Documents in flight follow by and by: see fill_ready_runs.

        Raises:
            InvalidArgument: A circle, or a value out of range.
        """
        call = _operator_calls.register_stage(
            _calls.stage_name(stage_name),
            None if requires is None else [_calls.stage_name(name) for name in requires],
            actor,
            position=position,
            description=description,
            weight=weight,
            lease_seconds=lease_seconds,
            timeout_seconds=timeout_seconds,
            max_attempts=max_attempts,
            backoff_seconds=backoff_seconds,
        )
        return self._transport.send(call)

    def disable_stage(self, stage_name: str | Enum, *, actor: str | None = None) -> bool:
        """Take a stage out of the pipeline: it counts as satisfied and is in no total. Returns True."""
        return self._transport.send(_operator_calls.disable_stage(_calls.stage_name(stage_name), actor))

    def reap(self, limit: int = 1000) -> Reaped:
        """Bring back what nobody holds any more; workers do it by themselves, so this is for schedulers.

        Args:
            limit: Most runs, and documents to look at, at once.

        Returns:
            How much there was.
        """
        return cast("Reaped", self._transport.send(_calls.reap(limit)))

    def fill_ready_runs(self, limit: int = 1000) -> int:
        """Let the queue follow a changed pipeline; returns how many documents were looked at, 0 when none is left."""
        return self._transport.send(_calls.fill_ready_runs(limit))

    def rebuild_ready_runs(self) -> Rebuilt:
        """Compare the whole queue with the truth and mend it; reads every document. Returns how much was wrong."""
        return cast("Rebuilt", self._transport.send(_operator_calls.rebuild_ready_runs()))

    def rebuild_statistics(self) -> RebuiltStatistics:
        """Compare the figures with all documents and mend them; finds nothing unless triggers were switched off.

        Returns:
            How many sums were wrong. Every document is read: give the tracker a longer timeout where there are many.
        """
        return cast("RebuiltStatistics", self._transport.send(_operator_calls.rebuild_statistics()))

    def prune_runs(self, older_than: dt.timedelta, *, keep_failures: bool = True, limit: int = 10_000) -> Pruned:
        """Delete runs that ended longer ago than that and that no stage stands on any more; statistics keep them.

        Args:
            older_than: 0 or more.
            keep_failures: Leave failed and lost runs alone.
            limit: Most runs at once, 1 to 100000; while ``more`` is True, call again.

        Returns:
            How many there were, and whether there are more.
        """
        call = _operator_calls.prune_runs(older_than, limit, keep_failures=keep_failures)
        return cast("Pruned", self._transport.send(call))

    def schedule_maintenance(
        self, prune_older_than: dt.timedelta | None = None, *, keep_failures: bool = True
    ) -> Maintenance:
        """Have pg_cron call reap and, where an age is given, prune_runs; nothing happens where there is no pg_cron.

        Args:
            prune_older_than: As for prune_runs; None: nothing is pruned by it, any more either.
            keep_failures: As for prune_runs.

        Returns:
            Whether it is scheduled, and what.
        """
        call = _operator_calls.schedule_maintenance(prune_older_than, keep_failures=keep_failures)
        return cast("Maintenance", self._transport.send(call))
