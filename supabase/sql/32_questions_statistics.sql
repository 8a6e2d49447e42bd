-- Statistics of the stages, and the durations that estimates are made from.
--
--   get_stage_statistics     one JSON object per stage: counts, durations, waits, throughput
--   stage_statistics         the rows of vw_stage_statistics (views: 50_questions_views)
--   histograms, quantile_us, remaining_us    durations by bucket, for these and for the estimates
--   flow_since, oldest_ready
--
-- Rules
--   * Nothing here reads documents: every metric is a sum that the writers keep (stage_counters, stage_flow,
--     stage_deltas) or the end of an index. The cost does not grow with the number of documents.
--   * Pending = documents minus all other states. Disabled stages are not shown.
--   * Quantiles are interpolated within a bucket of 19 % width.
--   * For service_role: others get 42501, neither zeros nor the sums of other tenants.
--   * Nothing here locks or writes.

create or replace function krai_private.histograms(p_stages text[] default null)
returns table (stage_name text, timed double precision, buckets integer[], upto double precision[])
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
    return query
    select x.stage_name, max(x.upto), array_agg(x.bucket order by x.bucket), array_agg(x.upto order by x.bucket)
    from (
        -- Reads only what it needs of stage_sums, as floating point: exact for such counts, and summed in place where
        -- numeric allocates a new value for each sum.
        select k.stage_name, k.bucket::integer as bucket,
            sum(sum(k.timed)) over (partition by k.stage_name order by k.bucket) as upto
        from (
            select c.stage_name, c.bucket, c.timed::double precision as timed from krai_core.stage_counters c
            where c.bucket >= 0 and (p_stages is null or c.stage_name = any (p_stages))
            union all
            select d.stage_name, d.bucket, d.timed from krai_core.stage_deltas d
            where d.timed <> 0 and d.bucket >= 0 and (p_stages is null or d.stage_name = any (p_stages))
        ) k
        group by k.stage_name, k.bucket having sum(k.timed) > 0
    ) x
    group by x.stage_name;
end;
$$;
comment on function krai_private.histograms(text[]) is
'Histograms of the durations of stages, null for all.
Per stage: how many durations there are, the non-empty buckets, and the cumulative count up to the end of each.';

-- Here and below bucket_bounds() is a constant of the expression: each call would copy a variable.
create or replace function krai_private.quantile_us(
    p_buckets integer[],
    p_upto double precision[],
    p_rank double precision
) returns double precision
language plpgsql immutable parallel safe
set search_path = ''
as $$
declare
    -- A rank that equals the cumulative count of a bucket is the end of that bucket, not the start of the next.
    v_place integer := least(width_bucket(p_rank - 0.000001, p_upto) + 1, cardinality(p_upto));
    v_before double precision := case v_place when 1 then 0 else p_upto[v_place - 1] end;
    v_share double precision := least(greatest((p_rank - v_before) / (p_upto[v_place] - v_before), 0), 1);
    v_bucket integer := p_buckets[v_place];
begin
    return case
        when v_bucket = 0 then 1000 * v_share
        when v_bucket >= 141 then (krai_private.bucket_bounds())[141]
        else (krai_private.bucket_bounds())[v_bucket] * 1.189207115 ^ v_share end;
end;
$$;
comment on function krai_private.quantile_us(integer[], double precision[], double precision) is
'The duration in microseconds that p_rank durations of a histogram stay below.';

create or replace function krai_private.remaining_us(
    p_buckets integer[],
    p_upto double precision[],
    p_elapsed_us double precision,
    out o_p50 double precision,
    out o_p90 double precision)
language plpgsql immutable parallel safe
set search_path = ''
as $$
declare
    v_total double precision := p_upto[cardinality(p_upto)];
    v_bucket integer := width_bucket(p_elapsed_us::bigint, krai_private.bucket_bounds());
    v_place integer := width_bucket(v_bucket, p_buckets);
    v_before double precision := case when v_place < 2 then 0 else p_upto[v_place - 1] end;
    v_passed double precision;
begin
    -- How many were shorter than p_elapsed_us: all in the buckets below its bucket, and a share of those in it.
    v_passed := case
        when v_place = 0 then 0
        when p_buckets[v_place] < v_bucket then p_upto[v_place]
        when v_bucket = 0 then v_before + (p_upto[v_place] - v_before) * p_elapsed_us / 1000
        when v_bucket >= 141 then v_before
        else v_before + (p_upto[v_place] - v_before)
            * least(ln(p_elapsed_us / (krai_private.bucket_bounds())[v_bucket]) / ln(1.189207115), 1) end;
    if v_total - v_passed > 0.5 or p_elapsed_us <= 0 then
        o_p50 := greatest(
            krai_private.quantile_us(p_buckets, p_upto, v_passed + (v_total - v_passed) * 0.5) - p_elapsed_us, 0);
        o_p90 := greatest(
            krai_private.quantile_us(p_buckets, p_upto, v_passed + (v_total - v_passed) * 0.9) - p_elapsed_us, 0);
    end if;
