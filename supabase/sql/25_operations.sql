-- Per-stage document tracking: what people call, and who may call what.
--
--   retry_stage, retry_failed, reset_stage    bring stages back to pending
--   cancel_document                           skips all that is unfinished
--   set_priority, pause_stage, resume_stage   what is handed out first, or not at all
--
-- Who did it is kept: with the last run of the stage, with the priority, with the stage.
-- Lock order: documents in id order, then stage_runs.

create or replace function krai_core.retry_stage(p_document_id uuid, p_stage_name text, p_actor text default null)
returns boolean
language plpgsql volatile
set search_path = ''
as $$
declare
    v_stage_status jsonb := krai_private.lock_document(p_document_id, p_stage_name);
    v_status text := v_stage_status -> p_stage_name ->> 'status';
begin
    if v_status = 'pending' then
        return true;
    elsif v_status <> 'failed' then
        perform krai_private.raise_conflict('retry', p_document_id, p_stage_name, v_status, case v_status
            when 'processing' then 'Wait until the run ends, or use reset_stage with p_force to take it away.'
            else 'Only a failed stage is retried: use reset_stage to run it again.' end);
    end if;
    perform krai_private.archive_last_run(p_document_id, p_stage_name, v_stage_status -> p_stage_name, left(p_actor, 200), true);
    -- A retry that was to come by itself comes now.
    delete from krai_core.stage_runs r
    where r.document_id = p_document_id and r.open_stage = p_stage_name and r.status = 'ready';
    perform krai_private.count_transition(p_stage_name, v_stage_status -> p_stage_name, krai_private.pending_stage());
    perform krai_private.write_stage_status(p_document_id, v_stage_status || jsonb_build_object(p_stage_name, krai_private.pending_stage()), array[p_stage_name]);
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
    v_stage_status jsonb := krai_private.lock_document(p_document_id, p_stage_name);
    v_name text;
    v_status text;
    v_changed text[] := array[]::text[];
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
                perform krai_private.raise_conflict('reset', p_document_id, v_name, v_status,
                    'Nothing was changed. Wait until the run ends, or pass p_force => true to take it away from its holder.');
            end if;
            update krai_core.stage_runs r
            set status = 'cancelled', finished_at = clock_timestamp(), error = 'reset while it ran'
            where r.document_id = p_document_id and r.open_stage = v_name and r.status = 'running';
        end if;
        perform krai_private.archive_last_run(p_document_id, v_name, v_stage_status -> v_name, left(p_actor, 200), true);
        perform krai_private.count_transition(v_name, v_stage_status -> v_name, krai_private.pending_stage());
        v_stage_status := v_stage_status || jsonb_build_object(v_name, krai_private.pending_stage());
        v_changed := v_changed || v_name;
    end loop;
    if v_changed <> '{}' then
        delete from krai_core.stage_runs r
        where r.document_id = p_document_id and r.open_stage = any (v_changed) and r.status = 'ready';
        perform krai_private.write_stage_status(p_document_id, v_stage_status, v_changed);
    end if;
    return true;
end;
$$;
comment on function krai_core.reset_stage(uuid, text, boolean, boolean, text) is
'Brings a stage back to pending from any state, so that it is run again.
p_cascade: also every stage that depends on it, directly or not. p_force: also where it is processing; its holder then hears lease_lost. p_actor: who asked for it. Returns true, also for pending stages, which stay as they are. What the stage held is kept in stage_runs. Raises PT409 conflict when one of the stages is processing and p_force is not true (nothing is changed then), PT404 unknown_document, 22023 unknown_stage.';

create or replace function krai_core.retry_failed(
    p_stage_name text default null,
    p_error text default null,
    p_since timestamptz default null,
    p_limit integer default 1000,
    p_dry_run boolean default false,
    p_actor text default null
) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_found record;
    v_runs jsonb := '[]'::jsonb;
    v_more boolean := false;
begin
    perform krai_private.checked_limit(p_limit, 10000);
    if p_stage_name is not null then
        perform krai_private.check_stage(p_stage_name);
    end if;
    for v_found in
        select d.id as document_id, s.name as stage_name, d.stage_status -> s.name ->> 'error' as error
        from krai_core.stages s
        join krai_core.documents d on d.stage_status @> jsonb_build_object(s.name, '{"status": "failed"}'::jsonb)
        where s.enabled and (p_stage_name is null or s.name = p_stage_name)
          and (p_error is null or d.stage_status -> s.name ->> 'error' ilike '%' || p_error || '%')
          and (p_since is null or krai_private.time_or_null(d.stage_status -> s.name ->> 'completed_at') >= p_since)
        order by d.id, s.position
        limit p_limit + 1
    loop
        if jsonb_array_length(v_runs) = p_limit then
            v_more := true;
            exit;
        end if;
        if p_dry_run is not true then
            -- Somebody may have been faster, or may have deleted the document.
            perform from krai_core.documents d where d.id = v_found.document_id for no key update;
            continue when not found or krai_private.lock_document(v_found.document_id, v_found.stage_name) -> v_found.stage_name ->> 'status' <> 'failed';
            perform krai_core.retry_stage(v_found.document_id, v_found.stage_name, p_actor);
        end if;
        v_runs := v_runs || jsonb_build_array(to_jsonb(v_found));
    end loop;
    return jsonb_build_object('count', jsonb_array_length(v_runs), 'more', v_more, 'dry_run', coalesce(p_dry_run, false), 'runs', v_runs);
