"""What statistics and current runs should be, worked out from documents alone, without asking the tracker."""

from typing import Any

STATE = """
case when stage ->> 'status' in ('pending', 'processing', 'completed', 'failed', 'skipped') then stage ->> 'status'
     when stage = '"completed"' then 'completed' else 'pending' end
"""
CELLS = f"""
select d.id as document_id, s.name as stage_name, s.enabled, x.stage, {STATE} as status
from krai_core.documents d cross join krai_core.stages s cross join lateral (select d.stage_status -> s.name as stage) x
"""
# One statement, so that it is one snapshot: the truth beside what is said, where the two differ.
_STATISTICS = f"""
with cells as ({CELLS}),
timed as (
    select c.*, case when c.status = 'completed' and jsonb_typeof(c.stage -> 'duration_seconds') = 'number'
        and (c.stage ->> 'duration_seconds')::numeric >= 0
        -- What claims to have taken longer than 31 years is taken for that.
        then round(least((c.stage ->> 'duration_seconds')::numeric, 1000000000) * 1000000) end as microseconds
    from cells c
),
truth as (
    select s.name as stage_name,
        count(*) filter (where t.status = 'pending') as pending,
        count(*) filter (where t.status = 'processing') as processing,
        count(*) filter (where t.status = 'completed') as completed,
        count(*) filter (where t.status = 'failed') as failed,
        count(*) filter (where t.status = 'skipped') as skipped,
        count(t.microseconds) as timed, coalesce(sum(t.microseconds), 0) as microseconds
    from krai_core.stages s left join timed t on t.stage_name = s.name
    where s.enabled group by s.name
),
said as (
    select v.stage_name, v.pending_count as pending, v.processing_count as processing, v.completed_count as completed,
        v.failed_count as failed, v.skipped_count as skipped, v.timed_count as timed,
        coalesce(round(v.avg_duration_seconds * v.timed_count * 1000000), 0) as microseconds
    from krai_core.vw_stage_statistics v
)
select coalesce(t.stage_name, s.stage_name), to_jsonb(t), to_jsonb(s)
from truth t full join said s on s.stage_name = t.stage_name
where to_jsonb(t) is distinct from to_jsonb(s)
"""
_CURRENT = f"""
with cells as ({CELLS}),
standing as (
    select r.document_id, r.stage_name, count(*) as n, string_agg(r.status, ' ') as runs
    from krai_core.stage_runs r join krai_core.stages known on known.name = r.stage_name
    where r.is_current group by r.document_id, r.stage_name
)
select coalesce(c.stage_name, s.stage_name), c.status, s.runs
from cells c full join standing s on s.document_id = c.document_id and s.stage_name = c.stage_name
where not coalesce(case c.status
    when 'completed' then s.runs = 'completed'
    when 'failed' then s.runs in ('failed', 'lost')
    when 'skipped' then s.runs in ('skipped', 'cancelled')
    else s.runs is null and c.status is not null end, false)
"""
# What is not done by a worker that lives cannot be processing.
_RUNNING = f"""
select c.stage_name, c.status, r.status
from ({CELLS}) c full join (select * from krai_core.stage_runs r where r.status = 'running') r
    on r.document_id = c.document_id and r.stage_name = c.stage_name
where (coalesce(c.status, '') = 'processing') <> (r.id is not null)
"""


def wrong_statistics(connection: Any) -> list[Any]:
    """Stages of which vw_stage_statistics says something else than the documents: name, truth, what is said."""
    rows: list[Any] = connection.rows(_STATISTICS)
    return rows


def wrong_runs(connection: Any) -> list[Any]:
    """Stages whose current run does not fit their status, or that are processing without a run, and the reverse."""
    rows: list[Any] = connection.rows(_CURRENT) + connection.rows(_RUNNING)
    return rows


def prove_derived(connection: Any, *, triggers_off: bool) -> None:
    """Ready runs, current runs and statistics are what the documents say; without triggers, once they are mended."""
    while connection.call("fill_ready_runs", 10_000):
        pass
    if not triggers_off:
        prove(connection)
    for function, nothing in (
        ("rebuild_ready_runs", {"added": 0, "removed": 0, "adopted": 0}),
        ("rebuild_statistics", {"mended": 0}),
    ):
        mended = connection.call(function)
        assert triggers_off or mended == nothing
        assert connection.call(function) == nothing
    assert wrong_statistics(connection) == []


def prove(connection: Any) -> None:
    """Statistics and current runs are what the documents say."""
    statistics, runs = wrong_statistics(connection), wrong_runs(connection)
    assert not statistics, f"statistics of (stage, truth, said): {statistics}"
    assert not runs, f"current runs of (stage, status, runs): {runs}"
