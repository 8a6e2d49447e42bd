-- Per-stage document tracking: lists of documents.
--
--   list_documents    the documents by stage and status, newest first, a page at a time
--
-- Rules
--   * A page costs as much as it is long, at any depth and however many documents there are: it is read from the index of the
--     runs that its documents stand on. Those of a stage in a state have one run each (see stage_runs.is_current).
--   * What is pending has no run of its own unless it is ready: it is found by what it waits for, the stages before it that
--     are ready, running or failed. A document is listed under the newest of those.
--   * A page goes on behind the time and the run with which the one before ended: what changes meanwhile is on none or one.
-- For service_role. Nothing here locks or writes.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
-- Nothing is made where the file of the tables stopped: psql goes on after an error unless it is told otherwise.
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;

create or replace function krai_core._cursor_of(p_after text, out o_at timestamptz, out o_id bigint)
language plpgsql stable
set search_path = ''
as $$
begin
    o_at := 'infinity';
    o_id := 9223372036854775807;
    if p_after is not null then
        begin
            o_at := split_part(p_after, ' ', 1)::timestamptz;
            o_id := split_part(p_after, ' ', 2)::bigint;
        exception when data_exception then
            perform krai_core._raise('22023', 'invalid_cursor', format('%s is no place in a list', quote_literal(left(p_after, 100))),
                '{}', 'Pass what the call before returned as next, or null for the beginning.');
        end;
    end if;
end;
$$;
comment on function krai_core._cursor_of(text) is 'The place in a list that a page goes on behind; raises 22023 invalid_cursor.';

-- One range of one index for each kind of run. What is asked is written out for each, because only so the planner sees the
-- index that holds just those. How to plan is said by the caller, once for all sources.
create or replace function krai_core._newest_runs(p_stage_name text, p_kind text, p_since timestamptz, p_at timestamptz, p_id bigint, p_limit integer, p_fingerprint bigint default null)
returns table (run_id bigint, document_id uuid, since timestamptz)
language plpgsql stable
set search_path = ''
as $$
declare
    v_level bigint := 2147483648;
    v_lowest bigint;
begin
    if p_kind = 'completed' then
        return query select r.id, r.document_id, r.finished_at from krai_core.stage_runs r
        where r.stage_name = p_stage_name and r.is_current and r.status = 'completed' and r.finished_at between p_since and p_at and (r.finished_at, r.id) < (p_at, p_id)
        order by r.finished_at desc, r.id desc limit p_limit;
    elsif p_kind = 'skipped' then
        return query select r.id, r.document_id, r.finished_at from krai_core.stage_runs r
        where r.stage_name = p_stage_name and r.is_current and r.status in ('skipped', 'cancelled') and r.finished_at between p_since and p_at and (r.finished_at, r.id) < (p_at, p_id)
        order by r.finished_at desc, r.id desc limit p_limit;
    elsif p_kind = 'failed' and p_fingerprint is not null then
        return query select r.id, r.document_id, r.finished_at from krai_core.stage_runs r
        where r.error_fingerprint = p_fingerprint and r.is_current and r.status in ('failed', 'lost') and r.finished_at between p_since and p_at and (r.finished_at, r.id) < (p_at, p_id)
          and (p_stage_name is null or r.stage_name = p_stage_name)
        order by r.finished_at desc, r.id desc limit p_limit;
    elsif p_kind = 'failed' and p_stage_name is null then
        return query select r.id, r.document_id, r.finished_at from krai_core.stage_runs r
        where r.id > 0 and r.is_current and r.status in ('failed', 'lost') and r.finished_at between p_since and p_at and (r.finished_at, r.id) < (p_at, p_id)
        order by r.finished_at desc, r.id desc limit p_limit;
    elsif p_kind = 'failed' then
        return query select r.id, r.document_id, r.finished_at from krai_core.stage_runs r
        where r.stage_name = p_stage_name and r.is_current and r.status in ('failed', 'lost') and r.finished_at between p_since and p_at and (r.finished_at, r.id) < (p_at, p_id)
        order by r.finished_at desc, r.id desc limit p_limit;
    elsif p_kind = 'processing' then
        return query select r.id, r.document_id, r.started_at from krai_core.stage_runs r
        where r.stage_name = p_stage_name and r.status = 'running' and r.started_at >= p_since and (r.started_at, r.id) < (p_at, p_id)
        order by r.started_at desc, r.id desc limit p_limit;
    else
        -- Ready: newest first within each level of priority. A stage that failed and is to be tried again is not pending.
        v_lowest := (select r.priority from krai_core.stage_runs r where r.stage_name = p_stage_name and r.status = 'ready' order by r.priority limit 1);
        while v_lowest < v_level loop
            v_level := (select r.priority from krai_core.stage_runs r
                where r.stage_name = p_stage_name and r.status = 'ready' and r.priority < v_level order by r.priority desc limit 1);
            return query select r.id, r.document_id, r.available_at from krai_core.stage_runs r
            where r.stage_name = p_stage_name and r.status = 'ready' and r.priority = v_level and r.available_at >= p_since and (r.available_at, r.id) < (p_at, p_id)
              and r.retry_at is null
            order by r.stage_name desc, r.priority, r.available_at desc, r.id desc limit p_limit;
        end loop;
    end if;