end;
$$;
comment on function krai_core.retry_failed(text, text, timestamptz, integer, boolean, text) is
'Brings failed stages back to pending, as retry_stage does, by filter.
p_stage_name: null for all enabled stages. p_error: part of the error, letter case aside; % and _ stand for any text and any letter, as in LIKE. p_since: failed then or later. p_limit: 1 to 10000. p_dry_run: only tells what it would do. p_actor: who asked for it. Returns {"count", "more", "dry_run", "runs": [{document_id, stage_name, error}]}; more: the limit cut it off. Raises 22023 unknown_stage or invalid_limit.';

create or replace function krai_core.cancel_document(p_document_id uuid, p_reason text default 'Cancelled', p_actor text default null)
returns boolean
language plpgsql volatile
set search_path = ''
as $$
declare
    v_stage_status jsonb := krai_private.lock_document(p_document_id, (select s.name from krai_core.stages s order by s.position limit 1));
    v_reason text := case when p_reason ~ '\S' then p_reason else 'Cancelled' end;
    v_now timestamptz := clock_timestamp();
    v_name text;
    v_stage jsonb;
    v_skipped jsonb;
    v_run krai_core.stage_runs;
    v_changed text[] := array[]::text[];
begin
    for v_name in select s.name from krai_core.stages s where s.enabled order by s.position loop
        v_stage := v_stage_status -> v_name;
        continue when v_stage ->> 'status' in ('completed', 'skipped');
        v_run := krai_private.held_run('cancel', p_document_id, v_name, null);
        if v_run.id is null then
            perform krai_private.archive_last_run(p_document_id, v_name, v_stage);
            delete from krai_core.stage_runs r
            where r.document_id = p_document_id and r.open_stage = v_name and r.status = 'ready';
            insert into krai_core.stage_runs (document_id, stage_name, status, finished_at, is_current, error, actor)
            values (p_document_id, v_name, 'cancelled', v_now, true, left(v_reason, 65536), left(p_actor, 200));
        else
            update krai_core.stage_runs r
            set status = 'cancelled', finished_at = v_now, is_current = true, error = left(v_reason, 65536), actor = left(p_actor, 200)
            where r.id = v_run.id;
        end if;
        v_skipped := krai_private.closed_stage(v_stage, 'skipped', null, krai_private.skip_metadata(v_reason), v_run.started_at, v_now);
        perform krai_private.count_transition(v_name, v_stage, v_skipped);
        v_stage_status := v_stage_status || jsonb_build_object(v_name, v_skipped);
        v_changed := v_changed || v_name;
    end loop;
    if v_changed <> '{}' then
        perform krai_private.write_stage_status(p_document_id, v_stage_status, v_changed);
    end if;
    return true;
end;
$$;
comment on function krai_core.cancel_document(uuid, text, text) is
'Gives a document up: every stage that is not finished becomes skipped, with the reason in metadata.reason; who works on one hears it at the next heartbeat or call.
p_actor: who asked for it. Returns true, also when everything was finished. reset_stage brings a stage back. Raises PT404 unknown_document.';

create or replace function krai_core.set_priority(p_document_id uuid, p_priority integer, p_actor text default null) returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
    perform krai_private.require_service_role();
    perform from krai_core.documents d where d.id = p_document_id for no key update;
    if not found then
        perform krai_private.raise_unknown_document(p_document_id);
    end if;
    if coalesce(p_priority, 0) = 0 then
        delete from krai_core.document_priorities p where p.document_id = p_document_id;
    else
        insert into krai_core.document_priorities (document_id, priority, changed_at, changed_by)
        values (p_document_id, p_priority, clock_timestamp(), left(p_actor, 200))
        on conflict (document_id) do update
        set priority = excluded.priority, changed_at = excluded.changed_at, changed_by = excluded.changed_by;
    end if;
    update krai_core.stage_runs r set priority = coalesce(p_priority, 0)
    where r.document_id = p_document_id and r.open_stage is not null and r.priority <> coalesce(p_priority, 0);
    return true;
end;
$$;
comment on function krai_core.set_priority(uuid, integer, text) is
'Says when the stages of a document are handed out: those of higher priority first, 0 is usual, below 0 after all others.
Holds for what is ready and for all that becomes ready later. p_priority: null means 0. p_actor: who asked for it. Returns true. Raises PT404 unknown_document.';

create or replace function krai_core.pause_stage(p_stage_name text, p_actor text default null) returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
    perform krai_private.require_service_role();
    perform krai_private.check_stage(p_stage_name);
    update krai_core.stages s set paused = true, changed_at = clock_timestamp(), changed_by = left(p_actor, 200)
    where s.name = p_stage_name and not s.paused;
    return true;
end;
$$;
comment on function krai_core.pause_stage(text, text) is
'Hands out nothing more of a stage until resume_stage; what runs goes on, and start_stage still starts it.
p_actor: who asked for it. Returns true. Raises 22023 unknown_stage.';

create or replace function krai_core.resume_stage(p_stage_name text, p_actor text default null) returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
    perform krai_private.require_service_role();
    perform krai_private.check_stage(p_stage_name);
    update krai_core.stages s set paused = false, changed_at = clock_timestamp(), changed_by = left(p_actor, 200)
    where s.name = p_stage_name and s.paused;
    return true;
end;
$$;
comment on function krai_core.resume_stage(text, text) is
'Hands out a paused stage again. p_actor: who asked for it. Returns true. Raises 22023 unknown_stage.';
