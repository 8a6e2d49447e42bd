-- Queue: claims. Any number of workers, on any machines, with no coordinator but the database.
--
--   claim_stages             hands out ready runs; never waits, never hands one out twice
--   get_next_document        the same for callers that send no heartbeats
--   requeue_expired          takes runs back from workers that died or overran the timeout
--   claim_ready_or_expired, claim_ready, lock_ready_runs, begin_ready_runs   steps of claim_stages, outermost first
--   runs_json                the answer to a repeated claim
--
-- Rules
--   * A run is handed out when its stage is enabled and not paused, it is due, and stage_status of the locked document
--     still says that the stage is ready. Higher priority first, then longest due.
--   * Documents and runs that somebody else is writing are skipped, not waited for.
--   * A repeated claim id returns the same runs, as far as they still run. A repeat that arrives during the first call
--     raises PT409 claim_in_progress, and the client tries again later.
--   * A run whose lease has expired, or that has worked longer than timeout_seconds, is lost: it returns to the queue,
--     or, after max_attempts, its stage ends as failed. claim_stages looks for such runs when ready ones do not fill
--     the batch.
--   * Where claim_stages is the whole transaction, its commit does not wait for the disk. A claim that a crash of the
--     server wipes out never happened: the runs are ready, and calls with its claim id are refused.
-- Lock order: documents and stage_runs together, skipping locked rows.

-- `= any (array[...])` is an equality that the planner cannot reverse. With a plain one it would start from a table
-- that was nearly empty when last analysed, and read all of it.
create or replace function krai_private.lock_ready_runs(
    p_stage krai_core.stages, p_priority bigint, p_now timestamptz, p_limit integer,
    out o_runs bigint[], out o_documents uuid[], out o_stages jsonb[])
language plpgsql volatile
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
begin
    with picked as (
        select r.id as run_id, r.document_id, w.stage
        from krai_core.stage_runs r
        join krai_core.documents d on d.id = any (array[r.document_id])
        -- Detoasted once per document.
        cross join lateral (
            select u.whole, u.whole -> p_stage.name as stage
            from (select d.stage_status || '{}' as whole offset 0) u offset 0) w
        where r.stage_name = p_stage.name and r.status = 'ready' and r.priority = p_priority and r.available_at <= p_now
          and coalesce(w.stage ->> 'status', '') not in ('processing', 'completed', 'skipped')
          and w.stage is distinct from '"completed"'
          -- While the pipeline is being changed, the queue may lag behind stage_status.
          and not exists (
              select from unnest(p_stage.waits_for) as required (name)
              where coalesce(w.whole -> required.name ->> 'status', '') not in ('completed', 'skipped')
                and w.whole -> required.name is distinct from '"completed"')
        order by r.stage_name, r.priority desc, r.available_at, r.id
        limit p_limit
        for no key update of r, d skip locked
    )
    select array_agg(p.run_id), array_agg(p.document_id), array_agg(p.stage) into o_runs, o_documents, o_stages
    from picked p;
end;
$$;
comment on function krai_private.lock_ready_runs(krai_core.stages, bigint, timestamptz, integer) is
'Locks up to p_limit ready runs of a stage and a priority that are due at p_now, with their documents.
Skips locked rows. Returns runs, documents and the stored stages, in queue order; null when there are none.';

-- Marks locked runs as running and their stages as processing, and counts both.
create or replace function krai_private.begin_ready_runs(
    p_stage krai_core.stages,
    p_runs bigint[],
    p_documents uuid[],
    p_stages jsonb[],
    p_worker text,
    p_lease_seconds numeric,
    p_claim_id uuid,
    p_now timestamptz)
returns jsonb
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
    -- What every pending stage becomes.
    v_started jsonb := krai_private.started_stage('{"status": "pending"}', p_now);
    v_all record;
