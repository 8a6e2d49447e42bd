-- Lists of documents: by stage and status, newest first, a page at a time.
--
--   list_documents    the public function
--   list_cursor, newest_runs, upstream_stages, merged_runs, page_of_runs, documents_json    its steps, in this order
--
-- Words: a source is a pair of stage and kind of run whose newest runs one index range yields; merged_runs merges them.
--
-- Rules
--   * A page costs as much as it is long, at any depth and with any number of documents: it is read from the indexes of
--     the runs that the stages stand on. A stage in a given state has one such run (see stage_runs.is_current).
--   * A pending stage has no run of its own unless it is ready. It is found through the stages before it that are
--     ready, running or failed; the document is listed under the newest of those.
--   * The cursor is the time and the run that the previous page ended with. A document that changes meanwhile appears
--     on at most one page.
--   * For service_role. Nothing here locks or writes.

create or replace function krai_private.list_cursor(p_after text, out o_at timestamptz, out o_id bigint)
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
            perform krai_private.raise_error('invalid_cursor',
                format('%s is no place in a list', quote_literal(left(p_after, 100))),
                '{}', 'Pass what the call before returned as next, or null for the beginning.');
        end;
    end if;
end;
$$;
comment on function krai_private.list_cursor(text) is
'The place in a list after which a page continues; raises 22023 invalid_cursor.';

-- Reads one range of one index per source. Each kind has its own query, because the planner uses a partial index only
-- where its condition is written out. The caller sets the planner options.
create or replace function krai_private.newest_runs(
    p_kind text,
    p_stages text[],
    p_sources integer[],
    p_since timestamptz,
    p_at timestamptz[],
    p_id bigint[],
    p_limit integer,
    p_fingerprint bigint)
returns table (source integer, run_id bigint, document_id uuid, since timestamptz)
language plpgsql stable
set search_path = ''
as $$
begin
    if p_kind = 'completed' then
        return query select u.source, x.* from unnest(p_sources) as u (source) cross join lateral (
            select r.id, r.document_id, r.finished_at from krai_core.stage_runs r
            where r.stage_name = p_stages[u.source] and r.is_current and r.status = 'completed'
              and r.finished_at between p_since and p_at[u.source]
              and (r.finished_at, r.id) < (p_at[u.source], p_id[u.source])
            order by r.finished_at desc, r.id desc limit p_limit) x;
    elsif p_kind = 'skipped' then
        return query select u.source, x.* from unnest(p_sources) as u (source) cross join lateral (
            select r.id, r.document_id, r.finished_at from krai_core.stage_runs r
            where r.stage_name = p_stages[u.source] and r.is_current and r.status in ('skipped', 'cancelled')
              and r.finished_at between p_since and p_at[u.source]
              and (r.finished_at, r.id) < (p_at[u.source], p_id[u.source])
            order by r.finished_at desc, r.id desc limit p_limit) x;
    elsif p_kind = 'failed' and p_fingerprint is not null then
        return query select p_sources[1], r.id, r.document_id, r.finished_at from krai_core.stage_runs r
        where r.error_fingerprint = p_fingerprint and r.is_current and r.status in ('failed', 'lost')
          and r.finished_at between p_since and p_at[1]
          and (r.finished_at, r.id) < (p_at[1], p_id[1])
          and (p_stages[1] is null or r.stage_name = p_stages[1])
        order by r.finished_at desc, r.id desc limit p_limit;
    elsif p_kind = 'failed' and p_stages[1] is null then
        return query select p_sources[1], r.id, r.document_id, r.finished_at from krai_core.stage_runs r
        where r.id > 0 and r.is_current and r.status in ('failed', 'lost') and r.finished_at between p_since and p_at[1]
          and (r.finished_at, r.id) < (p_at[1], p_id[1])
        order by r.finished_at desc, r.id desc limit p_limit;
    elsif p_kind = 'failed' then
        return query select u.source, x.* from unnest(p_sources) as u (source) cross join lateral (
            select r.id, r.document_id, r.finished_at from krai_core.stage_runs r
            where r.stage_name = p_stages[u.source] and r.is_current and r.status in ('failed', 'lost')
              and r.finished_at between p_since and p_at[u.source]
              and (r.finished_at, r.id) < (p_at[u.source], p_id[u.source])
            order by r.finished_at desc, r.id desc limit p_limit) x;
    elsif p_kind = 'processing' then
        return query select u.source, x.* from unnest(p_sources) as u (source) cross join lateral (
            select r.id, r.document_id, r.started_at from krai_core.stage_runs r
            where r.stage_name = p_stages[u.source] and r.status = 'running' and r.started_at >= p_since
              and (r.started_at, r.id) < (p_at[u.source], p_id[u.source])
            order by r.started_at desc, r.id desc limit p_limit) x;
    else
        -- Ready: newest first within each priority level, then all levels of a stage together. A failed stage that
        -- waits for its retry is not pending.
        return query
        with recursive levels (source, priority) as (
            select u.source, (select r.priority from krai_core.stage_runs r
                where r.stage_name = p_stages[u.source] and r.status = 'ready' order by r.priority desc limit 1)
            from unnest(p_sources) as u (source)
            union all
            select l.source, (select r.priority from krai_core.stage_runs r
                where r.stage_name = p_stages[l.source] and r.status = 'ready' and r.priority < l.priority
                order by r.priority desc limit 1)
            from levels l where l.priority is not null
        )
        select y.source, y.id, y.document_id, y.available_at
        from (
            select l.source, x.*,
                row_number() over (partition by l.source order by x.available_at desc, x.id desc) as place
            from levels l
            cross join lateral (
                select r.id, r.document_id, r.available_at from krai_core.stage_runs r
                where r.stage_name = p_stages[l.source] and r.status = 'ready' and r.priority = l.priority
                  and r.available_at >= p_since
                  and (r.available_at, r.id) < (p_at[l.source], p_id[l.source]) and r.retry_at is null
                order by r.stage_name desc, r.priority, r.available_at desc, r.id desc limit p_limit) x
        ) y
        where y.place <= p_limit;
    end if;
