-- Metrics: how the statistics are kept up to date.
--
--   bucket_bounds, duration_bucket        the buckets that durations are counted in
--   duration_us, sql_duration_us          duration of a stored stage: as a function, as SQL text
--   fold_deltas, fold_deltas_if_due       roll up deltas, one session at a time, after every thousand of them
--   count_transition                      one stage of one document changes its state
--   count_outcomes                        many running stages end at once
--   sql_counted, count_edits              direct edits of many documents: as SQL text, as a function
--
-- Rules
--   * Whoever changes stage_status appends the change of the metrics in the same transaction: single writers through
--     count_transition, claim_stages and finish_stages with a statement of their own, triggers for everybody else.
--   * All keys of stage_status count, including those of disabled and unknown stages, so that a change of the pipeline
--     requires no recount.
--   * Nobody waits for a fold, and a fold waits for nobody. It is skipped unless the transaction is read committed: it
--     could abort any other with 40001.
-- Lock order: a fold takes an advisory lock, then stage_fold, then rows of the deltas (skip locked), then the sums; it
-- gives up after 1 ms on any lock.

-- Whole numbers, so that no difference in rounding between machines ever moves a duration to the next bucket.
do $make$
begin
    execute format($f$
create or replace function krai_private.bucket_bounds() returns bigint[]
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return %L::bigint[];
end;
$$$f$, (select array_agg(round(1000 * 2 ^ (i / 4.0))::bigint order by i) from generate_series(0, 140) i));
end $make$;
comment on function krai_private.bucket_bounds() is
'Bounds of the duration buckets in microseconds: 1 ms, then four per doubling, up to about 400 days.
Bucket n holds durations from bound n up to, but not including, bound n + 1; bucket 0 those below 1 ms.';

create or replace function krai_private.duration_bucket(p_duration_us bigint) returns smallint
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return coalesce(width_bucket(p_duration_us, krai_private.bucket_bounds()), -1);
end;
$$;
comment on function krai_private.duration_bucket(bigint) is
'Bucket of a duration in microseconds, 0 to 141; -1 for null.';

create or replace function krai_private.sql_duration_us(p_stage text) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    -- Capped at 31 years: a larger number is not a duration, and would make the sums useless.
    return format($q$case when jsonb_typeof(%1$s -> 'duration_seconds') = 'number' and %1$s -> 'duration_seconds' >= '0'
        then round(least((%1$s ->> 'duration_seconds')::numeric, 1e9) * 1e6)::bigint end$q$, p_stage);
end;
$$;
comment on function krai_private.sql_duration_us(text) is
'SQL expression for the duration of a stored stage in whole microseconds; null if it has none.
p_stage: SQL expression of the stage.';

do $make$
begin
    execute format($f$
create or replace function krai_private.duration_us(p_stage jsonb) returns bigint
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return %s;
end;
$$$f$, krai_private.sql_duration_us('p_stage'));
end $make$;
comment on function krai_private.duration_us(jsonb) is
'The duration of a stored stage in whole microseconds, at most 1e15; null if it has none.';

create or replace function krai_private.fold_deltas() returns integer
language plpgsql volatile
set search_path = ''
set lock_timeout = '1ms'
as $$
declare
    v_folded integer;
begin
    if current_setting('transaction_isolation') <> 'read committed'
        or not pg_try_advisory_xact_lock(hashtextextended('krai_core._fold', 0)) then
        return 0;
    end if;
    update krai_core.stage_fold f set folded_to = (select s.last_value from krai_core.stage_deltas_id_seq s);
    with free as materialized (
        -- Bounded: after an import of millions of rows, no single call has to fold them all.
        select d.id from krai_core.stage_deltas d order by d.id limit 20000 for update skip locked
    ),
    gone as materialized (
        delete from krai_core.stage_deltas d using free where d.id = free.id
        returning d.*
    ),
    counted as (
        insert into krai_core.stage_counters as c
            (stage_name, bucket, documents, processing, completed, failed, skipped, timed, duration_us)
        select g.stage_name, g.bucket, sum(g.documents), sum(g.processing), sum(g.completed), sum(g.failed),
            sum(g.skipped), sum(g.timed), sum(g.duration_us)
        from gone g
        group by g.stage_name, g.bucket
        having sum(abs(g.documents) + abs(g.processing) + abs(g.completed) + abs(g.failed) + abs(g.skipped)
            + abs(g.timed) + abs(g.duration_us)) > 0
        on conflict (stage_name, bucket) do update set
            documents = c.documents + excluded.documents, processing = c.processing + excluded.processing,
            completed = c.completed + excluded.completed, failed = c.failed + excluded.failed,
            skipped = c.skipped + excluded.skipped,
            timed = c.timed + excluded.timed, duration_us = c.duration_us + excluded.duration_us
    ),
    flowed as (
        insert into krai_core.stage_flow as f
            (stage_name, hour, arrived, started, retried, completed, failed, skipped, waited, wait_us, work_us)
        select g.stage_name, g.hour, sum(g.arrived), sum(g.started), sum(g.retried), sum(g.runs_completed),
            sum(g.runs_failed), sum(g.runs_skipped), sum(g.waited), sum(g.wait_us), sum(g.work_us)
        from gone g
        group by g.stage_name, g.hour
        having sum(g.arrived + g.started + g.runs_completed + g.runs_failed + g.runs_skipped) > 0
        on conflict (stage_name, hour) do update set
            arrived = f.arrived + excluded.arrived, started = f.started + excluded.started,
            retried = f.retried + excluded.retried,
            completed = f.completed + excluded.completed, failed = f.failed + excluded.failed,
            skipped = f.skipped + excluded.skipped,
            waited = f.waited + excluded.waited, wait_us = f.wait_us + excluded.wait_us,
            work_us = f.work_us + excluded.work_us
    )
    select count(*) into v_folded from gone;
    if v_folded = 20000 then
        -- More may be left: makes another fold due at once.
        update krai_core.stage_fold f set folded_to = f.folded_to - 1000;
    end if;
    return v_folded;
