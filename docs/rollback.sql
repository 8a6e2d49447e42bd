-- Takes the stage tracker away again. Run it as the owner of krai_core.documents, with no workers running.
--
-- Gone then: functions, views, triggers and tables of the tracker, schema krai_private, and with stage_runs the history of
-- all attempts.
-- Left as it is: krai_core.documents with all its rows and columns, stage_status and the legacy columns among them, its
-- default, its index idx_documents_stage_status, its policies and rights; and whatever is yours in schema krai_core.
--
-- All or nothing: where something of yours uses what is to go, it stops with a sentence that names it, and nothing has
-- changed. Nothing is dropped with CASCADE. It can be run again at any time, and so can the migrations after it.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
set local search_path = '';

-- What the tracker consists of, by name and kind; what stands in krai_private needs no name.
create temporary table tracker_parts (name text, kind text) on commit drop;

do $$
begin
    if to_regclass('krai_core.stage_runs') is null then
        -- Without it there is no tracker, or a much earlier one that these migrations did not make.
        return;
    elsif to_regprocedure('krai_private.access_list()') is not null then
        insert into pg_temp.tracker_parts
        select l.name, l.kind from krai_private.access_list() l
        union all
        select split_part(split_part(l.object, ' ', 2), '(', 1), 'leftover' from unnest(krai_private.leftovers()) as l (object);
    else
        -- A state from before 0.1.1, or one whose first migration was interrupted, has no list of its own.
        insert into pg_temp.tracker_parts
        select case l.kind when 'trigger' then n.name else 'krai_core.' || n.name end, l.kind
        from (values
            -- names begin: made by tools/build_rollback.py
            ('trigger', array[
                'documents_100_repair_insert', 'documents_150_note', 'documents_200_edited', 'documents_200_inserted',
                'documents_400_delete_runs', 'documents_400_truncate_runs', 'zzy_documents_repair_update',
                'zzz_documents_keep_rest']),
            ('view', array[
                'vw_document_stages', 'vw_documents_by_stage', 'vw_stage_statistics', 'vw_stage_flow',
                'vw_running_stages']),
            ('reader', array[
                'get_document_progress', 'get_current_stage', 'can_start_stage', 'get_document_status',
                'get_weighted_progress', 'get_document_timeline', 'explain_stage', 'list_documents',
                'get_documents_ready_for', 'get_failures', 'get_stuck_stages', 'get_workers', 'get_stage_statistics',
                'get_document_eta', 'get_forecast', 'get_document_events', 'get_installation', 'schema_version']),
            ('writer', array[
                'register_stage', 'disable_stage', 'start_stage', 'update_stage_progress', 'complete_stage',
                'fail_stage', 'skip_stage', 'claim_stages', 'get_next_document', 'heartbeat', 'release_stages',
                'finish_stages', 'retry_stage', 'retry_failed', 'reset_stage', 'cancel_document', 'set_priority',
                'pause_stage', 'resume_stage', 'reap', 'fill_ready_runs', 'rebuild_ready_runs', 'rebuild_statistics',
                'prune_runs', 'schedule_maintenance']),
            ('table', array[
                'stages', 'stage_prerequisites', 'stage_runs', 'document_priorities', 'edited_documents',
                'stage_deltas', 'stage_counters', 'stage_flow', 'stage_fold']),
            ('leftover', array[
                '_adopt_closed_runs', '_adopt_runs', '_ago', '_attach_repair_insert', '_before', '_bucket_bounds',
                '_changes_of', '_checked_age', '_checked_lease', '_checked_limit', '_checked_metadata',
                '_checked_outcomes', '_checked_runs', '_claim_ready', '_claim_ready_or_expired', '_claimed',
                '_close_stage', '_closed_stage', '_completed_before', '_count_edits', '_count_outcomes',
                '_count_transition', '_current_stages', '_cursor_of', '_default_stage_status', '_derive_ready_runs',
                '_duration_bucket', '_duration_us', '_empty_in', '_error_fingerprint', '_failure_kinds', '_finish_one',
                '_finish_usual', '_flow_since', '_fold', '_fold_if_due', '_folded_error', '_follow_edit',
                '_follow_legacy', '_held_run', '_histograms', '_hold', '_is_sound', '_is_still_ready', '_iso',
                '_keep_failed_runs', '_keep_last_run', '_kept_error', '_listed', '_mark_of', '_merged_runs',
                '_missing_grants', '_missing_objects', '_newest_runs', '_next_attempt', '_oldest_ready', '_open_run',
                '_page_of_runs', '_pending_stage', '_pick_ready', '_place_in_queue', '_progress_of', '_quantile_us',
                '_raise', '_raise_conflict', '_raise_unknown_document', '_readers_of_documents', '_ready_stages',
                '_rederived', '_remaining_us', '_renew_default', '_repair_batch', '_repair_held', '_repair_rows',
                '_repair_willing', '_repaired', '_repaired_stage', '_reported_stage', '_requeue_expired', '_retry_at',
                '_run_estimate', '_running_stages', '_share_done', '_share_of_units', '_shown_error', '_skip_metadata',
                '_sql_counted', '_sql_document_state', '_sql_duration_us', '_sql_stage_state', '_stage_estimates',
                '_stage_named', '_stage_rates', '_stage_state', '_stage_statistics', '_stage_sums', '_stages_named',
                '_started_stage', '_state_of_run', '_tg_documents_close_runs', '_tg_documents_delete_runs',
                '_tg_documents_edited', '_tg_documents_inserted', '_tg_documents_keep_rest', '_tg_documents_legacy_',
                '_tg_documents_legacy_stage', '_tg_documents_legacy_status', '_tg_documents_note',
                '_tg_documents_repair', '_tg_pipeline_follow', '_tg_pipeline_lock', '_time_or_null', '_touched_by',
                '_unfinished_prerequisites', '_waits_for', '_wanted_functions', '_wanted_relations',
                '_without_disk_wait', '_write', 'repair_documents'])
            -- names end
        ) as l (kind, names)
        cross join unnest(l.names) as n (name);
    end if;