end;
$$;
comment on function krai_private.newest_runs(
    text, text[], integer[], timestamptz, timestamptz[], bigint[], integer, bigint) is
'The newest runs of one kind (ready, processing, completed, failed, skipped) of each source.
Source, run, document and since when; from p_since on and behind the place (p_at, p_id), at most p_limit per source.
p_sources: indexes into p_stages, p_at and p_id. For failed runs a single source may have a null stage, which means
any, and p_fingerprint restricts them to one kind of error.';

create or replace function krai_private.upstream_stages(p_stage_name text) returns text[]
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
comment on function krai_private.upstream_stages(text) is
'A stage and every enabled stage that must finish before it.';

create or replace function krai_private.merged_runs(
    p_stages text[], p_kinds text[], p_at timestamptz, p_id bigint, p_limit integer, p_fingerprint bigint,
    out o_runs bigint[], out o_documents uuid[], out o_since timestamptz[], out o_are_newest boolean[])
language plpgsql stable
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
    v_count integer := cardinality(p_stages);
    -- With several sources, read a few runs of each first; the rest only of those that may fill the page.
    v_part integer := case when v_count = 1 then p_limit else least(p_limit, greatest(2 * p_limit / v_count, 8)) end;
    v_open integer[] := array(select generate_series(1, v_count));
    v_at timestamptz[] := array_fill(p_at, array[v_count]);
    v_id bigint[] := array_fill(p_id, array[v_count]);
    v_kind text;
    v_asked integer[];
    v_found record;
    v_sources integer[] := '{}'::integer[];
    v_runs bigint[] := '{}'::bigint[];
    v_documents uuid[] := '{}'::uuid[];
    v_since timestamptz[] := '{}'::timestamptz[];
    -- Runs older than the p_limit newest found so far are not on the page.
    v_floor timestamptz := '-infinity'::timestamptz;