begin
    perform set_config('krai_core.writer', 'tracker', true);
    with picked as (
        select * from unnest(p_runs, p_documents, p_stages) with ordinality as p (run_id, document_id, stage, n)
    ),
    opened as (
        update krai_core.stage_runs r
        set status = 'running', retry_at = null, claim_id = p_claim_id, opens_claim = p.n = 1, worker = p_worker,
            started_at = p_now, heartbeat_at = p_now, lease_seconds = p_lease_seconds,
            lease_expires_at = p_now + make_interval(secs => p_lease_seconds::double precision)
        from picked p
        where r.id = any (array[p.run_id])
        returning r.id, r.document_id, r.available_at, r.attempt, p.stage, p.stage ->> 'status' = 'failed' as is_retry
    ),
    counted as (
        insert into krai_core.stage_deltas (stage_name, processing, failed, started, retried, waited, wait_us)
        select p_stage.name, count(*), - count(*) filter (where o.is_retry), count(*),
            count(*) filter (where o.attempt > 1), count(*),
            sum(round(extract(epoch from p_now - o.available_at) * 1e6))
        from opened o having count(*) > 0
    ),
    written as (
        update krai_core.documents d
        -- Where the stage was found, stage_status is an object.
        set stage_status = case
                when o.stage is not null or jsonb_typeof(d.stage_status) = 'object' then d.stage_status
                else krai_private.repaired_stages(d.stage_status) end
            || jsonb_build_object(p_stage.name, case
                when o.stage ->> 'status' = 'pending' and jsonb_typeof(o.stage -> 'metadata') = 'object'
                    then o.stage || v_started
                else krai_private.started_stage(krai_private.repaired_stage(o.stage), p_now) end)
        from opened o
        where d.id = any (array[o.document_id])
        -- Returned here, because joining afterwards takes quadratic time.
        returning o.id, o.available_at, o.document_id, d.filename, o.attempt, o.stage, o.is_retry,
            d.stage_status -> p_stage.name -> 'metadata' as metadata,
            d.stage_status @? '$.* ? (@.status == "failed")' as has_failed
    )
    -- One to_jsonb of rows, for the reason given in documents_json.
    select to_jsonb(array(
            select given from (
                select w.document_id, w.filename, p_stage.name as stage_name, w.attempt, p_stage.max_attempts,
                    p_claim_id as claim_id, round(p_lease_seconds * 1000) as lease_ms, w.metadata
                from written w order by w.available_at, w.id) given)) as answer,
        coalesce(array_agg(w.document_id) filter (where w.has_failed), '{}') as has_failed,
        coalesce(array_agg(w.document_id) filter (where not w.has_failed), '{}') as processing,
        array_agg(w.document_id) filter (where w.is_retry) as retried,
        array_agg(w.stage) filter (where w.is_retry) as failed
    into v_all
    from written w;
    perform set_config('krai_core.writer', '', true);
    perform krai_private.follow_legacy_columns(v_all.has_failed, v_all.processing);
    perform krai_private.archive_failed_runs(p_stage.name, v_all.retried, v_all.failed) where v_all.retried is not null;
    return v_all.answer;
end;
$$;
comment on function krai_private.begin_ready_runs(
    krai_core.stages, bigint[], uuid[], jsonb[], text, numeric, uuid, timestamptz) is
'Starts the runs that lock_ready_runs has locked, and returns them as claim_stages does.';

create or replace function krai_private.claim_ready(
    p_stage krai_core.stages, p_worker text, p_limit integer, p_lease_seconds numeric, p_claim_id uuid)
returns jsonb
language plpgsql volatile
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_now timestamptz := clock_timestamp();
    -- Starts above every integer, so that each lookup asks the index for the next priority below.
    v_level bigint := 2147483648;
    v_answer jsonb := '[]'::jsonb;
    v_picked record;
begin
    -- One priority at a time: runs not yet due sort behind due ones only within their own priority.
    while jsonb_array_length(v_answer) < p_limit loop
        select r.priority into v_level from krai_core.stage_runs r
        where r.stage_name = p_stage.name and r.status = 'ready' and r.priority < v_level
        order by r.priority desc limit 1;
        exit when not found;
        v_picked := krai_private.lock_ready_runs(p_stage, v_level, v_now, p_limit - jsonb_array_length(v_answer));
        if v_picked.o_runs is not null then
            v_answer := v_answer || krai_private.begin_ready_runs(p_stage, v_picked.o_runs, v_picked.o_documents,
                v_picked.o_stages, p_worker, coalesce(p_lease_seconds, p_stage.lease_seconds), p_claim_id, v_now);
        end if;
    end loop;
    return v_answer;
end;
$$;
comment on function krai_private.claim_ready(krai_core.stages, text, integer, numeric, uuid) is
'Hands out up to p_limit ready runs of a stage; returns them as claim_stages does.';

create or replace function krai_private.requeue_expired(
    p_stage krai_core.stages,
    p_limit integer,
    out o_requeued integer,
    out o_failed integer)
language plpgsql volatile
set search_path = ''
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_run krai_core.stage_runs;
    v_stage_status jsonb;
    v_stage jsonb;
    v_failed jsonb;
    v_why text;
