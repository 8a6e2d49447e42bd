-- Leftovers: helpers of states before 0.1.1, which stood in krai_core and bear other names in krai_private now.
--
--   leftovers        what is still there of them
--   drop_leftovers   drops it, once no transaction is left that may be using it
--
-- Rules
--   * A transaction that began before the functions were replaced may be at work in an old body, which calls old helpers by
--     name. Whoever drops waits for those, for a few seconds; what they still hold then goes with the next run of the file.
--   * Something of yours that uses a helper keeps it there, with a WARNING that names it. Nothing is dropped with CASCADE.

create or replace function krai_private.leftovers() returns text[]
language plpgsql stable
set search_path = ''
as $$
declare
    v_names text[] := array[
        '_adopt_closed_runs', '_adopt_runs', '_ago', '_attach_repair_insert', '_before', '_bucket_bounds',
        '_changes_of', '_checked_age', '_checked_lease', '_checked_limit', '_checked_metadata', '_checked_outcomes',
        '_checked_runs', '_claim_ready', '_claim_ready_or_expired', '_claimed', '_close_stage', '_closed_stage',
        '_completed_before', '_count_edits', '_count_outcomes', '_count_transition', '_current_stages',
        '_cursor_of', '_default_stage_status', '_derive_ready_runs', '_duration_bucket', '_duration_us',
        '_empty_in', '_error_fingerprint', '_failure_kinds', '_finish_one', '_finish_usual', '_flow_since', '_fold',
        '_fold_if_due', '_folded_error', '_follow_edit', '_follow_legacy', '_held_run', '_histograms', '_hold',
        '_is_sound', '_is_still_ready', '_iso', '_keep_failed_runs', '_keep_last_run', '_kept_error', '_listed',
        '_mark_of', '_merged_runs', '_missing_grants', '_missing_objects', '_newest_runs', '_next_attempt',
        '_oldest_ready', '_open_run', '_page_of_runs', '_pending_stage', '_pick_ready', '_place_in_queue',
        '_progress_of', '_quantile_us', '_raise', '_raise_conflict', '_raise_unknown_document',
        '_readers_of_documents', '_ready_stages', '_rederived', '_remaining_us', '_renew_default', '_repair_batch',
        '_repair_held', '_repair_rows', '_repair_willing', '_repaired', '_repaired_stage', '_reported_stage',
        '_requeue_expired', '_retry_at', '_run_estimate', '_running_stages', '_share_done', '_share_of_units',
        '_shown_error', '_skip_metadata', '_sql_counted', '_sql_document_state', '_sql_duration_us',
        '_sql_stage_state', '_stage_estimates', '_stage_named', '_stage_rates', '_stage_state', '_stage_statistics',
        '_stage_sums', '_stages_named', '_started_stage', '_state_of_run', '_tg_documents_close_runs',
        '_tg_documents_delete_runs', '_tg_documents_edited', '_tg_documents_inserted', '_tg_documents_keep_rest',
        '_tg_documents_legacy_', '_tg_documents_legacy_stage', '_tg_documents_legacy_status', '_tg_documents_note',
        '_tg_documents_repair', '_tg_pipeline_follow', '_tg_pipeline_lock', '_time_or_null', '_touched_by',
        '_unfinished_prerequisites', '_waits_for', '_wanted_functions', '_wanted_relations', '_without_disk_wait',
        '_write', 'repair_documents'];
begin
    return array(
        select format('function %s', p.oid::regprocedure) from pg_catalog.pg_proc p
        where p.pronamespace = 'krai_core'::regnamespace and p.proname = any (v_names)
        union all
        select format('view %s', c.oid::regclass) from pg_catalog.pg_class c
        where c.relnamespace = 'krai_core'::regnamespace and c.relkind = 'v' and c.relname = any (v_names)
        -- Views first: a function cannot go while a view calls it.
        order by 1 desc);
end;
$$;
comment on function krai_private.leftovers() is
'The functions and views of earlier states that are still in krai_core, as DROP names them.';

create or replace function krai_private.drop_leftovers() returns text[]
language plpgsql volatile
set search_path = ''
set lock_timeout = '900ms'
as $$
declare
    v_object text;
    v_dropped boolean := true;
begin
    -- Some take a row type of others, so the order is found by trying.
    while v_dropped loop
        v_dropped := false;
        foreach v_object in array krai_private.leftovers() loop
            begin
                execute format('drop %s', v_object);
                v_dropped := true;
            exception when dependent_objects_still_exist then
                null;
            end;
        end loop;
    end loop;
    return krai_private.leftovers();
end;
$$;
comment on function krai_private.drop_leftovers() is
'Drops what is left of earlier states; returns what something else still uses. For the owner.';