begin
    while v_open <> '{}' loop
        -- Running runs are newer than most others: reading them first raises the floor, which spares the rest.
        foreach v_kind in array array['processing', 'ready', 'completed', 'failed', 'skipped'] loop
            v_asked := array(select source from unnest(v_open) as source where p_kinds[source] = v_kind);
            continue when v_asked = '{}';
            select array_agg(n.source) as sources, array_agg(n.run_id) as runs,
                array_agg(n.document_id) as documents, array_agg(n.since) as since
            into v_found
            from krai_private.newest_runs(v_kind, p_stages, v_asked, v_floor, v_at, v_id, v_part, p_fingerprint) n;
            continue when v_found.runs is null;
            v_sources := v_sources || v_found.sources;
            v_runs := v_runs || v_found.runs;
            v_documents := v_documents || v_found.documents;
            v_since := v_since || v_found.since;
            if v_count > 1 and cardinality(v_runs) >= p_limit then
                v_floor := (select n.at from unnest(v_since) as n (at) order by n.at desc offset p_limit - 1 limit 1);
            end if;
        end loop;
        v_open := '{}';
        exit when v_part = p_limit;
        for v_found in
            select n.source, min(n.since) as at, (array_agg(n.run_id order by n.since, n.run_id))[1] as id
            from unnest(v_sources, v_runs, v_since) as n (source, run_id, since)
            group by n.source having count(*) = v_part and min(n.since) >= v_floor
        loop
            v_open := v_open || v_found.source;
            v_at[v_found.source] := v_found.at;
            v_id[v_found.source] := v_found.id;
        end loop;
        v_part := p_limit;
    end loop;
    -- A document is listed at its newest run on the page; its older runs are marked as such.
    select array_agg(x.run_id order by x.since desc, x.run_id desc),
        array_agg(x.document_id order by x.since desc, x.run_id desc),
        array_agg(x.since order by x.since desc, x.run_id desc),
        array_agg(x.place = 1 order by x.since desc, x.run_id desc)
    into o_runs, o_documents, o_since, o_are_newest
    from (
        select page.*,
            row_number() over (partition by page.document_id order by page.since desc, page.run_id desc) as place
        from (
            select n.* from unnest(v_runs, v_documents, v_since) as n (run_id, document_id, since)
            order by n.since desc, n.run_id desc
            limit p_limit
        ) page
    ) x;
end;
$$;
comment on function krai_private.merged_runs(text[], text[], timestamptz, bigint, integer, bigint) is
'The newest p_limit runs of all sources after a cursor, newest first, and whether each is the newest of its document.
p_stages, p_kinds: the sources, pairwise. p_at, p_id: the cursor. Of a document only runs in this answer are compared.';

create or replace function krai_private.page_of_runs(
    p_stages text[],
    p_kinds text[],
    p_pending text,
    p_at timestamptz,
    p_id bigint,
    p_limit integer,
    p_error text,
    p_fingerprint bigint,
    p_most integer,
    out o_runs bigint[], out o_seen integer, out o_last_at timestamptz, out o_last_id bigint)
language plpgsql stable
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
    v_page record := krai_private.merged_runs(p_stages, p_kinds, p_at, p_id, p_limit, p_fingerprint);
    -- After the first page a document may have been listed already, at a newer run of another stage; within one stage
    -- there is only one run to list it at.
    v_may_be_before boolean := p_at < 'infinity' and (p_stages[1] is null or p_stages[1] <> any (p_stages));
    v_any_closed boolean := p_kinds && array['completed', 'failed', 'skipped'];
    v_listed record;
