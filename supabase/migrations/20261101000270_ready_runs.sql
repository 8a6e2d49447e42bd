-- Per-stage document tracking: which stages are ready to be run, derived from the truth. Private helpers, and two functions
-- for supervisors.
--
--   _ready_stages        what is ready by the truth: one row per document and stage
--   _derive_ready_runs   brings the ready runs of some documents after it: adds what is missing, removes what is too much
--   _adopt_runs, _adopt_closed_runs     give a run to stages that somebody wrote by hand, or that are older than the history
--   fill_ready_runs      goes through the documents bit by bit after the pipeline was changed
--   rebuild_ready_runs   looks at all documents; changes nothing unless triggers were switched off
--
-- Rules
--   * Ready = the stage is enabled, it is pending, or failed with a retry to come (retry_at of its last run), and every
--     enabled stage that it requires is finished. Pause and backoff do not count here.
--   * A ready run that is no longer right is deleted: nobody has worked on it.
--   * Deriving needs the documents locked. It adds nothing beside an open run.
--   * Everything that derives reads krai_core.stages in its own transaction; whoever changes the pipeline excludes it by a
--     lock on that table.
-- Lock order: documents in id order, then stage_runs.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
-- Nothing is made where the file of the tables stopped: psql goes on after an error unless it is told otherwise.
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;

create or replace view krai_core._ready_stages with (security_invoker = true) as
select
    d.id as document_id,
    s.name as stage_name,
    w.whole -> s.name ->> 'status' is not distinct from 'failed' as is_failed,
    d.ctid as row
from krai_core.documents d
-- Unpacked once, and not for each stage and each that it requires.
cross join lateral (select d.stage_status || '{}' as whole offset 0) w
cross join krai_core.stages s
where s.enabled
  and coalesce(w.whole -> s.name ->> 'status', '') not in ('processing', 'completed', 'skipped')
  and w.whole -> s.name is distinct from '"completed"'
  and not exists (
      select from unnest(s.waits_for) as required (name)
      where coalesce(w.whole -> required.name ->> 'status', '') not in ('completed', 'skipped')
        and w.whole -> required.name is distinct from '"completed"');
comment on view krai_core._ready_stages is
'Stages that may run by what stage_status says: enabled, pending or failed, everything required finished. A failed one is ready only with a retry to come, which stage_runs knows.';
comment on column krai_core._ready_stages.document_id is 'The document.';
comment on column krai_core._ready_stages.stage_name is 'The stage.';
comment on column krai_core._ready_stages.is_failed is 'true: it failed, and is ready only if its last run has a retry_at.';
comment on column krai_core._ready_stages.row is 'Where the row of the document is, until it is written again.';

create or replace function krai_core._touched_by(p_changed text[]) returns text[]
language plpgsql stable
set search_path = ''
as $$
begin
    return p_changed || array(select s.name from krai_core.stages s where s.waits_for && p_changed and s.name <> all (p_changed));
end;
$$;
comment on function krai_core._touched_by(text[]) is 'The stages given and those that require one of them directly: what can become ready or unready by a change.';

