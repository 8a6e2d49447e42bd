"""All that the judge goes by: rows of the database, journals of the workers, and what was done to them."""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from proof._chaos.crew import Life
from proof._chaos.faults import Happened
from proof._chaos.watcher import Seen

Key = tuple[str, str]
Identity = tuple[str, str, str]

_RUNS = """
select id, document_id::text as document, stage_name as stage, status, attempt, claim_id::text as claim,
    closed_by_holder, retry_at is not null as is_retried, error,
    extract(epoch from started_at)::float8 as started_at, extract(epoch from finished_at)::float8 as finished_at,
    extract(epoch from heartbeat_at)::float8 as heartbeat_at,
    extract(epoch from lease_expires_at)::float8 as lease_expires_at
from krai_core.stage_runs order by id
"""


@dataclass(frozen=True, slots=True)
class Run:
    """A row of stage_runs; times in seconds since 1970."""

    id: int
    document: str
    stage: str
    status: str
    attempt: int
    claim: str | None
    closed_by_holder: bool
    is_retried: bool
    error: str | None
    started_at: float | None
    finished_at: float | None
    heartbeat_at: float | None
    lease_expires_at: float | None

    def __str__(self) -> str:
        return f"run {self.id} ({self.stage} of {self.document}, attempt {self.attempt}, claim {self.claim})"


@dataclass(frozen=True, slots=True)
class Word:
    """An outcome that a worker reported, and its answer.

    Attributes:
        identity: document, stage and claim id.
        outcome: completed, failed, skipped, released or progress.
        word: ok, or the word of the error.
        since: when it was asked first.
        at: when it was answered.
    """

    identity: Identity
    outcome: str
    word: str
    since: float
    at: float


@dataclass(frozen=True, slots=True)
class Claimed:
    """A run that a worker was given.

    Attributes:
        identity: document, stage and claim id.
        attempt: which one it is said to be; None: was not said.
        since: when it was asked for first.
        at: when it was answered.
    """

    identity: Identity
    attempt: int | None
    since: float
    at: float


@dataclass
class Journals:
    """What the workers wrote down.

    Attributes:
        life_of: the process that made a claim id.
        starts: claim ids that start_stage was called with; the others are of claims.
        claimed: what they were given.
        asked: outcomes that they asked to have written, answered or not.
        words: the answers to those.
        beats: when a sign of life was asked for, by claim id.
        lost: claims that a heartbeat called lost.
        errors: what was answered by an error, or not at all.
    """

    life_of: dict[str, Life] = field(default_factory=dict)
    starts: set[str] = field(default_factory=set)
    claimed: list[Claimed] = field(default_factory=list)
    asked: set[tuple[Identity, str]] = field(default_factory=set)
    words: list[Word] = field(default_factory=list)
    beats: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    lost: set[str] = field(default_factory=set)
    errors: list[dict[str, Any]] = field(default_factory=list)

    def read(self, life: Life, path: Path) -> None:
        """Add the journal of a process; its last line may be cut off."""
        if not path.exists():
            return
        for line in path.read_bytes().split(b"\n")[:-1]:
            self._add(life, json.loads(line))

    def _add(self, life: Life, event: dict[str, Any]) -> None:
        kind, at = event["event"], event["at"]
        if kind in {"claim", "start"}:
            self.life_of[event["claim"]] = life
            if kind == "start":
                self.starts.add(event["claim"])
        elif kind == "opened":
            self.claimed += [
                Claimed((document, stage, event["claim"]), attempt, event["since"], at)
                for document, stage, attempt in event["runs"]
            ]
        elif kind == "end":
            self.asked |= {((d, s, c), outcome) for d, s, c, outcome in event["runs"]}
        elif kind == "ended":
            self.words += [Word((d, s, c), o, word, event["since"], at) for d, s, c, o, word in event["runs"]]
        elif kind == "beat":
            for claim in event["claims"]:
                self.beats[claim].append(at)
        elif kind == "beaten":
            self.lost |= {*event["lost"], *event["cancelled"]}
        else:
            self.errors.append({**event, "worker": life.name})


@dataclass
class Evidence:
    """All of it.

    Attributes:
        documents: stage_status by document id.
        max_attempts: by stage.
        runs: rows of stage_runs in the order of their ids.
        rebuilt: what rebuild_ready_runs() answered at the end.
        mended: how many sums rebuild_statistics() found wrong at the end.
        journals: of the workers.
        lives: the processes of the workers.
        troubles: workers that ended by themselves.
        happened: what was done to the servers.
        seen: what the watcher saw.
        log: of Postgres.
    """

    documents: dict[str, dict[str, dict[str, Any]]]
    max_attempts: dict[str, int]
    runs: list[Run]
    rebuilt: dict[str, int]
    mended: int
    journals: Journals
    lives: list[Life]
    troubles: list[str]
    happened: Happened
    seen: Seen
    log: str

    @cached_property
    def runs_of(self) -> dict[Key, list[Run]]:
        """The runs of each stage of each document that were begun, in their order."""
        keys = itertools.product(self.documents, self.max_attempts)
        found: dict[Key, list[Run]] = {key: [] for key in keys}
        for run in self.runs:
            if run.status != "ready":
                found[run.document, run.stage].append(run)
        return found

    @cached_property
    def run_of(self) -> dict[Identity, Run]:
        """The run that a claim id opened for a stage."""
        return {(run.document, run.stage, run.claim): run for run in self.runs if run.claim is not None}


def read(
    url: str,
    folder: Path,
    *,
    lives: Iterable[Life],
    troubles: list[str],
    happened: Happened,
    seen: Seen,
    log: str,
) -> Evidence:
    """Collect it, when the workers have ended.

    Args:
        url: of a superuser.
        folder: of the journals.
        lives: as in Evidence, like the rest.
        troubles: see there.
        happened: see there.
        seen: see there.
        log: see there.
    """
    journals = Journals()
    lives = list(lives)
    for life in lives:
        journals.read(life, folder / f"{life.name}.jsonl")
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.cursor(row_factory=dict_row).execute(_RUNS).fetchall()
        documents = connection.execute("select id::text, stage_status from krai_core.documents").fetchall()
        stages = connection.execute("select name, max_attempts from krai_core.stages").fetchall()
        mended = connection.execute("select (krai_core.rebuild_statistics() ->> 'mended')::int").fetchone()
        rebuilt = connection.execute("select krai_core.rebuild_ready_runs()").fetchone()
    assert mended is not None
    assert rebuilt is not None
    return Evidence(
        documents=dict(documents),
        max_attempts=dict(stages),
        runs=[Run(**row) for row in rows],
        rebuilt=rebuilt[0],
        mended=mended[0],
        journals=journals,
        lives=lives,
        troubles=troubles,
        happened=happened,
        seen=seen,
        log=log,
    )