end;
$$;
comment on function krai_core._newest_runs(text, text, timestamptz, timestamptz, bigint, integer, bigint) is
'The newest runs of a stage of one kind (ready, processing, completed, failed, skipped) from p_since on and behind a place, at most p_limit, of ready ones for each priority: run, document, since when. Of failed ones, a stage of null is any, and those of one fingerprint can be asked for.';

create or replace function krai_core._before(p_stage_name text) returns text[]
language plpgsql stable
set search_path = ''
as $$
begin
    return array(
        with recursive reached (name) as (
            select p_stage_name
            union
            select required.name from reached
            join krai_core.stages s on s.name = reached.name
            cross join unnest(s.waits_for) as required (name)
        )
        select reached.name from reached);
end;
$$;
comment on function krai_core._before(text) is 'A stage and all enabled stages that must be finished before it.';

create or replace function krai_core._page_of_runs(p_stages text[], p_kinds text[], p_pending text, p_at timestamptz, p_id bigint, p_limit integer, p_error text, p_fingerprint bigint)
returns table (run_id bigint, document_id uuid, since timestamptz, is_listed boolean)
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_ids bigint[] := array[]::bigint[];
    v_documents uuid[] := array[]::uuid[];
    v_since timestamptz[] := array[]::timestamptz[];
    -- What is older than so many of those that were found can be on no page.
    v_floor timestamptz := '-infinity'::timestamptz;
    v_found record;
begin
    for i in 1..cardinality(p_stages) loop
        select array_agg(n.run_id) as ids, array_agg(n.document_id) as documents, array_agg(n.since) as since into v_found
        from krai_core._newest_runs(p_stages[i], p_kinds[i], v_floor, p_at, p_id, p_limit, p_fingerprint) n;
        if v_found.ids is not null then
            v_ids := v_ids || v_found.ids;
            v_documents := v_documents || v_found.documents;
            v_since := v_since || v_found.since;
            if cardinality(v_ids) >= p_limit and i < cardinality(p_stages) then
                v_floor := (select n.at from unnest(v_since) as n (at) order by n.at desc offset p_limit - 1 limit 1);
            end if;
        end if;
    end loop;
    return query
    select x.run_id, x.document_id, x.since,
        (p_error is null or (select r.error ilike '%' || p_error || '%' from krai_core.stage_runs r where r.id = x.run_id))
        -- Of several runs of a document only the newest: the others come behind it. Before the first page there is none.
        and x.place = 1
        and (cardinality(p_stages) = 1 and p_stages[1] is not null or p_at = 'infinity' or not exists (
            select from krai_core.stage_runs o
            where o.document_id = x.document_id and (o.status = 'running' or o.is_current or o.status = 'ready' and o.retry_at is null)
              and (p_fingerprint is null or o.error_fingerprint = p_fingerprint)
              and (case o.status when 'ready' then o.available_at when 'running' then o.started_at else o.finished_at end, o.id) > (x.since, x.run_id)
              and exists (
                  select from unnest(p_stages, p_kinds) as source (stage_name, kind) where (source.stage_name is null or source.stage_name = o.stage_name)
                    and source.kind = case o.status when 'ready' then 'ready' when 'running' then 'processing' else krai_core._state_of_run(o.status) end)))
        and (p_pending is null or 'pending' = (
            select krai_core._stage_state(d.stage_status -> p_pending) from krai_core.documents d where d.id = x.document_id))
    from (
        select page.*, row_number() over (partition by page.document_id order by page.since desc, page.run_id desc) as place
        from (
            select n.* from unnest(v_ids, v_documents, v_since) as n (run_id, document_id, since)
            order by n.since desc, n.run_id desc
            limit p_limit
        ) page
    ) x
    order by x.since desc, x.run_id desc;
