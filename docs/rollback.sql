-- Per-stage document tracking: takes it away again. Run it as the owner of krai_core.documents, with no workers running.
--
-- Gone then: functions, views, triggers and tables of the tracker, and with stage_runs the history of all attempts.
-- Left as it is: krai_core.documents with all its rows and columns, stage_status and the legacy columns among them, its
-- default, its index idx_documents_stage_status, its policies and rights; and whatever is yours in schema krai_core.
--
-- All or nothing: where something of yours uses what is to go, it stops with the name of that, and nothing has changed. It
-- can be run again at any time, and so can the migrations after it.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;

do $$
begin
    if to_regprocedure('cron.schedule(text,text,text)') is not null then
        execute 'select cron.unschedule(j.jobname) from cron.job j
            where j.jobname in (''krai_core_reap'', ''krai_core_prune'') and j.username = current_user';
    end if;
end $$;

drop trigger if exists documents_100_repair_insert on krai_core.documents;
drop trigger if exists documents_150_note on krai_core.documents;
drop trigger if exists documents_200_inserted on krai_core.documents;
drop trigger if exists documents_200_edited on krai_core.documents;
drop trigger if exists documents_400_delete_runs on krai_core.documents;
drop trigger if exists documents_400_truncate_runs on krai_core.documents;
drop trigger if exists zzy_documents_repair_update on krai_core.documents;
drop trigger if exists zzz_documents_keep_rest on krai_core.documents;
comment on column krai_core.documents.stage_status is null;

drop view if exists krai_core.vw_documents_by_stage, krai_core.vw_document_stages, krai_core.vw_stage_statistics,
    krai_core.vw_running_stages, krai_core.vw_stage_flow, krai_core._ready_stages, krai_core._current_stages,
    krai_core._stage_sums;

-- The functions of the triggers on them go before the tables, and functions that take a row of a table, too.
do $$
declare
    v_function regprocedure;
begin
    if to_regclass('krai_core.stages') is not null then
        drop trigger if exists pipeline_100_lock on krai_core.stages;
        drop trigger if exists pipeline_200_follow on krai_core.stages;
        drop trigger if exists pipeline_100_lock on krai_core.stage_prerequisites;
        drop trigger if exists pipeline_200_follow on krai_core.stage_prerequisites;
    end if;
    for v_function in
        select p.oid from pg_catalog.pg_proc p
        where p.pronamespace = 'krai_core'::regnamespace and p.proname = any (array[
            'can_start_stage', 'cancel_document', 'claim_stages', 'complete_stage', 'disable_stage', 'explain_stage',
            'fail_stage', 'fill_ready_runs', 'finish_stages', 'get_current_stage', 'get_document_eta',
            'get_document_events', 'get_document_progress', 'get_document_status', 'get_document_timeline',
            'get_documents_ready_for', 'get_failures', 'get_forecast', 'get_installation', 'get_next_document',
            'get_stage_statistics', 'get_stuck_stages', 'get_weighted_progress', 'get_workers', 'heartbeat',
            'list_documents', 'pause_stage', 'prune_runs', 'reap', 'rebuild_ready_runs', 'rebuild_statistics',
            'register_stage', 'release_stages', 'reset_stage', 'resume_stage', 'retry_failed', 'retry_stage',
            'schedule_maintenance', 'schema_version', 'set_priority', 'skip_stage', 'start_stage',
            'update_stage_progress',
            '_adopt_closed_runs', '_adopt_runs', '_ago', '_attach_repair_insert', '_before', '_bucket_bounds',
            '_changes_of', '_checked_age', '_checked_lease', '_checked_limit', '_checked_metadata',
            '_checked_outcomes', '_checked_runs', '_claim_ready', '_claim_ready_or_expired', '_claimed',
            '_close_stage', '_closed_stage', '_completed_before', '_count_edits', '_count_outcomes',
            '_count_transition', '_cursor_of', '_default_stage_status', '_derive_ready_runs', '_duration_bucket',
            '_duration_us', '_empty_in', '_error_fingerprint', '_failure_kinds', '_finish_one', '_finish_usual', '_flow_since', '_fold',
            '_fold_if_due', '_folded_error', '_follow_edit', '_follow_legacy', '_held_run', '_histograms', '_hold',
            '_is_sound', '_iso', '_keep_failed_runs', '_keep_last_run', '_kept_error', '_listed', '_mark_of',
            '_merged_runs', '_missing_grants', '_missing_objects', '_newest_runs', '_next_attempt', '_oldest_ready', '_open_run',
            '_page_of_runs', '_pending_stage', '_pick_ready', '_place_in_queue', '_progress_of', '_quantile_us', '_raise',
            '_raise_conflict', '_raise_unknown_document', '_readers_of_documents', '_rederived', '_remaining_us',
            '_renew_default', '_repair_batch', '_repair_held', '_repair_rows', '_repair_willing', '_repaired',
            '_repaired_stage', '_reported_stage', '_requeue_expired', '_retry_at', '_running_stages',
            '_shown_error', '_skip_metadata', '_sql_counted', '_sql_document_state',
            '_sql_duration_us', '_sql_stage_state', '_stage_estimates', '_stage_named', '_stage_rates',
            '_stage_state', '_stage_statistics', '_stages_named', '_started_stage', '_state_of_run',
            '_tg_documents_delete_runs', '_tg_documents_edited', '_tg_documents_inserted', '_tg_documents_keep_rest',
            '_tg_documents_note', '_tg_documents_repair', '_tg_pipeline_follow', '_tg_pipeline_lock', '_time_or_null',
            '_touched_by', '_unfinished_prerequisites', '_waits_for', '_wanted_functions', '_wanted_relations',
            '_write'])
    loop
        execute format('drop routine %s', v_function);
    end loop;
end $$;

drop table if exists krai_core.stage_prerequisites, krai_core.stage_runs, krai_core.stages, krai_core.document_priorities,
    krai_core.edited_documents, krai_core.stage_counters, krai_core.stage_deltas, krai_core.stage_flow,
    krai_core.stage_fold;

notify pgrst, 'reload schema';

commit;
