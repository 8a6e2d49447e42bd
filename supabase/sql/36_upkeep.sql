-- Per-stage document tracking: what keeps the database small and the queue going without anybody's doing.
--
--   prune_runs             deletes old runs that nothing stands on any more, a bounded number at a time
--   schedule_maintenance   has pg_cron call reap and prune_runs, where there is pg_cron
--
-- Rules
--   * Never deleted: open runs, current ones, and the last closed run of a stage, which attempts and retries are counted from.
--   * What is pruned stays counted (stage_flow, stage_counters).
--   * Runs that somebody is writing are passed over; nobody waits.
--   * Nothing is scheduled unless somebody asks for it: workers do the same by themselves.

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
    v_after := (select s.fill_after from krai_core.stages s where s.fill_after is not null order by s.fill_after limit 1);
    -- One at a time; for the others there is nothing to do here.
    if v_after is null or not pg_try_advisory_xact_lock(hashtextextended('krai_core.fill_ready_runs', 0)) then
        return 0;
    end if;
    -- Again under the lock: another may have gone on meanwhile.
    v_after := (select s.fill_after from krai_core.stages s where s.fill_after is not null order by s.fill_after limit 1);
    v_ids := array(select d.id from krai_core.documents d where d.id > v_after order by d.id limit p_limit);
    -- Waits for the first alone, and goes as far as the next that somebody holds: who waits for one of these documents waits for
    -- this batch, and not for all that it would have waited for.
    perform from krai_core.documents d where d.id = v_ids[1] for no key update;
    v_free := v_ids[1:1] || array(
        select d.id from krai_core.documents d where d.id = any (v_ids[2:]) order by d.id for no key update skip locked);
    v_held := (select held.id from (select unnest(v_ids) except select unnest(v_free)) as held (id) order by held.id limit 1);
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
'After the pipeline was changed: brings the ready runs of the next p_limit documents (1 to 100000) after it, in id order. Returns how many documents were looked at; 0 when there is nothing left to do, or another session is at it.
Workers and reap call it. Raises 22023 invalid_limit, 55P03 when a document stays locked for 0.9 s: call it again.';

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
            select from krai_core.stage_runs r where r.document_id = t.document_id and r.open_stage = t.stage_name and r.status = 'running')
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
            select from krai_core.stage_runs r where r.document_id = d.id and r.open_stage = s.name and r.status = 'running')
    ),
    current as (
        -- As state_of_run says, which would be called millions of times.
        select r.document_id, r.stage_name, case r.status when 'lost' then 'failed' when 'cancelled' then 'skipped' else r.status end as state
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
'Compares the ready runs of all documents with the truth and mends what is wrong. Returns {"added", "removed", "adopted"}, how many runs; all 0 unless triggers were switched off (a restore with session_replication_role = replica). Reads every document. Raises nothing of its own but 42501 for lack of rights.';

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
    -- One after the other, or both would add what is missing.
    perform pg_advisory_xact_lock(hashtextextended('krai_core.rebuild_statistics', 0));
    with truth as (
        select t.stage_name, t.bucket, 0::bigint as documents, t.processing, t.completed, t.failed, t.skipped, t.timed, t.duration_us from (%s) t
        union all
        select '', -1, count(*), 0, 0, 0, 0, 0, 0 from krai_core.documents
    ),
    both_sides as (
        select 1 as sign, t.* from truth t
        union all
        select -1, k.* from krai_private.stage_sums k
    )
    insert into krai_core.stage_deltas (stage_name, bucket, documents, processing, completed, failed, skipped, timed, duration_us)
    select x.stage_name, x.bucket, sum(x.documents), sum(x.processing), sum(x.completed), sum(x.failed), sum(x.skipped), sum(x.timed), sum(x.duration_us)
    from (
        -- A state is counted in whichever bucket it came with: only the sum over all of them means something.
        select b.stage_name, -1 as bucket, b.sign * b.documents as documents, b.sign * b.processing as processing, b.sign * b.completed as completed,
            b.sign * b.failed as failed, b.sign * b.skipped as skipped, 0 as timed, 0 as duration_us
        from both_sides b
        union all
        select b.stage_name, b.bucket, 0, 0, 0, 0, 0, b.sign * b.timed, b.sign * b.duration_us from both_sides b
    ) x
    group by 1, 2
    having (sum(x.documents), sum(x.processing), sum(x.completed), sum(x.failed), sum(x.skipped), sum(x.timed), sum(x.duration_us)) <> (0, 0, 0, 0, 0, 0, 0);
    get diagnostics v_mended = row_count;
    perform krai_private.fold_deltas_if_due();
    return jsonb_build_object('mended', v_mended);
end;
$$$f$, krai_private.sql_counted('select ''{}''::jsonb as old, d.stage_status as new from krai_core.documents d'));
end $make$;
comment on function krai_core.rebuild_statistics() is
'Compares the figures with all documents, in one snapshot and without locks, and appends what is wrong. Returns {"mended": n}, how many sums; 0 unless triggers were switched off (a restore with session_replication_role = replica). Reads every document. Raises nothing of its own but 42501 for lack of rights.';

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
        -- Somebody holds a document for long: the next call tries it again.
        raise warning 'ready runs were not filled: %', sqlerrm;
    end;
    perform krai_private.renew_default();
    perform krai_private.fold_deltas_if_due();
    return jsonb_build_object('requeued', v_requeued, 'failed', v_failed, 'filled', v_filled);