-- Planned once, by index, whatever the statistics said that day: a plan from the first hour, when the tables were small,
-- would read all of them for every batch. Without jit, which would be started by the costs of the ways not to be taken.
create or replace function krai_core._derive_ready_runs(p_document_ids uuid[], p_stages text[] default null, p_only_add boolean default false, p_rows tid[] default null)
returns void
language plpgsql volatile
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_now timestamptz := clock_timestamp();
begin
    if not p_only_add then
        delete from krai_core.stage_runs r
        where r.document_id = any (p_document_ids) and r.open_stage is not null and r.status = 'ready' and (p_stages is null or r.stage_name = any (p_stages))
          and not exists (
              select from krai_core._ready_stages t
              where t.document_id = any (array[r.document_id]) and t.stage_name = any (array[r.stage_name])
                and (not t.is_failed or (
                    select stood.retry_at is not null and stood.reset_at is null from krai_core.stage_runs stood
                    where stood.document_id = r.document_id and stood.stage_name = r.stage_name and stood.is_current limit 1)));
    end if;
    p_stages := coalesce(p_stages, array(select s.name from krai_core.stages s));
    -- Found by where they are. Where a trigger of somebody else has moved one of them since, all are looked for.
    if p_rows is null or (select count(*) from krai_core.documents d where d.ctid = any (p_rows)) < cardinality(p_rows) then
        p_rows := array(select d.ctid from krai_core.documents d where d.id = any (p_document_ids));
    end if;
    with opened as (
        insert into krai_core.stage_runs (document_id, stage_name, status, attempt, priority, available_at, retry_at)
        select t.document_id, t.stage_name, 'ready',
            case when last.id is null then 1 else krai_core._next_attempt(last.status, last.attempt, last.reset_at) end,
            coalesce(p.priority, 0),
            -- What was given back keeps its place in the queue.
            coalesce(case when t.is_failed then last.retry_at when last.status = 'released' then last.available_at end, clock_timestamp()),
            case when t.is_failed then last.retry_at end
        from krai_core._ready_stages t
        -- A failed stage stands on its last run; the last one of a pending stage is superseded: in an index that holds few.
        left join lateral (
            (select r.id, r.status, r.attempt, r.reset_at, case when r.reset_at is null then r.retry_at end as retry_at, r.available_at from krai_core.stage_runs r
            where t.is_failed and r.document_id = t.document_id and r.stage_name = t.stage_name and r.is_current limit 1)
            union all
            (select r.id, r.status, r.attempt, r.reset_at, null, r.available_at from krai_core.stage_runs r
            where not t.is_failed and r.document_id = t.document_id and r.stage_name = t.stage_name and r.finished_at is not null and not r.is_current
            order by r.id + 0 desc limit 1)) last on true
        left join krai_core.document_priorities p on p.document_id = any (array[t.document_id])
        where t.row = any (p_rows) and t.stage_name = any (p_stages)
          and (not t.is_failed or last.retry_at is not null)
          -- The documents are locked, so that nobody opens one meanwhile.
          and not exists (select from krai_core.stage_runs o where o.document_id = t.document_id and o.open_stage = t.stage_name offset 0)
        returning stage_name, attempt, available_at
    )
    insert into krai_core.stage_deltas (stage_name, arrived)
    -- Neither retries nor what was given back.
    select o.stage_name, count(*) from opened o where o.attempt = 1 and o.available_at >= v_now group by o.stage_name;
end;
$$;
comment on function krai_core._derive_ready_runs(uuid[], text[], boolean, tid[]) is
'Brings the ready runs of documents that the caller has locked after the truth. p_stages: the stages to look at, null for all. p_only_add: nothing can have become unready. p_rows: where the rows of all of them are, for who has just written them.';

create or replace function krai_core._adopt_runs(p_document_ids uuid[]) returns integer
language plpgsql volatile
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_adopted integer;
begin
    delete from krai_core.stage_runs r
    using krai_core.documents d
    where r.document_id = any (p_document_ids) and d.id = any (array[r.document_id]) and r.open_stage is not null and r.status = 'ready'
      and d.stage_status -> r.stage_name ->> 'status' = 'processing';
    insert into krai_core.stage_runs (document_id, stage_name, status, attempt, started_at, heartbeat_at, lease_seconds, lease_expires_at)
    select x.document_id, x.name, 'running',
        coalesce((select krai_core._next_attempt(last.status, last.attempt, last.reset_at) from krai_core.stage_runs last
                  where last.document_id = x.document_id and last.stage_name = x.name order by last.id + 0 desc limit 1), 1),
        x.began, x.began, x.lease, x.began + make_interval(secs => x.lease)
    from (
        select d.id as document_id, s.name, greatest(s.lease_seconds, 3600) as lease,
            least(coalesce(krai_core._time_or_null(d.stage_status -> s.name ->> 'started_at'), v_now), v_now) as began
        from krai_core.documents d
        cross join krai_core.stages s
        where d.id = any (p_document_ids) and d.stage_status -> s.name ->> 'status' = 'processing'
    ) x
    on conflict (document_id, open_stage) do nothing;
    get diagnostics v_adopted = row_count;
    return v_adopted + krai_core._adopt_closed_runs(p_document_ids);
