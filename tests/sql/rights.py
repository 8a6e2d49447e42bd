"""Who may do what with which object: as it should be, and as the catalog has it."""

# Every table, view and function of krai_core and what each role may do with it: s select, i insert, u update, d delete,
# t truncate, f references, g trigger; (s) select of some columns; x execute; - nothing. A new object needs a row here.
MATRIX = """
object                                                       anon  authenticated  service_role
table documents                                              -     -              siud
table edited_documents                                       -     -              s
table stage_prerequisites                                    -     s              s
table stage_runs                                             -     (s)            siud
table document_priorities                                    -     -              siud
table stages                                                 -     s              su
table stage_counters                                         -     -              siu
table stage_deltas                                           -     -              siud
table stage_flow                                             -     -              siu
table stage_fold                                             -     -              siu
sequence stage_deltas_id_seq                                 -     -              some
view vw_document_stages                                      -     s              s
view vw_documents_by_stage                                   -     s              s
view vw_stage_statistics                                     -     -              s
view _ready_stages                                           -     -              s
view _current_stages                                         -     -              s
view _stage_sums                                             -     -              s
view vw_running_stages                                       -     -              s
view vw_stage_flow                                           -     -              s
function start_stage(uuid,text,uuid,text,numeric)            -     -              x
function update_stage_progress(uuid,text,numeric,jsonb,uuid) -     -              x
function complete_stage(uuid,text,jsonb,uuid)                -     -              x
function skip_stage(uuid,text,text,uuid)                     -     -              x
function retry_stage(uuid,text,text)                         -     -              x
function reset_stage(uuid,text,boolean,boolean,text)         -     -              x
function heartbeat(jsonb)                                    -     -              x
function get_document_progress(uuid)                         -     x              x
function get_current_stage(uuid)                             -     x              x
function can_start_stage(uuid,text)                          -     x              x
function get_document_status(uuid)                           -     x              x
function get_document_events(jsonb)                          -     x              x
function schema_version()                                    -     x              x
function _changes_of(uuid,text)                              -     x              x
function _mark_of(uuid)                                      -     x              x
function get_stage_statistics()                              -     -              x
function cancel_document(uuid,text,text)                     -     -              x
function claim_stages(text,text,integer,numeric,uuid)        -     -              x
function disable_stage(text,text)                            -     -              x
function explain_stage(uuid,text)                            -     -              x
function fail_stage(uuid,text,text,jsonb,uuid,boolean)       -     -              x
function fill_ready_runs(integer)                            -     -              x
function finish_stages(jsonb)                                -     -              x
function get_documents_ready_for(text,integer,text)          -     -              x
function get_next_document(text,text,uuid)                   -     -              x
function pause_stage(text,text)                              -     -              x
function reap(integer)                                       -     -              x
function rebuild_ready_runs()                                -     -              x
function register_stage(text,text[],integer,text,numeric,integer,integer,integer,integer,text) -     -              x
function release_stages(jsonb)                               -     -              x
function resume_stage(text,text)                             -     -              x
function retry_failed(text,text,timestamptz,integer,boolean,text) -     -              x
function set_priority(uuid,integer,text)                     -     -              x
function get_document_eta(uuid)                              -     -              x
function get_document_timeline(uuid)                         -     x              x
function get_failures(text,timestamptz,integer)              -     -              x
function get_forecast(integer)                               -     -              x
function get_stuck_stages(integer,numeric)                   -     -              x
function get_weighted_progress(uuid)                         -     x              x
function get_workers()                                       -     -              x
function list_documents(text,text,integer,text,text,text)    -     -              x
function prune_runs(interval,boolean,integer)                -     -              x
function rebuild_statistics()                                -     -              x
function schedule_maintenance(interval,boolean)              -     -              x
function get_installation()                                  -     -              x
function _wanted_functions()                                 -     -              x
function _wanted_relations()                                 -     -              x
function _missing_grants()                                   -     -              x
function _missing_objects()                                  -     -              x
function _readers_of_documents()                             -     -              x
function _raise(text,text,text,jsonb,text)                   -     x              x
function _raise_unknown_document(uuid)                       -     x              x
function _raise_conflict(text,uuid,text,text,text,text)      -     -              x
function _iso(timestamptz)                                   -     x              x
function _time_or_null(text)                                 -     x              x
function _stage_state(jsonb)                                 -     x              x
function _stage_named(text)                                  -     x              x
function _pending_stage()                                    -     x              x
function _default_stage_status()                             -     -              x
function _repaired_stage(jsonb)                              -     x              x
function _repaired(jsonb)                                    -     x              x
function _is_sound(jsonb)                                    -     x              x
function _checked_metadata(jsonb)                            -     -              x
function _hold(uuid,text)                                    -     -              x
function _held_run(text,uuid,text,uuid)                      -     -              x
function _keep_last_run(uuid,text,jsonb,text,boolean)        -     -              x
function _open_run(uuid,text,integer,uuid,text,numeric,timestamptz) - -            x
function _completed_before(jsonb)                            -     -              -
function _repair_rows(uuid[],boolean)                        -     -              -
function _repair_willing(uuid[],boolean)                     -     -              -
function _repair_batch(uuid,integer)                         -     -              -
function _repair_held(uuid[],integer)                        -     -              -
function _adopt_runs(uuid[])                                 -     -              x
function _ago(timestamptz,timestamptz)                       -     -              x
function _attach_repair_insert()                             -     -              -
function _checked_lease(numeric)                             -     -              x
function _checked_limit(integer,integer)                     -     -              x
function _checked_outcomes(jsonb)                            -     -              x
function _checked_runs(text,jsonb)                           -     -              x
function _claim_ready(krai_core.stages,text,integer,numeric,uuid) -     -              x
function _claim_ready_or_expired(krai_core.stages,text,integer,numeric,uuid) -     -              x
function _claimed(uuid)                                      -     -              x
function _close_stage(uuid,text,text,text,jsonb,uuid,boolean) -     -              x
function _closed_stage(jsonb,text,text,jsonb,timestamptz,timestamptz) -     -              x
function _derive_ready_runs(uuid[],text[],boolean,tid[])     -     -              x
function _failure_kinds(text,timestamptz)                    -     -              x
function _finish_one(jsonb)                                  -     -              x
function _finish_usual(jsonb,tid[])                                -     -              x
function _follow_edit(uuid[])                                -     -              -
function _kept_error(text)                                   -     -              x
function _next_attempt(text,integer,timestamptz)             -     -              x
function _pick_ready(krai_core.stages,bigint,timestamptz,integer) -     -              x
function _place_in_queue(krai_core.stage_runs)               -     -              x
function _rederived(uuid[])                                  -     -              x
function _renew_default()                                    -     -              x
function _requeue_expired(krai_core.stages,integer)          -     -              x
function _retry_at(text,integer,timestamptz)                 -     -              x
function _shown_error(text)                                  -     -              x
function _skip_metadata(text)                                -     -              x
function _sql_document_state(text)                           -     -              x
function _sql_stage_state(text)                              -     -              x
function _stages_named(text)                                 -     -              x
function _started_stage(jsonb,timestamptz)                   -     -              x
function _touched_by(text[])                                 -     -              x
function _unfinished_prerequisites(uuid,text)                -     -              x
function _waits_for(text)                                    -     -              -
function _write(uuid,jsonb,text[],text)                      -     -              x
function _adopt_closed_runs(uuid[])                          -     -              x
function _before(text)                                       -     -              x
function _bucket_bounds()                                    -     -              x
function _checked_age(interval)                              -     -              x
function _count_edits()                                      -     -              x
function _count_outcomes(text[],text[],bigint[])             -     -              x
function _count_transition(text,jsonb,jsonb,timestamptz,integer) -     -              x
function _cursor_of(text)                                    -     -              x
function _duration_bucket(bigint)                            -     -              x
function _duration_us(jsonb)                                 -     -              x
function _empty_in(numeric,numeric,numeric)                  -     -              x
function _error_fingerprint(text)                            -     -              x
function _flow_since(timestamptz)                            -     -              x
function _fold()                                             -     -              x
function _fold_if_due()                                      -     -              x
function _folded_error(text)                                 -     -              x
function _follow_legacy(uuid[],boolean,tid[],boolean)                      -     -              x
function _histograms(text[])                                 -     -              x
function _keep_failed_runs(text,uuid[],jsonb[])              -     -              x
function _listed(tid[],tid[],text,boolean,text)              -     -              x
function _oldest_ready(text)                                 -     -              x
function _merged_runs(text[],text[],timestamptz,bigint,integer,bigint)  -     -              x
function _page_of_runs(text[],text[],text,timestamptz,bigint,integer,text,bigint,integer) -     -              x
function _progress_of(jsonb)                                 -     x              x
function _quantile_us(integer[],double precision[],double precision) -     -              x
function _remaining_us(integer[],double precision[],double precision) -     -              x
function _reported_stage(jsonb,text,text,text,numeric,jsonb,timestamptz,timestamptz) -     -              x
function _sql_counted(text)                                  -     -              x
function _sql_duration_us(text)                              -     -              x
function _stage_estimates(uuid)                              -     -              x
function _stage_rates(jsonb,numeric)                         -     -              x
function _stage_statistics()                                 -     -              x
function _state_of_run(text)                                 -     -              x
function _newest_runs(text,text[],integer[],timestamptz,timestamptz[],bigint[],integer,bigint) -     -              x
function _running_stages(uuid,boolean)                       -     -              x
function _tg_documents_repair()                              -     -              -
function _tg_documents_keep_rest()                           -     -              -
function _tg_documents_delete_runs()                         -     -              -
function _tg_documents_edited()                              -     -              -
function _tg_documents_inserted()                            -     -              -
function _tg_pipeline_follow()                               -     -              -
function _tg_pipeline_lock()                                 -     -              -
function _tg_documents_note()                                -     -              -
"""
FROM_CATALOG = """
select case c.relkind when 'v' then 'view ' else 'table ' end || c.relname, role,
       coalesce(nullif(concat(
           case when has_table_privilege(role, c.oid, 'select') then 's'
                when has_any_column_privilege(role, c.oid, 'select') then '(s)' end,
           case when has_any_column_privilege(role, c.oid, 'insert') then 'i' end,
           case when has_any_column_privilege(role, c.oid, 'update') then 'u' end,
           case when has_table_privilege(role, c.oid, 'delete') then 'd' end,
           case when has_table_privilege(role, c.oid, 'truncate') then 't' end,
           case when has_any_column_privilege(role, c.oid, 'references') then 'f' end,
           case when has_table_privilege(role, c.oid, 'trigger') then 'g' end), ''), '-')
from pg_class c, unnest(%s::text[]) role
where c.relnamespace = 'krai_core'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f')
union all
select case p.prokind when 'p' then 'procedure ' else 'function ' end || p.proname || '('
       || replace(replace(oidvectortypes(p.proargtypes), ', ', ','), 'timestamp with time zone', 'timestamptz') || ')',
       role, case when has_function_privilege(role, p.oid, 'execute') then 'x' else '-' end
from pg_proc p, unnest(%s::text[]) role
where p.pronamespace = 'krai_core'::regnamespace
union all
select 'sequence ' || c.relname, role, 'some'
from pg_class c, unnest(%s::text[]) role
where c.relnamespace = 'krai_core'::regnamespace and c.relkind = 'S'
  and has_sequence_privilege(role, c.oid, 'usage, select, update')
"""