begin
    o_requeued := 0;
    o_failed := 0;
    -- Most calls find none; this check alone takes a third of the time.
    if not exists (
        select from krai_core.stage_runs r where r.stage_name = p_stage.name and r.status = 'running'
          and (r.lease_expires_at <= v_now or r.started_at + make_interval(secs => p_stage.timeout_seconds) <= v_now)
    ) then
        return;
    end if;
    for v_run in
        select r.* from krai_core.stage_runs r
        join krai_core.documents d on d.id = r.document_id
        where r.stage_name = p_stage.name and r.status = 'running'
          and (r.lease_expires_at <= v_now or r.started_at + make_interval(secs => p_stage.timeout_seconds) <= v_now)
        order by r.id limit p_limit
        for no key update of r, d skip locked
    loop
        v_stage_status := krai_private.lock_document(v_run.document_id, p_stage.name);
        v_stage := v_stage_status -> p_stage.name;
        v_why := case when v_run.lease_expires_at <= v_now then 'the lease ended without a sign of life'
                      else format('it took longer than %s seconds', p_stage.timeout_seconds) end;
        update krai_core.stage_runs r
        set status = case when v_stage ->> 'status' = 'processing' then 'lost' else 'cancelled' end,
            finished_at = v_now,
            error = case when v_stage ->> 'status' = 'processing' then v_why
                else 'stage_status was written without its triggers' end,
            error_fingerprint = krai_private.error_fingerprint(v_why),
            is_current = v_stage ->> 'status' = 'processing' and v_run.attempt >= p_stage.max_attempts
        where r.id = v_run.id;
        if v_stage ->> 'status' <> 'processing' then
            perform krai_private.derive_ready_runs(array[v_run.document_id], array[p_stage.name]);
        elsif v_run.attempt < p_stage.max_attempts then
            perform krai_private.archive_last_run(v_run.document_id, p_stage.name, v_stage);
            perform krai_private.count_transition(p_stage.name, v_stage, krai_private.pending_stage());
            perform krai_private.write_stage_status(v_run.document_id,
                v_stage_status || jsonb_build_object(p_stage.name, krai_private.pending_stage()), array[p_stage.name]);
            o_requeued := o_requeued + 1;
        else
            v_failed := krai_private.closed_stage(v_stage, 'failed',
                format('given up after %s of %s attempts: %s', v_run.attempt, p_stage.max_attempts, v_why),
                '{}', v_run.started_at, v_now);
            perform krai_private.count_transition(p_stage.name, v_stage, v_failed);
            perform krai_private.write_stage_status(v_run.document_id,
                v_stage_status || jsonb_build_object(p_stage.name, v_failed));
            o_failed := o_failed + 1;
        end if;
    end loop;
end;
$$;
comment on function krai_private.requeue_expired(krai_core.stages, integer) is
'Closes as lost up to p_limit runs of a stage whose lease has expired or whose timeout has passed.
Returns how many went back to the queue, and how many ended as failed because no attempt is left. Counts in neither, and
cancels, a run whose stage is no longer processing.';

create or replace function krai_private.claim_ready_or_expired(
    p_stage krai_core.stages, p_worker text, p_limit integer, p_lease_seconds numeric, p_claim_id uuid)
returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_answer jsonb := krai_private.claim_ready(p_stage, p_worker, p_limit, p_lease_seconds, p_claim_id);
    v_left integer := p_limit - jsonb_array_length(v_answer);
begin
    if v_left > 0 and (krai_private.requeue_expired(p_stage, v_left)).o_requeued > 0 then
        v_answer := v_answer || krai_private.claim_ready(p_stage, p_worker, v_left, p_lease_seconds, p_claim_id);
    end if;
    return v_answer;
end;
$$;
comment on function krai_private.claim_ready_or_expired(krai_core.stages, text, integer, numeric, uuid) is
'As claim_ready; where ready runs do not fill the batch, requeues expired ones and hands out what is ready then.';

create or replace function krai_private.runs_json(p_claim_id uuid) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_stages text[] := array(select s.name from krai_core.stages s);
    v_answer jsonb;
