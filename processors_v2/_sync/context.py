# Made from _async/context.py by tools/unasync.py: change that one.
"""StageContext: one run of one stage, as an ``with`` block."""

import logging
import os
import socket
import uuid
from collections.abc import Mapping
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from processors_v2._calls import arguments, queue, runs, storable
from processors_v2._errors import InvalidArgument, StageBusy, StageConflict, StageLost, StageTrackerError
from processors_v2._pulse import Pulse, Values
from processors_v2._sync import cancellation
from processors_v2._sync.tracking import Tracking

if TYPE_CHECKING:
    from processors_v2._sync.tracker import StageTracker

_logger = logging.getLogger("processors_v2")

INTERVAL = 0.25


def this_worker() -> str:
    """Return the name to show for who works here: host name and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"


class StageContext(Tracking):
    """Runs a stage: starts it, keeps its lease, and completes it at the end of the block, or fails it on an exception.

    ::

        with StageContext(tracker, document_id, "text_extraction") as ctx:
            for number, page in enumerate(pages, 1):
                ...
                ctx.update_progress(100 * number / len(pages), {"pages_processed": number})

    Two contexts never run one stage of a document at once, in whatever processes. An exception of the block is recorded
    and raised again. A stage is completed only when the database has said so: if it cannot be reached, the block ends
    with DatabaseUnavailable; if the stage was taken over meanwhile, with StageLost.

    Attributes:
        tracker: The tracker it writes through.
        document_id: The document, as text.
        stage_name: The stage.
        claim_id: Credential of this run, a new UUID for each block; None outside.
        metadata: What is stored with the stage when the block ends; may be changed freely.

    Args:
        tracker: a StageTracker.
        document_id: Row of krai_core.documents.
        stage_name: Stage to run.
        lease_seconds: For how long the stage is held without a sign of life; None: as the stage says. Signs of life are
            sent at a third of it, from a thread of the tracker's own.
        interval: Least time in seconds between two writes of progress.
        worker: Name to show for who works on it; None: host name and process id.
    """

    def __init__(
        self,
        tracker: "StageTracker",
        document_id: str | uuid.UUID,
        stage_name: str | Enum,
        *,
        lease_seconds: float | None = None,
        interval: float = INTERVAL,
        worker: str | None = None,
    ) -> None:
        self.tracker = tracker
        self.document_id = arguments.document_id(document_id)
        self.stage_name = arguments.stage_name(stage_name)
        self.metadata: dict[str, Any] = {}
        self.claim_id: uuid.UUID | None = None
        self.closed_as: str | None = None
        self._lease_seconds = lease_seconds
        self._interval = interval
        self._worker = worker or this_worker()
        self._pulse: Pulse | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.document_id}, {self.stage_name!r})"

    def __del__(self) -> None:
        pulse = getattr(self, "_pulse", None)
        if pulse is not None:
            # Nobody will end this run: it is not kept alive either.
            pulse.abandon()

    def __enter__(self) -> Self:
        """Start the stage.

        Raises:
            StageBusy: Another run holds it.
        """
        if self._pulse is not None:
            raise StageConflict(f"{self!r} is running already", hint="Make a new one for each `with`")
        self.claim_id = (
            self.tracker._claims.take(self.document_id, self.stage_name)  # noqa: SLF001 - the two are one
            or uuid.uuid4()
        )
        try:
            started = cancellation.shielded(
                self.tracker.start_stage(
                    self.document_id,
                    self.stage_name,
                    claim_id=self.claim_id,
                    worker=self._worker,
                    lease_seconds=self._lease_seconds,
                )
            )
        except BaseException as error:
            if cancellation.is_cancelled(error):
                # The stage may have been started meanwhile, for nobody.
                cancellation.shielded(self._give_back(), error)
            self.claim_id = None
            raise
        if not started:
            self.claim_id = None
            raise StageBusy(
                f"stage {self.stage_name} of document {self.document_id} is held by another run",
                hint="Leave it to the other, or start it again when its lease is over",
                error="busy",
                details={"document_id": self.document_id, "stage": self.stage_name, "status": "processing"},
            )
        self.closed_as, self.metadata = None, {}
        try:
            self._begin(self._lease_seconds)
        except BaseException as error:
            # Such as "can't start new thread": nobody would end the stage.
            self._fail(error, None)
            self.claim_id = None
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the stage, or fail it.

        Raises:
            StageLost: The stage was taken over, closed or cancelled by somebody else.
            DatabaseUnavailable: The end of the stage could not be recorded.
        """
        pulse = self._running()
        try:
            pulse.stop()
            self.closed_as = cancellation.shielded(self._end(pulse, error), error)
        finally:
            self.tracker._leave(self)  # noqa: SLF001
            self._pulse = self.claim_id = None

    def update_progress(self, progress: float | None, metadata: Mapping[str, Any] | None = None) -> None:
        """Report progress; never waits for the database, since the value is written in the background.

        Args:
            progress: Percent, 0 to 100; None keeps the last one.
            metadata: Merged into what is stored.

        Raises:
            InvalidArgument: Not a number of 0 to 100, or metadata that cannot be stored.
            StageLost: This run is over: stop the work.
        """
        given = storable.metadata(metadata) if metadata else {}
        value = arguments.percent(progress)
        if value is not None and not 0 <= value <= 100:  # noqa: PLR2004
            # The database says the same, but later, and not at all when the block ends before.
            raise InvalidArgument(
                f"progress {value} is outside of 0 to 100 percent",
                hint="Pass percent: 45.5 means 45.5 %",
                error="invalid_progress",
            )
        self._running().put(value, given)
        self.metadata.update(given)

    def set_metadata(self, key: str, value: Any) -> None:
        """Store one value of metadata; never waits for the database, since it is written in the background.

        Args:
            key: Its name.
            value: JSON, or what can be made JSON (UUID, datetime, Path, Decimal, Enum, set, dataclass, pydantic model).

        Raises:
            InvalidArgument: It cannot be stored.
            StageLost: This run is over: stop the work.
        """
        self.update_progress(None, {key: value})

    def skip(self, reason: str = "Not applicable") -> None:
        """Mark the stage as not applicable to this document, at once; the block goes on and nothing more is recorded.

        Args:
            reason: Kept in metadata["reason"].

        Raises:
            StageLost: This run is over.
        """
        self._running()
        self.tracker.skip_stage(self.document_id, self.stage_name, reason, claim_id=self.claim_id)
        # Here, too: the tracker may act for a later context of this stage by now.
        self._note_closed("skipped")

    def _begin(self, lease_seconds: float | None, since: float | None = None) -> None:
        """Let the tracker keep this run alive, and act for it."""
        assert self.claim_id is not None  # noqa: S101 - for the type checker
        heart = self.tracker._heart  # noqa: SLF001
        run = (self.document_id, self.stage_name, self.claim_id)
        pulse = Pulse(heart, run, interval=self._interval, lease_seconds=lease_seconds, since=since)
        heart.add(pulse)
        self._pulse = pulse
        self.tracker._enter(self)  # noqa: SLF001

    def _end(self, pulse: Pulse, error: BaseException | None) -> str | None:
        """Record how the block ended, unless the run is over; return as what it is closed."""
        cancellation.settle(pulse)
        self.tracker._leave(self)  # noqa: SLF001
        if self.closed_as is not None:
            return self.closed_as
        if error is None:
            self._complete()
            return "completed"
        if isinstance(pulse.error, StageLost):
            # Nothing can be recorded for it any more.
            return None
        self._fail(error, pulse.unwritten())
        return "failed"

    def _flush(self) -> None:
        """Write everything that was reported, before the stage is closed by a call inside of the block."""
        pulse = self._running()
        pulse.stop()
        cancellation.settle(pulse)
        progress, _ = pulse.unwritten() or (None, None)
        if pulse.error is not None:
            raise pulse.error
        if progress is not None or self.metadata:
            self.tracker.update_progress(
                self.document_id, self.stage_name, progress, self.metadata, claim_id=self.claim_id
            )

    def _note_closed(self, to: str) -> None:
        """Take note that a call beside the end of the block has closed the run."""
        self.closed_as = to

    def _give_back(self) -> bool:
        assert self.claim_id is not None  # noqa: S101 - for the type checker
        call = queue.release_stages([(self.document_id, self.stage_name, self.claim_id)])
        return bool((self.tracker._transport.send(call))["released"])  # noqa: SLF001

    def _running(self) -> Pulse:
        if self._pulse is None:
            raise StageConflict(f"{self!r} is not running", hint="Use it inside its `with` block")
        return self._pulse

    def _complete(self) -> None:
        try:
            self.tracker.complete_stage(self.document_id, self.stage_name, self.metadata, claim_id=self.claim_id)
        except InvalidArgument as error:
            # Something that was put straight into self.metadata: a stage must not stay in processing for it.
            self.metadata = {}
            self._fail(error, None)
            raise

    def _fail(self, error: BaseException, unwritten: Values | None) -> None:
        """Record a failure; the exception itself is what the caller gets to see, whatever happens here."""
        try:
            if unwritten is not None and not isinstance(error, StageTrackerError):
                call = runs.update_stage_progress(self.document_id, self.stage_name, *unwritten, self.claim_id)
                self.tracker._transport.send(call, retry=False)  # noqa: SLF001
        except StageTrackerError as problem:
            _logger.warning("%r: the last progress was not recorded: %s", self, problem)
        try:
            self._record_failure(error)
        except StageTrackerError as problem:
            if isinstance(problem, InvalidArgument) and self.metadata:
                self.metadata = {}
                self._fail(error, None)
                return
            _logger.error("%r: the failure was not recorded: %s", self, problem)  # noqa: TRY400 - the cause is raised
            error.add_note(f"the failure of stage {self.stage_name} was not recorded: {problem}")

    def _record_failure(self, error: BaseException) -> None:
        self.tracker.fail_stage(self.document_id, self.stage_name, error, self.metadata, claim_id=self.claim_id)
