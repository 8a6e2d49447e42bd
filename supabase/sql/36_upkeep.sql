-- Upkeep: what keeps the queue going and the database small without anyone's attention.
--
--   reap                   requeues the runs of dead workers, and makes ready runs match a changed pipeline
--   fill_ready_runs        the second half of that: the next batch of documents after a pipeline change
--   rebuild_ready_runs     checks the ready runs of all documents; changes nothing unless triggers were switched off
--   rebuild_statistics     checks the metrics against all documents; likewise
--   prune_runs             deletes superseded runs that ended long ago, a bounded number at a time
--   schedule_maintenance   has pg_cron call reap and prune_runs, if the database has pg_cron
--
-- Rules
--   * Pruning keeps open runs, current ones, and the last closed run of a stage, from which attempts and retries are
--     counted. Statistics keep what is pruned (stage_flow, stage_counters).
--   * reap and prune_runs skip runs that somebody is writing, rather than wait for them.
--   * Nothing is scheduled unless somebody asks for it: workers reap automatically.
-- Lock order: documents in id order, then stage_runs. Advisory locks let one session at a time fill ready runs, and one
-- rebuild statistics.

create or replace function krai_private.fill_ready_runs_as_owner(p_limit integer) returns integer
language plpgsql volatile security definer
set search_path = ''
set lock_timeout = '900ms'
as $$
declare
    v_after uuid;
    v_ids uuid[];
    v_free uuid[];
    v_held uuid;
begin
    perform krai_private.checked_limit(p_limit, 100000);
    v_after := (
        select s.fill_after from krai_core.stages s where s.fill_after is not null order by s.fill_after limit 1);
    -- One session at a time; the others have nothing to do here.
    if v_after is null or not pg_try_advisory_xact_lock(hashtextextended('krai_core.fill_ready_runs', 0)) then
        return 0;
    end if;
    -- Read again under the lock: another session may have advanced it.
    v_after := (
        select s.fill_after from krai_core.stages s where s.fill_after is not null order by s.fill_after limit 1);
    v_ids := array(select d.id from krai_core.documents d where d.id > v_after order by d.id limit p_limit);
    -- Waits only for the first document and stops before the next one that is locked: whoever waits for a document of
    -- this batch never waits for other people's locks as well.
    perform from krai_core.documents d where d.id = v_ids[1] for no key update;
    v_free := v_ids[1:1] || array(
        select d.id from krai_core.documents d where d.id = any (v_ids[2:])
        order by d.id for no key update skip locked);
    v_held := (
        select held.id from (select unnest(v_ids) except select unnest(v_free)) as held (id) order by held.id limit 1);
    v_ids := array(select given.id from unnest(v_ids) as given (id) where v_held is null or given.id < v_held);
    perform krai_private.adopt_runs(v_ids);
    perform krai_private.derive_ready_runs(v_ids);
    update krai_core.stages s
    set fill_after = case when cardinality(v_ids) = p_limit or v_held is not null then v_ids[cardinality(v_ids)] end
    where s.fill_after = v_after;
    return cardinality(v_ids);
end;
$$;
comment on function krai_private.fill_ready_runs_as_owner(integer) is
'What fill_ready_runs does. Security definer, because nobody may write stages.fill_after directly.';

create or replace function krai_core.fill_ready_runs(p_limit integer default 1000) returns integer
language plpgsql volatile
set search_path = ''
as $$
begin
    return krai_private.fill_ready_runs_as_owner(p_limit);
end;
$$;
comment on function krai_core.fill_ready_runs(integer) is
'Makes the ready runs of the next p_limit documents, in id order, match a changed pipeline.
p_limit: 1 to 100000. Returns how many documents it looked at; 0 if nothing is left to do, or another session is
doing it. Workers and reap call it. Raises 22023 invalid_limit, 55P03 if a document stays locked for 0.9 s: call it
again.';

