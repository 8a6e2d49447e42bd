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

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
-- Nothing is made where the file of the tables stopped: psql goes on after an error unless it is told otherwise.
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;

create or replace function krai_core._checked_age(p_older_than interval) returns interval
language plpgsql stable
set search_path = ''
as $$
begin
    if p_older_than between interval '0' and interval '1000 years' then
        return p_older_than;
    end if;
    perform krai_core._raise('22023', 'invalid_age', format('%s is no age', coalesce(p_older_than::text, 'null')), '{}', 'Pass an interval such as 30 days, at most 1000 years.');
    return null;
end;
$$;
comment on function krai_core._checked_age(interval) is 'The age; raises 22023 invalid_age for null and for what is not 0 to 1000 years.';

create or replace function krai_core.prune_runs(p_older_than interval default '30 days', p_keep_failures boolean default true, p_limit integer default 10000)
returns jsonb
language plpgsql volatile
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_before timestamptz := clock_timestamp() - krai_core._checked_age(p_older_than);
    v_pruned integer;
begin
    perform krai_core._checked_limit(p_limit, 100000);
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

create or replace function krai_core.schedule_maintenance(p_prune_older_than interval default null, p_keep_failures boolean default true)
returns jsonb
language plpgsql volatile security definer
set search_path = ''
as $$
declare
    v_jobs text[] := array['krai_core_reap'];
begin
    if p_prune_older_than is not null then
        perform krai_core._checked_age(p_prune_older_than);
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
comment on function krai_core.schedule_maintenance(interval, boolean) is
'Has pg_cron call reap every minute, and prune_runs every hour when an age is given; a further call renews that, and without an age ends the pruning. Without pg_cron nothing happens.
p_prune_older_than, p_keep_failures: as in prune_runs; null: nothing is pruned. Returns {"scheduled": true or false, "jobs": [names], "message"}. Security definer, because only the owner may schedule jobs. Raises 22023 invalid_age.';

do $$
declare
    v_function regprocedure;
begin
    for v_function in
        select p.oid from pg_catalog.pg_proc p
        where p.pronamespace = 'krai_core'::regnamespace and p.proname = any (array['_checked_age', 'prune_runs', 'schedule_maintenance'])
    loop
        execute format('revoke execute on function %s from public, anon, authenticated', v_function);
        execute format('grant execute on function %s to service_role', v_function);
    end loop;
end $$;

commit;