end;
$$;
comment on function krai_core.reap(integer) is
'What has to be done now and then, by cron or by a worker: runs whose lease or timeout is over go back to the queue, or end as failed when no attempt is left; ready runs follow a changed pipeline (fill_ready_runs); the figures are folded.
p_limit: at most so many runs, and documents to look at; 1 to 100000. Returns {"requeued", "failed", "filled"}: runs, runs, documents. Never waits for runs that somebody is writing. Raises 22023 invalid_limit.';

create or replace function krai_core.prune_runs(p_older_than interval default '30 days', p_keep_failures boolean default true, p_limit integer default 10000)
returns jsonb
language plpgsql volatile
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
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
              where later.document_id = r.document_id and later.stage_name = r.stage_name and later.id > r.id and later.finished_at is not null
                -- What was further than all that came after it still counts in the weighted progress.
                and (coalesce(r.progress, 0) = 0 or later.status in ('completed', 'skipped') or later.progress >= r.progress))
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
'Deletes runs that ended longer ago than p_older_than and were superseded since. Never the last run of a stage, nor one that its stage stands on; statistics keep what is pruned.
p_keep_failures: failed and lost ones stay; null means true. p_limit: at most so many at once, 1 to 100000. Returns {"pruned": n, "more": true where the limit cut it off: call it again}. Waits for nobody. Raises 22023 invalid_age or invalid_limit.';

create or replace function krai_private.schedule_maintenance_as_owner(p_prune_older_than interval, p_keep_failures boolean)
returns jsonb
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
            'message', 'There is no pg_cron: enable the extension and call this again, or leave it to the workers, which reap by themselves.');
    end if;
    -- By name, so that a further call renews what the first has scheduled.
    execute format('select %I.schedule($1, $2, $3)', 'cron') using 'krai_core_reap', '* * * * *', 'select krai_core.reap()';
    if p_prune_older_than is not null then
        v_jobs := v_jobs || 'krai_core_prune'::text;
        execute format('select %I.schedule($1, $2, $3)', 'cron') using 'krai_core_prune', '17 * * * *',
            format('select krai_core.prune_runs(%L, %L, 100000)', p_prune_older_than, p_keep_failures is not false);
    else
        execute format('select %1$I.unschedule(j.jobname) from %1$I.job j where j.jobname = $1 and j.username = current_user', 'cron') using 'krai_core_prune';
    end if;
    return jsonb_build_object('scheduled', true, 'jobs', to_jsonb(v_jobs), 'message', 'pg_cron calls them from now on.');
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
'Has pg_cron call reap every minute, and prune_runs every hour when an age is given; a further call renews that, and without an age ends the pruning. Without pg_cron nothing happens.
p_prune_older_than, p_keep_failures: as in prune_runs; null: nothing is pruned. Returns {"scheduled": true or false, "jobs": [names], "message"}. Raises 22023 invalid_age.';
