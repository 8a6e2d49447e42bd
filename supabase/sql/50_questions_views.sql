-- Views: questions whose answer is read as a table.
--
--   vw_document_stages      one row per document and enabled stage, with its state
--   vw_documents_by_stage   one row per document: current stage, progress, one JSON column per stage
--   unpacked_documents      the same for lists, with the decompressed stage_status (private)
--   vw_stage_statistics     one row per stage: counts, durations, waits, throughput
--   vw_stage_flow           what arrived, started and ended, hour by hour
--   vw_running_stages       running stages: by whom, since when, and how much is left
--
-- Rules
--   * Finished = completed or skipped. A disabled stage counts as satisfied and is in no total.
--   * Status of a document: failed if any stage is failed; pending if all are pending; completed if all are finished;
--     else processing.
--   * Malformed rows (null, {}, arrays, plain strings, foreign values) are read as repaired_stages would repair them.
--   * Views run with the rights of the caller (security_invoker): whoever may select documents sees their stages.
--
-- Locks: CREATE OR REPLACE VIEW blocks readers until it commits. So each view has a transaction of its own, after the
-- functions that it calls. A replaced view may gain columns but loses none.
begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
create or replace view krai_core.vw_document_stages with (security_invoker = true) as
select
    d.id as document_id,
    s.name as stage_name,
    s.position,
    case d.stage_status -> s.name ->> 'status'
        when 'pending' then 'pending'
        when 'completed' then 'completed'
        when 'processing' then 'processing'
        when 'failed' then 'failed'
        when 'skipped' then 'skipped'
        else case when d.stage_status -> s.name = '"completed"' then 'completed' else 'pending' end
    end as status,
    d.stage_status -> s.name as stage
from krai_core.documents d
cross join krai_core.stages s
where s.enabled;
do $$ begin perform krai_private.apply_access('krai_core.vw_document_stages'::regclass); end $$;
commit;

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
comment on view krai_core.vw_document_stages is 'One row per document and enabled stage.';
comment on column krai_core.vw_document_stages.document_id is 'The document.';
comment on column krai_core.vw_document_stages.stage_name is 'The stage.';
comment on column krai_core.vw_document_stages.position is 'Order of the stage in the pipeline.';
comment on column krai_core.vw_document_stages.status is
'pending, processing, completed, failed or skipped; a missing or foreign value reads as pending.';
comment on column krai_core.vw_document_stages.stage is 'The stored value, unchanged; null where the key is missing.';
commit;

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
-- The views of an earlier tracker have other columns, which `create or replace` refuses; so do our own when the table
-- has gained or lost one of the columns that they show. They are dropped, unless an object of the user depends on them:
-- then the migration stops here and names it.
do $$
declare
    v_view record;
    v_shown text[] := array(
        select a.attname
        from unnest(array['processing_status', 'created_at', 'updated_at']) with ordinality as wanted (name, place)
        join pg_catalog.pg_attribute a
            on a.attrelid = 'krai_core.documents'::regclass and a.attname = wanted.name and not a.attisdropped
        order by wanted.place);
begin
    for v_view in
        select c.oid, c.relname from pg_catalog.pg_class c
        where c.relnamespace = 'krai_core'::regnamespace and c.relkind = 'v'
          and c.relname in ('vw_documents_by_stage', 'vw_stage_statistics')
          and (not exists (
                  select from pg_catalog.pg_attribute a
                  where a.attrelid = c.oid and a.attname in ('stage_status', 'duration_seconds') and not a.attisdropped)
              or (select array_agg(a.attname order by a.attnum) <> (v_shown::name[])[1:count(*)]
                  from pg_catalog.pg_attribute a
                  join pg_catalog.pg_attribute before on before.attrelid = c.oid and before.attname = 'document_status'
                  where a.attrelid = c.oid and a.attnum > before.attnum))
    loop
        execute format('drop view krai_core.%I', v_view.relname);
    end loop;
