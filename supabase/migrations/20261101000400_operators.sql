-- Per-stage document tracking: what people and supervisors call, and who may call what.
--
--   retry_stage, reset_stage    bring a stage back to pending; who did it and when is kept with the last run
--   heartbeat                   renews many leases in one call
--
-- Lock order: documents, then stage_runs. heartbeat locks stage_runs alone, in id order, and skips what is locked: who
-- holds such a row is writing a newer sign of life.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
-- Nothing is made where the file of the tables stopped: psql goes on after an error unless it is told otherwise.
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;

create or replace function krai_core.retry_stage(p_document_id uuid, p_stage_name text, p_actor text default null)
returns boolean
language plpgsql volatile
set search_path = ''
as $$
declare
    v_stage_status jsonb := krai_core._hold(p_document_id, p_stage_name);
    v_status text := v_stage_status -> p_stage_name ->> 'status';
begin
    if v_status = 'pending' then
        return true;
    elsif v_status <> 'failed' then
        perform krai_core._raise_conflict('retry', p_document_id, p_stage_name, v_status, case v_status
            when 'processing' then 'Wait until the run ends, or use reset_stage with p_force to take it away.'
            else 'Only a failed stage is retried: use reset_stage to run it again.' end);
    end if;
    perform krai_core._keep_last_run(p_document_id, p_stage_name, v_stage_status -> p_stage_name, left(p_actor, 200), true);
    perform krai_core._write(p_document_id, v_stage_status || jsonb_build_object(p_stage_name, krai_core._pending_stage()));
    return true;
end;
$$;
comment on function krai_core.retry_stage(uuid, text, text) is
'Brings a failed stage back to pending, its attempts counted from 1 again.
p_actor: who asked for it. Returns true, also for a pending stage, which stays as it is. Error, progress and metadata of the failed run are kept in stage_runs. Raises PT409 conflict on a processing, completed or skipped stage, PT404 unknown_document, 22023 unknown_stage.';

create or replace function krai_core.reset_stage(
    p_document_id uuid,
    p_stage_name text,
    p_cascade boolean default false,
    p_force boolean default false,
    p_actor text default null
) returns boolean
language plpgsql volatile
set search_path = ''
as $$
declare
    v_stage_status jsonb := krai_core._hold(p_document_id, p_stage_name);
    v_name text;
    v_status text;
    v_changed boolean := false;
begin
    for v_name in
        with recursive reached (stage_name) as (
            select p_stage_name
            union
            select p.stage_name from krai_core.stage_prerequisites p
            join reached r on r.stage_name = p.requires
            where p_cascade
        )
        select s.name from krai_core.stages s join reached r on r.stage_name = s.name order by s.position
    loop
        v_status := v_stage_status -> v_name ->> 'status';
        continue when v_status is null or v_status = 'pending';
        if v_status = 'processing' then
            if p_force is not true then
                perform krai_core._raise_conflict('reset', p_document_id, v_name, v_status,
                    'Nothing was changed. Wait until the run ends, or pass p_force => true to take it away from its holder.');
            end if;
            update krai_core.stage_runs r
            set status = 'cancelled', finished_at = clock_timestamp(), error = 'reset while it ran'
            where r.document_id = p_document_id and r.stage_name = v_name and r.status = 'running';
        end if;
        perform krai_core._keep_last_run(p_document_id, v_name, v_stage_status -> v_name, left(p_actor, 200), true);
        v_stage_status := v_stage_status || jsonb_build_object(v_name, krai_core._pending_stage());
        v_changed := true;
    end loop;
    if v_changed then
        perform krai_core._write(p_document_id, v_stage_status);
    end if;
    return true;
end;
$$;
comment on function krai_core.reset_stage(uuid, text, boolean, boolean, text) is
'Brings a stage back to pending from any state, so that it is run again.
p_cascade: also every stage that depends on it, directly or not. p_force: also where it is processing; its holder then hears lease_lost. p_actor: who asked for it. Returns true, also for pending stages, which stay as they are. What the stage held is kept in stage_runs. Raises PT409 conflict when one of the stages is processing and p_force is not true (nothing is changed then), PT404 unknown_document, 22023 unknown_stage.';

