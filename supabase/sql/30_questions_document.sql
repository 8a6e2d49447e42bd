-- Questions about one document: where it stands, how it got there, and why a stage is not running.
--
--   get_document_progress, get_current_stage, can_start_stage    one value each
--   get_document_status      the payload of the HTTP API
--   get_weighted_progress    one number for a progress bar: unfinished stages count in part, heavy stages count more
--   get_document_timeline    every run of the document
--   explain_stage            why a stage is not running, or who is running it; its helpers age_in_words,
--                            place_in_queue and unfinished_prerequisites
--
-- Rules
--   * Finished = completed or skipped. A disabled stage counts as satisfied and is in no total.
--   * Malformed rows (null, {}, arrays, plain strings, foreign values) are read as repaired_stages would repair them.
--   * Weighted progress never falls until a stage is reset: a stage counts with the furthest that any of its runs got
--     since its last reset. get_document_progress is the plain share of finished stages.
--   * explain_stage is for service_role; the others answer whoever may see the document.
--   * The functions are stable, so that GET /rest/v1/rpc/<name> serves them. Nothing here locks or writes.

create or replace function krai_core.get_document_progress(p_document_id uuid) returns numeric
language plpgsql stable
set search_path = ''
as $$
declare
    v_progress numeric(5, 2);
begin
    select v.progress_percentage into v_progress from krai_core.vw_documents_by_stage v where v.id = p_document_id;
    if not found then
        perform krai_private.raise_unknown_document(p_document_id);
    end if;
    return v_progress;
end;
$$;
comment on function krai_core.get_document_progress(uuid) is
'Finished stages (completed or skipped) as a percentage of the enabled ones: 3 of 8 is 37.50.
Raises PT404 unknown_document.';

create or replace function krai_core.get_current_stage(p_document_id uuid) returns text
language plpgsql stable
set search_path = ''
as $$
declare
    v_stage text;
begin
    select v.current_stage into v_stage from krai_core.vw_documents_by_stage v where v.id = p_document_id;
    if not found then
        perform krai_private.raise_unknown_document(p_document_id);
    end if;
    return v_stage;
end;
$$;
comment on function krai_core.get_current_stage(uuid) is
'The first enabled stage in pipeline order that is not finished; ''completed'' when all are.
Raises PT404 unknown_document.';

create or replace function krai_core.can_start_stage(p_document_id uuid, p_stage_name text) returns boolean
language plpgsql stable
set search_path = ''
as $$
declare
    v_can boolean;
begin
    perform krai_private.check_stage(p_stage_name);
    select coalesce(bool_or(ds.stage_name = p_stage_name and ds.status in ('pending', 'failed')), false)
       and not coalesce(bool_or(ds.status not in ('completed', 'skipped') and ds.stage_name in (
               select p.requires from krai_core.stage_prerequisites p where p.stage_name = p_stage_name)), false)
    into v_can
    from krai_core.vw_document_stages ds
    where ds.document_id = p_document_id
    group by ds.document_id;
    if v_can is null then
        if not exists (select from krai_core.documents d where d.id = p_document_id) then
            perform krai_private.raise_unknown_document(p_document_id);
        end if;
        return false;
    end if;
    return v_can;
end;
$$;
comment on function krai_core.can_start_stage(uuid, text) is
'True when the stage is enabled, pending or failed, and its prerequisites are completed, skipped or disabled.
Ignores pauses and backoff. Raises PT404 unknown_document, 22023 unknown_stage.';

create or replace function krai_core.get_document_status(p_document_id uuid) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
    v_document record;
    v_stage_status jsonb;
    v_times record;
begin
    select v.document_status, v.current_stage, v.progress_percentage, v.stage_status into v_document
    from krai_core.vw_documents_by_stage v where v.id = p_document_id;
    if not found then
        perform krai_private.raise_unknown_document(p_document_id);
    end if;
    v_stage_status := v_document.stage_status;
    if not krai_private.is_sound(v_stage_status) then
        v_stage_status := krai_private.repaired_stages(v_stage_status);
    end if;
    -- iso_time wrote all times in one form, or the repair brought them to it, so that they sort as text.
    select min(v_stage_status -> s.name ->> 'started_at' collate "C") as started_at,
           max(v_stage_status -> s.name ->> 'completed_at' collate "C") as completed_at,
           (array_agg(v_stage_status -> s.name ->> 'error' order by s.position)
               filter (where v_stage_status -> s.name ->> 'status' = 'failed'))[1] as error
    into v_times
    from krai_core.stages s
    where s.enabled;
    return jsonb_build_object(
        'document_id', p_document_id,
        'status', v_document.document_status,
        'current_stage', v_document.current_stage,
        'progress', trim_scale(v_document.progress_percentage),
        'started_at', v_times.started_at,
        'completed_at', case when v_document.current_stage = 'completed' then v_times.completed_at end,
        'error', v_times.error,
        'stage_status', v_stage_status);
