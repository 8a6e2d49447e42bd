-- History: the runs of a stage, as the writers see them.
--
--   held_run                 the run that a call may act on, with or without a claim id
--   next_attempt, retry_at   how attempts count, and when a failed stage is retried
--   archive_last_run         before a stage starts again: moves what the column knows of the last run into the history
--   archive_failed_runs      the same for many failed stages that are claimed again
--   begin_run                makes the one open run of a stage a running one
--   state_of_run             the state of a stage that rests on a closed run
--   adopt_runs, adopt_closed_runs   runs for stages that somebody else wrote to the column
--
-- Rules
--   * A claim id opens a given stage of a document once, and acts on that run alone. If its own holder closed the run,
--     a repeated call gets the same answer as the first; if anybody else closed it, the call raises lease_lost, no
--     matter how much later it comes.
--   * Attempts count up from 1 over failed and lost runs, and start again after a success, a skip, a cancelled run, a
--     retry and a reset. A released run does not count.
--   * A stage that is completed, failed or skipped rests on exactly one closed run, the one with is_current.
--   * stage_runs keeps what the column forgets: error, times, progress, metadata, and keys beyond the seven.
--   * The last run of a stage, here and in later files, is `order by r.id + 0 desc limit 1`: with the bare id, a
--     planner that believes the table is small would walk down its primary key.
-- Lock order: callers hold the lock on the document; these functions lock rows of stage_runs.

create or replace function krai_private.held_run(p_call text, p_document_id uuid, p_stage_name text, p_claim_id uuid)
returns krai_core.stage_runs
language plpgsql stable
set search_path = ''
as $$
declare
    v_run krai_core.stage_runs;
begin
    if p_claim_id is null then
        select * into v_run from krai_core.stage_runs r
        where r.document_id = p_document_id and r.open_stage = p_stage_name and r.status = 'running';
        return v_run;
    end if;
    -- `is true`, here and in later files, keeps the planner off the index on claim_id: a whole batch shares one id.
    select * into v_run from krai_core.stage_runs r
    where r.document_id = p_document_id and r.stage_name = p_stage_name and (r.claim_id = p_claim_id) is true;
    if v_run.id is null or (v_run.status <> 'running' and not v_run.closed_by_holder) then
        perform krai_private.raise_error('lease_lost',
            format('%s: this run of stage %s of document %s is over: %s', p_call, p_stage_name, p_document_id, case
                when v_run.id is null then 'no run carries its claim id'
                when v_run.status = 'lost' then 'its lease ended and another took the stage over'
                else 'it was closed by somebody else as ' || v_run.status end),
            jsonb_build_object('document_id', p_document_id, 'stage', p_stage_name, 'run', v_run.status),
            'Stop this work and write nothing more for it; claim or start the stage again if it is still to be done.');
    end if;
    return v_run;
end;
$$;
comment on function krai_private.held_run(text, uuid, text, uuid) is
'The run that a call acts on.
Without a claim id: the running one, or a row of nulls. With one: the run that carries it, if it is running or was
closed by its own holder; anything else raises PT409 lease_lost.';

create or replace function krai_private.next_attempt(p_status text, p_attempt integer, p_reset_at timestamptz)
returns integer
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return case
        when p_status is null or p_reset_at is not null or p_status in ('completed', 'skipped', 'cancelled') then 1
        when p_status = 'released' then p_attempt
        else p_attempt + 1
    end;
end;
$$;
comment on function krai_private.next_attempt(text, integer, timestamptz) is
'Number of the attempt that follows a closed run with this status, attempt and reset_at.
p_status: null if there was no run before.';

-- Jitter between half and all of the wait, so that stages that failed together are not retried together.
create or replace function krai_private.retry_at(p_stage_name text, p_attempt integer, p_now timestamptz)
returns timestamptz
language plpgsql volatile
set search_path = ''
as $$
declare
    v_stage krai_core.stages := krai_private.stage_named(p_stage_name);
begin
    if p_attempt >= v_stage.max_attempts then
        return null;
    end if;
    return p_now + make_interval(secs => (0.5 + random() / 2)
        * least(v_stage.backoff_seconds * 2.0 ^ least(p_attempt - 1, 30), v_stage.backoff_max_seconds));
end;
$$;
comment on function krai_private.retry_at(text, integer, timestamptz) is
'When a stage that failed in this attempt is retried automatically; null if no attempt is left.
The wait is backoff_seconds, doubled for each attempt, at most backoff_max_seconds, with jitter.
Raises 22023 unknown_stage.';