end;
$$;
comment on function krai_private.remaining_us(integer[], double precision[], double precision) is
'What is left of a run after p_elapsed_us, in microseconds: median and 90 % quantile of the durations that were longer.
Null when none was.';

create or replace function krai_private.flow_since(p_since timestamptz)
returns table (
    stage_name text,
    arrived numeric,
    started numeric,
    retried numeric,
    completed numeric,
    failed numeric,
    skipped numeric,
    waited numeric,
    wait_us numeric,
    work_us numeric,
    first_hour timestamptz)
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
    return query
    select x.stage_name, sum(x.arrived), sum(x.started), sum(x.retried),
        sum(x.completed), sum(x.failed), sum(x.skipped), sum(x.waited), sum(x.wait_us), sum(x.work_us), min(x.hour)
    from (
        select f.stage_name, f.hour, f.arrived, f.started, f.retried, f.completed, f.failed, f.skipped,
            f.waited, f.wait_us, f.work_us
        from (select s.name from krai_core.stages s union all select '') known
        -- Per stage, so that each is a range of the primary key, however many years there are.
        cross join lateral (
            select * from krai_core.stage_flow f where f.stage_name = known.name and f.hour >= p_since offset 0) f
        union all
        select d.stage_name, d.hour, d.arrived, d.started, d.retried, d.runs_completed, d.runs_failed, d.runs_skipped,
            d.waited, d.wait_us, d.work_us
        from krai_core.stage_deltas d
        where d.hour >= p_since and d.arrived + d.started + d.runs_completed + d.runs_failed + d.runs_skipped > 0
    ) x
    group by x.stage_name;
end;
$$;
comment on function krai_private.flow_since(timestamptz) is
'What arrived, started and ended per stage in the hours from p_since on, and the first of these hours with any activity.
The empty stage name counts the documents that were inserted.';

create or replace function krai_private.oldest_ready(p_stage_name text) returns timestamptz
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
    v_level bigint;
    v_lowest bigint;
    v_first timestamptz;
    v_oldest timestamptz;
begin
    -- Both ends of the queue in one statement: nearly always it has only one priority level.
    select first.priority, first.available_at, (
        select r.priority from krai_core.stage_runs r
        where r.stage_name = p_stage_name and r.status = 'ready' order by r.priority limit 1)
    into v_level, v_oldest, v_lowest
    from krai_core.stage_runs first
    where first.stage_name = p_stage_name and first.status = 'ready'
    order by first.priority desc, first.available_at, first.id limit 1;
    -- Then the first run of each lower level; beyond a hundred levels the answer is the oldest of those.
    for i in 2..100 loop
        exit when v_level is null or v_level <= v_lowest;
        select r.priority, r.available_at into v_level, v_first from krai_core.stage_runs r
        where r.stage_name = p_stage_name and r.status = 'ready' and r.priority < v_level
        order by r.priority desc, r.available_at, r.id limit 1;
        v_oldest := least(v_oldest, v_first);
    end loop;
    return case when v_oldest <= clock_timestamp() then v_oldest end;
end;
$$;
comment on function krai_private.oldest_ready(text) is
'When the longest waiting ready run of a stage became due; null when none is due.';

create or replace function krai_private.stage_statistics()
returns table (
    stage_name text,
    pending_count bigint,
    processing_count bigint,
    completed_count bigint,
    failed_count bigint,
    skipped_count bigint,
    avg_duration_seconds numeric,
    timed_count bigint,
    p50_duration_seconds numeric,
    p95_duration_seconds numeric,
    p99_duration_seconds numeric,
    avg_wait_seconds numeric,
    throughput_per_hour numeric,
    oldest_waiting_at timestamptz,
    workers_busy bigint)
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
    v_now timestamptz := clock_timestamp();
    v_recent timestamptz := date_trunc('hour', clock_timestamp(), 'UTC') - interval '1 hour';
    v_day timestamptz := v_recent - interval '23 hours';