exception when dependent_objects_still_exist then
    raise exception 'view krai_core.% cannot be replaced because of: %', v_view.relname, (
        select string_agg(distinct d.refobjid::regclass::text || ' <- ' || r.ev_class::regclass::text, ', ')
        from pg_catalog.pg_depend d
        join pg_catalog.pg_rewrite r on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
        where d.refobjid = v_view.oid and r.ev_class <> v_view.oid)
        using errcode = '2BP01',
              hint = 'Drop the views named on the right, run the migration again, then re-create them on the new ones.';
end $$;

do $view$
declare
    v_rows text := $rows$
select
    d.id,
    d.filename,
    -- The first stage that is neither completed nor skipped.
    case when ltrim(stands.letters, 'cs') = '' then 'completed' else (
        select array_agg(s.name order by s.position) from krai_core.stages s where s.enabled
    )[length(stands.letters) - length(ltrim(stands.letters, 'cs')) + 1] end as current_stage,
    coalesce(100.0 * (length(stands.letters) - length(translate(stands.letters, 'cs', '')))
        / nullif(length(stands.letters), 0), 100)::numeric(5, 2) as progress_percentage,
    case
        when w.whole -> 'upload' ->> 'status' in ('pending', 'processing', 'completed', 'failed', 'skipped')
            then w.whole -> 'upload'
        else krai_private.repaired_stage(w.whole -> 'upload')
    end as upload_status,
    case
        when w.whole -> 'text_extraction' ->> 'status' in ('pending', 'processing', 'completed', 'failed', 'skipped')
            then w.whole -> 'text_extraction'
        else krai_private.repaired_stage(w.whole -> 'text_extraction')
    end as text_extraction_status,
    case
        when w.whole -> 'image_processing' ->> 'status' in ('pending', 'processing', 'completed', 'failed', 'skipped')
            then w.whole -> 'image_processing'
        else krai_private.repaired_stage(w.whole -> 'image_processing')
    end as image_processing_status,
    case
        when w.whole -> 'classification' ->> 'status' in ('pending', 'processing', 'completed', 'failed', 'skipped')
            then w.whole -> 'classification'
        else krai_private.repaired_stage(w.whole -> 'classification')
    end as classification_status,
    case
        when w.whole -> 'metadata_extraction' ->> 'status'
            in ('pending', 'processing', 'completed', 'failed', 'skipped')
            then w.whole -> 'metadata_extraction'
        else krai_private.repaired_stage(w.whole -> 'metadata_extraction')
    end as metadata_extraction_status,
    case
        when w.whole -> 'storage' ->> 'status' in ('pending', 'processing', 'completed', 'failed', 'skipped')
            then w.whole -> 'storage'
        else krai_private.repaired_stage(w.whole -> 'storage')
    end as storage_status,
    case
        when w.whole -> 'embedding' ->> 'status' in ('pending', 'processing', 'completed', 'failed', 'skipped')
            then w.whole -> 'embedding'
        else krai_private.repaired_stage(w.whole -> 'embedding')
    end as embedding_status,
    case
        when w.whole -> 'search_indexing' ->> 'status' in ('pending', 'processing', 'completed', 'failed', 'skipped')
            then w.whole -> 'search_indexing'
        else krai_private.repaired_stage(w.whole -> 'search_indexing')
    end as search_indexing_status,
    d.stage_status,
    case
        when ltrim(stands.letters, 'cs') = '' then 'completed'
        when strpos(stands.letters, 'f') > 0 then 'failed'
        when ltrim(stands.letters, 'p') = '' then 'pending'
        else 'processing'
    end as document_status%s