end;
$$;
comment on function krai_core.get_document_status(uuid) is
'Everything about one document as one JSON object.
Returns {document_id, status, current_stage, progress, started_at, completed_at, error, stage_status}.
status: pending, processing, completed or failed, derived from the stages. progress: percent, 0 to 100.
started_at: earliest start of a stage, or null. completed_at: latest end once every stage is finished, else null.
error: that of the first failed stage in pipeline order, or null. Times: ISO 8601, UTC.
Raises PT404 unknown_document.';

create or replace function krai_core.get_weighted_progress(p_document_id uuid) returns numeric
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_progress numeric(5, 2);
    v_found boolean;
begin
    select coalesce(sum(s.weight * case when x.state in ('completed', 'skipped') then 100
            else greatest(case when x.state in ('processing', 'failed') then krai_private.progress_of(x.stage) end, (
                select max(case
                    when r.status in ('completed', 'skipped')
                      or r.status = 'cancelled' and r.progress is not null then 100
                    else r.progress end)
                from krai_core.stage_runs r
                where r.document_id = d.id and r.stage_name = s.name and r.id > coalesce((
                    -- Retrying a failed stage keeps the progress that it had made.
                    select max(b.id + 0) from krai_core.stage_runs b
                    where b.document_id = d.id and b.stage_name = s.name
                      and b.reset_at is not null and b.status not in ('failed', 'lost')), 0)), 0) end)
            / nullif(sum(s.weight), 0), 100), count(*) > 0
    into v_progress, v_found
    from krai_core.documents d
    cross join krai_core.stages s
    cross join lateral (
        select d.stage_status -> s.name as stage, krai_private.stage_state(d.stage_status -> s.name) as state) x
    where d.id = p_document_id and s.enabled;
    if not v_found and not exists (select from krai_core.documents d where d.id = p_document_id) then
        perform krai_private.raise_unknown_document(p_document_id);
    end if;
    return v_progress;
end;
$$;
comment on function krai_core.get_weighted_progress(uuid) is
'Percent of a document, 0 to 100, weighted by stages.weight; running and failed stages count in part.
Never falls while no stage is reset and the pipeline does not change.
Raises PT404 unknown_document.';

create or replace function krai_core.get_document_timeline(p_document_id uuid) returns jsonb
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_filename text := (select d.filename from krai_core.documents d where d.id = p_document_id);
    v_hidden jsonb;
begin
    if not exists (select from krai_core.documents d where d.id = p_document_id) then
        perform krai_private.raise_unknown_document(p_document_id);
    end if;
    if pg_catalog.has_column_privilege('krai_core.stage_runs', 'worker', 'select') then
        select jsonb_object_agg(r.id, jsonb_build_object('worker', r.worker, 'actor', r.actor)) into v_hidden
        from krai_core.stage_runs r where r.document_id = p_document_id;
    end if;
    -- `id + 0`: see 10_history.
    return jsonb_build_object('document_id', p_document_id, 'filename', v_filename, 'runs', coalesce((
        select jsonb_agg(jsonb_build_object('stage_name', r.stage_name, 'status', r.status, 'attempt', r.attempt,
            'ready_at', krai_private.iso_time(r.available_at),
            'started_at', krai_private.iso_time(r.started_at),
            'finished_at', krai_private.iso_time(r.finished_at),
            'wait_seconds', case when r.started_at >= r.available_at then
                trim_scale(round(extract(epoch from r.started_at - r.available_at), 6)) end,
            'work_seconds', case when r.status <> 'ready' then
                trim_scale(round(extract(epoch from coalesce(r.finished_at, clock_timestamp()) - r.started_at), 6)) end,
            'progress', coalesce(r.progress, case when r.is_current or r.status = 'running' then
                krai_private.progress_of(d.stage_status -> r.stage_name) end),
            'error', left(r.error, 4000),
            'retry_at', krai_private.iso_time(r.retry_at), 'reset_at', krai_private.iso_time(r.reset_at))
            || coalesce(v_hidden -> r.id::text, '{"worker": null, "actor": null}') order by r.id + 0)
        from krai_core.stage_runs r
        join krai_core.documents d on d.id = r.document_id
        where r.document_id = p_document_id), '[]'));