end $$;

-- What is there of it, as DROP names it, roughly in the order in which it can go.
create temporary view tracker_objects as
with private as (
    select n.oid from pg_catalog.pg_namespace n
    where n.nspname = 'krai_private' and exists (select from pg_temp.tracker_parts)
)
select 1 as place, 'pg_catalog.pg_trigger'::regclass as class, t.oid, format('trigger %I on krai_core.documents', t.tgname) as object
from pg_catalog.pg_trigger t
join pg_temp.tracker_parts l on l.name = t.tgname and l.kind = 'trigger'
where t.tgrelid = to_regclass('krai_core.documents')
union all
select 2, 'pg_catalog.pg_class'::regclass, c.oid, format('view %s', c.oid::regclass)
from pg_catalog.pg_class c
where c.relkind = 'v' and (c.relnamespace in (select p.oid from private p) or c.oid in (
    select to_regclass(l.name) from pg_temp.tracker_parts l where l.kind in ('view', 'leftover')))
union all
select 3, 'pg_catalog.pg_proc'::regclass, p.oid, format('routine %s', p.oid::regprocedure)
from pg_catalog.pg_proc p
join pg_catalog.pg_namespace n on n.oid = p.pronamespace
where n.oid in (select p.oid from private p) or format('%s.%s', n.nspname, p.proname) in (
    select l.name from pg_temp.tracker_parts l where l.kind in ('reader', 'writer', 'leftover'))
union all
select 4, 'pg_catalog.pg_class'::regclass, c.oid, format('table %s', c.oid::regclass)
from pg_catalog.pg_class c
where c.relkind = 'r' and c.oid in (select to_regclass(l.name) from pg_temp.tracker_parts l where l.kind = 'table')
union all
select 5, 'pg_catalog.pg_namespace'::regclass, p.oid, 'schema krai_private' from private p;

do $$
begin
    if to_regprocedure('cron.schedule(text,text,text)') is not null then
        execute 'select cron.unschedule(j.jobname) from cron.job j
            where j.jobname in (''krai_core_reap'', ''krai_core_prune'') and j.username = current_user';
    end if;
    if exists (select from pg_temp.tracker_parts) and exists (
        select from pg_catalog.pg_attribute a
        where a.attrelid = to_regclass('krai_core.documents') and a.attname = 'stage_status' and not a.attisdropped
    ) then
        comment on column krai_core.documents.stage_status is null;
    end if;
end $$;

do $$
declare
    v_object text;
    v_dropped boolean := true;
    v_uses text;
begin
    -- Functions take rows of tables, views call functions: the order is found by trying.
    while v_dropped loop
        v_dropped := false;
        foreach v_object in array array(select o.object from pg_temp.tracker_objects o order by o.place, o.object) loop
            begin
                execute 'drop ' || v_object;
                v_dropped := true;
            exception when dependent_objects_still_exist then
                null;
            end;
        end loop;
    end loop;
    -- Whatever is left is used by something of yours, or by what that uses. A row of a table is a type of its own.
    with kept as (
        select o.class, o.oid, o.object from pg_temp.tracker_objects o
        union all
        select 'pg_catalog.pg_type'::regclass, a.oid, o.object
        from pg_temp.tracker_objects o
        join pg_catalog.pg_type t on t.typrelid = o.oid
        cross join unnest(array[t.oid, t.typarray]) as a (oid)
    )
    select string_agg(distinct format('%s uses %s', coalesce(
               pg_catalog.pg_describe_object('pg_catalog.pg_class'::regclass, r.ev_class, 0),
               pg_catalog.pg_describe_object(d.classid, d.objid, 0)), k.object), '; ')
    into v_uses
    from kept k
    join pg_catalog.pg_depend d on d.refclassid = k.class and d.refobjid = k.oid and d.deptype = 'n'
    left join pg_catalog.pg_rewrite r on d.classid = 'pg_catalog.pg_rewrite'::regclass and r.oid = d.objid
    where coalesce(r.ev_class, d.objid) not in (select o.oid from kept o)
      -- Not the triggers and constraints of our own tables, which go with them.
      and not exists (
          select from pg_catalog.pg_depend w
          join kept o on o.class = w.refclassid and o.oid = w.refobjid
          where w.classid = d.classid and w.objid = d.objid and w.deptype in ('a', 'i'));
    if exists (select from pg_temp.tracker_objects) then
        raise exception 'the tracker stays as it is, because %. Keep the definition of yours, drop it, and run this again',
            coalesce(v_uses, 'something uses ' || (select min(o.object) from pg_temp.tracker_objects o))
            using errcode = '2BP01';
    end if;
end $$;

notify pgrst, 'reload schema';

commit;
