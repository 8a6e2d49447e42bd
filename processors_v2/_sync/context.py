"""StageContext: one run of one stage, as a ``with`` block."""

import logging
import os
import socket
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sized
from enum import Enum
from types import TracebackType
from typing import Any, Self, TypeVar

from processors_v2 import _calls, _json
from processors_v2._errors import InvalidArgument, StageBusy, StageConflict, StageLost, StageTrackerError
from processors_v2._reporter import Reporter
from processors_v2._sync.tracker import StageTracker

T = TypeVar("T")

_logger = logging.getLogger("processors_v2")


class StageContext:
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
        tracker: A StageTracker.
        document_id: Row of krai_core.documents.
        stage_name: Stage to run.
        lease_seconds: For how long the stage is held without a sign of life; None: as the stage says. Signs of life are
            sent at a third of it, from a thread of their own.
        interval: Least time in seconds between two writes of progress.
        worker: Name to show for who works on it; None: host name and process id.
    """

    def __init__(
        self,
        tracker: StageTracker,
        document_id: str | uuid.UUID,
        stage_name: str | Enum,
        *,
        lease_seconds: float | None = None,
        interval: float = 0.25,
        worker: str | None = None,
    ) -> None:
        self.tracker = tracker
        self.document_id = _calls.document_id(document_id)
        self.stage_name = _calls.stage_name(stage_name)
        self.metadata: dict[str, Any] = {}
        self.claim_id: uuid.UUID | None = None
        self.closed_as: str | None = None
        self._lease_seconds = lease_seconds
        self._interval = interval
        self._worker = worker or f"{socket.gethostname()}:{os.getpid()}"
        self._reporter: Reporter | None = None

    def __repr__(self) -> str:
        return f"StageContext({self.document_id}, {self.stage_name!r})"

    def __enter__(self) -> Self:
        """Start the stage.

        Raises:
            StageBusy: Another run holds it.
        """
        if self._reporter is not None:
            raise StageConflict(f"{self!r} is running already", hint="Make a StageContext for each `with`")
        claim_id = uuid.uuid4()
        if not self.tracker.start_stage(
            self.document_id,
            self.stage_name,
            claim_id=claim_id,
            worker=self._worker,
            lease_seconds=self._lease_seconds,
        ):
            raise StageBusy(
                f"stage {self.stage_name} of document {self.document_id} is held by another run",
                hint="Leave it to the other, or start it again when its lease is over",
                error="busy",
                details={"document_id": self.document_id, "stage": self.stage_name, "status": "processing"},
            )
        self.claim_id, self.closed_as, self.metadata = claim_id, None, {}
        try:
            self.tracker._enter(self)  # noqa: SLF001 - the two are one
            self._reporter = Reporter(
                self._write,
                self._beat,
                interval=self._interval,
                lease_seconds=self._lease_seconds,
                name=f"{self.stage_name} {self.document_id}",
            )
        except BaseException as error:
            # Such as "can't start new thread": nobody would end the stage.
            self.tracker._leave(self)  # noqa: SLF001
            self._fail(error, None)
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
        reporter = self._running()
        try:
            unwritten = reporter.close()
            self.tracker._leave(self)  # noqa: SLF001
            if self.closed_as is not None:
                return
            if error is None:
                self._complete()
            elif not isinstance(reporter.error, StageLost):
                # For a run that is over nothing can be recorded.
                self._fail(error, unwritten)
        finally:
            self.tracker._leave(self)  # noqa: SLF001
            self._reporter = self.claim_id = None

    def update_progress(self, progress: float | None, metadata: Mapping[str, Any] | None = None) -> None:
        """Report progress; returns at once, the value is written in the background.

        Args:
            progress: Percent, 0 to 100; None keeps the last one.
            metadata: Merged into what is stored.

        Raises:
            InvalidArgument: Not a number of 0 to 100, or metadata that cannot be stored.
            StageLost: This run is over: stop the work.
        """
        given = _json.metadata(metadata) if metadata else {}
        value = _calls.percent(progress)
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
        """Store one value of metadata; returns at once, it is written in the background.

        Args:
            key: Its name.
            value: JSON, or what can be made JSON (UUID, datetime, Path, Decimal, Enum, set, dataclass, pydantic model).

        Raises:
            InvalidArgument: It cannot be stored.
            StageLost: This run is over: stop the work.
        """
        self.update_progress(None, {key: value})

    def track(self, iterable: Iterable[T], total: int | None = None, *, unit: str | None = None) -> Iterator[T]:
        """Iterate and report the progress of it.

        Args:
            iterable: What to go through.
            total: Number of items; None: its len().
            unit: Plural name of an item, such as "pages": then metadata has pages_processed and total_pages.

        Yields:
            The items.

        Raises:
            InvalidArgument: No total, and the iterable has no len().
            StageLost: This run is over: stop the work.
        """
        if total is None:
            if not isinstance(iterable, Sized):
                raise InvalidArgument(
                    f"track() of a {type(iterable).__name__} needs a total",
                    hint="Pass total=<number of items>",
                )
            total = len(iterable)
        return self._track(iterable, total, unit)

    def _track(self, iterable: Iterable[T], total: int, unit: str | None) -> Iterator[T]:
        for done, item in enumerate(iterable, 1):
            yield item
            known = max(total, done)
            counts = {f"{unit}_processed": done, f"total_{unit}": known} if unit else None
            self.update_progress(100 * done / known, counts)

    def skip(self, reason: str = "Not applicable") -> None:
        """Mark the stage as not applicable to this document, at once; the block goes on and nothing more is recorded.

        Args:
            reason: Kept in metadata["reason"].

        Raises:
            StageLost: This run is over.
        """
        self._running()
        self.tracker.skip_stage(self.document_id, self.stage_name, reason, claim_id=self.claim_id)

    def _flush(self) -> None:
        """Write everything that was reported, before the stage is closed by a call inside of the block."""
        reporter = self._running()
        progress, _ = reporter.close() or (None, None)
        if reporter.error is not None:
            raise reporter.error
        if progress is not None or self.metadata:
            self.tracker.update_progress(
                self.document_id, self.stage_name, progress, self.metadata, claim_id=self.claim_id
            )

    def _running(self) -> Reporter:
        if self._reporter is None:
            raise StageConflict(f"{self!r} is not running", hint="Use it inside its `with` block")
        return self._reporter

    def _write(self, progress: float | None, metadata: Mapping[str, Any]) -> bool:
        call = _calls.update_stage_progress(self.document_id, self.stage_name, progress, metadata, self.claim_id)
        return self.tracker._transport.send(call, retry=False)  # noqa: SLF001

    def _beat(self) -> float:
        assert self.claim_id is not None  # noqa: S101 - for the type checker
        call = _calls.heartbeat([(self.document_id, self.stage_name, self.claim_id)])
        answer = self.tracker._transport.send(call, retry=False)  # noqa: SLF001
        if not answer["alive"]:
            raise StageLost(
                f"this run of stage {self.stage_name} of document {self.document_id} is over",
                hint="Stop this work and write nothing more for it",
                error="lease_lost",
                details={"document_id": self.document_id, "stage": self.stage_name},
            )
        return float(answer["alive"][0]["lease_ms"]) / 1000

    def _complete(self) -> None:
        try:
            self.tracker.complete_stage(self.document_id, self.stage_name, self.metadata, claim_id=self.claim_id)
        except InvalidArgument as error:
            # Something that was put straight into self.metadata: a stage must not stay in processing for it.
            self.metadata = {}
            self._fail(error, None)
            raise

    def _fail(self, error: BaseException, unwritten: tuple[float | None, dict[str, Any]] | None) -> None:
        """Record a failure; the exception itself is what the caller gets to see, whatever happens here."""
        try:
            if unwritten is not None and not isinstance(error, StageTrackerError):
                self._write(*unwritten)
        except StageTrackerError as problem:
            _logger.warning("%r: the last progress was not recorded: %s", self, problem)
        try:
            self.tracker.fail_stage(self.document_id, self.stage_name, error, self.metadata, claim_id=self.claim_id)
        except StageTrackerError as problem:
            if isinstance(problem, InvalidArgument) and self.metadata:
                self.metadata = {}
                self._fail(error, None)
                return
            _logger.error("%r: the failure was not recorded: %s", self, problem)  # noqa: TRY400 - the cause is raised
            error.add_note(f"the failure of stage {self.stage_name} was not recorded: {problem}")