begin
    -- Already in the order of the page: a sort would keep the scan from ending early.
    select array_agg(x.run_id) as runs, max(x.n) as last into v_listed
    from (
        select c.run_id, c.n
        from unnest(v_page.o_runs, v_page.o_documents, v_page.o_since, v_page.o_are_newest) with ordinality
            as c (run_id, document_id, since, is_newest, n)
        left join lateral (
            select krai_private.stage_state(d.stage_status -> p_pending) as state,
                d.stage_status @? '$.* ? (@.status == "failed")' as any_failed
            from krai_core.documents d where p_pending is not null and d.id = c.document_id offset 0) d on true
        where c.is_newest
          and (p_pending is null or d.state = 'pending')
          and (p_error is null or (
              select r.error ilike '%' || p_error || '%' from krai_core.stage_runs r where r.id = c.run_id))
          and (not v_may_be_before or not exists (
              select from (
                  select * from krai_core.stage_runs r where r.document_id = c.document_id and r.open_stage is not null
                  union all
                  -- Of closed runs only failures keep a document pending, and most documents have none.
                  select * from krai_core.stage_runs r
                  where v_any_closed and (p_pending is null or d.any_failed)
                    and r.document_id = c.document_id and r.is_current
              ) o
              where (o.status = 'running' or o.is_current or o.status = 'ready' and o.retry_at is null)
                and (p_fingerprint is null or o.error_fingerprint = p_fingerprint)
                and (case o.status
                        when 'ready' then o.available_at
                        when 'running' then o.started_at
                        else o.finished_at end, o.id) > (c.since, c.run_id)
                and exists (
                    select from unnest(p_stages, p_kinds) as source (stage_name, kind)
                    where (source.stage_name is null or source.stage_name = o.stage_name)
                      and source.kind = case o.status
                          when 'ready' then 'ready'
                          when 'running' then 'processing'
                          else krai_private.state_of_run(o.status) end)))
        limit p_most
    ) x;
    o_runs := coalesce(v_listed.runs, '{}');
    o_seen := case
        when cardinality(o_runs) = p_most then v_listed.last
        else coalesce(cardinality(v_page.o_runs), 0) end;
    o_last_at := v_page.o_since[o_seen];
    o_last_id := v_page.o_runs[o_seen];
end;
$$;
comment on function krai_private.page_of_runs(
    text[], text[], text, timestamptz, bigint, integer, text, bigint, integer) is
'Of the p_limit runs after a cursor, the first p_most to list; and how many were read, with the place of the last.
p_stages, p_kinds: the sources, as for merged_runs. p_pending: only documents whose stage of that name is pending.';

create or replace function krai_private.documents_json(
    p_runs bigint[],
    p_stage_name text,
    p_with_run boolean,
    p_next text
) returns jsonb
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
begin
    -- One to_jsonb of nested rows: each level of jsonb_build_object and jsonb_agg would copy everything in it again.
    return (select to_jsonb(answer) from (select p_next as next, array(
        select listed from (
            select v.id as document_id, v.filename, v.document_status as status, v.current_stage,
                trim_scale(v.progress_percentage) as progress, coalesce(p_stage_name, r.stage_name) as stage_name,
                case when x.stage ->> 'status' in ('pending', 'processing', 'completed', 'failed', 'skipped')
                    then x.stage
                    else krai_private.repaired_stage(x.stage) end as stage,
                case when p_with_run or r.stage_name = p_stage_name then (
                    select shown from (
                        select r.status, r.attempt, r.worker, left(r.error, 4000) as error,
                            krai_private.iso_time(case r.status
                                when 'ready' then r.available_at
                                when 'running' then r.started_at
                                else r.finished_at end) as since
                    ) shown) end as run
            from unnest(p_runs) with ordinality as asked (run, place)
            join krai_core.stage_runs r on r.id = any (array[asked.run])
            join krai_private.unpacked_documents v on v.id = any (array[r.document_id])
            cross join lateral (select v.whole -> coalesce(p_stage_name, r.stage_name) as stage offset 0) x
            order by asked.place
        ) listed) as documents) answer);
end;
$$;
comment on function krai_private.documents_json(bigint[], text, boolean, text) is
'The answer of list_documents: the documents of these runs, in the given order, and next.
p_stage_name: the stage to show; null: that of the run. p_with_run: show the run, whatever its stage.';

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
    v_place record := krai_private.list_cursor(p_after);
    v_page record;
    v_before text[];
    v_runs bigint[] := '{}'::bigint[];
    v_seen integer := 0;
    v_most integer := krai_private.checked_limit(p_limit, 1000);
    v_size integer;