end;
$$;
comment on function krai_core.get_document_timeline(uuid) is
'All runs of a document in the order in which they were opened.
Returns {document_id, filename, runs: [{stage_name, status, attempt, ready_at, started_at, finished_at, wait_seconds,
work_seconds, progress, error, retry_at, reset_at, worker, actor}]}.
status: as in stage_runs. wait_seconds: from ready to start; null for a run that has not started or was never ready.
work_seconds: from start to end, or to now. Times: ISO 8601, UTC. worker and actor are null except for service_role.
Raises PT404 unknown_document.';

create or replace function krai_private.age_in_words(p_from timestamptz, p_to timestamptz) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
declare
    v_seconds numeric := round(abs(extract(epoch from p_to - p_from)));
begin
    return case
        when v_seconds < 120 then v_seconds || ' s'
        when v_seconds < 7200 then round(v_seconds / 60) || ' min'
        when v_seconds < 172800 then round(v_seconds / 3600) || ' h'
        else round(v_seconds / 86400) || ' days' end;
end;
$$;
comment on function krai_private.age_in_words(timestamptz, timestamptz) is
'The time between two instants in seconds, minutes, hours or days, for people.';

create or replace function krai_private.place_in_queue(p_run krai_core.stage_runs) returns integer
language plpgsql stable
set search_path = ''
as $$
begin
    return 1 + (
        select count(*) from (
            select from krai_core.stage_runs r
            where r.stage_name = p_run.stage_name and r.status = 'ready' and r.available_at <= clock_timestamp()
              and (r.priority > p_run.priority
                   or (r.priority = p_run.priority and (r.available_at, r.id) < (p_run.available_at, p_run.id)))
            limit 1000) ahead);
end;
$$;
comment on function krai_private.place_in_queue(krai_core.stage_runs) is
'Place of a ready run among the due runs of its stage: 1 is next in line. Counted up to 1001.';

create or replace function krai_private.unfinished_prerequisites(p_document_id uuid, p_stage_name text) returns jsonb
language plpgsql stable
set search_path = ''
as $$
begin
    return (
        select coalesce(jsonb_agg(jsonb_build_object('stage', s.name, 'status', x.status) order by s.position), '[]')
        from krai_core.stage_prerequisites p
        join krai_core.stages s on s.name = p.requires and s.enabled
        join krai_core.documents d on d.id = p_document_id
        cross join lateral (select krai_private.stage_state(d.stage_status -> s.name) as status) x
        where p.stage_name = p_stage_name and x.status not in ('completed', 'skipped'));
end;
$$;
comment on function krai_private.unfinished_prerequisites(uuid, text) is
'The unfinished prerequisites of a stage, in pipeline order: [{"stage", "status"}].';

create or replace function krai_core.explain_stage(p_document_id uuid, p_stage_name text) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
    v_stage krai_core.stages := krai_private.stage_named(p_stage_name);
    v_now timestamptz := clock_timestamp();
    v_status text;
    v_stored jsonb;
    v_waits_for jsonb := krai_private.unfinished_prerequisites(p_document_id, p_stage_name);
    v_open krai_core.stage_runs;
    v_last krai_core.stage_runs;
    v_place integer;
    v_reason text;
    v_message text;
