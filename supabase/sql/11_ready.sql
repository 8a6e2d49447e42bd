-- Ready runs: which stages may run now, derived from stage_status.
--
--   affected_stages     the stages that can become ready or unready when the given ones change
--   derive_ready_runs   makes the ready runs of documents match stage_status: adds missing ones, deletes stale ones
--   derive_and_count    the same, and returns how many it added and removed
--   follow_edits        after a direct edit of stage_status: cancels, adopts and derives runs
--
-- Rules
--   * A stage is ready when it is enabled; pending, or failed with a retry scheduled (retry_at of its last run); and
--     every enabled prerequisite is finished. Pause and backoff only delay it: they do not count here.
--   * A ready run whose stage is no longer ready is deleted: nobody has worked on it.
--   * Callers have locked the documents, so a stage never gets a second open run.
--   * Deriving reads krai_core.stages in the same transaction. Whoever changes the pipeline locks that table, which
--     keeps everybody from deriving meanwhile.
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
'The given stages and those that directly require one of them: all that can become ready or unready when they change.';

create or replace function krai_private.derive_ready_runs(
    p_document_ids uuid[], p_stages text[] default null, p_only_add boolean default false)
returns void
language plpgsql volatile
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
    if not p_only_add then
        delete from krai_core.stage_runs r
        where r.document_id = any (p_document_ids) and r.open_stage is not null and r.status = 'ready'
          and (p_stages is null or r.stage_name = any (p_stages))
          and not exists (
              select from krai_private.startable_stages t
              where t.document_id = any (array[r.document_id]) and t.stage_name = any (array[r.stage_name])
                and (not t.is_failed or (
                    select stood.retry_at is not null and stood.reset_at is null from krai_core.stage_runs stood
                    where stood.document_id = r.document_id and stood.stage_name = r.stage_name and stood.is_current
                    limit 1)));
    end if;
    p_stages := coalesce(p_stages, array(select s.name from krai_core.stages s));
    with opened as (
        insert into krai_core.stage_runs (document_id, stage_name, status, attempt, priority, available_at, retry_at)
        select t.document_id, t.stage_name, 'ready',
            case when last.id is null then 1
                else krai_private.next_attempt(last.status, last.attempt, last.reset_at) end,
            coalesce(p.priority, 0),
            -- A released run keeps its place in the queue.
            coalesce(
                case when t.is_failed then last.retry_at when last.status = 'released' then last.available_at end,
                clock_timestamp()),
            case when t.is_failed then last.retry_at end
        from krai_private.startable_stages t
        -- A failed stage rests on its last run, the current one. The last run of a pending stage is superseded; the
        -- partial index of superseded runs holds few rows per document.
        left join lateral (
            (select r.id, r.status, r.attempt, r.reset_at,
                case when r.reset_at is null then r.retry_at end as retry_at, r.available_at
            from krai_core.stage_runs r
            where t.is_failed and r.document_id = t.document_id and r.stage_name = t.stage_name and r.is_current
            limit 1)
            union all
            (select r.id, r.status, r.attempt, r.reset_at, null, r.available_at
            from krai_core.stage_runs r
            where not t.is_failed and r.document_id = t.document_id and r.stage_name = t.stage_name
              and r.finished_at is not null and not r.is_current
            order by r.id + 0 desc limit 1)) last on true
        left join krai_core.document_priorities p on p.document_id = any (array[t.document_id])
        where t.document_id = any (p_document_ids) and t.stage_name = any (p_stages)
          and (not t.is_failed or last.retry_at is not null)
          -- The documents are locked: nobody opens a run between this check and the insert.
          and not exists (
              select from krai_core.stage_runs o
              where o.document_id = t.document_id and o.open_stage = t.stage_name)
        returning stage_name, attempt, available_at
    )
    insert into krai_core.stage_deltas (stage_name, arrived)
    -- Retries and released runs are no arrivals.
    select o.stage_name, count(*) from opened o
    where o.attempt = 1 and o.available_at >= v_now group by o.stage_name;
end;
$$;
comment on function krai_private.derive_ready_runs(uuid[], text[], boolean) is
'Makes the ready runs of documents match stage_status.
p_stages: the stages to look at, null for all. p_only_add: true when nothing can have become unready, so nothing is
deleted. The caller has locked the documents.';

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
'As derive_ready_runs for all stages. Returns {"added", "removed"}: numbers of ready runs.';

create or replace function krai_private.follow_edits(p_document_ids uuid[]) returns void
language plpgsql volatile
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_memoize = off
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
    -- Taking a failure out of the column by hand settles it, as retry_stage does: attempts count from 1 again.
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
'Makes the runs of documents match stage_status after a direct edit of it.
Cancels running runs of stages that are no longer processing, adopts runs for stages that were set by hand, and derives
the ready runs. The caller has locked the documents.';