create or replace function krai_core.heartbeat(p_runs jsonb) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_answer jsonb;
begin
    if jsonb_typeof(p_runs) is distinct from 'array' or exists (
        select from jsonb_array_elements(p_runs) run
        where jsonb_typeof(run) <> 'object'
           or coalesce(run ->> 'document_id', '') !~ '^[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}$'
           or coalesce(run ->> 'claim_id', '') !~ '^[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}$'
           or run ->> 'stage_name' is null
    ) then
        perform krai_core._raise('22023', 'invalid_runs', 'heartbeat takes an array of objects with document_id, stage_name and claim_id', '{}',
            'Pass [{"document_id": "<uuid>", "stage_name": "<stage>", "claim_id": "<uuid>"}, ...].');
    end if;
    -- As in update_stage_progress.
    if current_setting('request.path', true) = '/rpc/heartbeat' then
        perform set_config('synchronous_commit', 'off', true);
    end if;
    with asked as (
        select (run ->> 'document_id')::uuid as document_id, run ->> 'stage_name' as stage_name, (run ->> 'claim_id')::uuid as claim_id, run
        from jsonb_array_elements(p_runs) run
    ),
    free as (
        select r.id from krai_core.stage_runs r
        join asked a on a.document_id = r.document_id and a.stage_name = r.stage_name and a.claim_id = r.claim_id
        where r.status = 'running'
        order by r.id
        for no key update of r skip locked
    ),
    renewed as (
        update krai_core.stage_runs r
        set heartbeat_at = clock_timestamp(), lease_expires_at = clock_timestamp() + make_interval(secs => r.lease_seconds::double precision)
        from free f
        where r.id = f.id
    )
    select jsonb_build_object(
        'alive', coalesce(jsonb_agg(a.run || jsonb_build_object('lease_ms', round(r.lease_seconds * 1000))) filter (where r.status = 'running'), '[]'),
        'lost', coalesce(jsonb_agg(a.run) filter (where r.status is null or r.status not in ('running', 'cancelled')), '[]'),
        'cancelled', coalesce(jsonb_agg(a.run) filter (where r.status = 'cancelled'), '[]'))
    into v_answer
    from asked a
    left join krai_core.stage_runs r
        on r.document_id = a.document_id and r.stage_name = a.stage_name and r.claim_id = a.claim_id;
    return v_answer;
end;
$$;
comment on function krai_core.heartbeat(jsonb) is
'Renews the leases of many runs in one call.
p_runs: array of {document_id, stage_name, claim_id}. Returns {"alive": [...], "lost": [...], "cancelled": [...]}, each an array of the objects given: alive runs are held for another lease, whose length in milliseconds is added as lease_ms, lost ones were closed, cancelled ones were taken away on purpose; stop the work on both. Safe to repeat. Raises 22023 invalid_runs. As an rpc of its own its commit does not wait for the disk.';

do $$
declare
    v_function record;
    v_wrappers text[] := '{}';
begin
    for v_function in
        select p.oid::regprocedure as signature from pg_catalog.pg_proc p
        where p.pronamespace = 'krai_core'::regnamespace and p.proname = any (array[
            'start_stage', 'update_stage_progress', 'complete_stage', 'fail_stage', 'skip_stage', 'retry_stage', 'reset_stage', 'heartbeat', '_close_stage'])
    loop
        execute format('revoke execute on function %s from public, anon, authenticated', v_function.signature);
        execute format('grant execute on function %s to service_role', v_function.signature);
    end loop;

    -- Wrappers in public that an earlier version of the tracker left executable by everybody, with the rights of their owner.
    for v_function in
        select p.oid::regprocedure as signature,
               format('public.%s(%s)', p.proname, pg_catalog.oidvectortypes(p.proargtypes)) as name,
               pg_catalog.pg_has_role(current_user, p.proowner, 'usage') as is_ours
        from pg_catalog.pg_proc p
        where p.pronamespace = 'public'::regnamespace
          and p.proname in ('start_stage', 'update_stage_progress', 'complete_stage', 'fail_stage', 'skip_stage',
                            'get_document_progress', 'get_current_stage', 'can_start_stage')
          -- Not the namesakes of another system. The whole definition, for the schema may stand in the search_path only.
          and case p.prokind when 'f' then pg_catalog.pg_get_functiondef(p.oid) ~* '\m(krai_core|stage_status)\M' end
          and exists (
              select from pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) acl
              where acl.grantee in (0, 'anon'::regrole, 'authenticated'::regrole) and acl.privilege_type = 'EXECUTE')
    loop
        if v_function.is_ours then
            execute format('revoke execute on function %s from public, anon, authenticated', v_function.signature);
            execute format('grant execute on function %s to service_role', v_function.signature);
        end if;
        v_wrappers := v_wrappers || (v_function.name || case when v_function.is_ours then '' else ' (NOT OURS TO REVOKE)' end);
    end loop;
    if v_wrappers <> '{}' then
        raise warning 'execute on functions of an earlier tracker was revoked from public, anon and authenticated: %',
            array_to_string(v_wrappers, ', ')
            using hint = 'Call the functions of schema krai_core, or drop the wrappers. Signed-in users read through krai_core.get_document_status.';
    end if;
    if pg_catalog.has_schema_privilege('anon', 'krai_core', 'usage') and pg_catalog.has_column_privilege('anon', 'krai_core.documents', 'stage_status', 'select') then
        raise warning 'anon may select from krai_core.documents and so sees stage_status wherever its policies allow'
            using hint = 'revoke select on krai_core.documents from anon; unless that is what you want.';
    end if;
end $$;

commit;