end;
$$;
comment on function krai_core._adopt_runs(uuid[]) is
'Stages that are processing without a run, because somebody wrote the column, get one without claim id, with the lease that a plain start gives, from the started_at that they show: so they come back when nobody ends them. Then _adopt_closed_runs. Returns how many. The documents must be locked by the caller.';

create or replace view krai_core._current_stages with (security_invoker = true) as
select d.id as document_id, s.name as stage_name, x.state
from krai_core.documents d
cross join krai_core.stages s
cross join lateral (
    select case when d.stage_status -> s.name = '"completed"' then 'completed' else d.stage_status -> s.name ->> 'status' end as state offset 0) x
where x.state in ('completed', 'failed', 'skipped');
comment on view krai_core._current_stages is 'Stages that are completed, failed or skipped by what stage_status says: each stands on one current run.';
comment on column krai_core._current_stages.document_id is 'The document.';
comment on column krai_core._current_stages.stage_name is 'The stage.';
comment on column krai_core._current_stages.state is 'completed, failed or skipped.';

create or replace function krai_core._state_of_run(p_status text) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return case p_status when 'lost' then 'failed' when 'cancelled' then 'skipped' else p_status end;
end;
$$;
comment on function krai_core._state_of_run(text) is 'The state of a stage that stands on a closed run of that status: completed, failed (failed, lost) or skipped (skipped, cancelled).';

create or replace function krai_core._adopt_closed_runs(p_document_ids uuid[]) returns integer
language plpgsql volatile
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_superseded integer;
    v_adopted integer;
begin
    update krai_core.stage_runs r
    set is_current = false,
        -- Taken back by hand, as by reset_stage.
        reset_at = case when r.reset_at is null and (
            select krai_core._stage_state(d.stage_status -> r.stage_name) from krai_core.documents d where d.id = r.document_id) = 'pending' then v_now else r.reset_at end
    where r.document_id = any (p_document_ids) and r.is_current and not exists (
        select from krai_core._current_stages c
        where c.document_id = any (array[r.document_id]) and c.stage_name = any (array[r.stage_name]) and c.state = krai_core._state_of_run(r.status));
    get diagnostics v_superseded = row_count;
    insert into krai_core.stage_runs (document_id, stage_name, status, started_at, finished_at, is_current, error, error_fingerprint)
    select c.document_id, c.stage_name, c.state, x.started_at, coalesce(x.finished_at, x.started_at, v_now), true, left(x.error, 65536),
        case when c.state = 'failed' then krai_core._error_fingerprint(x.error) end
    from krai_core._current_stages c
    cross join lateral (
        select krai_core._time_or_null(d.stage_status -> c.stage_name ->> 'started_at') as started_at,
            krai_core._time_or_null(d.stage_status -> c.stage_name ->> 'completed_at') as finished_at,
            d.stage_status -> c.stage_name ->> 'error' as error
        from krai_core.documents d where d.id = c.document_id offset 0) x
    where c.document_id = any (p_document_ids) and not exists (
        -- `offset 0`: no join, which a planner that believes the table empty would make of all of it.
        select from krai_core.stage_runs r where r.document_id = c.document_id and r.stage_name = c.stage_name and r.is_current offset 0);
    get diagnostics v_adopted = row_count;
    return v_superseded + v_adopted;
end;
$$;
comment on function krai_core._adopt_closed_runs(uuid[]) is
'Stages that are completed, failed or skipped without a current run, because somebody wrote the column or they are older than the history, get one of what the column knows; runs that their stage stands on no longer are current no more. Returns how many of both. The documents must be locked by the caller.';