exception when lock_not_available then
    -- Somebody has locked rows of the sums by hand.
    return 0;
end;
$$;
comment on function krai_private.fold_deltas() is
'Folds the oldest 20,000 deltas into stage_counters and stage_flow.
Returns how many it folded; 0 if another session is folding, the transaction is not read committed, or a sum is locked.
Never waits.';

create or replace function krai_private.fold_deltas_if_due() returns void
language plpgsql volatile
set search_path = ''
as $$
begin
    if current_setting('transaction_isolation') = 'read committed'
        and (select s.last_value - f.folded_to >= 1000 from krai_core.stage_deltas_id_seq s, krai_core.stage_fold f)
        -- Not once a transaction has run for a second: it might be a long one, and would keep all others from folding
        -- until it ends. Only once in a transaction, because the rows that it has folded itself stay in its way.
        and clock_timestamp() - transaction_timestamp() < interval '1 second'
        and current_setting('krai_core.folded_in', true) is distinct from pg_current_xact_id()::text then
        perform set_config('krai_core.folded_in', pg_current_xact_id()::text, true);
        perform krai_private.fold_deltas();
    end if;
end;
$$;
comment on function krai_private.fold_deltas_if_due() is
'Folds if a thousand deltas or more have been appended since the last fold.';

create or replace function krai_private.count_transition(
    p_stage_name text,
    p_old jsonb,
    p_new jsonb,
    p_ready_at timestamptz default null,
    p_attempt integer default 1
)
returns void
language plpgsql volatile
set search_path = ''
as $$
declare
    v_from text := krai_private.stage_state(p_old);
    v_to text := krai_private.stage_state(p_new);
    v_now timestamptz := clock_timestamp();
    v_us bigint := krai_private.duration_us(case v_from when 'completed' then p_old else p_new end);
    -- A timed stage enters its bucket or leaves it.
    v_timed integer := case
        when v_us is null then 0
        when v_from = 'completed' then -1
        when v_to = 'completed' then 1
        else 0 end;
    v_waited boolean := v_to = 'processing' and p_ready_at <= v_now;
    v_id bigint;
begin
    if v_from = v_to then
        return;
    end if;
    insert into krai_core.stage_deltas
        (stage_name, bucket, processing, completed, failed, skipped, timed, duration_us,
         started, retried, runs_completed, runs_failed, runs_skipped, waited, wait_us, work_us)
    values (p_stage_name, case v_timed when 0 then -1 else krai_private.duration_bucket(v_us) end,
        (v_to = 'processing')::integer - (v_from = 'processing')::integer,
        (v_to = 'completed')::integer - (v_from = 'completed')::integer,
        (v_to = 'failed')::integer - (v_from = 'failed')::integer,
        (v_to = 'skipped')::integer - (v_from = 'skipped')::integer,
        v_timed, v_timed * coalesce(v_us, 0),
        (v_to = 'processing')::integer, (v_to = 'processing' and p_attempt > 1)::integer,
        (v_to = 'completed')::integer, (v_to = 'failed')::integer, (v_to = 'skipped')::integer,
        coalesce(v_waited, false)::integer,
        case when v_waited then round(extract(epoch from v_now - p_ready_at) * 1e6) else 0 end,
        case when v_from <> 'completed' and v_to in ('completed', 'failed') then coalesce(v_us, 0) else 0 end)
    returning id into v_id;
    if v_id % 1000 = 0 then
        perform krai_private.fold_deltas_if_due();
    end if;
end;
$$;
comment on function krai_private.count_transition(text, jsonb, jsonb, timestamptz, integer) is
'Counts the change of a stage of a document from one stored value to another; nothing if its state stays the same.
p_ready_at: for a start, since when the run was ready; null if it was not.
p_attempt: number of the attempt that starts.';

create or replace function krai_private.count_outcomes(p_stages text[], p_outcomes text[], p_us bigint[]) returns void
language plpgsql volatile
set search_path = ''
as $$
declare
    v_bounds bigint[] := krai_private.bucket_bounds();
