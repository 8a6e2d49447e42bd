# Made from _async/pipeline.py by tools/unasync.py: change that one.
"""The stages of the pipeline: list, register, disable."""

from collections.abc import Iterable
from enum import Enum

from processors_v2._calls import arguments, pipeline
from processors_v2._shapes.pipeline import Stage
from processors_v2._sync.transport import Transport


class Pipeline:
    """Methods of StageTracker."""

    _transport: Transport

    def list_stages(self) -> list[Stage]:
        """Return the pipeline as the database has it, in order."""
        return self._transport.send(pipeline.list_stages())

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
        call = pipeline.register_stage(
            arguments.stage_name(stage_name),
            None if requires is None else [arguments.stage_name(name) for name in requires],
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
        return self._transport.send(pipeline.disable_stage(arguments.stage_name(stage_name), actor))