create or replace function krai_private.archive_last_run(
    p_document_id uuid,
    p_stage_name text,
    p_stage jsonb,
    p_actor text default null,
    p_reset boolean default false
)
returns integer
language plpgsql volatile
set search_path = ''
as $$
declare
    v_last krai_core.stage_runs;
    v_status text := p_stage ->> 'status';
    v_started_at timestamptz;
    v_further jsonb := p_stage - array[
        'status', 'started_at', 'completed_at', 'duration_seconds', 'progress', 'error', 'metadata'];
begin
    select * into v_last from krai_core.stage_runs r
    where r.document_id = p_document_id and r.stage_name = p_stage_name and r.status <> 'ready'
    order by r.id + 0 desc limit 1;
    if v_last.id is null and v_status <> 'pending' then
        -- A run older than the history: its row is built from what the column still knows.
        v_started_at := krai_private.time_or_null(p_stage ->> 'started_at');
        insert into krai_core.stage_runs
            (document_id, stage_name, status, started_at, finished_at, error, error_fingerprint)
        values (p_document_id, p_stage_name,
                case v_status when 'processing' then 'lost' else v_status end,
                v_started_at,
                coalesce(krai_private.time_or_null(p_stage ->> 'completed_at'), v_started_at, clock_timestamp()),
                p_stage ->> 'error',
                case when v_status = 'failed' then krai_private.error_fingerprint(p_stage ->> 'error') end)
        returning * into v_last;
    end if;
    if v_last.id is null then
        return 1;
    end if;
    if v_status <> 'pending' or p_reset then
        update krai_core.stage_runs r
        set progress = case
                when v_status = 'pending' then r.progress
                else greatest(r.progress, (p_stage ->> 'progress')::numeric) end,
            metadata = case when v_status = 'pending' then r.metadata else v_further || (p_stage -> 'metadata') end,
            is_current = false,
            reset_at = case when p_reset then clock_timestamp() else r.reset_at end,
            actor = case when p_reset then p_actor else r.actor end
        where r.id = v_last.id;
    end if;
    return case when p_reset then 1 else krai_private.next_attempt(v_last.status, v_last.attempt, v_last.reset_at) end;
end;
$$;
comment on function krai_private.archive_last_run(uuid, text, jsonb, text, boolean) is
'Saves progress and metadata of the column with the last run of a stage, and returns the number of the next attempt.
Called before a stage is started again, retried or reset. p_stage: the stored stage, in the shape of the seven keys.
p_actor: who resets. p_reset: attempts start again at 1.';

create or replace function krai_private.archive_failed_runs(
    p_stage_name text,
    p_document_ids uuid[],
    p_stages jsonb[]
)
returns void
language plpgsql volatile
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
begin
    update krai_core.stage_runs r
    set progress = greatest(r.progress, krai_private.progress_of(f.stage)),
        metadata = f.stage -> 'metadata',
        is_current = false
    from unnest(p_document_ids, p_stages) as f (document_id, stage)
    where r.id = any (array(
        select last.id from krai_core.stage_runs last
        where last.document_id = f.document_id and last.stage_name = p_stage_name
          and last.status not in ('ready', 'running')
        order by last.id + 0 desc limit 1));
end;
$$;
comment on function krai_private.archive_failed_runs(text, uuid[], jsonb[]) is
'Saves progress and metadata of failed stages with their last runs, as the stages are claimed again.
p_document_ids, p_stages: parallel arrays; p_stages holds the stored stages as they were before the claim.';

create or replace function krai_private.begin_run(
    p_document_id uuid,
    p_stage_name text,
    p_attempt integer,
    p_claim_id uuid,
    p_worker text,
    p_lease_seconds numeric,
    p_now timestamptz
)
returns timestamptz
language plpgsql volatile
set search_path = ''
as $$
declare
    v_ready_at timestamptz;
begin
    -- A ready run becomes the running one, so that it keeps its priority and its wait.
    update krai_core.stage_runs r
    set status = 'running', attempt = p_attempt, retry_at = null,
        claim_id = p_claim_id, opens_claim = p_claim_id is not null, worker = p_worker,
        started_at = p_now, heartbeat_at = p_now,
        lease_seconds = p_lease_seconds,
        lease_expires_at = p_now + make_interval(secs => p_lease_seconds::double precision)
    where r.document_id = p_document_id and r.open_stage = p_stage_name and r.status = 'ready'
    returning r.available_at into v_ready_at;
    if not found then
        insert into krai_core.stage_runs
            (document_id, stage_name, status, attempt, claim_id, opens_claim, worker, started_at, heartbeat_at,
             lease_seconds, lease_expires_at)
        values (p_document_id, p_stage_name, 'running', p_attempt, p_claim_id, p_claim_id is not null, p_worker,
                p_now, p_now, p_lease_seconds, p_now + make_interval(secs => p_lease_seconds::double precision));
    end if;
    return v_ready_at;