create or replace function krai_core.rebuild_ready_runs() returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_ids uuid[];
begin
    with truth as (
        select t.document_id, t.stage_name from krai_private.startable_stages t
        where not exists (
            select from krai_core.stage_runs r
            where r.document_id = t.document_id and r.open_stage = t.stage_name and r.status = 'running')
          and (not t.is_failed or (
            select stood.retry_at is not null and stood.reset_at is null from krai_core.stage_runs stood
            where stood.document_id = t.document_id and stood.stage_name = t.stage_name and stood.is_current limit 1))
    ),
    ready as (
        select r.document_id, r.stage_name from krai_core.stage_runs r where r.status = 'ready'
    ),
    orphaned as (
        select d.id as document_id from krai_core.documents d cross join krai_core.stages s
        where d.stage_status -> s.name ->> 'status' = 'processing' and not exists (
            select from krai_core.stage_runs r
            where r.document_id = d.id and r.open_stage = s.name and r.status = 'running')
    ),
    current as (
        -- state_of_run inlined, because it would be called millions of times.
        select r.document_id, r.stage_name,
            case r.status when 'lost' then 'failed' when 'cancelled' then 'skipped' else r.status end as state
        from krai_core.stage_runs r where r.is_current
    )
    select array_agg(wrong.document_id order by wrong.document_id) into v_ids
    from (
        (select t.document_id from (table truth except table ready) t)
        union (select t.document_id from (table ready except table truth) t)
        union (select o.document_id from orphaned o)
        union (select c.document_id from (table krai_private.current_stages except all table current) c)
        union (select c.document_id from (table current except all table krai_private.current_stages) c)
    ) wrong;
    if v_ids is null then
        return '{"added": 0, "removed": 0, "adopted": 0}'::jsonb;
    end if;
    perform from krai_core.documents d where d.id = any (v_ids) order by d.id for no key update;
    return jsonb_build_object('adopted', krai_private.adopt_runs(v_ids)) || krai_private.derive_and_count(v_ids);
end;
$$;
comment on function krai_core.rebuild_ready_runs() is
'Compares the ready runs of all documents with stage_status and repairs the differences.
Returns {"added", "removed", "adopted"}, how many runs; all 0 unless triggers were switched off (a restore with
session_replication_role = replica). Reads every document. Raises only 42501, for lack of rights.';

do $make$
begin
    execute format($f$
create or replace function krai_core.rebuild_statistics() returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_mended bigint;
begin
    -- One session at a time, or two would both add what is missing.
    perform pg_advisory_xact_lock(hashtextextended('krai_core.rebuild_statistics', 0));
    with truth as (
        select t.stage_name, t.bucket, 0::bigint as documents,
            t.processing, t.completed, t.failed, t.skipped, t.timed, t.duration_us
        from (%s) t
        union all
        select '', -1, count(*), 0, 0, 0, 0, 0, 0 from krai_core.documents
    ),
    both_sides as (
        select 1 as sign, t.* from truth t
        union all
        select -1, k.* from krai_private.stage_sums k
    )
    insert into krai_core.stage_deltas (
        stage_name, bucket, documents, processing, completed, failed, skipped, timed, duration_us)
    select x.stage_name, x.bucket, sum(x.documents),
        sum(x.processing), sum(x.completed), sum(x.failed), sum(x.skipped), sum(x.timed), sum(x.duration_us)
    from (
        -- A count of states means something only as a sum over all buckets, so its correction goes into one, -1.
        select b.stage_name, -1 as bucket, b.sign * b.documents as documents,
            b.sign * b.processing as processing, b.sign * b.completed as completed,
            b.sign * b.failed as failed, b.sign * b.skipped as skipped, 0 as timed, 0 as duration_us
        from both_sides b
        union all
        select b.stage_name, b.bucket, 0, 0, 0, 0, 0, b.sign * b.timed, b.sign * b.duration_us from both_sides b
    ) x
    group by 1, 2
    having (sum(x.documents), sum(x.processing), sum(x.completed), sum(x.failed), sum(x.skipped),
        sum(x.timed), sum(x.duration_us)) <> (0, 0, 0, 0, 0, 0, 0);
    get diagnostics v_mended = row_count;
    perform krai_private.fold_deltas_if_due();
    return jsonb_build_object('mended', v_mended);
end;
$$$f$, krai_private.sql_counted('select ''{}''::jsonb as old, d.stage_status as new from krai_core.documents d'));
end $make$;
comment on function krai_core.rebuild_statistics() is
'Compares the metrics with all documents, in one snapshot and without locks, and appends corrections.
Returns {"mended": n}, how many sums; 0 unless triggers were switched off (a restore with session_replication_role =
replica). Reads every document. Raises only 42501, for lack of rights.';

create or replace function krai_core.reap(p_limit integer default 1000) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_stage krai_core.stages;
    v_expired record;
    v_left integer := krai_private.checked_limit(p_limit, 100000);
    v_requeued integer := 0;
    v_failed integer := 0;
    v_filled integer := 0;
begin
    for v_stage in select * from krai_core.stages s order by s.position loop
        exit when v_left = 0;
        v_expired := krai_private.requeue_expired(v_stage, v_left);
        v_requeued := v_requeued + v_expired.o_requeued;
        v_failed := v_failed + v_expired.o_failed;
        v_left := v_left - v_expired.o_requeued - v_expired.o_failed;
    end loop;
    begin
        v_filled := krai_core.fill_ready_runs(p_limit);
    exception when lock_not_available then
        -- Somebody keeps a document locked: the next call tries again.
        raise warning 'ready runs were not filled: %', sqlerrm;
    end;
    perform krai_private.renew_default();
    perform krai_private.fold_deltas_if_due();
    return jsonb_build_object('requeued', v_requeued, 'failed', v_failed, 'filled', v_filled);
