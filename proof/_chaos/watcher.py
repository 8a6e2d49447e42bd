"""Looks whether all adds up, again and again, each time in one snapshot of the database.

What should be is worked out here from documents and prerequisites alone, and not by the functions that are judged.
"""

import contextlib
import threading
from dataclasses import dataclass, field
from typing import Any

import psycopg

from proof._chaos.faults import waiting_claims

_SNAPSHOT = """
with truth as materialized (
    select d.id, t.key as stage, t.value ->> 'status' as status, case
        when t.value ->> 'status' = 'completed' and jsonb_typeof(t.value -> 'duration_seconds') = 'number'
        then round((t.value ->> 'duration_seconds')::numeric * 1000000) end as microseconds
    from krai_core.documents d cross join lateral jsonb_each(d.stage_status) t
), waiting as (
    select distinct t.id, p.stage_name as stage from krai_core.stage_prerequisites p
    join truth t on t.stage = p.requires and t.status not in ('completed', 'skipped')
), ended as (
    select distinct on (r.document_id, r.stage_name) r.document_id, r.stage_name, r.retry_at from krai_core.stage_runs r
    where r.status not in ('ready', 'running') order by r.document_id, r.stage_name, r.id desc
), due as (
    select t.id, t.stage, false as is_failed from truth t where t.status = 'pending'
    union all
    select t.id, t.stage, true from truth t join ended e on e.document_id = t.id and e.stage_name = t.stage
    where t.status = 'failed' and e.retry_at is not null
), wanted as (
    (select d.id, d.stage from due d except table waiting)
), ready as (
    select r.document_id as id, r.stage_name as stage from krai_core.stage_runs r where r.status = 'ready'
), running as (
    select r.document_id as id, r.stage_name as stage from krai_core.stage_runs r where r.status = 'running'
), processing as (
    select t.id, t.stage from truth t where t.status = 'processing'
), standing as (
    select t.id, t.stage, t.status from truth t where t.status in ('completed', 'failed', 'skipped')
), stood_on as (
    select r.document_id as id, r.stage_name as stage,
        case r.status when 'lost' then 'failed' when 'cancelled' then 'skipped' else r.status end as status
    from krai_core.stage_runs r where r.is_current
), counted as (
    select t.stage, t.status, count(*) as n, count(t.microseconds) as timed, sum(t.microseconds) as microseconds
    from truth t group by t.stage, t.status
)
select
    (select coalesce(jsonb_object_agg(c.stage, c.words), '{}') from (
        select c.stage, jsonb_object_agg(c.status, c.n) || jsonb_build_object(
            'timed', sum(c.timed), 'microseconds', coalesce(sum(c.microseconds), 0)) as words
        from counted c group by c.stage) c),
    (select coalesce(jsonb_object_agg(v.stage_name, jsonb_build_object(
        'pending', v.pending_count, 'processing', v.processing_count, 'completed', v.completed_count,
        'failed', v.failed_count, 'skipped', v.skipped_count, 'timed', v.timed_count,
        'microseconds', coalesce(round(v.avg_duration_seconds * v.timed_count * 1000000), 0))), '{}')
     from krai_core.vw_stage_statistics v),
    jsonb_build_object(
        'documents', (select count(*) from krai_core.documents),
        'to be tried again', (select count(*) from due d where d.is_failed),
        'a stage is processing and has no run', (select count(*) from (table processing except table running) x),
        'a run is running and its stage is not processing',
            (select count(*) from (table running except all table processing) x),
        'a stage has ended and stands on no such run', (select count(*) from (table standing except table stood_on) x),
        'a run is current and its stage does not stand on it',
            (select count(*) from (table stood_on except all table standing) x),
        'a stage is ready and not in the queue', (select count(*) from (table wanted except table ready) x),
        'a run is in the queue and its stage is not ready',
            (select count(*) from (table ready except all table wanted) x)),
    (select deadlocks from pg_stat_database where datname = current_database())
"""

_ENDED_RUNS = """
select count(*) from krai_core.stage_runs r
where r.status in ('completed', 'skipped') or (r.status = 'failed' and r.retry_at is null)
"""

_PAUSE_SECONDS = 0.1

