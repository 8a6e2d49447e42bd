-- Ready runs: which stages may be run now, derived from the truth.
--
--   derive_ready_runs   makes the ready runs of some documents match stage_status: adds what is missing, deletes what is stale
--   derive_and_count    the same, and tells how many
--   follow_edits        after a direct edit: runs are cancelled, adopted and derived anew
--   affected_stages     what can become ready or unready when some stages change
--
-- Rules
--   * Ready = the stage is enabled, it is pending, or failed with a retry due (retry_at of its last run), and every enabled
--     prerequisite is finished. Pause and backoff do not count here.
--   * A ready run that is no longer right is deleted: nobody has worked on it.
--   * The caller has locked the documents. Never opens a second run beside an open one.
--   * Everything that derives reads krai_core.stages in its own transaction; whoever changes the pipeline excludes it by a
--     lock on that table.
-- Lock order: documents in id order, then stage_runs.

create or replace function krai_private.affected_stages(p_changed text[]) returns text[]
language plpgsql stable
set search_path = ''
as $$
begin
    return p_changed || array(
        select s.name from krai_core.stages s where s.waits_for && p_changed and s.name <> all (p_changed));
end;
$$;
comment on function krai_private.affected_stages(text[]) is
'The stages given and those that require one of them directly: what can become ready or unready when they change.';

create or replace function krai_private.derive_ready_runs(
    p_document_ids uuid[], p_stages text[] default null, p_only_add boolean default false)
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
        where r.document_id = any (p_document_ids) and r.open_stage is not null and r.status = 'ready'
          and (p_stages is null or r.stage_name = any (p_stages))
          and not exists (
              select from krai_private.startable_stages t
              where t.document_id = any (array[r.document_id]) and t.stage_name = any (array[r.stage_name])
                and (not t.is_failed or (
                    select stood.retry_at is not null and stood.reset_at is null from krai_core.stage_runs stood
                    where stood.document_id = r.document_id and stood.stage_name = r.stage_name and stood.is_current limit 1)));
    end if;
    p_stages := coalesce(p_stages, array(select s.name from krai_core.stages s));
    with opened as (
        insert into krai_core.stage_runs (document_id, stage_name, status, attempt, priority, available_at, retry_at)
        select t.document_id, t.stage_name, 'ready',
            case when last.id is null then 1 else krai_private.next_attempt(last.status, last.attempt, last.reset_at) end,
            coalesce(p.priority, 0),
            -- What was given back keeps its place in the queue.
            coalesce(case when t.is_failed then last.retry_at when last.status = 'released' then last.available_at end,
                clock_timestamp()),
            case when t.is_failed then last.retry_at end
        from krai_private.startable_stages t
        -- A failed stage rests on its last run; the last one of a pending stage is superseded: in an index that holds few.
        left join lateral (
            (select r.id, r.status, r.attempt, r.reset_at, case when r.reset_at is null then r.retry_at end as retry_at,
                r.available_at
            from krai_core.stage_runs r
            where t.is_failed and r.document_id = t.document_id and r.stage_name = t.stage_name and r.is_current limit 1)
            union all
            (select r.id, r.status, r.attempt, r.reset_at, null, r.available_at
            from krai_core.stage_runs r
            where not t.is_failed and r.document_id = t.document_id and r.stage_name = t.stage_name
              and r.finished_at is not null and not r.is_current
            order by r.id + 0 desc limit 1)) last on true
        left join krai_core.document_priorities p on p.document_id = any (array[t.document_id])
        where t.document_id = any (p_document_ids) and t.stage_name = any (p_stages)
          and (not t.is_failed or last.retry_at is not null)
          -- The documents are locked, so that nobody opens one meanwhile.
          and not exists (
              select from krai_core.stage_runs o
              where o.document_id = t.document_id and o.open_stage = t.stage_name offset 0)
        returning stage_name, attempt, available_at
    )
    insert into krai_core.stage_deltas (stage_name, arrived)
    -- Neither retries nor what was given back.
    select o.stage_name, count(*) from opened o
    where o.attempt = 1 and o.available_at >= v_now group by o.stage_name;
end;
$$;
comment on function krai_private.derive_ready_runs(uuid[], text[], boolean) is
'Makes the ready runs of documents match stage_status. p_stages: the stages to look at, null for all. p_only_add: nothing can have
become unready. The caller has locked the documents.';

create or replace function krai_private.derive_and_count(p_document_ids uuid[]) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_before bigint[] := array(
        select r.id from krai_core.stage_runs r
        where r.document_id = any (p_document_ids) and r.open_stage is not null and r.status = 'ready');
    v_after bigint[];
begin
    perform krai_private.derive_ready_runs(p_document_ids);
    v_after := array(
        select r.id from krai_core.stage_runs r
        where r.document_id = any (p_document_ids) and r.open_stage is not null and r.status = 'ready');
    return jsonb_build_object(
        'added', (select count(*) from (select unnest(v_after) except select unnest(v_before)) x),
        'removed', (select count(*) from (select unnest(v_before) except select unnest(v_after)) x));
end;
$$;
comment on function krai_private.derive_and_count(uuid[]) is
'As derive_ready_runs; returns {"added", "removed"}, how many ready runs.';

create or replace function krai_private.follow_edits(p_document_ids uuid[]) returns void
language plpgsql volatile
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
begin
    update krai_core.stage_runs r
    set status = 'cancelled', finished_at = clock_timestamp(), error = 'stage_status was edited directly'
    from krai_core.documents d
    where r.document_id = any (p_document_ids) and d.id = any (array[r.document_id])
      and r.open_stage is not null and r.status = 'running'
      and krai_private.stage_state(d.stage_status -> r.stage_name) <> 'processing';
    -- Somebody who takes a failure out of the column by hand settles it, as retry_stage does: attempts count from 1 again.
    with retried as (
        update krai_core.stage_runs r
        set reset_at = clock_timestamp()
        from krai_core.documents d
        where r.document_id = any (p_document_ids) and d.id = any (array[r.document_id]) and r.reset_at is null
          and (r.status = 'failed' or r.status = 'lost' and r.attempt >= (
              select s.max_attempts from krai_core.stages s where s.name = r.stage_name))
          and krai_private.stage_state(d.stage_status -> r.stage_name) not in ('failed', 'processing')
          and not exists (
              select from krai_core.stage_runs later
              where later.document_id = r.document_id and later.stage_name = r.stage_name and later.id > r.id
                and later.status <> 'ready')
        returning r.document_id, r.stage_name
    )
    delete from krai_core.stage_runs r using retried t
    where r.document_id = t.document_id and r.open_stage = t.stage_name and r.status = 'ready';
    perform krai_private.adopt_runs(p_document_ids);
    perform krai_private.derive_ready_runs(p_document_ids);
end;
$$;
comment on function krai_private.follow_edits(uuid[]) is
'After a direct edit of stage_status: runs of stages that are no longer processing are cancelled, those set to processing get one, and ready runs follow.';