end;
$$;
comment on function krai_private.begin_run(uuid, text, integer, uuid, text, numeric, timestamptz) is
'Makes the one open run of a stage a running one. Returns since when it was due; null if it was not ready.';

create or replace function krai_private.state_of_run(p_status text) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return case p_status when 'lost' then 'failed' when 'cancelled' then 'skipped' else p_status end;
end;
$$;
comment on function krai_private.state_of_run(text) is
'The state of a stage that rests on a closed run with this status.
completed for completed, failed for failed and lost, skipped for skipped and cancelled.';

create or replace function krai_private.adopt_runs(p_document_ids uuid[]) returns integer
language plpgsql volatile
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_adopted integer;
begin
    delete from krai_core.stage_runs r
    using krai_core.documents d
    where r.document_id = any (p_document_ids) and d.id = any (array[r.document_id])
      and r.open_stage is not null and r.status = 'ready'
      and d.stage_status -> r.stage_name ->> 'status' = 'processing';
    insert into krai_core.stage_runs
        (document_id, stage_name, status, attempt, started_at, heartbeat_at, lease_seconds, lease_expires_at)
    select x.document_id, x.name, 'running',
        coalesce((
            select krai_private.next_attempt(last.status, last.attempt, last.reset_at)
            from krai_core.stage_runs last
            where last.document_id = x.document_id and last.stage_name = x.name
            order by last.id + 0 desc limit 1), 1),
        x.began, x.began, x.lease, x.began + make_interval(secs => x.lease)
    from (
        select d.id as document_id, s.name, greatest(s.lease_seconds, 3600) as lease,
            least(coalesce(krai_private.time_or_null(d.stage_status -> s.name ->> 'started_at'), v_now), v_now) as began
        from krai_core.documents d
        cross join krai_core.stages s
        where d.id = any (p_document_ids) and d.stage_status -> s.name ->> 'status' = 'processing'
    ) x
    on conflict (document_id, open_stage) do nothing;
    get diagnostics v_adopted = row_count;
    return v_adopted + krai_private.adopt_closed_runs(p_document_ids);
end;
$$;
comment on function krai_private.adopt_runs(uuid[]) is
'Opens a running run for each stage that is processing without one, because somebody wrote the column directly.
The run has no claim id and the lease of a plain start, counted from the started_at of the stage, so that the stage
returns to the queue if nobody ends it. Then calls adopt_closed_runs. Returns how many runs either of them adopted or
superseded. The caller must have locked the documents.';

create or replace function krai_private.adopt_closed_runs(p_document_ids uuid[]) returns integer
language plpgsql volatile
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_superseded integer;
    v_adopted integer;
begin
    update krai_core.stage_runs r
    set is_current = false,
        -- Set back to pending by hand: counts as a reset, like reset_stage.
        reset_at = case
            when r.reset_at is null and (
                select krai_private.stage_state(d.stage_status -> r.stage_name)
                from krai_core.documents d where d.id = r.document_id) = 'pending'
                then v_now
            else r.reset_at end
    where r.document_id = any (p_document_ids) and r.is_current and not exists (
        select from krai_private.current_stages c
        where c.document_id = any (array[r.document_id]) and c.stage_name = any (array[r.stage_name])
          and c.state = krai_private.state_of_run(r.status));
    get diagnostics v_superseded = row_count;
    insert into krai_core.stage_runs
        (document_id, stage_name, status, started_at, finished_at, is_current, error, error_fingerprint)
    select c.document_id, c.stage_name, c.state, x.started_at, coalesce(x.finished_at, x.started_at, v_now), true,
        left(x.error, 65536),
        case when c.state = 'failed' then krai_private.error_fingerprint(x.error) end
    from krai_private.current_stages c
    cross join lateral (
        select krai_private.time_or_null(d.stage_status -> c.stage_name ->> 'started_at') as started_at,
            krai_private.time_or_null(d.stage_status -> c.stage_name ->> 'completed_at') as finished_at,
            d.stage_status -> c.stage_name ->> 'error' as error
        from krai_core.documents d where d.id = c.document_id offset 0) x
    where c.document_id = any (p_document_ids) and not exists (
        -- `offset 0` prevents a join: a planner that believes the table is empty would join all of it.
        select from krai_core.stage_runs r
        where r.document_id = c.document_id and r.stage_name = c.stage_name and r.is_current offset 0);
    get diagnostics v_adopted = row_count;
    return v_superseded + v_adopted;
end;
$$;
comment on function krai_private.adopt_closed_runs(uuid[]) is
'Adds the current run that a completed, failed or skipped stage lacks, and supersedes runs that no stage rests on.
A run is missing if somebody wrote the column directly, or if the stage is older than the history; it is built from what
the column knows. Returns how many runs it added and superseded. The caller must have locked the documents.';
