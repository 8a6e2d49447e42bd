-- Per-stage document tracking: what is asked about the queue.
--
--   explain_stage             why a stage of a document does not run, in words and as data
--   get_documents_ready_for   the documents that are ready for a stage, in the order of the queue
--
-- Rules
--   * Reads only: what is listed as ready may be claimed by another the next moment.
--   * For service_role: the queue tells of all documents, and of workers.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
-- Nothing is made where the file of the tables stopped: psql goes on after an error unless it is told otherwise.
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;

create or replace function krai_core._ago(p_from timestamptz, p_to timestamptz) returns text
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
comment on function krai_core._ago(timestamptz, timestamptz) is 'The time between two instants, for people: seconds, minutes, hours or days.';

create or replace function krai_core._place_in_queue(p_run krai_core.stage_runs) returns integer
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
comment on function krai_core._place_in_queue(krai_core.stage_runs) is 'How many due runs are handed out before a ready one, and 1; counted up to 1001.';

create or replace function krai_core._unfinished_prerequisites(p_document_id uuid, p_stage_name text) returns jsonb
language plpgsql stable
set search_path = ''
as $$
begin
    return (
        select coalesce(jsonb_agg(jsonb_build_object('stage', s.name, 'status', x.status) order by s.position), '[]')
        from krai_core.stage_prerequisites p
        join krai_core.stages s on s.name = p.requires and s.enabled
        join krai_core.documents d on d.id = p_document_id
        cross join lateral (select krai_core._stage_state(d.stage_status -> s.name) as status) x
        where p.stage_name = p_stage_name and x.status not in ('completed', 'skipped'));
end;
$$;
comment on function krai_core._unfinished_prerequisites(uuid, text) is
'The prerequisites of a stage that are not finished, in the order of the pipeline: [{"stage", "status"}].';

create or replace function krai_core.explain_stage(p_document_id uuid, p_stage_name text) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
    v_stage krai_core.stages := krai_core._stage_named(p_stage_name);
    v_now timestamptz := clock_timestamp();
    v_status text;
    v_stored jsonb;
    v_waits_for jsonb := krai_core._unfinished_prerequisites(p_document_id, p_stage_name);
    v_open krai_core.stage_runs;
    v_last krai_core.stage_runs;
    v_place integer;
    v_reason text;
    v_message text;
begin
    select krai_core._stage_state(d.stage_status -> p_stage_name), d.stage_status -> p_stage_name into v_status, v_stored
    from krai_core.documents d where d.id = p_document_id;
    if not found then
        perform krai_core._raise_unknown_document(p_document_id);
    end if;
    select * into v_open from krai_core.stage_runs r
    where r.document_id = p_document_id and r.open_stage = p_stage_name;
    select * into v_last from krai_core.stage_runs r
    where r.document_id = p_document_id and r.stage_name = p_stage_name and r.status not in ('ready', 'running')
    order by r.id + 0 desc limit 1;

    if v_status in ('completed', 'skipped') then
        v_reason := v_status;
        v_message := case v_status when 'completed' then 'It is completed'
            else format('It was skipped: %s', coalesce(v_stored -> 'metadata' ->> 'reason', 'no reason was given')) end;
    elsif v_status = 'processing' and v_open.status = 'running' and v_open.lease_expires_at > v_now then
        v_reason := 'running';
        v_message := format('%s works on it since %s (attempt %s of %s) and holds it for another %s unless it gives a sign of life',
            coalesce(v_open.worker, 'Somebody'), krai_core._ago(v_open.started_at, v_now), v_open.attempt, v_stage.max_attempts,
            krai_core._ago(v_now, v_open.lease_expires_at));
    elsif v_status = 'processing' then
        v_reason := 'lease_over';
        v_message := case when v_open.status = 'running' then format('%s gave no sign of life; its lease ended %s ago, and the next worker or reap takes the stage over',
                coalesce(v_open.worker, 'Whoever works on it'), krai_core._ago(v_open.lease_expires_at, v_now))
            else 'It is marked as processing, and nobody holds it; start_stage takes it over' end;
    elsif not v_stage.enabled then
        v_reason := 'disabled';
        v_message := 'The stage is disabled: it counts as satisfied';
    elsif v_waits_for <> '[]' then
        v_reason := 'waits_for_stages';
        v_message := 'It waits for ' || (select string_agg(format('%s (%s)', w ->> 'stage', w ->> 'status'), ', ') from jsonb_array_elements(v_waits_for) w);
    elsif v_status = 'failed' and v_open.status is distinct from 'ready' then
        v_reason := 'failed';
        v_message := format('It failed%s and is not tried again by itself; retry_stage does it. Error: %s',
            coalesce(format(' in attempt %s of %s', v_last.attempt, v_stage.max_attempts), ''), coalesce(v_stored ->> 'error', 'none was given'));
    elsif v_stage.paused then
        v_reason := 'paused';
        v_message := format('It is ready, and the stage is paused%s%s', coalesce(' by ' || v_stage.changed_by, ''),
            coalesce(format(' since %s', krai_core._ago(v_stage.changed_at, v_now)), ''));
    elsif v_open.available_at > v_now then
        v_reason := 'backoff';
        v_message := format('Attempt %s of %s failed; it is tried again in %s. Error: %s', v_open.attempt - 1, v_stage.max_attempts,
            krai_core._ago(v_now, v_open.available_at), coalesce(v_stored ->> 'error', 'none was given'));
    elsif v_open.status = 'ready' then
        v_place := krai_core._place_in_queue(v_open);
        v_reason := 'ready';
        v_message := format('It is ready since %s; %s', krai_core._ago(v_open.available_at, v_now), case
            when v_place = 1 then 'it is the next that a worker gets'
            when v_place > 1000 then 'more than 1000 are handed out before it'
            else format('%s are handed out before it', v_place - 1) end);
    else
        v_reason := 'not_queued';
        v_message := 'It may start; the queue has not come to this document yet after a change of the pipeline (fill_ready_runs)';
    end if;
    return jsonb_build_object(
        'document_id', p_document_id, 'stage_name', p_stage_name, 'status', v_status, 'reason', v_reason, 'message', v_message || '.',
        'waits_for', v_waits_for, 'enabled', v_stage.enabled, 'paused', v_stage.paused,
        'attempt', coalesce(v_open.attempt, v_last.attempt), 'max_attempts', v_stage.max_attempts,
        'priority', v_open.priority, 'place', v_place, 'place_is_bound', coalesce(v_place > 1000, false),
        'next_retry_at', case when v_status = 'failed' and v_open.status = 'ready' then krai_core._iso(v_open.available_at) end,
        'worker', case when v_open.status = 'running' then v_open.worker end,
        'started_at', krai_core._iso(case when v_open.status = 'running' then v_open.started_at end),
        'heartbeat_at', krai_core._iso(case when v_open.status = 'running' then v_open.heartbeat_at end),
        'lease_expires_at', krai_core._iso(case when v_open.status = 'running' then v_open.lease_expires_at end));
