"""The rules of documents and their stages, small and slow, to hold the database against: what a stage is.

The calls are in calls.py. Time does not pass here: the machines say which leases, timeouts and backoffs are over. What
only the database can know, ids and the place that a new ready run gets in the queue, is taken over in checking.py.
"""

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

Json = Any
FINISHED = ("completed", "skipped")
ENDED = (*FINISHED, "failed")
STATUSES = ("pending", "processing", "completed", "failed", "skipped")


class Refused(Exception):
    """The call does not fit, and changed nothing."""

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self.word = word

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Refused) and other.word == self.word

    __hash__ = Exception.__hash__


@dataclass
class Settings:
    """A row of krai_core.stages."""

    position: int
    requires: set[str]
    max_attempts: int = 5
    backoff: int = 1000
    timeout: int | None = None
    paused: bool = False
    enabled: bool = True


@dataclass
class Run:
    """A run that is running or closed; ready ones are derived."""

    status: str
    attempt: int = 1
    claim: UUID | None = None
    by_holder: bool = False
    retries: bool = False
    is_reset: bool = False
    lease_over: bool = False
    is_old: bool = False
    # Its time has not come: retry_at of a failed one, or available_at of one that was begun before it was due.
    backs_off: bool = False
    retry_at: int | None = None
    available_at: int | None = None
    id: int = 0


@dataclass(order=True)
class Place:
    """Where a ready run stands in the queue of its stage."""

    level: int
    available_at: int
    id: int


@dataclass
class Stage:
    """One stage of one document: what the column holds, its runs, and its place in the queue if it is ready."""

    status: str = "pending"
    started: bool = False
    ended: bool = False
    timed: bool = False
    progress: float = 0
    error: str | None = None
    metadata: dict[str, Json] = field(default_factory=dict)
    retries: bool = False
    runs: list[Run] = field(default_factory=list)
    place: Place | None = None

    def hold(self, status: str, **fields: Json) -> None:
        """Set the column; keys that are not given are those of a stage on which nothing was done."""
        place = self.place if (status, fields.get("retries", False)) == (self.status, self.retries) else None
        vars(self).update(vars(Stage()) | {"runs": self.runs, "place": place, "status": status} | fields)

    @property
    def column(self) -> dict[str, Json]:
        """What the column holds."""
        keys = ("status", "started", "ended", "timed", "progress", "error", "metadata")
        return {key: getattr(self, key) for key in keys}

    @property
    def running(self) -> Run | None:
        """The run that is at work."""
        return self.runs[-1] if self.runs and self.runs[-1].status == "running" else None

    def of_claim(self, claim: UUID | None) -> Run | None:
        """The run that carries a claim id."""
        return next((run for run in self.runs if claim is not None and run.claim == claim), None)

    def held(self, claim: UUID | None) -> Run | None:
        """The run that a call may act on: with a claim id only the one that it opened."""
        if claim is None:
            return self.running
        run = self.of_claim(claim)
        if run is None or (run.status != "running" and not run.by_holder):
            raise Refused("lease_lost")
        return run

    @property
    def next_attempt(self) -> int:
        """Counted over failed and lost runs; from 1 after a success, a skip, a cancelled run, a retry and a reset."""
        if not self.runs or self.runs[-1].is_reset or self.runs[-1].status in {*FINISHED, "cancelled"}:
            return 1
        return self.runs[-1].attempt + (self.runs[-1].status != "released")

    @property
    def backs_off(self) -> bool:
        """Whether its ready run still waits for its time."""
        return bool(self.runs) and (self.retries or self.runs[-1].status == "released") and self.runs[-1].backs_off

    def is_current(self, run: Run) -> bool:
        """Whether the stage stands on this run: completed, failed and skipped ones stand on their last."""
        return self.status in ENDED and run is self.runs[-1]

    def open(self, claim: UUID | None) -> Run:
        """Begin a new run. A ready one becomes it, and its place in the queue stays with it."""
        at, backs_off = (self.place.available_at, self.backs_off) if self.place else (None, False)
        self.runs.append(Run("running", self.next_attempt, claim, available_at=at, backs_off=backs_off))
        self.hold("processing", started=True, metadata=self.metadata if self.status == "pending" else {})
        return self.runs[-1]

    def close(self, to: str, error: str | None, metadata: dict[str, Json], run_status: str, by_holder: bool) -> Run:
        """End its run, or note one that was done outside; the column becomes ``to``."""
        run, started = self.running, self.running is not None
        if run is None:
            run = Run(run_status, 1 if run_status == "cancelled" else self.next_attempt)
            self.runs.append(run)
        run.status, run.by_holder = run_status, by_holder
        self.hold(
            to, started=started, ended=True, timed=started and to != "skipped", error=error,
            progress=100 if to == "completed" else self.progress, metadata=self.metadata | metadata,
        )  # fmt: skip
        return run

    def again(self) -> None:
        """Pending by a person's word: attempts count from 1."""
        if self.runs:
            self.runs[-1].is_reset = True
        self.hold("pending")


@dataclass
class Document:
    """A document. ``is_behind``: the pipeline was changed, and the queue has not come to it since."""

    stages: dict[str, Stage] = field(default_factory=dict)
    priority: int = 0
    is_behind: bool = False


def meaning(value: Json) -> dict[str, Json]:
    """What a stored value of a stage means, as Stage.column.

    Missing (None) is pending, the text "completed" is completed. Only for what the machines and the database write. Of
    times, and of metadata.v1, which keeps what had no place, only that they are there.
    """
    stored = value if isinstance(value, dict) else {}
    status = "completed" if value == "completed" else stored.get("status")
    metadata = dict(stored.get("metadata") or {})
    if status not in STATUSES:
        # A status of another system is no sign of a run of ours.
        if status is not None or not isinstance(value, dict | None):
            metadata["v1"] = True
        return Stage(metadata=metadata).column
    if not isinstance(value, dict) or "v1" in metadata:
        metadata["v1"] = True
    error = stored.get("error")
    return {
        "status": status,
        "started": stored.get("started_at") is not None,
        "ended": stored.get("completed_at") is not None,
        "timed": stored.get("duration_seconds") is not None,
        "progress": stored.get("progress", 100 if status == "completed" else 0),
        "error": error.split(":")[0] if (error or "").startswith("given up") else error,
        "metadata": metadata,
    }