create or replace function krai_core.fill_ready_runs(p_limit integer default 1000) returns integer
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
    perform krai_core._checked_limit(p_limit, 100000);
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
    perform krai_core._adopt_runs(v_ids);
    perform krai_core._derive_ready_runs(v_ids);
    update krai_core.stages s
    set fill_after = case when cardinality(v_ids) = p_limit or v_held is not null then v_ids[cardinality(v_ids)] end
    where s.fill_after = v_after;
    return cardinality(v_ids);
end;
$$;
comment on function krai_core.fill_ready_runs(integer) is
'After the pipeline was changed: brings the ready runs of the next p_limit documents (1 to 100000) after it, in id order. Returns how many documents were looked at; 0 when there is nothing left to do, or another session is at it.
Workers and reap call it. Security definer, because stages.fill_after is nobody''s to write. Raises 22023 invalid_limit, 55P03 when a document stays locked for 0.9 s: call it again.';

create or replace function krai_core.rebuild_ready_runs() returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_ids uuid[];
begin
    with truth as (
        select t.document_id, t.stage_name from krai_core._ready_stages t
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
        -- As _state_of_run says, which would be called millions of times.
        select r.document_id, r.stage_name, case r.status when 'lost' then 'failed' when 'cancelled' then 'skipped' else r.status end as state
        from krai_core.stage_runs r where r.is_current
    )
    select array_agg(wrong.document_id order by wrong.document_id) into v_ids
    from (
        (select t.document_id from (table truth except table ready) t)
        union (select t.document_id from (table ready except table truth) t)
        union (select o.document_id from orphaned o)
        union (select c.document_id from (table krai_core._current_stages except all table current) c)
        union (select c.document_id from (table current except all table krai_core._current_stages) c)
    ) wrong;
    if v_ids is null then
        return '{"added": 0, "removed": 0, "adopted": 0}'::jsonb;
    end if;
    perform from krai_core.documents d where d.id = any (v_ids) order by d.id for no key update;
    return jsonb_build_object('adopted', krai_core._adopt_runs(v_ids)) || krai_core._rederived(v_ids);
end;
$$;
comment on function krai_core.rebuild_ready_runs() is
'Compares the ready runs of all documents with the truth and mends what is wrong. Returns {"added", "removed", "adopted"}, how many runs; all 0 unless triggers were switched off (a restore with session_replication_role = replica). Reads every document. Raises nothing of its own but 42501 for lack of rights.';

create or replace function krai_core._rederived(p_document_ids uuid[]) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_before bigint[] := array(
        select r.id from krai_core.stage_runs r where r.document_id = any (p_document_ids) and r.open_stage is not null and r.status = 'ready');
    v_after bigint[];
begin
    perform krai_core._derive_ready_runs(p_document_ids);
    v_after := array(select r.id from krai_core.stage_runs r where r.document_id = any (p_document_ids) and r.open_stage is not null and r.status = 'ready');
    return jsonb_build_object(
        'added', (select count(*) from (select unnest(v_after) except select unnest(v_before)) x),
        'removed', (select count(*) from (select unnest(v_before) except select unnest(v_after)) x));
end;
$$;
comment on function krai_core._rederived(uuid[]) is 'As _derive_ready_runs; returns {"added", "removed"}, how many ready runs.';

do $$
declare
    v_function regprocedure;
begin
    for v_function in
        select p.oid from pg_catalog.pg_proc p
        where p.pronamespace = 'krai_core'::regnamespace and p.proname = any (array[
            '_touched_by', '_derive_ready_runs', '_adopt_runs', '_adopt_closed_runs', '_state_of_run', '_rederived', 'fill_ready_runs', 'rebuild_ready_runs'])
    loop
        execute format('revoke execute on function %s from public, anon, authenticated', v_function);
        execute format('grant execute on function %s to service_role', v_function);
    end loop;
end $$;
revoke all on krai_core._ready_stages, krai_core._current_stages from public, anon, authenticated;
grant select on krai_core._ready_stages, krai_core._current_stages to service_role;

commit;
