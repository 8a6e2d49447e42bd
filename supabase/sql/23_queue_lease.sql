-- Queue: keeping claimed runs alive, and giving them back.
--
--   heartbeat         renews many leases
--   release_stages    gives runs back untouched
--   checked_runs      the argument of both, checked and unpacked
--
-- Rules
--   * A heartbeat for a closed run renews nothing and says so: lost, or cancelled if somebody took the run away on
--     purpose.
--   * A released run counts as no attempt and keeps its place in the queue.
--   * The commit of heartbeat does not wait for the disk if the call is the whole transaction.
-- Lock order: release_stages locks documents in id order, then stage_runs. heartbeat locks only stage_runs, in id
-- order, and skips locked rows: whoever holds one is writing a newer sign of life.

create or replace function krai_private.checked_runs(p_call text, p_runs jsonb)
returns table (n bigint, document_id uuid, stage_name text, claim_id uuid, run jsonb)
language plpgsql stable
set search_path = ''
as $$
begin
    if jsonb_typeof(p_runs) is distinct from 'array' or exists (
        select from jsonb_array_elements(p_runs) r
        where jsonb_typeof(r) <> 'object'
           or coalesce(r ->> 'document_id', '') !~ '^[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}$'
           or coalesce(r ->> 'claim_id', '') !~ '^[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}$'
           or r ->> 'stage_name' is null
    ) then
        perform krai_private.raise_error('invalid_runs',
            format('%s takes an array of objects with document_id, stage_name and claim_id', p_call), '{}',
            'Pass [{"document_id": "<uuid>", "stage_name": "<stage>", "claim_id": "<uuid>"}, ...].');
    end if;
    return query
        select r.n, (r.run ->> 'document_id')::uuid, r.run ->> 'stage_name', (r.run ->> 'claim_id')::uuid, r.run
        from jsonb_array_elements(p_runs) with ordinality r (run, n);
end;
$$;
comment on function krai_private.checked_runs(text, jsonb) is
'The runs of an array of {document_id, stage_name, claim_id}; raises 22023 invalid_runs for anything else.';

-- Planned by index, whatever the statistics say; for `= any (array[...])` see 22_queue_claim.
create or replace function krai_core.heartbeat(p_runs jsonb) returns jsonb
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
    v_answer jsonb;
begin
    if current_setting('request.path', true) = '/rpc/heartbeat' then
        perform set_config('synchronous_commit', 'off', true);
    end if;
    with asked as materialized (
        select * from krai_private.checked_runs('heartbeat', p_runs)
    ),
    free as (
        select r.id from krai_core.stage_runs r
        join asked a on r.document_id = any (array[a.document_id]) and r.open_stage = any (array[a.stage_name])
            -- A claim id implies running. A condition on status might make the planner read every running run.
            and (r.claim_id = a.claim_id) is true
        order by r.id
        for no key update of r skip locked
    ),
    renewed as (
        update krai_core.stage_runs r
        set heartbeat_at = clock_timestamp(),
            lease_expires_at = clock_timestamp() + make_interval(secs => r.lease_seconds::double precision)
        from free f
        where r.id = any (array[f.id])
    )
    select jsonb_build_object(
        'alive', coalesce(
            jsonb_agg(a.run || jsonb_build_object('lease_ms', round(r.lease_seconds * 1000)) order by a.n)
                filter (where r.status = 'running'), '[]'),
        'lost', coalesce(
            jsonb_agg(a.run order by a.n)
                filter (where r.status is null or r.status not in ('running', 'cancelled')), '[]'),
        'cancelled', coalesce(jsonb_agg(a.run order by a.n) filter (where r.status = 'cancelled'), '[]'))
    into v_answer
    from asked a
    left join lateral (
        select * from krai_core.stage_runs of_claim
        where of_claim.document_id = a.document_id and of_claim.stage_name = a.stage_name
          and (of_claim.claim_id = a.claim_id) is true
        offset 0) r on true;
    return v_answer;
end;
$$;
comment on function krai_core.heartbeat(jsonb) is
'Renews the leases of many runs in one call.
p_runs: array of {document_id, stage_name, claim_id}. Returns {"alive": [...], "lost": [...], "cancelled": [...]},
each an array of the objects passed in: alive runs are held for another lease, whose length in milliseconds is added
as lease_ms; lost runs were closed, cancelled ones taken away on purpose: stop working on either. Safe to repeat.
Raises 22023 invalid_runs. Called as an rpc of its own, its commit does not wait for the disk.';

create or replace function krai_core.release_stages(p_runs jsonb) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_asked record;
    v_stage_status jsonb;
    v_stage jsonb;
    v_run krai_core.stage_runs;
    v_released jsonb := '[]'::jsonb;
    v_lost jsonb := '[]'::jsonb;
begin
    perform from krai_core.documents d
    where d.id in (select a.document_id from krai_private.checked_runs('release_stages', p_runs) a)
    order by d.id for no key update;
    for v_asked in select * from krai_private.checked_runs('release_stages', p_runs) loop
        select * into v_run from krai_core.stage_runs r
        where r.document_id = v_asked.document_id and r.stage_name = v_asked.stage_name
          and (r.claim_id = v_asked.claim_id) is true;
        if v_run.status = 'running' then
            v_stage_status := krai_private.lock_document(v_asked.document_id, v_asked.stage_name);
            v_stage := v_stage_status -> v_asked.stage_name;
            update krai_core.stage_runs r
            set status = 'released', finished_at = clock_timestamp(), closed_by_holder = true,
                progress = greatest(r.progress, krai_private.progress_of(v_stage))
            where r.id = v_run.id;
            if v_stage ->> 'status' = 'processing' then
                perform krai_private.count_transition(v_asked.stage_name, v_stage, krai_private.pending_stage());
                v_stage := krai_private.pending_stage() || jsonb_build_object('metadata', v_stage -> 'metadata');
            end if;
            perform krai_private.write_stage_status(v_asked.document_id,
                v_stage_status || jsonb_build_object(v_asked.stage_name, v_stage), array[v_asked.stage_name]);
        end if;
        if v_run.status = 'running' or v_run.status = 'released' and v_run.closed_by_holder then
            v_released := v_released || jsonb_build_array(v_asked.run);
        else
            v_lost := v_lost || jsonb_build_array(v_asked.run);
        end if;
    end loop;
    return jsonb_build_object('released', v_released, 'lost', v_lost);
end;
$$;
comment on function krai_core.release_stages(jsonb) is
'Gives claimed runs back untouched: their stages are pending again, and no attempt counts.
They keep their place in the queue. p_runs: array of {document_id, stage_name, claim_id}. Returns {"released": [...],
"lost": [...]}, each an array of the objects passed in; somebody else had already closed the lost ones. Safe to
repeat. Raises 22023 invalid_runs.';
