-- Estimates: when a document will be done, and when the queues will be empty.
--
--   get_document_eta    remaining time of a document along the DAG; stage_estimates has that of each stage
--   get_forecast        per stage: arrivals, drain, utilisation, and when its queue is empty;
--                       stage_rates and seconds_until_empty compute it
--
-- Rules
--   * An estimate is a range, from the median (p50) to what nine of ten do not exceed (p90). Where a stage has
--     fewer than five durations it is unknown, and the answer names the stage.
--   * The forecast assumes the workers of today: those running now, or as many as the work of the last hours took.
--   * For service_role. Nothing here locks or writes.

create or replace function krai_private.stage_estimates(p_document_id uuid)
returns table (
    stage_name text,
    "position" integer,
    waits_for text[],
    state text,
    is_paused boolean,
    is_stuck boolean,
    p50 numeric,
    p90 numeric,
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
    -- Only unfinished stages need an estimate.
    v_open text[] := array(
        select s.name from krai_core.documents d cross join krai_core.stages s
        where d.id = p_document_id and s.enabled
          and krai_private.stage_state(d.stage_status -> s.name) not in ('completed', 'skipped'));
begin
    return query
    with histograms as materialized (select * from krai_private.histograms(v_open)),
    waits as materialized (
        select x.stage_name, sum(x.wait_us) / nullif(sum(x.waited), 0) / 1000000 as seconds
        from (
            select f.stage_name, f.waited, f.wait_us
            from unnest(v_open) as known (name)
            cross join lateral (
                select * from krai_core.stage_flow f
                where f.stage_name = known.name and f.hour >= v_now - interval '1 day' offset 0) f
            union all
            select d.stage_name, d.waited, d.wait_us from krai_core.stage_deltas d
            where d.waited > 0 and d.hour >= v_now - interval '1 day' and d.stage_name = any (v_open)
        ) x
        group by x.stage_name),
    running as materialized (select * from krai_private.running_stages(p_document_id))
    select s.name, s.position, s.waits_for, x.state, s.paused, x.state = 'failed' and ready.available_at is null,
        case
            when x.state in ('completed', 'skipped') then 0
            when x.state = 'processing' and u.condition <> 'stalled' then u.remaining_p50_seconds
            else w.before + (q.p50 / 1e6)::numeric end,
        case
            when x.state in ('completed', 'skipped') then 0
            when x.state = 'processing' and u.condition <> 'stalled' then u.remaining_p90_seconds
            else w.before + (q.p90 / 1e6)::numeric end,
        case
            when x.state in ('completed', 'skipped') then null
            when x.state = 'processing' and u.condition <> 'stalled' then u.estimated_from
            when q.p50 is null then 'unknown'
            else 'durations' end
    from krai_core.stages s
    join krai_core.documents d on d.id = p_document_id
    cross join lateral (select krai_private.stage_state(d.stage_status -> s.name) as state offset 0) x
    left join histograms h on h.stage_name = s.name and h.timed >= 5
    cross join lateral (
        select krai_private.quantile_us(h.buckets, h.upto, h.timed * 0.5) as p50,
            krai_private.quantile_us(h.buckets, h.upto, h.timed * 0.9) as p90
        offset 0) q
    left join running u on u.stage_name = s.name
    left join krai_core.stage_runs ready
        on ready.document_id = d.id and ready.open_stage = s.name and ready.status = 'ready'
    left join waits k on k.stage_name = s.name
    -- The usual wait of the last day, less what it has waited already; or the time until its retry is due.
    cross join lateral (
        select greatest(
            coalesce(k.seconds, 0) - greatest(coalesce(extract(epoch from v_now - ready.available_at), 0), 0),
            extract(epoch from ready.available_at - v_now), 0) as before offset 0) w
    where s.enabled;
end;
$$;
comment on function krai_private.stage_estimates(uuid) is
'Remaining seconds of each enabled stage of a document, including its own wait but not that for other stages.
is_stuck: the stage failed and will not be retried automatically.';

create or replace function krai_core.get_document_eta(p_document_id uuid) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_status text := (select v.document_status from krai_core.vw_documents_by_stage v where v.id = p_document_id);
    v_estimate record;
    -- Seconds from now until each stage is done, as far as computed.
    v_done50 jsonb := '{}'::jsonb;
    v_done90 jsonb := '{}'::jsonb;
    v_stages jsonb := '{}'::jsonb;
    v_before jsonb;
    v_left boolean := true;
    v_unknown text[] := '{}'::text[];
    v_paused text[] := '{}'::text[];
    v_failed text[] := '{}'::text[];
begin
    if v_status is null then
        perform krai_private.raise_unknown_document(p_document_id);
    end if;
    -- Each stage after those that it waits for. The DAG has no cycle, and positions mostly follow it, so that one pass
    -- usually does.
    while v_left loop
        v_left := false;
        v_before := v_stages;
        for v_estimate in select * from krai_private.stage_estimates(p_document_id) e order by e.position loop
            continue when v_stages ? v_estimate.stage_name;
            if not v_stages ?& v_estimate.waits_for then
                v_left := true;
                continue;
            end if;
            v_done50 := v_done50 || jsonb_build_object(v_estimate.stage_name, v_estimate.p50
                + case when v_estimate.p50 > 0 then coalesce((
                    select max((v_done50 ->> name)::numeric)
                    from unnest(v_estimate.waits_for) as required (name)), 0) else 0 end);
            v_done90 := v_done90 || jsonb_build_object(v_estimate.stage_name, v_estimate.p90
                + case when v_estimate.p90 > 0 then coalesce((
                    select max((v_done90 ->> name)::numeric)
                    from unnest(v_estimate.waits_for) as required (name)), 0) else 0 end);
            v_stages := v_stages || jsonb_build_object(v_estimate.stage_name, jsonb_build_object(
                'status', v_estimate.state, 'p50', trim_scale(round(v_estimate.p50, 3)),
                'p90', trim_scale(round(v_estimate.p90, 3)), 'estimated_from', v_estimate.estimated_from));
            if v_estimate.estimated_from = 'unknown' then
                v_unknown := v_unknown || v_estimate.stage_name;
            end if;
            if v_estimate.is_paused and v_estimate.state not in ('completed', 'skipped', 'processing') then
                v_paused := v_paused || v_estimate.stage_name;
            end if;
            if v_estimate.is_stuck then
                v_failed := v_failed || v_estimate.stage_name;
            end if;
        end loop;
        exit when v_stages = v_before;
    end loop;
    select max(d.value::numeric) as p50, max(e.value::numeric) as p90 into v_estimate
    from jsonb_each_text(v_done50) d join jsonb_each_text(v_done90) e using (key)
    where v_unknown = '{}' and v_paused = '{}' and v_failed = '{}';
    return jsonb_build_object('document_id', p_document_id, 'status', v_status,
        'weighted_progress', trim_scale(krai_core.get_weighted_progress(p_document_id)),
        'remaining', case when v_estimate.p50 is not null then jsonb_build_object(
            'p50', trim_scale(round(v_estimate.p50, 3)), 'p90', trim_scale(round(v_estimate.p90, 3))) end,
        'done_at', case when v_estimate.p50 is not null then jsonb_build_object(
            'p50', krai_private.iso_time(v_now + make_interval(secs => v_estimate.p50::double precision)),
            'p90', krai_private.iso_time(v_now + make_interval(secs => v_estimate.p90::double precision))) end,
        'unknown', to_jsonb(v_unknown), 'paused', to_jsonb(v_paused), 'failed', to_jsonb(v_failed), 'stages', v_stages);
end;
$$;
comment on function krai_core.get_document_eta(uuid) is
'When a document will be done, as a range.
Returns {document_id, status, weighted_progress, remaining: {p50, p90}, done_at: {p50, p90}, unknown, paused, failed,
stages: {"<stage>": {status, p50, p90, estimated_from}}}. Seconds; p50: the median, p90: not exceeded in nine of ten
cases. Along the DAG: the longest path through the unfinished stages, each with the usual wait of the last day.
remaining and done_at are null while a stage blocks the estimate: unknown (fewer than five durations), paused, or failed
without a retry to come; these arrays name the stages. Times: ISO 8601, UTC. For service_role: others get 42501.
Raises PT404 unknown_document.';

create or replace function krai_private.seconds_until_empty(
    p_waiting numeric,
    p_capacity numeric,
    p_inflow numeric
) returns numeric
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return case
        when p_waiting <= 0 then 0
        when p_capacity > p_inflow then p_waiting / (p_capacity - p_inflow) * 3600 end;
end;
$$;
comment on function krai_private.seconds_until_empty(numeric, numeric, numeric) is
'Seconds until a queue is empty that p_capacity leave and p_inflow join per hour; null: never, or unknown.';

create or replace function krai_private.stage_rates(p_flow jsonb, p_hours numeric)
returns table (
    stage_name text,
    waiting bigint,
    running bigint,
    arrival numeric,
    drain numeric,
    avg_work numeric,
    workers numeric,
    per_worker numeric,
    timed numeric,
    mean numeric,
    deviation numeric)
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
    with sums as materialized (
        select k.stage_name, sum(k.documents)::numeric as documents, sum(k.processing)::numeric as processing,
            sum(k.rest)::numeric as rest, sum(k.timed)::numeric as timed,
            (sum(k.seconds) / nullif(sum(k.timed), 0))::numeric as mean,
            -- Each bucket counts with its own mean.
            (sum(k.seconds * k.seconds / nullif(k.timed, 0)) / nullif(sum(k.timed), 0))::numeric as mean_square
        from (
            -- As floating point: see histograms.
            select x.stage_name, x.bucket, sum(x.documents) as documents, sum(x.processing) as processing,
                sum(x.rest) as rest, sum(x.timed) as timed,
                sum(x.duration_us) / 1000000 as seconds
            from (
                select c.stage_name, c.bucket, c.documents::double precision as documents,
                    c.processing::double precision as processing,
                    (c.completed + c.failed + c.skipped)::double precision as rest,
                    c.timed::double precision as timed, c.duration_us::double precision as duration_us
                from krai_core.stage_counters c
                union all
                select d.stage_name, d.bucket, d.documents, d.processing, d.completed + d.failed + d.skipped,
                    d.timed, d.duration_us
                from krai_core.stage_deltas d
            ) x
            group by x.stage_name, x.bucket
        ) k
        group by k.stage_name
    )
    select s.name, (coalesce(whole.documents, 0) - coalesce(k.processing + k.rest, 0))::bigint,
        coalesce(k.processing, 0)::bigint,
        coalesce(f.arrived, 0) / p_hours, coalesce(f.completed + f.skipped, 0) / p_hours,
        nullif(f.work_us, 0) / nullif(f.completed + f.failed, 0) / 1000000,
        greatest(coalesce(k.processing, 0), ceil(coalesce(f.work_us, 0) / 3600000000 / p_hours)),
        (f.completed + f.skipped) / nullif(f.work_us / 3600000000, 0),
        k.timed, k.mean, sqrt(greatest(k.mean_square - k.mean * k.mean, 0))
    from krai_core.stages s
    left join sums whole on whole.stage_name = ''
    left join sums k on k.stage_name = s.name
    left join jsonb_to_recordset(p_flow) as f (
            stage_name text, arrived numeric, completed numeric, failed numeric, skipped numeric, work_us numeric)
        on f.stage_name = s.name
    where s.enabled;
end;
$$;
comment on function krai_private.stage_rates(jsonb, numeric) is
'The rates of each enabled stage: waiting, running, arrivals, drain, work, workers, and their durations.
waiting, running: documents. arrival, drain: runs that became ready and stages finished per hour. avg_work: seconds per
run. workers: at work. per_worker: stages that one of them finishes per hour. timed: how many durations there are; mean,
deviation (standard) in seconds. p_flow: rows of flow_since; p_hours: how many hours they cover.';

create or replace function krai_core.get_forecast(p_hours integer default 3) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_since timestamptz;
    v_flow jsonb;
    v_span numeric;
    v_inflow numeric;
    v_rates jsonb;
    v_stages jsonb;
begin
    if p_hours is null or p_hours not between 1 and 720 then
        perform krai_private.raise_error('invalid_age',
            format('%s is no number of hours to look back', coalesce(p_hours::text, 'null')), '{}', 'Pass 1 to 720.');
    end if;
    -- Starts with the first of these hours that had any activity.
    select jsonb_agg(to_jsonb(f)), coalesce(min(f.first_hour), date_trunc('hour', v_now, 'UTC')),
        coalesce(sum(f.arrived) filter (where f.stage_name = ''), 0)
    into v_flow, v_since, v_inflow
    from krai_private.flow_since(date_trunc('hour', v_now, 'UTC') - make_interval(hours => p_hours - 1)) f;
    v_span := greatest(extract(epoch from v_now - v_since) / 3600, 0.01);
    v_inflow := v_inflow / v_span;
    v_rates := (select coalesce(jsonb_object_agg(r.stage_name, to_jsonb(r) || jsonb_build_object(
            'today', krai_private.seconds_until_empty(r.waiting, r.workers * r.per_worker, v_inflow),
            'one_more', krai_private.seconds_until_empty(r.waiting, (r.workers + 1) * r.per_worker, v_inflow),
            'one_fewer', krai_private.seconds_until_empty(r.waiting, (r.workers - 1) * r.per_worker, v_inflow),
            -- The sum of many durations is nearly normally distributed: 1.2816 deviations are its 90 % quantile.
            'backlog', case when r.timed >= 5 and r.workers > 0 then jsonb_build_object(
                'p50', round(r.waiting * r.mean / r.workers, 3),
                'p90', round(
                    (r.waiting * r.mean + 1.2816 * sqrt(r.waiting::numeric) * r.deviation) / r.workers, 3)) end)), '{}')
        from krai_private.stage_rates(v_flow, v_span) r);
    -- A queue is empty no earlier than those upstream, whose documents still arrive in it.
    select jsonb_object_agg(x.key, jsonb_build_object(
        'waiting', x.value -> 'waiting', 'running', x.value -> 'running',
        'arrival_per_hour', round((x.value ->> 'arrival')::numeric, 3),
        'drain_per_hour', round((x.value ->> 'drain')::numeric, 3),
        'workers', (x.value ->> 'workers')::numeric,
        'utilisation', round(
            (x.value ->> 'arrival')::numeric * (x.value ->> 'avg_work')::numeric / 3600
            / nullif((x.value ->> 'workers')::numeric, 0), 4),
        'avg_work', round((x.value ->> 'avg_work')::numeric, 6), 'backlog', nullif(x.value -> 'backlog', 'null'),
        'empty', (select jsonb_build_object(
            'today', round(
                case when b.is_known then greatest(b.longest, (x.value ->> 'today')::numeric) end
                + (x.value ->> 'today')::numeric * 0),
            'one_more', round(
                case when b.is_known then greatest(b.longest, (x.value ->> 'one_more')::numeric) end
                + (x.value ->> 'one_more')::numeric * 0),
            'one_fewer', round(
                case when b.is_known then greatest(b.longest, (x.value ->> 'one_fewer')::numeric) end
                + (x.value ->> 'one_fewer')::numeric * 0))
            from (
                select coalesce(max((v_rates -> before.name ->> 'today')::numeric), 0) as longest,
                    coalesce(bool_and(v_rates -> before.name ->> 'today' is not null), true) as is_known
                from unnest(krai_private.upstream_stages(x.key)) as before (name) where before.name <> x.key
            ) b)))
    into v_stages
    from jsonb_each(v_rates) x;
    return jsonb_build_object('timestamp', krai_private.iso_time(v_now), 'hours', round(v_span, 3),
        'documents_per_hour', round(v_inflow, 3), 'stages', coalesce(v_stages, '{}'));
end;
$$;
comment on function krai_core.get_forecast(integer) is
'What to expect of the queues, from the hours before.
Returns {timestamp, hours, documents_per_hour, stages: {"<stage>": {waiting, running, arrival_per_hour, drain_per_hour,
workers, utilisation, avg_work, backlog: {p50, p90}, empty: {today, one_more, one_fewer}}}}. hours: how many hours the
rates cover. waiting: documents pending. arrival_per_hour: runs that became ready. drain_per_hour: stages completed or
skipped. workers: at work now, or as many as the work took. utilisation: arriving work as a share of what these workers
can do; above 1 the queue grows. avg_work: seconds per run. backlog: seconds that these workers need for what is
pending, by the durations of the stage, as median and as what nine of ten cases do not exceed; null below five
durations. empty: seconds from now until nothing of the stage is pending if documents keep arriving as they did, with
the workers of today, one more or one fewer (upstream stages with those of today); null: never, or unknown.
For service_role: others get 42501.
p_hours: how many hours to look back, 1 to 720, including the current one. Raises 22023 invalid_age.';
