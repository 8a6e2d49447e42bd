-- First the attempts that came to nothing, then the run that the stage stands on, then what is ready.
insert into krai_core.stage_runs (document_id, stage_name, status, attempt, available_at, claim_id, worker, lease_seconds, lease_expires_at,
    heartbeat_at, started_at, finished_at, closed_by_holder, error, error_fingerprint, progress, metadata, retry_at, is_current, opens_claim)
select r.document_id, r.stage_name, r.status, r.attempt, r.available_at, r.claim_id, r.worker, r.lease_seconds, r.lease_expires_at,
    case when r.lease_seconds is not null then r.started_at end, r.started_at, r.finished_at, r.by_holder, r.error,
    case when r.status in ('failed', 'lost') then krai_private.error_fingerprint(r.error) end, r.progress, r.metadata, r.retry_at, r.is_current, r.claim_id is not null
from (
    select p.position, p.document_id, p.stage_name, p.before as status, 1 as attempt, p.ready_at as available_at, md5('before ' || p.claim_id)::uuid as claim_id,
        p.worker, case p.before when 'failed' then null else 300 end as lease_seconds,
        case p.before when 'failed' then null else p.ready_at + interval '300 s' end as lease_expires_at,
        p.ready_at + interval '1 s' as started_at, p.ready_at + interval '30 s' as finished_at, p.before <> 'lost' as by_holder,
        case p.before when 'failed' then p.error when 'lost' then 'the lease ended without a sign of life (worker ' || p.worker || ')' end as error,
        case p.before when 'released' then null else p.number % 100 end as progress,
        case p.before when 'released' then null else '{}'::jsonb end as metadata,
        case p.before when 'failed' then p.ready_at + interval '60 s' end as retry_at, false as is_current, p.number
    from scale.planned p where p.before is not null
    union all
    select p.position, p.document_id, p.stage_name, case p.state when 'c' then 'completed' when 'f' then 'failed' when 's' then 'skipped' else 'running' end,
        p.attempt, p.ready_at, p.claim_id, p.worker, case p.state when 'r' then 86400 end,
        case p.state when 'r' then p.started_at + interval '1 day' end, p.started_at,
        case when p.state <> 'r' then p.finished_at end, p.state <> 'r', case p.state when 'f' then p.error end, null, null, p.retry_at, p.state <> 'r', p.number
    from scale.planned p where p.state <> 'p'
    union all
    select p.position, p.document_id, p.stage_name, 'ready', case when p.state = 'f' then p.attempt + 1 else 1 end,
        coalesce(p.retry_at, p.ready_at), null, null, null, null, null, null, false, null, null, null, p.retry_at, false, p.number
    from scale.planned p where p.is_ready or p.retry_at is not null
) r
order by coalesce(r.started_at, r.available_at), r.number, r.position