_ENDED = ("completed", "skipped", "failed")
_WORDS = ("pending", "processing", *_ENDED)


@dataclass
class Seen:
    """What was seen.

    Attributes:
        samples: so many times.
        wrong: what did not add up.
        waits: claims that waited for a lock.
        deadlocks: counted by Postgres.
        ended: stages that had ended for good in the last sample.
    """

    samples: int = 0
    wrong: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    deadlocks: int = 0
    ended: int = 0


class Progress:
    """How far the work is, asked often.

    Args:
        url: of a superuser.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.Connection[Any] | None = None
        self.ended = 0

    def look(self) -> int:
        """Return how many runs have ended for good, at least; while Postgres is away, how many had."""
        with contextlib.suppress(psycopg.OperationalError):
            if self._connection is None or self._connection.closed:
                self._connection = psycopg.connect(self._url, autocommit=True)
            row = self._connection.execute(_ENDED_RUNS).fetchone()
            self.ended = max(self.ended, row[0] if row else 0)
        return self.ended

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


class Watcher:
    """Takes samples.

    Args:
        url: of a superuser.
        documents: how many there are; nobody adds or deletes any.
    """

    def __init__(self, url: str, documents: int) -> None:
        self.seen = Seen()
        self._url = url
        self._documents = documents
        self._connection: psycopg.Connection[Any] | None = None
        self._counted = 0

    def look(self) -> Seen:
        """Take a sample; while Postgres is away there is none."""
        with contextlib.suppress(psycopg.OperationalError):
            if self._connection is None or self._connection.closed:
                self._connection = psycopg.connect(self._url, autocommit=True)
                # The plan must not depend on what the tables were like at first.
                self._connection.execute("set jit = off")
                self._counted = 0
            row = self._connection.execute(_SNAPSHOT).fetchone()
            assert row is not None
            self._judge(*row)
            self.seen.waits += waiting_claims(self._connection)
        return self.seen

    def _judge(
        self,
        truth: dict[str, dict[str, int]],
        statistics: dict[str, dict[str, int]],
        wrong: dict[str, int],
        deadlocks: int,
    ) -> None:
        seen = self.seen
        seen.samples += 1
        # A crash sets the counter back.
        seen.deadlocks += max(deadlocks - self._counted, 0)
        self._counted = deadlocks
        if (documents := wrong.pop("documents")) != self._documents:
            seen.wrong.append(f"there are {documents} documents and not {self._documents}")
        again = wrong.pop("to be tried again")
        for stage in truth.keys() | statistics.keys():
            self._judge_stage(stage, truth.get(stage, {}), statistics.get(stage, {}))
        seen.wrong += [f"{what}: {count} times" for what, count in wrong.items() if count]
        seen.ended = sum(counts.get(word, 0) for counts in truth.values() for word in _ENDED) - again

    def _judge_stage(self, stage: str, truth: dict[str, int], said: dict[str, int]) -> None:
        for who, counts in (("documents", truth), ("vw_stage_statistics", said)):
            if sum(counts.get(word, 0) for word in _WORDS) != self._documents:
                self.seen.wrong.append(f"{who}: {counts} of {stage} are not {self._documents}")
        for word in (*_WORDS, "timed", "microseconds"):
            if said.get(word, 0) != truth.get(word, 0):
                self.seen.wrong.append(
                    f"vw_stage_statistics: {word} of {stage} is {said.get(word, 0)} and not {truth.get(word, 0)}"
                )

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


class Watch(threading.Thread):
    """Lets a watcher look, again and again, in a thread of its own, until all stages have ended or it is closed.

    Args:
        watcher: who looks.
        stages: how many there are.
    """

    def __init__(self, watcher: Watcher, stages: int) -> None:
        super().__init__(name="watcher", daemon=True)
        self._watcher = watcher
        self._stages = stages
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Be the thread."""
        try:
            while not self._over.wait(_PAUSE_SECONDS) and self._watcher.look().ended < self._stages:
                pass
        except BaseException as error:  # noqa: BLE001 - raised by whoever closes
            self._failure = error

    def close(self) -> None:
        """End, and raise what went wrong."""
        self._over.set()
        self.join()
        if self._failure is not None:
            raise self._failure