begin
    select krai_private.stage_state(d.stage_status -> p_stage_name), d.stage_status -> p_stage_name
    into v_status, v_stored from krai_core.documents d where d.id = p_document_id;
    if not found then
        perform krai_private.raise_unknown_document(p_document_id);
    end if;
    select * into v_open from krai_core.stage_runs where document_id = p_document_id and open_stage = p_stage_name;
    select * into v_last from krai_core.stage_runs
    where document_id = p_document_id and stage_name = p_stage_name and status not in ('ready', 'running')
    order by id + 0 desc limit 1;
    if v_status in ('completed', 'skipped') then
        v_reason := v_status;
        v_message := case v_status when 'completed' then 'Completed'
            else format('Skipped: %s', coalesce(v_stored -> 'metadata' ->> 'reason', 'no reason given')) end;
    elsif v_status = 'processing' and v_open.status = 'running' and v_open.lease_expires_at > v_now then
        v_reason := 'running';
        v_message := format('%s has been running it for %s (attempt %s of %s); the lease expires in %s unless renewed',
            coalesce(v_open.worker, 'An unnamed worker'), krai_private.age_in_words(v_open.started_at, v_now),
            v_open.attempt, v_stage.max_attempts, krai_private.age_in_words(v_now, v_open.lease_expires_at));
    elsif v_status = 'processing' then
        v_reason := 'lease_over';
        v_message := case when v_open.status = 'running' then format(
            '%s sent no heartbeat and its lease expired %s ago; the next worker or reap takes the stage over',
            coalesce(v_open.worker, 'Its worker'), krai_private.age_in_words(v_open.lease_expires_at, v_now))
            else 'Marked as processing, but nobody holds it; start_stage takes it over' end;
    elsif not v_stage.enabled then
        v_reason := 'disabled';
        v_message := 'The stage is disabled and counts as satisfied';
    elsif v_waits_for <> '[]' then
        v_reason := 'waits_for_stages';
        v_message := 'Waiting for ' || (select string_agg(format('%s (%s)', w ->> 'stage', w ->> 'status'), ', ')
            from jsonb_array_elements(v_waits_for) w);
    elsif v_status = 'failed' and v_open.status is distinct from 'ready' then
        v_reason := 'failed';
        v_message := format('Failed%s and will not be retried automatically; call retry_stage to try again. Error: %s',
            coalesce(format(' in attempt %s of %s', v_last.attempt, v_stage.max_attempts), ''),
            coalesce(v_stored ->> 'error', 'none given'));
    elsif v_stage.paused then
        v_reason := 'paused';
        v_message := format('Ready, but the stage was paused%s%s', coalesce(' by ' || v_stage.changed_by, ''),
            coalesce(format(' %s ago', krai_private.age_in_words(v_stage.changed_at, v_now)), ''));
    elsif v_open.available_at > v_now then
        v_reason := 'backoff';
        v_message := format('Attempt %s of %s failed; next retry in %s. Error: %s', v_open.attempt - 1,
            v_stage.max_attempts, krai_private.age_in_words(v_now, v_open.available_at),
            coalesce(v_stored ->> 'error', 'none given'));
    elsif v_open.status = 'ready' then
        v_place := krai_private.place_in_queue(v_open);
        v_reason := 'ready';
        v_message := format('Ready for %s; %s', krai_private.age_in_words(v_open.available_at, v_now), case
            when v_place = 1 then 'next in line' when v_place > 1000 then 'more than 1000 ahead of it in the queue'
            else format('%s ahead of it in the queue', v_place - 1) end);
    else
        v_reason := 'not_queued';
        v_message := 'Not queued yet: fill_ready_runs has not reached the document since the pipeline changed';
    end if;
    return jsonb_build_object('document_id', p_document_id, 'stage_name', p_stage_name, 'status', v_status,
        'reason', v_reason, 'message', v_message || '.', 'waits_for', v_waits_for, 'enabled', v_stage.enabled,
        'paused', v_stage.paused, 'attempt', coalesce(v_open.attempt, v_last.attempt), 'priority', v_open.priority,
        'max_attempts', v_stage.max_attempts, 'place', v_place, 'place_is_bound', coalesce(v_place > 1000, false),
        'next_retry_at', case when v_status = 'failed' and v_open.status = 'ready' then
            krai_private.iso_time(v_open.available_at) end,
        'worker', case when v_open.status = 'running' then v_open.worker end,
        'lease_expires_at', krai_private.iso_time(case when v_open.status = 'running' then v_open.lease_expires_at end),
        'started_at', krai_private.iso_time(case when v_open.status = 'running' then v_open.started_at end),
        'heartbeat_at', krai_private.iso_time(case when v_open.status = 'running' then v_open.heartbeat_at end));
end;
$$;
comment on function krai_core.explain_stage(uuid, text) is
'Why a stage of a document is not running, or who is running it.
Returns {document_id, stage_name, status, reason, message, waits_for, enabled, paused, attempt, max_attempts, priority,
place, place_is_bound, next_retry_at, worker, started_at, heartbeat_at, lease_expires_at}.
reason: completed, skipped, running, lease_over, disabled, waits_for_stages, failed, paused, backoff, ready or
not_queued; message says the same in a sentence. waits_for: [{stage, status}], the unfinished prerequisites.
place: 1 is next in line, counted up to 1001 (place_is_bound), null unless ready. Times: ISO 8601, UTC.
Raises PT404 unknown_document, 22023 unknown_stage.';
