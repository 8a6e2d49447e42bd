# Made from _async/claimed.py by tools/unasync.py: change that one.
"""ClaimedRun: a run that was claimed, as an ``with`` block."""

import uuid
from typing import TYPE_CHECKING, Any, Self

from processors_v2._errors import PermanentError, StageConflict
from processors_v2._pulse import Pulse
from processors_v2._sync import cancellation
from processors_v2._sync.context import StageContext

if TYPE_CHECKING:
    from processors_v2._sync.tracker import StageTracker


class ClaimedRun(StageContext):
    """A run that ``claim`` gave; held, and kept alive in the background, from then on.

    ::

        for run in tracker.claim("text_extraction", limit=10):
            with run:
                ...

    In its block it is a StageContext that has been started. An exception of the block is recorded so that the
    stage is tried again while attempts are left; PermanentError, so that it is not. A run that nobody refers to any
    more is not kept alive, and its lease ends.

    Attributes:
        filename: Of the document.
        attempt: Number of this attempt, from 1.
        max_attempts: Attempts before the stage stays failed.
        idempotency_key: ``document/stage/attempt``, the same for nobody else: for whatever must not be done twice.
    """

    filename: str
    attempt: int
    max_attempts: int
    _is_entered = False

    @classmethod
    def _of(cls, tracker: "StageTracker", claimed: dict[str, Any], worker: str, since: float) -> "ClaimedRun":
        """Begin to hold a run.

        Args:
            tracker: Who claimed it.
            claimed: An element of the answer of krai_core.claim_stages.
            worker: Who works on it.
            since: When it was asked for, by ``time.monotonic``: its lease began after that.
        """
        run = cls(tracker, claimed["document_id"], claimed["stage_name"], worker=worker)
        run.claim_id = uuid.UUID(claimed["claim_id"])
        run.filename = claimed["filename"]
        run.attempt = claimed["attempt"]
        run.max_attempts = claimed["max_attempts"]
        run.metadata = dict(claimed["metadata"])
        run._begin(float(claimed["lease_ms"]) / 1000, since)
        return run

    @property
    def idempotency_key(self) -> str:
        """``document/stage/attempt``."""
        return f"{self.document_id}/{self.stage_name}/{self.attempt}"

    def __enter__(self) -> Self:
        """Go on with the run.

        Raises:
            StageConflict: It is over, or in use already.
        """
        self._running()
        if self._is_entered:
            raise StageConflict(f"{self!r} is running already", hint="A claimed run is used once: claim another")
        self._is_entered = True
        return self

    def release(self) -> bool:
        """Give the run back untouched: no attempt is used up, and it keeps its place in the queue.

        In its block, the block goes on and nothing more is recorded.

        Returns:
            True, or False where it was over already.
        """
        pulse = self._running()
        pulse.stop()
        cancellation.settle(pulse)
        released = cancellation.shielded(self._give_back())
        self._note_closed("released")
        return released

    def _note_closed(self, to: str) -> None:
        super()._note_closed(to)
        if not self._is_entered:
            # Nothing will follow: later calls of the tracker are not for this run.
            self.tracker._leave(self)  # noqa: SLF001 - the two are one
            self._pulse = self.claim_id = None

    def _running(self) -> Pulse:
        if self._pulse is None:
            raise self._is_over()
        return self._pulse

    def _is_over(self) -> StageConflict:
        return StageConflict(f"{self!r} is over", hint="A claimed run is used once: claim another")

    def _record_failure(self, error: BaseException) -> None:
        self.tracker.fail_stage(
            self.document_id,
            self.stage_name,
            error,
            self.metadata,
            claim_id=self.claim_id,
            retry=not isinstance(error, PermanentError),
        )