end;
$$;
comment on function krai_core._page_of_runs(text[], text[], text, timestamptz, bigint, integer, text, bigint) is
'The newest p_limit runs behind a place, and which of them are to be listed. p_stages, p_kinds: the sources, pair by pair, as for _newest_runs. p_pending: only documents that are pending in that stage.';

do $make$
begin
    execute format($f$
create or replace function krai_core._listed(p_run_ids bigint[], p_stage_name text, p_with_run boolean) returns jsonb
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_memoize = off
set jit = off
as $$
begin
    return coalesce((
        select jsonb_agg(jsonb_build_object(
            'document_id', d.id, 'filename', d.filename, 'status', o.document_status, 'current_stage', o.current_stage,
            'progress', trim_scale(o.progress_percentage), 'stage_name', coalesce(p_stage_name, r.stage_name),
            'stage', case when x.stage ->> 'status' in ('pending', 'processing', 'completed', 'failed', 'skipped') then x.stage
                else krai_core._repaired_stage(x.stage) end,
            'run', case when p_with_run or r.stage_name = p_stage_name then jsonb_build_object('status', r.status, 'attempt', r.attempt, 'worker', r.worker,
                'error', left(r.error, 4000), 'since', krai_core._iso(case r.status when 'ready' then r.available_at when 'running' then r.started_at else r.finished_at end))
            end) order by asked.place)
        from unnest(p_run_ids) with ordinality as asked (id, place)
        join krai_core.stage_runs r on r.id = any (array[asked.id])
        join krai_core.documents d on d.id = any (array[r.document_id])
        -- Unpacked once, as for the view of the documents.
        cross join lateral (select d.stage_status || '{}' as whole offset 0) w
        cross join lateral (
            %s
        ) o
        cross join lateral (select w.whole -> coalesce(p_stage_name, r.stage_name) as stage offset 0) x), '[]');
end;
$$$f$, krai_core._sql_document_state('w.whole'));
end $make$;
comment on function krai_core._listed(bigint[], text, boolean) is
'The documents of runs as list_documents gives them. p_stage_name: the stage to show, null for that of the run. p_with_run: the run is shown, whichever stage it is of.';

create or replace function krai_core.list_documents(
    p_stage_name text default null,
    p_status text default null,
    p_limit integer default 50,
    p_after text default null,
    p_error text default null,
    p_fingerprint text default null
) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
    v_status text := coalesce(p_status, case when coalesce(p_error, p_fingerprint) is not null then 'failed' end);
    v_stages text[];
    v_kinds text[];
    v_pending text;
    v_place record := krai_core._cursor_of(p_after);
    v_page record;
    v_before text[];
    v_last_at timestamptz;
    v_last_id bigint;
    v_ids bigint[] := array[]::bigint[];
    v_seen integer := 0;
    v_asked integer;
    v_most integer := krai_core._checked_limit(p_limit, 1000);
    v_size integer;