from krai_core.documents d
-- Decompressed once: a large stored value is compressed, and would be decompressed for each of its stages. (A value
-- that is no object becomes an array here, in which no stage is found either.)
cross join lateral (select d.stage_status || '{}' as whole offset 0) w
-- One letter per enabled stage, in order: pending, running, completed, failed, skipped. String functions take a third
-- of the time of sums over rows; `offset 0` keeps the planner from building the string anew for each column.
cross join lateral (
    select coalesce(string_agg(case w.whole -> enabled.name ->> 'status'
            when 'pending' then 'p'
            when 'completed' then 'c'
            when 'processing' then 'r'
            when 'failed' then 'f'
            when 'skipped' then 's'
            else case when w.whole -> enabled.name = '"completed"' then 'c' else 'p' end
        end, ''), '') as letters
    from unnest(
        (select array_agg(s.name order by s.position) from krai_core.stages s where s.enabled)) as enabled (name)
    offset 0
) stands$rows$;
begin
    execute 'create or replace view krai_core.vw_documents_by_stage with (security_invoker = true) as'
        || format(v_rows, (
        -- Those that an earlier tracker showed, where the table has them.
        select string_agg(format(', d.%I', wanted.name), '' order by wanted.place)
        from unnest(array['processing_status', 'created_at', 'updated_at']) with ordinality as wanted (name, place)
        join pg_catalog.pg_attribute a
            on a.attrelid = 'krai_core.documents'::regclass and a.attname = wanted.name and not a.attisdropped));
    -- For lists, which show one stage of each document: they would decompress the stored value a second time.
    execute 'create or replace view krai_private.unpacked_documents with (security_invoker = true) as'
        || format(v_rows, ', w.whole');
end $view$;
do $$ begin perform krai_private.apply_access('krai_core.vw_documents_by_stage'::regclass); end $$;
do $$ begin perform krai_private.apply_access('krai_private.unpacked_documents'::regclass); end $$;
commit;

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
comment on view krai_core.vw_documents_by_stage is 'One row per document: where it stands in the pipeline.';
comment on column krai_core.vw_documents_by_stage.id is 'Document id.';
comment on column krai_core.vw_documents_by_stage.filename is 'Document name.';
comment on column krai_core.vw_documents_by_stage.current_stage is
'First enabled stage in pipeline order that is not finished, or completed.';
comment on column krai_core.vw_documents_by_stage.progress_percentage is
'Finished stages as a percentage of the enabled ones, 0 to 100.';
comment on column krai_core.vw_documents_by_stage.upload_status is
'Stage upload: status, started_at, completed_at, duration_seconds, progress, error, metadata.';
comment on column krai_core.vw_documents_by_stage.text_extraction_status is
'Stage text_extraction: status, started_at, completed_at, duration_seconds, progress, error, metadata.';
comment on column krai_core.vw_documents_by_stage.image_processing_status is
'Stage image_processing: status, started_at, completed_at, duration_seconds, progress, error, metadata.';
comment on column krai_core.vw_documents_by_stage.classification_status is
'Stage classification: status, started_at, completed_at, duration_seconds, progress, error, metadata.';
comment on column krai_core.vw_documents_by_stage.metadata_extraction_status is
'Stage metadata_extraction: status, started_at, completed_at, duration_seconds, progress, error, metadata.';
comment on column krai_core.vw_documents_by_stage.storage_status is
'Stage storage: status, started_at, completed_at, duration_seconds, progress, error, metadata.';
comment on column krai_core.vw_documents_by_stage.embedding_status is
'Stage embedding: status, started_at, completed_at, duration_seconds, progress, error, metadata.';
comment on column krai_core.vw_documents_by_stage.search_indexing_status is
'Stage search_indexing: status, started_at, completed_at, duration_seconds, progress, error, metadata.';
comment on column krai_core.vw_documents_by_stage.stage_status is 'The whole stored value, including further stages.';
comment on column krai_core.vw_documents_by_stage.document_status is
'Status of the document by its stages: pending, processing, completed or failed.';
do $$
declare
    v_name text;
begin
    for v_name in
        select a.attname from pg_catalog.pg_attribute a
        where a.attrelid = 'krai_core.vw_documents_by_stage'::regclass
          and a.attname in ('processing_status', 'created_at', 'updated_at')
    loop
        execute format('comment on column krai_core.vw_documents_by_stage.%I is %L',
            v_name, 'As in krai_core.documents.');
    end loop;
    for v_name in
        select a.attname from pg_catalog.pg_attribute a
        where a.attrelid = 'krai_private.unpacked_documents'::regclass and a.attnum > 0 and a.attname <> 'whole'
    loop
        execute format('comment on column krai_private.unpacked_documents.%I is %L',
            v_name, 'As in krai_core.vw_documents_by_stage.');
    end loop;
