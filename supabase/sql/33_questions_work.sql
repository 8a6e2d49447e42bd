-- Questions about work: what runs, what is stuck, what failed, and what is ready.
--
--   running_stages             the rows of vw_running_stages (views: 50_questions_views)
--   get_workers                who is running what
--   get_stuck_stages           stalled, slow and starved, told apart
--   get_failures               failed stages, grouped by kind of error; failure_kinds finds the groups
--   get_documents_ready_for    the queue of a stage, in order, without claiming
--
-- Rules
--   * Stalled: the lease has expired, so the worker is dead or cut off. Slow: alive, and running longer than 95 % of
--     the completed runs of its stage, of which there are at least five. Starved: ready, and nobody claims.
--   * The remaining time of a running stage is extrapolated from its progress, or from units in its metadata
--     (<x>_processed and total_<x>); else from the durations of its stage that exceed the elapsed time. Below five
--     durations it is unknown.
--   * For service_role. Nothing here locks or writes.

create or replace function krai_private.running_stages(p_document_id uuid default null, p_stuck boolean default false)
returns table (
    document_id uuid,
    filename text,
    stage_name text,
    worker text,
    attempt integer,
    started_at timestamptz,
    running_seconds numeric,
    heartbeat_at timestamptz,
    lease_expires_at timestamptz,
    progress numeric,
    metadata jsonb,
    condition text,
    remaining_p50_seconds numeric,
    remaining_p90_seconds numeric,
    estimated_from text)
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
    v_now timestamptz := clock_timestamp();