end;
$$;
comment on function krai_core.reap(integer) is
'Does the periodic work, for cron or a worker: requeues expired runs, fills ready runs, rolls up deltas.
Runs whose lease or timeout is over return to the queue, or end as failed if no attempt is left; ready runs are made
to match a changed pipeline (fill_ready_runs); the deltas of the metrics are rolled up into their sums. p_limit: at
most that many runs, and as many documents; 1 to 100000. Returns {"requeued", "failed", "filled"}: runs, runs,
documents. Never waits for runs that somebody is writing. Raises 22023 invalid_limit.';

create or replace function krai_core.prune_runs(
    p_older_than interval default '30 days',
    p_keep_failures boolean default true,
    p_limit integer default 10000
) returns jsonb
language plpgsql volatile
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
    v_before timestamptz := clock_timestamp() - krai_private.checked_age(p_older_than);
    v_pruned integer;
begin
    perform krai_private.checked_limit(p_limit, 100000);
    with old as materialized (
        select r.id from krai_core.stage_runs r
        where r.finished_at is not null and not r.is_current and r.finished_at < v_before
          and not (p_keep_failures is not false and r.status in ('failed', 'lost'))
          and exists (
              select from krai_core.stage_runs later
              where later.document_id = r.document_id and later.stage_name = r.stage_name and later.id > r.id
                and later.finished_at is not null
                -- A run that got further than every later one still counts in the weighted progress.
                and (
                    coalesce(r.progress, 0) = 0
                    or later.status in ('completed', 'skipped')
                    or later.progress >= r.progress))
        order by r.finished_at
        limit p_limit
        for update skip locked
    )
    delete from krai_core.stage_runs r using old where r.id = any (array[old.id]);
    get diagnostics v_pruned = row_count;
    return jsonb_build_object('pruned', v_pruned, 'more', v_pruned = p_limit);
end;
$$;
comment on function krai_core.prune_runs(interval, boolean, integer) is
'Deletes runs that ended longer ago than p_older_than and have been superseded.
Never deletes the last run of a stage, nor its current one; statistics keep what is pruned. p_keep_failures: failed
and lost runs stay; null means true. p_limit: at most that many at once, 1 to 100000. Returns {"pruned": n, "more":
true if the limit stopped it: call it again}. Waits for nobody. Raises 22023 invalid_age or invalid_limit.';

create or replace function krai_private.schedule_maintenance_as_owner(
    p_prune_older_than interval,
    p_keep_failures boolean
) returns jsonb
language plpgsql volatile security definer
set search_path = ''
as $$
declare
    v_jobs text[] := array['krai_core_reap'];
begin
    if p_prune_older_than is not null then
        perform krai_private.checked_age(p_prune_older_than);
    end if;
    if to_regprocedure('cron.schedule(text,text,text)') is null then
        return jsonb_build_object('scheduled', false, 'jobs', '[]'::jsonb,
            'message', 'There is no pg_cron: enable the extension and call this again, '
                'or rely on the workers, which reap automatically.');
    end if;
    -- By name, so that another call replaces what the first one scheduled.
    execute format('select %I.schedule($1, $2, $3)', 'cron')
    using 'krai_core_reap', '* * * * *', 'select krai_core.reap()';
    if p_prune_older_than is not null then
        v_jobs := v_jobs || 'krai_core_prune'::text;
        execute format('select %I.schedule($1, $2, $3)', 'cron')
        using 'krai_core_prune', '17 * * * *',
            format('select krai_core.prune_runs(%L, %L, 100000)', p_prune_older_than, p_keep_failures is not false);
    else
        execute format(
            'select %1$I.unschedule(j.jobname) from %1$I.job j
            where j.jobname = $1 and j.username = current_user', 'cron')
        using 'krai_core_prune';
    end if;
    return jsonb_build_object('scheduled', true, 'jobs', to_jsonb(v_jobs),
        'message', 'pg_cron calls them from now on.');
end;
$$;
comment on function krai_private.schedule_maintenance_as_owner(interval, boolean) is
'What schedule_maintenance does. Security definer, because only the owner may schedule jobs.';

create or replace function krai_core.schedule_maintenance(
    p_prune_older_than interval default null,
    p_keep_failures boolean default true
) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
begin
    return krai_private.schedule_maintenance_as_owner(p_prune_older_than, p_keep_failures);
end;
$$;
comment on function krai_core.schedule_maintenance(interval, boolean) is
'Has pg_cron call reap every minute, and prune_runs every hour if an age is given.
Another call replaces the schedule; without an age it ends the pruning. Without pg_cron nothing happens.
p_prune_older_than, p_keep_failures: as in prune_runs; null: nothing is pruned. Returns {"scheduled": true or false,
"jobs": [names], "message"}. Raises 22023 invalid_age.';