begin
    if p_stage_name is not null then
        perform krai_core._stage_named(p_stage_name);
    end if;
    if v_status not in ('pending', 'processing', 'completed', 'failed', 'skipped') or p_stage_name is null and v_status not in ('processing', 'failed') then
        perform krai_core._raise('22023', 'invalid_status', format('%s is no status to list %s by', quote_literal(v_status),
                case when p_stage_name is null then 'documents of any stage' else 'documents' end), jsonb_build_object('status', v_status),
            case when p_stage_name is null then 'Name a stage; without one, failed and processing can be asked for, or nothing for all documents.'
                else 'Pass pending, processing, completed, failed or skipped, or null for all.' end);
    elsif coalesce(p_error, p_fingerprint) is not null and v_status <> 'failed' then
        perform krai_core._raise('22023', 'invalid_status', format('an error is asked for, and %s stages have none', v_status),
            jsonb_build_object('status', v_status), 'Pass failed, or no status.');
    elsif p_fingerprint !~ '^-?\d{1,19}$' or p_fingerprint::numeric not between -9223372036854775808 and 9223372036854775807 then
        perform krai_core._raise('22023', 'invalid_fingerprint', format('%s is no fingerprint', quote_literal(left(p_fingerprint, 100))), '{}',
            'Pass that of a group of get_failures.');
    end if;
    if v_status = 'pending' then
        v_pending := p_stage_name;
        v_before := krai_core._before(p_stage_name);
    end if;
    -- All documents: each has a run of the first of the stages that wait for nothing.
    select array_agg(s.name order by s.position), array_agg(kind.name order by s.position) into v_stages, v_kinds
    from krai_core.stages s
    cross join unnest(case when v_status = 'pending' and s.name = p_stage_name then array['ready'] when v_status = 'pending' then array['ready', 'processing', 'failed']
        when v_status is null then array['ready', 'processing', 'completed', 'failed', 'skipped'] else array[v_status] end) as kind (name)
    where case when v_status = 'pending' then s.name = any (v_before)
        when v_status is null then s.name = (select root.name from krai_core.stages root where root.enabled and root.waits_for = '{}' order by root.position limit 1)
        else s.enabled and p_stage_name is null or s.name = p_stage_name end;
    if p_stage_name is null and v_status = 'failed' then
        v_stages := array[null]::text[];
        v_kinds := array['failed'];
    end if;
    -- As many as will do: some are of a document that is there already, and few may bear the error.
    v_size := least(case when p_error is not null then v_most * 4 when cardinality(v_stages) > 1 then v_most * 3 / 2 else v_most end, 1000);
    while cardinality(v_ids) < v_most and v_seen < 2000 loop
        v_last_at := null;
        v_asked := v_seen + v_size;
        for v_page in
            select * from krai_core._page_of_runs(v_stages, v_kinds, v_pending, v_place.o_at, v_place.o_id, v_size, p_error, p_fingerprint::bigint)
        loop
            v_seen := v_seen + 1;
            v_last_at := v_page.since;
            v_last_id := v_page.run_id;
            if v_page.is_listed then
                v_ids := v_ids || v_page.run_id;
                exit when cardinality(v_ids) = v_most;
            end if;
        end loop;
        exit when v_last_at is null or v_seen < v_asked;
        v_place.o_at := v_last_at;
        v_place.o_id := v_last_id;
        v_size := least(v_size * case when p_error is not null then 1 else 3 end, 1000);
    end loop;
    return jsonb_build_object('documents', krai_core._listed(v_ids, p_stage_name, p_stage_name is null),
        'next', case when cardinality(v_ids) = v_most or v_seen >= 2000 then krai_core._iso(v_last_at) || ' ' || v_last_id end);
end;
$$;
comment on function krai_core.list_documents(text, text, integer, text, text, text) is
'Documents by stage and status, newest first, a page at a time: {"documents": [{document_id, filename, status, current_stage, progress, stage_name, stage, run}], "next": text or null}.
p_stage_name: null with failed or processing means any stage, a document once; null without a status means all documents. p_status: pending, processing, completed, failed or skipped; null: any. Newest: by when the stage came into that state; what is pending by when the newest of the stages before it became ready, began or failed. p_limit: 1 to 1000. p_after: the next of the page before. p_error: part of the error, letter case aside; % and _ as in LIKE. p_fingerprint: of a group of get_failures. A page that passes over 2,000 runs, for an error that few bear, ends there, shorter, with a next. stage: the seven keys of the stage; run: {status, attempt, worker, error, since} of the run that the stage stands on, null where it has none. Raises 22023 unknown_stage, invalid_status, invalid_limit, invalid_cursor or invalid_fingerprint.';

do $$
declare
    v_function regprocedure;
begin
    for v_function in
        select p.oid from pg_catalog.pg_proc p
        where p.pronamespace = 'krai_core'::regnamespace and p.proname = any (array[
            '_cursor_of', '_newest_runs', '_before', '_page_of_runs', '_listed', 'list_documents'])
    loop
        execute format('revoke execute on function %s from public, anon, authenticated', v_function);
        execute format('grant execute on function %s to service_role', v_function);
    end loop;
end $$;

commit;