end $$;
comment on view krai_private.unpacked_documents is
'As krai_core.vw_documents_by_stage, with the decompressed value that its columns are read from.';
comment on column krai_private.unpacked_documents.whole is
'stage_status, decompressed; an array where it is no object.';
commit;

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
create or replace view krai_core.vw_stage_statistics with (security_invoker = true) as
select
    v.stage_name, v.pending_count, v.processing_count, v.completed_count, v.failed_count, v.skipped_count,
    v.avg_duration_seconds, v.avg_duration_seconds as duration_seconds, v.timed_count,
    v.p50_duration_seconds, v.p95_duration_seconds, v.p99_duration_seconds,
    v.avg_wait_seconds, v.throughput_per_hour, v.oldest_waiting_at,
    round(extract(epoch from clock_timestamp() - v.oldest_waiting_at), 6) as oldest_waiting_seconds, v.workers_busy
from krai_private.stage_statistics() v;
do $$ begin perform krai_private.apply_access('krai_core.vw_stage_statistics'::regclass); end $$;
commit;

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
comment on view krai_core.vw_stage_statistics is
'One row per enabled stage in pipeline order, even without documents. For service_role.';
comment on column krai_core.vw_stage_statistics.stage_name is 'Name of the stage.';
comment on column krai_core.vw_stage_statistics.pending_count is 'Documents waiting.';
comment on column krai_core.vw_stage_statistics.processing_count is 'Documents currently processing.';
comment on column krai_core.vw_stage_statistics.completed_count is 'Documents completed.';
comment on column krai_core.vw_stage_statistics.failed_count is 'Documents failed.';
comment on column krai_core.vw_stage_statistics.skipped_count is 'Documents skipped.';
comment on column krai_core.vw_stage_statistics.avg_duration_seconds is
'Average duration of the completed ones in seconds; those without a duration do not count; null where there is none.';
comment on column krai_core.vw_stage_statistics.duration_seconds is 'The same average under a shorter name.';
comment on column krai_core.vw_stage_statistics.timed_count is 'Completed ones that have a duration.';
comment on column krai_core.vw_stage_statistics.p50_duration_seconds is
'Median of their durations in seconds, within 19 %; null where there is none.';
comment on column krai_core.vw_stage_statistics.p95_duration_seconds is
'Duration that 95 % of them do not exceed, in seconds, within 19 %; null where there is none.';
comment on column krai_core.vw_stage_statistics.p99_duration_seconds is
'Duration that 99 % of them do not exceed, in seconds, within 19 %; null where there is none.';
comment on column krai_core.vw_stage_statistics.avg_wait_seconds is
'Average seconds from ready to start of the runs that started in the last 24 hours; null where none did.';
comment on column krai_core.vw_stage_statistics.throughput_per_hour is
'Completed per hour, in the current hour and the one before.';
comment on column krai_core.vw_stage_statistics.oldest_waiting_at is
'When the longest waiting run became ready; null where none is ready. UTC, database clock.';
comment on column krai_core.vw_stage_statistics.oldest_waiting_seconds is 'How long that run has waited, in seconds.';
comment on column krai_core.vw_stage_statistics.workers_busy is
'Workers that hold a run with a live lease; each run of a worker without a name counts as one.';
commit;

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
create or replace view krai_core.vw_stage_flow with (security_invoker = true) as
select
    x.stage_name, x.hour,
    sum(x.arrived)::bigint as arrived, sum(x.started)::bigint as started, sum(x.retried)::bigint as retried,
    sum(x.completed)::bigint as completed, sum(x.failed)::bigint as failed, sum(x.skipped)::bigint as skipped,
    round(sum(x.wait_us) / nullif(sum(x.waited), 0) / 1000000, 6) as avg_wait_seconds,
    round(nullif(sum(x.work_us), 0) / nullif(sum(x.completed) + sum(x.failed), 0) / 1000000, 6) as avg_work_seconds