begin
    if p_stage_name is not null then
        perform krai_private.check_stage(p_stage_name);
    end if;
    if v_status not in ('pending', 'processing', 'completed', 'failed', 'skipped')
        or p_stage_name is null and v_status not in ('processing', 'failed') then
        perform krai_private.raise_error('invalid_status',
            format('%s is no status to list %s by', quote_literal(v_status),
                case when p_stage_name is null then 'documents of any stage' else 'documents' end),
            jsonb_build_object('status', v_status),
            case when p_stage_name is null
                then 'Name a stage; without one, pass failed or processing, or no status for all documents.'
                else 'Pass pending, processing, completed, failed or skipped, or null for all.' end);
    elsif coalesce(p_error, p_fingerprint) is not null and v_status <> 'failed' then
        perform krai_private.raise_error('invalid_status',
            format('an error is asked for, and %s stages have none', v_status),
            jsonb_build_object('status', v_status), 'Pass failed, or no status.');
    elsif p_fingerprint !~ '^-?\d{1,19}$'
        or p_fingerprint::numeric not between -9223372036854775808 and 9223372036854775807 then
        perform krai_private.raise_error('invalid_fingerprint',
            format('%s is no fingerprint', quote_literal(left(p_fingerprint, 100))),
            '{}', 'Pass that of a group of get_failures.');
    end if;
    if v_status = 'pending' then
        v_pending := p_stage_name;
        v_before := krai_private.upstream_stages(p_stage_name);
    end if;
    -- All documents: each has a run of the first root of the pipeline, which waits for no other stage.
    select array_agg(s.name order by s.position), array_agg(kind.name order by s.position) into v_stages, v_kinds
    from krai_core.stages s
    cross join unnest(case
        when v_status = 'pending' and s.name = p_stage_name then array['ready']
        when v_status = 'pending' then array['ready', 'processing', 'failed']
        when v_status is null then array['ready', 'processing', 'completed', 'failed', 'skipped']
        else array[v_status] end) as kind (name)
    where case
        when v_status = 'pending' then s.name = any (v_before)
        when v_status is null then s.name = (
            select root.name from krai_core.stages root
            where root.enabled and root.waits_for = '{}' order by root.position limit 1)
        else s.enabled and p_stage_name is null or s.name = p_stage_name end;
    if p_stage_name is null and v_status = 'failed' then
        v_stages := array[null]::text[];
        v_kinds := array['failed'];
    end if;
    -- Over-fetch: duplicates of a document are dropped below, and few failures may contain p_error.
    v_size := least(case
        when p_error is not null then v_most * 4
        when v_stages[1] <> any (v_stages) then v_most * 3 / 2
        else v_most end, 1000);
    while cardinality(v_runs) < v_most and v_seen < 2000 loop
        v_page := krai_private.page_of_runs(v_stages, v_kinds, v_pending, v_place.o_at, v_place.o_id, v_size,
            p_error, p_fingerprint::bigint, v_most - cardinality(v_runs));
        exit when v_page.o_seen = 0;
        v_seen := v_seen + v_page.o_seen;
        v_runs := v_runs || v_page.o_runs;
        v_place.o_at := v_page.o_last_at;
        v_place.o_id := v_page.o_last_id;
        exit when v_page.o_seen < v_size;
        v_size := least(v_size * case when p_error is not null then 1 else 3 end, 1000);
    end loop;
    return krai_private.documents_json(v_runs, p_stage_name, p_stage_name is null,
        case when cardinality(v_runs) = v_most or v_seen >= 2000 then
            krai_private.iso_time(v_place.o_at) || ' ' || v_place.o_id end);
end;
$$;
comment on function krai_core.list_documents(text, text, integer, text, text, text) is
'Documents by stage and status, newest first, a page at a time.
{"documents": [{document_id, filename, status, current_stage, progress, stage_name, stage, run}], "next": text or null}.
Newest by when the stage entered the status; a pending one by when the newest of the stages before it became ready,
started or failed. stage: the seven keys of the stage. run: {status, attempt, worker, error, since} of the run that the
stage stands on, null where it has none. A search for a rare error ends after 2,000 runs, with a short page and a next.
p_stage_name: null with failed or processing means any stage, each document once; null without a status, all documents.
p_status: pending, processing, completed, failed or skipped; null: any. p_limit: 1 to 1000.
p_after: the next of the previous page. p_error: part of the error text, case-insensitive; % and _ as in LIKE.
p_fingerprint: of a group of get_failures.
Raises 22023 unknown_stage, invalid_status, invalid_limit, invalid_cursor or invalid_fingerprint.';