end;
$$;
comment on function krai_core.explain_stage(uuid, text) is
'Why a stage of a document does not run, or who runs it: {document_id, stage_name, status, reason, message, waits_for, enabled, paused, attempt, max_attempts, priority, place, place_is_bound, next_retry_at, worker, started_at, heartbeat_at, lease_expires_at}.
reason: completed, skipped, running, lease_over, disabled, waits_for_stages, failed, paused, backoff, ready or not_queued; message says it in a sentence. waits_for: [{stage, status}], the prerequisites that are not finished. place: 1 is the next to be handed out, counted up to 1001 (place_is_bound), null unless ready. Times: ISO 8601, UTC. Raises PT404 unknown_document, 22023 unknown_stage.';

create or replace function krai_core.get_documents_ready_for(p_stage_name text, p_limit integer default 100, p_after text default null) returns jsonb
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_stage krai_core.stages := krai_core._stage_named(p_stage_name);
    v_now timestamptz := clock_timestamp();
    v_after text[] := string_to_array(p_after, ' ');
    v_priority bigint := 2147483648;
    v_available_at timestamptz := 'infinity'::timestamptz;
    v_id bigint := 0;
    v_answer jsonb;
begin
    perform krai_core._checked_limit(p_limit, 1000);
    if p_after is not null then
        begin
            v_priority := v_after[1]::integer;
            v_available_at := v_after[2]::timestamptz;
            v_id := v_after[3]::bigint;
        exception when data_exception then
            v_id := null;
        end;
        if v_priority is null or v_available_at is null or v_id is null then
            perform krai_core._raise('22023', 'invalid_cursor', format('%s is no place in the queue', quote_literal(left(p_after, 100))),
                '{}', 'Pass what the call before returned as next, or null for the beginning.');
        end if;
    end if;
    if v_stage.paused or not v_stage.enabled then
        return '{"documents": [], "next": null}'::jsonb;
    end if;
    -- What is left of the level of the last page, then the levels below: each a range of the index.
    with page as materialized (
        (select r.id, r.document_id, r.priority, r.available_at from krai_core.stage_runs r
         where r.stage_name = p_stage_name and r.status = 'ready' and r.priority = v_priority
           and (r.available_at, r.id) > (v_available_at, v_id) and r.available_at <= v_now
         order by r.available_at, r.id limit p_limit)
        union all
        (select r.id, r.document_id, r.priority, r.available_at from krai_core.stage_runs r
         where r.stage_name = p_stage_name and r.status = 'ready' and r.priority < v_priority and r.available_at <= v_now
         order by r.priority desc, r.available_at, r.id limit p_limit)
        limit p_limit
    )
    -- One to_jsonb of nested rows: see _listed.
    select to_jsonb(answer) into v_answer
    from (select array(
            select d from page p join krai_core.documents d on d.id = any (array[p.document_id])
            order by p.priority desc, p.available_at, p.id) as documents, (
            select case when count(*) over () = p_limit then format('%s %s %s', p.priority, krai_core._iso(p.available_at), p.id) end
            from page p order by p.priority, p.available_at desc, p.id desc limit 1) as next) answer;
    return v_answer;
end;
$$;
comment on function krai_core.get_documents_ready_for(text, integer, text) is
'The documents that a worker would get for a stage now, in the order of the queue: {"documents": [whole rows as objects], "next": text or null}. Nothing is claimed by it.
p_limit: 1 to 1000. p_after: the next of the page before, null for the first. A paused or disabled stage has none. Raises 22023 unknown_stage, invalid_limit or invalid_cursor.';

revoke execute on function
    krai_core._ago(timestamptz, timestamptz), krai_core._place_in_queue(krai_core.stage_runs), krai_core._unfinished_prerequisites(uuid, text),
    krai_core.explain_stage(uuid, text), krai_core.get_documents_ready_for(text, integer, text)
    from public, anon, authenticated;
grant execute on function
    krai_core._ago(timestamptz, timestamptz), krai_core._place_in_queue(krai_core.stage_runs), krai_core._unfinished_prerequisites(uuid, text),
    krai_core.explain_stage(uuid, text), krai_core.get_documents_ready_for(text, integer, text)
    to service_role;

commit;