begin
    insert into krai_core.stage_deltas
        (stage_name, bucket, processing, completed, failed, skipped, timed, duration_us,
         runs_completed, runs_failed, runs_skipped, work_us)
    select c.stage_name, c.bucket, - count(*), sum(c.completed), sum(c.failed), sum(c.skipped), sum(c.completed),
        sum(c.us * c.completed),
        sum(c.completed), sum(c.failed), sum(c.skipped), sum(c.us * (1 - c.skipped))
    from (
        select u.stage_name, u.us,
            (u.outcome = 'completed')::integer as completed,
            (u.outcome = 'failed')::integer as failed,
            (u.outcome = 'skipped')::integer as skipped,
            case u.outcome when 'completed' then width_bucket(u.us, v_bounds) else -1 end as bucket
        from unnest(p_stages, p_outcomes, p_us) as u (stage_name, outcome, us)
    ) c
    group by c.stage_name, c.bucket;
end;
$$;
comment on function krai_private.count_outcomes(text[], text[], bigint[]) is
'Counts running stages that end: parallel arrays of stage, outcome and duration in microseconds.
p_outcomes: completed, failed or skipped.';

-- SQL text, because the query must be planned together with the rows that it counts: see sql_stage_state.
create or replace function krai_private.sql_counted(p_pairs text) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return format($q$
        select x.key as stage_name, (case when x.state = 'completed' and x.us is not null
                then width_bucket(x.us, krai_private.bucket_bounds()) else -1 end)::smallint as bucket,
            coalesce(sum(x.sign) filter (where x.state = 'processing'), 0) as processing,
            coalesce(sum(x.sign) filter (where x.state = 'completed'), 0) as completed,
            coalesce(sum(x.sign) filter (where x.state = 'failed'), 0) as failed,
            coalesce(sum(x.sign) filter (where x.state = 'skipped'), 0) as skipped,
            coalesce(sum(x.sign) filter (where x.state = 'completed' and x.us is not null), 0) as timed,
            coalesce(sum(x.sign * x.us) filter (where x.state = 'completed'), 0) as duration_us,
            count(*) filter (where x.sign = 1 and x.state = 'processing' and x.other <> 'processing') as started,
            count(*) filter (where x.sign = 1 and x.state = 'completed' and x.other <> 'completed') as runs_completed,
            count(*) filter (where x.sign = 1 and x.state = 'failed' and x.other <> 'failed') as runs_failed,
            count(*) filter (where x.sign = 1 and x.state = 'skipped' and x.other <> 'skipped') as runs_skipped,
            coalesce(sum(x.us) filter (
                where x.sign = 1 and x.state in ('completed', 'failed') and x.other <> x.state), 0) as work_us
        from (
            select c.key, side.sign, side.state, side.other, side.us
            from (%1$s) pair
            cross join lateral (
                select n.key, pair.old -> n.key as old, n.value as new
                from jsonb_each(case when jsonb_typeof(pair.new) = 'object' then pair.new else '{}' end) n
                where pair.old -> n.key is distinct from n.value
                union all
                select o.key, o.value, null
                from jsonb_each(case when jsonb_typeof(pair.old) = 'object' then pair.old else '{}' end) o
                where (pair.new ? o.key) is not true
            ) c
            cross join lateral (select %2$s as old_state, %3$s as new_state offset 0) s
            cross join lateral (values
                (-1, s.old_state, s.new_state, %4$s),
                (1, s.new_state, s.old_state, %5$s)) side (sign, state, other, us)
            where side.state <> 'pending'
        ) x
        group by 1, 2$q$, p_pairs, krai_private.sql_stage_state('c.old'), krai_private.sql_stage_state('c.new'),
        krai_private.sql_duration_us('c.old'), krai_private.sql_duration_us('c.new'));
end;
$$;
comment on function krai_private.sql_counted(text) is
'SQL query for what many changes of stage_status add to the metrics.
Its columns: stage_name, bucket, processing, completed, failed, skipped, timed, duration_us, started, runs_completed,
runs_failed, runs_skipped, work_us. p_pairs: SQL query with the columns old and new, each a stage_status; {} as old for
an inserted document, as new for a deleted one.';

do $make$
begin
    execute format($f$
create or replace function krai_private.count_edits() returns void
language plpgsql volatile
set search_path = ''
as $$
begin
    insert into krai_core.stage_deltas (stage_name, bucket, processing, completed, failed, skipped, timed, duration_us,
        started, runs_completed, runs_failed, runs_skipped, work_us)
    select * from (%s) counted
    where (counted.processing, counted.completed, counted.failed, counted.skipped, counted.timed, counted.duration_us)
            <> (0, 0, 0, 0, 0, 0)
       or counted.started + counted.runs_completed + counted.runs_failed + counted.runs_skipped > 0;
end;
$$$f$, krai_private.sql_counted($q$
            select e.old_status as old, e.new_status as new from krai_core.edited_documents e
            where e.transaction_id = pg_current_xact_id() and e.depth = pg_trigger_depth()$q$));
end $make$;
comment on function krai_private.count_edits() is
'Counts the direct edits of the current statement (edited_documents).';