begin
    return query
    with histograms as materialized (
        select h.*, krai_private.quantile_us(h.buckets, h.upto, h.timed * 0.95) as p95,
            case when h.timed >= 5 then
                krai_private.quantile_us(h.buckets, h.upto, h.timed * 0.9)
                / greatest(krai_private.quantile_us(h.buckets, h.upto, h.timed * 0.5), 1) end as spread
        from krai_private.histograms(case when p_document_id is not null then array(
            select r.stage_name from krai_core.stage_runs r
            where r.document_id = p_document_id and r.open_stage is not null and r.status = 'running') end) h
    ),
    running as (
        -- Two queries for two indexes: all running runs (stage_name > '' makes the planner take it), or a document's.
        select r.* from krai_core.stage_runs r
        where p_document_id is null and r.status = 'running' and r.stage_name > ''
        union all
        select r.* from krai_core.stage_runs r
        where r.document_id = p_document_id and r.open_stage is not null and r.status = 'running'
    )
    -- Seconds from whole microseconds: a floating point number becomes numeric by way of text.
    select r.document_id, d.filename::text, r.stage_name, r.worker, r.attempt, r.started_at,
        r.elapsed_us::bigint * 0.000001, r.heartbeat_at, r.lease_expires_at,
        case when jsonb_typeof(x.progress) = 'number' then (x.progress #>> '{}')::numeric end, x.metadata,
        case
            when r.lease_expires_at <= v_now then 'stalled'
            when r.timed >= 5 and r.elapsed_us > r.p95 then 'slow'
            else 'working' end,
        -- p50: at its own rate so far. p90: more, by the spread of the stage, which matters less the more is done.
        coalesce(r.elapsed_us / y.share * (1 - y.share), z.o_p50)::bigint * 0.000001,
        coalesce(
            r.elapsed_us / y.share * (1 - y.share) * (1 + (coalesce(r.spread, 2) - 1) * (1 - y.share)),
            z.o_p90)::bigint * 0.000001,
        case
            when y.share is not null and x.by_progress then 'progress'
            when y.share is not null then 'units'
            when z.o_p50 is not null then 'durations'
            else 'unknown' end
    from (
        -- Filtered before the documents are read.
        select r.document_id, r.stage_name, r.worker, r.attempt, r.started_at, r.heartbeat_at, r.lease_expires_at,
            e.elapsed_us,
            h.timed, h.p95, h.spread, h.buckets, h.upto
        from running r
        cross join lateral (
            select greatest(extract(epoch from v_now - r.started_at) * 1e6, 1)::double precision as elapsed_us
            offset 0) e
        left join histograms h on h.stage_name = r.stage_name
        where not p_stuck or r.lease_expires_at <= v_now or h.timed >= 5 and e.elapsed_us > h.p95
        offset 0
    ) r
    join krai_core.documents d on d.id = any (array[r.document_id])
    cross join lateral (
        -- Detoasted once.
        select s.stage -> 'metadata' as metadata, s.stage -> 'progress' as progress,
            jsonb_typeof(s.stage -> 'progress') = 'number'
                and s.stage -> 'progress' > '0' and s.stage -> 'progress' <= '100' as by_progress
        from (select d.stage_status -> r.stage_name as stage offset 0) s offset 0) x
    cross join lateral (
        select case when x.by_progress then (x.progress #>> '{}')::double precision / 100 when x.metadata <> '{}' then (
            -- Units as most stages report them: <x>_processed of total_<x>.
            select (done.value #>> '{}')::double precision / (total.value #>> '{}')::double precision
            from jsonb_each(case when jsonb_typeof(x.metadata) = 'object' then x.metadata else '{}' end)
                as done (key, value)
            cross join lateral (select x.metadata -> ('total_' || left(done.key, -10)) as value offset 0) total
            where right(done.key, 10) = '_processed' and length(done.key) > 10
              and jsonb_typeof(done.value) = 'number' and jsonb_typeof(total.value) = 'number'
              and done.value > '0' and total.value >= done.value and total.value < '1e15'
            order by done.key limit 1) end as share offset 0) y
    left join lateral (
        select m.o_p50, m.o_p90 from krai_private.remaining_us(r.buckets, r.upto, r.elapsed_us) m
        where y.share is null and r.timed >= 5 offset 0) z on true;
end;
$$;
comment on function krai_private.running_stages(uuid, boolean) is
'The rows of vw_running_stages, of one document or (null) of all. p_stuck: only those that are stalled or slow.';

create or replace function krai_core.get_workers() returns jsonb
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
    v_now timestamptz := clock_timestamp();
begin
    return coalesce((
        select jsonb_agg(jsonb_build_object(
            'worker', w.worker, 'running', w.running, 'stalled', w.stalled, 'stages', w.stages,
            'oldest_started_at', krai_private.iso_time(w.oldest),
            'last_heartbeat_at', krai_private.iso_time(w.last)) order by w.worker nulls last)
        from (
            select x.worker, sum(x.running) as running, sum(x.stalled) as stalled,
                jsonb_object_agg(x.stage_name, x.running) as stages, min(x.oldest) as oldest, max(x.last) as last
            from (
                select r.worker, r.stage_name, count(*) as running,
                    count(*) filter (where r.lease_expires_at <= v_now) as stalled,
                    min(r.started_at) as oldest, max(r.heartbeat_at) as last
                from krai_core.stage_runs r where r.status = 'running' group by r.worker, r.stage_name
            ) x
            group by x.worker
        ) w), '[]');
end;
$$;
comment on function krai_core.get_workers() is
'Who is running what, ordered by name of the worker.
Returns [{worker, running, stalled, stages: {"<stage>": n}, oldest_started_at, last_heartbeat_at}].
worker: null for runs whose worker gave no name. running: runs that it holds. stalled: those whose lease has expired.
For the documents see vw_running_stages. Times: ISO 8601, UTC. For service_role: others get 42501.';

create or replace function krai_core.get_stuck_stages(
    p_limit integer default 100,
    p_starved_after_seconds numeric default 60
) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_starved jsonb;
begin
    perform krai_private.checked_limit(p_limit, 1000);
    if p_starved_after_seconds is null or not p_starved_after_seconds between 0 and 1e9 then
        perform krai_private.raise_error('invalid_age',
            format('%s is no number of seconds to wait', coalesce(p_starved_after_seconds::text, 'null')),
            '{}', 'Pass 0 or more.');
    end if;
    select coalesce(jsonb_agg(jsonb_build_object(
        'stage_name', x.name, 'oldest_ready_at', krai_private.iso_time(x.oldest),
        'waiting_seconds', trim_scale(round(extract(epoch from v_now - x.oldest), 6)),
        'is_paused', x.paused) order by x.position), '[]')
    into v_starved
    from (
        select s.name, s.position, s.paused, krai_private.oldest_ready(s.name) as oldest
        from krai_core.stages s where s.enabled offset 0
    ) x
    where x.oldest <= v_now - make_interval(secs => p_starved_after_seconds::double precision)
      -- A worker with a live run of the stage will come back for more.
      and not exists (
          select from krai_core.stage_runs r
          where r.stage_name = x.name and r.status = 'running' and r.lease_expires_at > v_now);
    -- One to_jsonb of rows: see documents_json.
    return (
        with stuck as materialized (
            select * from krai_private.running_stages(null, true)
        )
        select to_jsonb(answer) from (select
            array(
                select x from (
                    select * from stuck r where r.condition = 'stalled' order by r.lease_expires_at limit p_limit) x
            ) as stalled,
            array(
                select x from (
                    select * from stuck r where r.condition = 'slow' order by r.started_at limit p_limit) x
            ) as slow,
            v_starved as starved) answer);
end;
$$;
comment on function krai_core.get_stuck_stages(integer, numeric) is
'Stuck stages by kind: {"stalled": [...], "slow": [...], "starved": [...]}.
stalled: running with an expired lease, the longest expired first. slow: alive, but running longer than 95 % of the
completed runs of the stage, the longest running first. Both as rows of vw_running_stages, at most p_limit each.
starved: {stage_name, oldest_ready_at, waiting_seconds, is_paused} of stages that have had a due run for
p_starved_after_seconds while nobody runs any. For service_role: others get 42501.
p_limit: 1 to 1000. p_starved_after_seconds: 0 or more. Raises 22023 invalid_limit or invalid_age.';

create or replace function krai_private.failure_kinds(p_stage_name text, p_since timestamptz)
returns table (count bigint, first_at timestamptz, last_at timestamptz, max_attempt integer, sample_id bigint)
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
begin
    if p_stage_name is null then
        -- Grouped by one number for stage and kind, which is in the index: comparing names takes longer than reading
        -- the rows.
        return query
        select count(*), min(n.finished_at), max(n.finished_at), max(n.attempt), max(n.id)
        from (
            select coalesce(r.error_fingerprint, 0) # hashtextextended(r.stage_name, 0) as kind,
                r.finished_at, r.attempt, r.id
            from krai_core.stage_runs r
            where r.is_current and r.status in ('failed', 'lost') and r.id > 0 and r.finished_at >= p_since
            order by r.finished_at desc limit 10000
        ) n
        group by n.kind;
    else
        return query
        select count(*), min(n.finished_at), max(n.finished_at), max(n.attempt), max(n.id)
        from (
            select r.error_fingerprint as kind, r.finished_at, r.attempt, r.id
            from krai_core.stage_runs r
            where r.stage_name = p_stage_name and r.is_current and r.status in ('failed', 'lost')
              and r.finished_at >= p_since
            order by r.finished_at desc limit 10000
        ) n
        group by n.kind;
    end if;
end;
$$;
comment on function krai_private.failure_kinds(text, timestamptz) is
'The newest 10,000 failures since p_since, grouped by stage and kind of error; p_stage_name: null for all.
Per group: how many, first and last, the highest attempt, and the run of the newest.';

create or replace function krai_core.get_failures(
    p_stage_name text default null,
    p_since timestamptz default null,
    p_limit integer default 50
) returns jsonb
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
begin
    perform krai_private.checked_limit(p_limit, 1000);
    if p_stage_name is not null then
        perform krai_private.check_stage(p_stage_name);
    end if;
    return (
        with kinds as materialized (
            select * from krai_private.failure_kinds(p_stage_name, coalesce(p_since, '-infinity'))
        ),
        groups as materialized (
            select k.*, r.stage_name, r.error_fingerprint, r.document_id, r.attempt, r.error,
                -- The pattern of a kind of error is computed from one of its errors.
                row_number() over (partition by r.error_fingerprint) = 1 as is_for_kind
            from (select * from kinds k order by k.count desc, k.last_at desc limit p_limit) k
            join krai_core.stage_runs r on r.id = any (array[k.sample_id])
        ),
        folded as materialized (
            select g.error_fingerprint, krai_private.error_pattern(g.error) as error from groups g where g.is_for_kind
        )
        -- One to_jsonb of rows: see documents_json.
        select to_jsonb(answer) from (select array(
            select shown from (
                select g.stage_name, g.error_fingerprint::text as fingerprint, g.count,
                    krai_private.iso_time(g.first_at) as first_at, krai_private.iso_time(g.last_at) as last_at,
                    g.max_attempt, coalesce(f.error, krai_private.error_pattern(g.error)) as error,
                    (select example from (
                        select g.document_id, g.attempt, krai_private.short_error(g.error) as error) example) as sample
                from groups g left join folded f on f.error_fingerprint = g.error_fingerprint
                order by g.count desc, g.last_at desc) shown) as groups,
            (select coalesce(sum(k.count), 0) from kinds k) as looked_at,
            (select coalesce(sum(k.count), 0) < 10000 from kinds k) as is_all) answer);
end;
$$;
comment on function krai_core.get_failures(text, timestamptz, integer) is
'Failed stages grouped by the kind of their error, the most frequent first.
{"groups": [{stage_name, fingerprint, count, first_at, last_at, max_attempt, error, sample}], "looked_at", "is_all"}.
Counts the newest 10,000 of the stages that are failed now, including those that wait for a retry; looked_at: how many
that were; is_all: there are no more. error: without its ids, digits and paths; sample: {document_id, attempt, error}
of the newest. list_documents lists the documents of a fingerprint. Times: ISO 8601, UTC. For service_role.
p_stage_name: null for all. p_since: failed then or later. p_limit: groups, 1 to 1000.
Raises 22023 unknown_stage or invalid_limit.';

create or replace function krai_core.get_documents_ready_for(
    p_stage_name text,
    p_limit integer default 100,
    p_after text default null
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
declare
    v_stage krai_core.stages := krai_private.stage_named(p_stage_name);
    v_now timestamptz := clock_timestamp();
    v_after text[] := string_to_array(p_after, ' ');
    v_priority bigint := 2147483648;
    v_available_at timestamptz := 'infinity'::timestamptz;
    v_id bigint := 0;
    v_answer jsonb;
begin
    perform krai_private.checked_limit(p_limit, 1000);
    if p_after is not null then
        begin
            v_priority := v_after[1]::integer;
            v_available_at := v_after[2]::timestamptz;
            v_id := v_after[3]::bigint;
        exception when data_exception then
            v_id := null;
        end;
        if v_priority is null or v_available_at is null or v_id is null then
            perform krai_private.raise_error('invalid_cursor',
                format('%s is no place in the queue', quote_literal(left(p_after, 100))),
                '{}', 'Pass what the call before returned as next, or null for the beginning.');
        end if;
    end if;
    if v_stage.paused or not v_stage.enabled then
        return '{"documents": [], "next": null}'::jsonb;
    end if;
    -- The rest of the priority level that the last page ended in, then the levels below: each is a range of the index.
    with page as materialized (
        (select r.id, r.document_id, r.priority, r.available_at from krai_core.stage_runs r
         where r.stage_name = p_stage_name and r.status = 'ready' and r.priority = v_priority
           and (r.available_at, r.id) > (v_available_at, v_id) and r.available_at <= v_now
         order by r.available_at, r.id limit p_limit)
        union all
        (select r.id, r.document_id, r.priority, r.available_at from krai_core.stage_runs r
         where r.stage_name = p_stage_name and r.status = 'ready'
           and r.priority < v_priority and r.available_at <= v_now
         order by r.priority desc, r.available_at, r.id limit p_limit)
        limit p_limit
    )
    -- One to_jsonb of nested rows: see documents_json.
    select to_jsonb(answer) into v_answer
    from (select array(
            select d from page p join krai_core.documents d on d.id = any (array[p.document_id])
            order by p.priority desc, p.available_at, p.id) as documents, (
            select case when count(*) over () = p_limit then
                format('%s %s %s', p.priority, krai_private.iso_time(p.available_at), p.id) end
            from page p order by p.priority, p.available_at desc, p.id desc limit 1) as next) answer;
    return v_answer;
end;
$$;
comment on function krai_core.get_documents_ready_for(text, integer, text) is
'The documents whose stage would be claimed now, in queue order, without claiming any.
Returns {"documents": [whole rows as objects], "next": text or null}. A paused or disabled stage has none.
p_limit: 1 to 1000. p_after: the next of the previous page, null for the first page.
Raises 22023 unknown_stage, invalid_limit or invalid_cursor.';
