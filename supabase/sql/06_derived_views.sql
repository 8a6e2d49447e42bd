-- Derived views: what the tables say when they are read together. Private.
--
--   stage_sums         the metrics as of now: the folded counters plus the deltas that are not folded yet
--   startable_stages   stages that may run according to stage_status: one row per document and stage
--   current_stages     stages that stage_status calls completed, failed or skipped: one row per document and stage
--
-- Rules
--   * Each view has a transaction of its own, ahead of the functions that read it: CREATE OR REPLACE VIEW blocks
--     readers until it commits.
--   * Replacing a view may add columns and never drops one.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
create or replace view krai_private.stage_sums with (security_invoker = true) as
select
    x.stage_name, x.bucket, sum(x.documents) as documents, sum(x.processing) as processing,
    sum(x.completed) as completed, sum(x.failed) as failed, sum(x.skipped) as skipped,
    sum(x.timed) as timed, sum(x.duration_us) as duration_us
from (
    select c.stage_name, c.bucket, c.documents, c.processing, c.completed, c.failed, c.skipped, c.timed, c.duration_us
    from krai_core.stage_counters c
    union all
    select d.stage_name, d.bucket, d.documents, d.processing, d.completed, d.failed, d.skipped, d.timed, d.duration_us
    from krai_core.stage_deltas d
) x
group by x.stage_name, x.bucket;
commit;

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
comment on view krai_private.stage_sums is
'The metrics of stage_counters as of now, including the deltas that are not folded yet.';

do $$
declare
    v_column record;
begin
    for v_column in
        select a.attname, pg_catalog.col_description(c.attrelid, c.attnum) as text
        from pg_catalog.pg_attribute a
        join pg_catalog.pg_attribute c on c.attrelid = 'krai_core.stage_counters'::regclass and c.attname = a.attname
        where a.attrelid = 'krai_private.stage_sums'::regclass and a.attnum > 0
    loop
        execute format('comment on column krai_private.stage_sums.%I is %L', v_column.attname, v_column.text);
    end loop;
end $$;
commit;

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
create or replace view krai_private.startable_stages with (security_invoker = true) as
select
    d.id as document_id,
    s.name as stage_name,
    w.whole -> s.name ->> 'status' is not distinct from 'failed' as is_failed
from krai_core.documents d
-- Detoasted once per document, not once per stage and prerequisite.
cross join lateral (select d.stage_status || '{}' as whole offset 0) w
cross join krai_core.stages s
where s.enabled
  and coalesce(w.whole -> s.name ->> 'status', '') not in ('processing', 'completed', 'skipped')
  and w.whole -> s.name is distinct from '"completed"'
  and not exists (
      select from unnest(s.waits_for) as required (name)
      where coalesce(w.whole -> required.name ->> 'status', '') not in ('completed', 'skipped')
        and w.whole -> required.name is distinct from '"completed"');
commit;

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
comment on view krai_private.startable_stages is
'Stages that may run according to stage_status: enabled, pending or failed, with every prerequisite finished.
A failed one is ready only if an automatic retry is scheduled, which stage_runs knows.';
comment on column krai_private.startable_stages.document_id is 'Id of the document.';
comment on column krai_private.startable_stages.stage_name is 'Key of the stage in documents.stage_status.';
comment on column krai_private.startable_stages.is_failed is
'true: the stage failed, and is ready only if its last run has a retry_at.';
commit;

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
create or replace view krai_private.current_stages with (security_invoker = true) as
select d.id as document_id, s.name as stage_name, x.state
from krai_core.documents d
cross join krai_core.stages s
cross join lateral (
    select case when d.stage_status -> s.name = '"completed"' then 'completed'
        else d.stage_status -> s.name ->> 'status' end as state offset 0) x
where x.state in ('completed', 'failed', 'skipped');
commit;

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
comment on view krai_private.current_stages is
'Stages that are completed, failed or skipped according to stage_status: each rests on one current run.';
comment on column krai_private.current_stages.document_id is 'Id of the document.';
comment on column krai_private.current_stages.stage_name is 'Key of the stage in documents.stage_status.';
comment on column krai_private.current_stages.state is 'completed, failed or skipped.';
commit;