begin
    return query
    with parts as materialized (
        -- Reads the deltas once for everything. Counts as floating point: see histograms.
        select k.stage_name, k.bucket, sum(k.documents) as documents, sum(k.processing) as processing,
            sum(k.completed) as completed, sum(k.failed) as failed, sum(k.skipped) as skipped, sum(k.timed) as timed,
            sum(k.duration_us) as duration_us, sum(k.waited) as waited, sum(k.wait_us) as wait_us,
            sum(k.recent) as recent
        from (
            select c.stage_name, c.bucket::integer as bucket, c.documents::double precision as documents,
                c.processing::double precision as processing, c.completed::double precision as completed,
                c.failed::double precision as failed, c.skipped::double precision as skipped,
                c.timed::double precision as timed, c.duration_us, 0::double precision as waited,
                0::double precision as wait_us, 0::double precision as recent
            from krai_core.stage_counters c
            union all
            select d.stage_name, d.bucket, d.documents, d.processing, d.completed, d.failed, d.skipped,
                d.timed, d.duration_us,
                case when d.hour >= v_day then d.waited else 0 end, case when d.hour >= v_day then d.wait_us else 0 end,
                case when d.hour >= v_recent then d.runs_completed else 0 end
            from krai_core.stage_deltas d
            union all
            select f.stage_name, -1, 0, 0, 0, 0, 0, 0, 0, f.waited, f.wait_us,
                case when f.hour >= v_recent then f.completed else 0 end
            from krai_core.stages known
            -- Per stage, so that each is a range of the primary key, however many years there are.
            cross join lateral (
                select * from krai_core.stage_flow f where f.stage_name = known.name and f.hour >= v_day offset 0) f
        ) k
        group by k.stage_name, k.bucket
    ),
    sums as materialized (
        select p.stage_name, sum(p.documents) as documents, sum(p.processing) as processing,
            sum(p.completed) as completed, sum(p.failed) as failed, sum(p.skipped) as skipped, sum(p.timed) as timed,
            sum(p.duration_us) as duration_us, sum(p.waited) as waited, sum(p.wait_us)::numeric as wait_us,
            sum(p.recent)::numeric as recent,
            array_agg(p.bucket order by p.bucket) filter (where p.timed > 0) as buckets,
            array_agg(p.upto order by p.bucket) filter (where p.timed > 0) as upto
        from (select p.*, sum(p.timed) over (partition by p.stage_name order by p.bucket) as upto from parts p) p
        group by p.stage_name
    ),
    busy as materialized (
        select x.stage_name, count(*) as workers
        from (
            select r.stage_name from krai_core.stage_runs r
            where r.status = 'running' and r.lease_expires_at > v_now
            group by r.stage_name, coalesce(r.worker, r.id::text)
        ) x
        group by x.stage_name
    )
    select s.name,
        (coalesce(whole.documents, 0) - coalesce(k.processing + k.completed + k.failed + k.skipped, 0))::bigint,
        coalesce(k.processing, 0)::bigint, coalesce(k.completed, 0)::bigint, coalesce(k.failed, 0)::bigint,
        coalesce(k.skipped, 0)::bigint,
        k.duration_us / nullif(k.timed, 0)::bigint / 1000000, coalesce(k.timed, 0)::bigint,
        round((krai_private.quantile_us(k.buckets, k.upto, k.timed * 0.5) / 1e6)::numeric, 6),
        round((krai_private.quantile_us(k.buckets, k.upto, k.timed * 0.95) / 1e6)::numeric, 6),
        round((krai_private.quantile_us(k.buckets, k.upto, k.timed * 0.99) / 1e6)::numeric, 6),
        round(k.wait_us / nullif(k.waited, 0)::bigint / 1000000, 6),
        round(coalesce(k.recent, 0) * 3600 / extract(epoch from v_now - v_recent), 3),
        krai_private.oldest_ready(s.name), coalesce(b.workers, 0)
    from krai_core.stages s
    left join sums whole on whole.stage_name = ''
    left join sums k on k.stage_name = s.name
    left join busy b on b.stage_name = s.name
    where s.enabled
    order by s.position;
end;
$$;
comment on function krai_private.stage_statistics() is
'The rows of vw_stage_statistics; a function, so that its plan is kept for the session.';

create or replace function krai_core.get_stage_statistics() returns jsonb
language plpgsql stable
set search_path = ''
as $$
begin
    return jsonb_build_object(
        'timestamp', krai_private.iso_time(clock_timestamp()),
        'stages', coalesce((select jsonb_object_agg(v.stage_name, jsonb_build_object(
            'pending', v.pending_count, 'processing', v.processing_count, 'completed', v.completed_count,
            'failed', v.failed_count, 'skipped', v.skipped_count,
            'avg_duration', trim_scale(round(v.avg_duration_seconds, 6)), 'timed', v.timed_count,
            'p50_duration', trim_scale(v.p50_duration_seconds), 'p95_duration', trim_scale(v.p95_duration_seconds),
            'p99_duration', trim_scale(v.p99_duration_seconds), 'avg_wait', trim_scale(v.avg_wait_seconds),
            'throughput_per_hour', trim_scale(v.throughput_per_hour),
            'oldest_waiting_at', krai_private.iso_time(v.oldest_waiting_at),
            'oldest_waiting', trim_scale(v.oldest_waiting_seconds), 'workers_busy', v.workers_busy))
            from krai_core.vw_stage_statistics v), '{}'));
end;
$$;
comment on function krai_core.get_stage_statistics() is
'Statistics of all enabled stages as one JSON object.
Returns {timestamp, stages: {"<stage>": {pending, processing, completed, failed, skipped, avg_duration, timed,
p50_duration, p95_duration, p99_duration, avg_wait, throughput_per_hour, oldest_waiting_at, oldest_waiting,
workers_busy}}}. Counts of documents; durations and waits in seconds, null where nothing was timed; each as the column
of vw_stage_statistics says. Times: ISO 8601, UTC. For service_role: others get 42501.';
