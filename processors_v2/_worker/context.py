"""RunContext: what a handler gets to know and to say of its run."""

import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from processors_v2._calls import arguments, storable
from processors_v2._calls.call import Call
from processors_v2._errors import InvalidArgument, StageLost, StageTrackerError, UnknownDocument
from processors_v2._tracking import length_of, progress_of

if TYPE_CHECKING:
    from processors_v2._worker.ending import Ending

T = TypeVar("T")

Key = tuple[str, str, str]

# Handlers put values in while the reports take them out. One for all runs: held for less than a microsecond.
_values = threading.Lock()


class Send(Protocol):
    """How a call reaches the database: ``send`` of a transport."""

    def __call__(self, call: Call[T], *, retry: bool = True, within: float | None = None) -> T:
        """Send a call and return its result; ``within`` seconds at most for one try."""


class Link(Protocol):
    """What connects a run to the database: another thing here than in the processes of an executor."""

    def report(self, run: "RunContext") -> None:
        """Take note that the run has progress or metadata to write."""

    def look(self, run: "RunContext") -> None:
        """Find out whether the run is over, where nobody tells."""

    def send(self, call: Call[T]) -> T:
        """Send a call and return its result."""


class RunContext:
    """One run of one stage, as its handler sees it.

    Made by a StageWorker; the handler does the work and returns. What it returns as a mapping is stored as metadata
    and the stage completed; an exception is a failure that is tried again while attempts are left, PermanentError one
    that is not.

    Attributes:
        document_id: The document, as text.
        filename: Its file name.
        stage_name: The stage.
        attempt: Number of this attempt, from 1.
        max_attempts: How many there are before the stage stays failed.
        metadata: What the stage carries; stored when the handler ends, may be changed freely.
        claim_id: Credential of this run.
        idempotency_key: ``document/stage/attempt``: the same only when the same attempt is run twice, which an executor
            may do whose process died; for services that are to do a thing once.
    """

    __slots__ = (
        "_claim_text",
        "_ending",
        "_link",
        "_next_write",
        "_over",
        "_progress",
        "_reason",
        "_since",
        "_unsent",
        "attempt",
        "claim_id",
        "document_id",
        "filename",
        "max_attempts",
        "metadata",
        "stage_name",
    )

    def __init__(self, claimed: Mapping[str, Any], claim_id: uuid.UUID, claim_text: str, link: Link) -> None:
        self.document_id: str = claimed["document_id"]
        self.filename: str | None = claimed["filename"]
        self.stage_name: str = claimed["stage_name"]
        self.attempt: int = claimed["attempt"]
        self.max_attempts: int = claimed["max_attempts"]
        self.metadata: dict[str, Any] = claimed["metadata"] or {}
        self.claim_id = claim_id
        self._claim_text = claim_text
        self._link = link
        self._over: StageTrackerError | None = None
        self._reason: str | None = None
        self._progress: float | None = None
        self._unsent: dict[str, Any] = {}
        self._next_write = 0.0
        self._since = 0.0
        self._ending: Ending | None = None

    def __repr__(self) -> str:
        return f"RunContext({self.idempotency_key})"

    @property
    def idempotency_key(self) -> str:
        """``document/stage/attempt``."""
        return f"{self.document_id}/{self.stage_name}/{self.attempt}"

    @property
    def cancelled(self) -> bool:
        """Whether this run is over: lost, cancelled, or its worker stops. What is done from here on counts no more."""
        if self._over is None:
            self._link.look(self)
        return isinstance(self._over, StageLost)

    def raise_if_cancelled(self) -> None:
        """Raise what ended this run, where it is over.

        Raises:
            StageCancelled: The document was cancelled or the stage reset.
            StageLost: Another has taken the stage over, or the worker stops.
        """
        if self.cancelled and self._over is not None:
            raise self._over

    def update_progress(self, progress: float | None, metadata: Mapping[str, Any] | None = None) -> None:
        """Report progress; returns at once, the value is written in the background, at most four times a second.

        Args:
            progress: Percent, 0 to 100; None keeps the last one.
            metadata: Merged into what is stored.

        Raises:
            InvalidArgument: Not a number of 0 to 100, or metadata that cannot be stored.
            StageLost: This run is over: stop the work.
            StageCancelled: It was taken away on purpose.
        """
        given = storable.metadata(metadata) if metadata else {}
        value = arguments.percent(progress)
        if value is not None and not 0 <= value <= 100:  # noqa: PLR2004
            # The database says the same, but too late for the handler to hear it.
            raise InvalidArgument(
                f"progress {value} is outside of 0 to 100 percent",
                hint="Pass percent: 45.5 means 45.5 %",
                error="invalid_progress",
            )
        if self._over is not None:
            raise self._over
        with _values:
            self._unsent.update(given)
            if value is not None:
                self._progress = value
        self.metadata.update(given)
        self._link.report(self)

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
        return self._track(iterable, length_of(iterable) if total is None else total, unit)

    def _track(self, iterable: Iterable[T], total: int, unit: str | None) -> Iterator[T]:
        for done, item in enumerate(iterable, 1):
            yield item
            self.update_progress(*progress_of(done, total, unit))

    def skip(self, reason: str = "Not applicable") -> None:
        """Mark the stage as not applicable to this document; recorded when the handler ends, however it ends.

        Args:
            reason: Kept in metadata["reason"].
        """
        self._reason = storable.text(str(reason))

    def document(self) -> dict[str, Any]:
        """Read the row of the document as it is now.

        Returns:
            The columns by name.

        Raises:
            UnknownDocument: It has been deleted.
            DatabaseUnavailable: No answer within the time bound of the tracker.
            ConfigurationError: In a process of an executor, and the worker has no child_tracker.
        """
        document = uuid.UUID(self.document_id)
        sql = f"select coalesce(jsonb_agg(to_jsonb(d)), '[]') from krai_core.documents d where d.id = '{document}'"  # noqa: S608 - a UUID
        return self._link.send(Call(f"documents?id=eq.{document}", None, self._row, repeatable=True, sql=sql))

    def _row(self, rows: Any) -> dict[str, Any]:
        if not rows:
            raise UnknownDocument(
                f"document {self.document_id} is gone",
                hint="It was deleted while this stage was running",
                error="unknown_document",
                details={"document_id": self.document_id},
            )
        row: dict[str, Any] = rows[0]
        return row

    def _take(self) -> tuple[float | None, dict[str, Any]]:
        with _values:
            taken = self._progress, self._unsent
            self._progress, self._unsent = None, {}
            return taken

    def _put_back(self, progress: float | None, metadata: dict[str, Any]) -> None:
        with _values:
            if self._progress is None:
                self._progress = progress
            self._unsent = {**metadata, **self._unsent}

    def _key(self) -> Key:
        return self.document_id, self.stage_name, self._claim_text

    def _identity(self) -> tuple[str, str, uuid.UUID]:
        return self.document_id, self.stage_name, self.claim_id

    def _begin(self) -> None:
        self._since = time.monotonic()


RunContext.__module__ = "processors_v2.worker"