from (
    select f.stage_name, f.hour, f.arrived, f.started, f.retried, f.completed, f.failed, f.skipped,
        f.waited, f.wait_us, f.work_us
    from krai_core.stage_flow f
    union all
    select d.stage_name, d.hour, d.arrived, d.started, d.retried, d.runs_completed, d.runs_failed, d.runs_skipped,
        d.waited, d.wait_us, d.work_us
    from krai_core.stage_deltas d
    where d.arrived + d.started + d.runs_completed + d.runs_failed + d.runs_skipped > 0
) x
group by x.stage_name, x.hour;
do $$ begin perform krai_private.apply_access('krai_core.vw_stage_flow'::regclass); end $$;
commit;

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
comment on view krai_core.vw_stage_flow is
'What arrived, started and ended in each hour, per stage; survives pruning. Filter by stage and a range of hours.
For service_role.';
comment on column krai_core.vw_stage_flow.stage_name is
'Name of the stage; empty: the documents as a whole, for which only arrived is filled.';
comment on column krai_core.vw_stage_flow.hour is 'Start of the hour; UTC, database clock.';
comment on column krai_core.vw_stage_flow.arrived is
'Runs that became ready, except retries and released runs; without a stage: documents inserted.';
comment on column krai_core.vw_stage_flow.started is 'Runs that started.';
comment on column krai_core.vw_stage_flow.retried is 'Those of them that were not a first attempt.';
comment on column krai_core.vw_stage_flow.completed is 'Stages that were completed.';
comment on column krai_core.vw_stage_flow.failed is 'Stages that failed, including those that will be retried.';
comment on column krai_core.vw_stage_flow.skipped is 'Stages that were skipped.';
comment on column krai_core.vw_stage_flow.avg_wait_seconds is
'Average seconds from ready to start of the runs that started; null where none had been ready.';
comment on column krai_core.vw_stage_flow.avg_work_seconds is
'Average seconds of work on completed and failed runs; those only reported count as 0; null where nothing was timed.';
commit;

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
create or replace view krai_core.vw_running_stages with (security_invoker = true) as
select
    r.document_id, r.filename, r.stage_name, r.worker, r.attempt, r.started_at, r.running_seconds, r.heartbeat_at,
    r.lease_expires_at,
    r.progress, r.metadata, r.condition, r.remaining_p50_seconds, r.remaining_p90_seconds, r.estimated_from
from krai_private.running_stages() r;
do $$ begin perform krai_private.apply_access('krai_core.vw_running_stages'::regclass); end $$;
commit;

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
comment on view krai_core.vw_running_stages is
'One row per running stage: by whom, since when, and how much is left. For service_role.';
comment on column krai_core.vw_running_stages.document_id is 'The document.';
comment on column krai_core.vw_running_stages.filename is 'Its name.';
comment on column krai_core.vw_running_stages.stage_name is 'The stage.';
comment on column krai_core.vw_running_stages.worker is 'Name that the worker gave itself; null: none.';
comment on column krai_core.vw_running_stages.attempt is 'Number of the attempt, from 1.';
comment on column krai_core.vw_running_stages.started_at is 'When the run started; UTC, database clock.';
comment on column krai_core.vw_running_stages.running_seconds is 'Seconds since then.';
comment on column krai_core.vw_running_stages.heartbeat_at is 'Last heartbeat; UTC, database clock.';
comment on column krai_core.vw_running_stages.lease_expires_at is
'When another worker may take the stage over; UTC, database clock.';
comment on column krai_core.vw_running_stages.progress is 'Percent, 0 to 100.';
comment on column krai_core.vw_running_stages.metadata is 'Metadata of the stage so far.';
comment on column krai_core.vw_running_stages.condition is
'working; slow: running longer than 95 % of at least five completed runs of its stage; stalled: its lease has expired.';
comment on column krai_core.vw_running_stages.remaining_p50_seconds is
'Median estimate of the remaining seconds; null: unknown.';
comment on column krai_core.vw_running_stages.remaining_p90_seconds is
'Remaining seconds that nine of ten such runs do not exceed; null: unknown.';
comment on column krai_core.vw_running_stages.estimated_from is
'progress, units (metadata such as pages_processed of total_pages), durations (of its stage), or unknown (fewer than '
'five durations, or running longer than all of them).';
commit;