begin
    -- A repeat is a sign of life: the leases count from now, as the answer says.
    with mine as (
        select r.id from krai_core.stage_runs r
        where r.stage_name = any (v_stages) and r.claim_id = p_claim_id and r.status = 'running'
        order by r.id
        for no key update skip locked
    ),
    renewed as (
        update krai_core.stage_runs r
        set heartbeat_at = clock_timestamp(),
            lease_expires_at = clock_timestamp() + make_interval(secs => r.lease_seconds::double precision)
        from mine m
        where r.id = m.id
    )
    select coalesce(jsonb_agg(jsonb_build_object(
        'document_id', r.document_id, 'filename', d.filename, 'stage_name', r.stage_name,
        'attempt', r.attempt, 'max_attempts', s.max_attempts, 'claim_id', p_claim_id,
        'lease_ms', round(r.lease_seconds * 1000),
        'metadata', d.stage_status -> r.stage_name -> 'metadata') order by r.priority desc, r.available_at, r.id), '[]')
    into v_answer
    from krai_core.stage_runs r
    join krai_core.documents d on d.id = r.document_id
    join krai_core.stages s on s.name = r.stage_name
    where r.stage_name = any (v_stages) and r.claim_id = p_claim_id and r.status = 'running';
    return v_answer;
end;
$$;
comment on function krai_private.runs_json(uuid) is
'The runs of a claim that still run, as claim_stages returns them; renews their leases.';

create or replace function krai_core.claim_stages(
    p_stage_name text,
    p_worker text,
    p_limit integer default 1,
    p_lease_seconds numeric default null,
    p_claim_id uuid default null
) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_claim_id uuid := coalesce(p_claim_id, gen_random_uuid());
    v_worker text := left(p_worker, 200);
    v_stage krai_core.stages;
    v_answer jsonb := '[]'::jsonb;
    v_left integer := krai_private.checked_limit(p_limit, 1000);
begin
    perform krai_private.checked_lease(p_lease_seconds);
    if current_setting('request.path', true) = '/rpc/claim_stages' then
        perform set_config('synchronous_commit', 'off', true);
    end if;
    if p_claim_id is not null then
        if not pg_try_advisory_xact_lock(hashtextextended(p_claim_id::text, 0)) then
            perform krai_private.raise_error('claim_in_progress',
                format('the first call with claim id %s is still in progress', p_claim_id),
                jsonb_build_object('claim_id', p_claim_id),
                'Repeat the call in a moment: it returns the runs of the first.');
        end if;
        perform from krai_core.stage_runs r where r.claim_id = p_claim_id and r.opens_claim limit 1;
        if found then
            return krai_private.runs_json(p_claim_id);
        end if;
    end if;
    for v_stage in select * from krai_private.stages_named(p_stage_name) loop
        exit when v_left = 0;
        continue when v_stage.paused or not v_stage.enabled;
        v_answer := v_answer
            || krai_private.claim_ready_or_expired(v_stage, v_worker, v_left, p_lease_seconds, v_claim_id);
        v_left := p_limit - jsonb_array_length(v_answer);
    end loop;
    return v_answer;
end;
$$;
comment on function krai_core.claim_stages(text, text, integer, numeric, uuid) is
'Hands out up to p_limit ready runs to a worker: marks the stages as processing and opens their leases. Never waits.
Where ready runs do not fill the batch, takes back runs whose lease has expired or whose timeout has passed.
As an rpc of its own, its commit does not wait for the disk.
p_stage_name: a stage, or an array of stages in order of preference as text: ["a", "b"].
p_worker: the name to show for whoever works on the runs; cut to 200 characters. p_limit: 1 to 1000.
p_lease_seconds: more than 0, at most 604800; null: that of the stage.
p_claim_id: credential of the runs, made by the client, so that the call can be repeated: a repeat returns the same
runs, as far as they still run; null: made by the call.
Returns an array of {document_id, filename, stage_name, attempt, max_attempts, claim_id, lease_ms, metadata}; [] when
nothing is ready. Raises 22023 unknown_stage, invalid_limit or invalid_lease, PT409 claim_in_progress while the first
call with the claim id still runs.';

create or replace function krai_core.get_next_document(
    p_stage_name text,
    p_worker text default null,
    p_claim_id uuid default null
) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_stage krai_core.stages := krai_private.stage_named(p_stage_name);
    v_claimed jsonb := krai_core.claim_stages(
        p_stage_name, p_worker, 1, greatest(v_stage.lease_seconds, 3600), p_claim_id);
begin
    return (select to_jsonb(d) from krai_core.documents d where d.id = (v_claimed -> 0 ->> 'document_id')::uuid);
end;
$$;
comment on function krai_core.get_next_document(text, text, uuid) is
'Hands out the next ready document of a stage to a caller that sends no heartbeats.
The stage is processing then, with a lease of at least an hour, which progress renews.
p_worker, p_claim_id: as for claim_stages.
Returns the whole row of krai_core.documents as an object, or null when nothing is ready.
Raises 22023 unknown_stage, PT409 claim_in_progress.';
