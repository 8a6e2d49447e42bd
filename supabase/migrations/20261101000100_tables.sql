-- Per-stage document tracking: the tables.
--
-- krai_core.documents        your table, adopted and never owned. Needed of it: `id uuid` (primary key or unique) and
--                            `filename`. We add one column, stage_status, and nothing else. Where there is no such
--                            table yet, a minimal one is made.
-- krai_core.stages           the pipeline as data: one row per stage, in order, with its lease and its retries.
-- krai_core.stage_prerequisites   the DAG: which stages must be finished before a stage may start.
-- krai_core.stage_runs       one narrow row per attempt to run a stage: queue entry, lease and history in one.
--
-- Rules
--   * documents.stage_status is the truth about where a document stands; stage_runs says who works on it and what was.
--   * At most one open run (ready or running) per stage of a document: stage_runs_one_open_run makes a double run an
--     impossible row. A run never goes back to ready; it is closed and another one is opened.
--   * A claim id opens a given stage of a document once (stage_runs_document_stage_claim).
--   * No index holds lease_expires_at or heartbeat_at, so that a heartbeat stays a HOT update.
--   * stage_runs has no foreign key to documents: triggers delete the runs of deleted documents set by set, `truncate
--     documents` keeps working, and opening a run does not lock the document a second time.
--   * Times are the database's (clock_timestamp()), never a client's.
-- Lock order, here and in every later file: documents rows in id order (for no key update), then stage_runs in id order.
--
-- The file can be run again at any time; an interrupted run leaves nothing behind.

begin;

-- A long reader would queue every writer behind our ALTER TABLE: rather fail and be run again.
set local lock_timeout = '900ms';
set local client_min_messages = warning;

create schema if not exists krai_core;

create table if not exists krai_core.stages (
    name text primary key,
    position integer not null,
    description text not null default '',
    weight numeric not null default 1,
    lease_seconds integer not null default 300,
    timeout_seconds integer,
    max_attempts integer not null default 5,
    backoff_seconds integer not null default 10,
    paused boolean not null default false,
    enabled boolean not null default true,
    constraint stages_position_is_unique unique (position) deferrable initially immediate,
    constraint stages_name_is_snake_case check (name ~ '^[a-z][a-z0-9_]{0,62}$'),
    constraint stages_weight_is_positive check (weight > 0 and weight < 'infinity'),
    constraint stages_lease_is_a_second_to_a_week check (lease_seconds between 1 and 604800),
    constraint stages_timeout_is_positive check (timeout_seconds > 0),
    constraint stages_max_attempts_is_positive check (max_attempts > 0),
    constraint stages_backoff_is_not_negative check (backoff_seconds >= 0)
);

create table if not exists krai_core.stage_prerequisites (
    stage_name text not null references krai_core.stages (name) on update cascade on delete cascade,
    requires text not null references krai_core.stages (name) on update cascade on delete cascade,
    primary key (stage_name, requires),
    -- The same pair from the other side: which stages wait for this one.
    constraint stage_prerequisites_requires_stage unique (requires, stage_name),
    constraint stage_prerequisites_not_itself check (stage_name <> requires)
);

create table if not exists krai_core.stage_runs (
    id bigint generated always as identity primary key,
    document_id uuid not null,
    stage_name text not null,
    status text not null,
    attempt integer not null default 1,
    priority integer not null default 0,
    available_at timestamptz,
    claim_id uuid,
    worker text,
    lease_seconds numeric,
    lease_expires_at timestamptz,
    heartbeat_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    closed_by_holder boolean not null default false,
    error text,
    progress numeric,
    metadata jsonb,
    reset_at timestamptz,
    actor text,
    constraint stage_runs_status_is_known check (
        status in ('ready', 'running', 'completed', 'failed', 'skipped', 'released', 'lost', 'cancelled')
    ),
    constraint stage_runs_finished_unless_open check ((status in ('ready', 'running')) = (finished_at is null)),
    constraint stage_runs_running_has_a_lease check (
        status <> 'running' or (started_at is not null and lease_seconds > 0 and lease_expires_at is not null)
    ),
    constraint stage_runs_ready_is_due_at_a_time check (status <> 'ready' or available_at is not null),
    constraint stage_runs_attempt_is_positive check (attempt > 0)
    -- Room on each page for the heartbeats, which then need no new index entries.
) with (fillfactor = 85);

create unique index if not exists stage_runs_one_open_run
    on krai_core.stage_runs (document_id, stage_name) where status in ('ready', 'running');
-- Also the way to all runs of a document, and to the last run of a stage.
create unique index if not exists stage_runs_document_stage_claim
    on krai_core.stage_runs (document_id, stage_name, claim_id);

-- Seeded once: a pipeline that was changed since is left as it is.
insert into krai_core.stages (name, position, description)
select seed.name, seed.position, seed.description
from (values
    ('upload', 1, 'Document ingestion & validation'),
    ('text_extraction', 2, 'PDF text & chunking'),
    ('image_processing', 3, 'OCR, Vision AI'),
    ('classification', 4, 'Manufacturer/product detection'),
    ('metadata_extraction', 5, 'Error codes, versions'),
    ('storage', 6, 'R2 upload'),
    ('embedding', 7, 'Vector embeddings'),
    ('search_indexing', 8, 'Search analytics')
) as seed (name, position, description)
where not exists (select from krai_core.stages);

insert into krai_core.stage_prerequisites (stage_name, requires)
select seed.stage_name, seed.requires
from (values
    ('text_extraction', 'upload'),
    ('image_processing', 'upload'),
    ('classification', 'text_extraction'),
    ('metadata_extraction', 'text_extraction'),
    ('embedding', 'text_extraction'),
    ('storage', 'image_processing'),
    ('search_indexing', 'embedding'),
    ('search_indexing', 'metadata_extraction'),
    ('search_indexing', 'classification')
) as seed (stage_name, requires)
where not exists (select from krai_core.stage_prerequisites);

create or replace function krai_core._pending_stage() returns jsonb
language sql immutable parallel safe
set search_path = ''
as $$
    select '{"status": "pending", "started_at": null, "completed_at": null, "duration_seconds": null,
             "progress": 0, "error": null, "metadata": {}}'::jsonb
$$;
comment on function krai_core._pending_stage() is
'The seven keys of a stage that has not started: status, started_at, completed_at, duration_seconds, progress, error, metadata.';

create or replace function krai_core._default_stage_status() returns jsonb
language sql stable
set search_path = ''
as $$
    select coalesce(jsonb_object_agg(s.name, krai_core._pending_stage()), '{}')
    from krai_core.stages s
    where s.enabled
$$;
comment on function krai_core._default_stage_status() is
'stage_status of a document on which nothing has been done: every enabled stage pending.';

do $$
declare
    v_table oid := to_regclass('krai_core.documents');
    v_kind "char" := (select c.relkind from pg_catalog.pg_class c where c.oid = v_table);
    v_type text;
begin
    if v_table is null then
        create table krai_core.documents (
            id uuid primary key default gen_random_uuid(),
            filename text not null,
            processing_status text default 'pending',
            created_at timestamptz not null default now(),
            updated_at timestamptz not null default now()
        );
        comment on table krai_core.documents is 'One row per document that the pipeline processes.';
        comment on column krai_core.documents.id is 'Document id.';
        comment on column krai_core.documents.filename is 'Name of the file as uploaded.';
        comment on column krai_core.documents.processing_status is
            'Derived from stage_status: pending, processing, completed or failed.';
        comment on column krai_core.documents.created_at is 'When the row was inserted; UTC, database clock.';
        comment on column krai_core.documents.updated_at is 'When the application last changed the row; the tracker does not touch it.';
        alter table krai_core.documents enable row level security;
        -- Permissive and empty: it admits nobody and does not stand in the way of the policies that you will add.
        create policy documents_no_client on krai_core.documents
            for all to anon, authenticated using (false) with check (false);
    else
        if v_kind <> 'r' then
            raise exception 'krai_core.documents is not an ordinary table (relkind %), stages cannot be tracked in it', v_kind
                using errcode = '42809',
                      hint = 'Rename the view or partitioned table, make krai_core.documents the table itself, and run the migration again.';
        end if;
        select pg_catalog.format_type(a.atttypid, null) into v_type
        from pg_catalog.pg_attribute a
        where a.attrelid = v_table and a.attname = 'id' and not a.attisdropped;
        if v_type is distinct from 'uuid' then
            raise exception 'krai_core.documents.id is %, stages are tracked by uuid', coalesce('of type ' || v_type, 'missing')
                using errcode = '42804', hint = 'Give the table a column `id uuid primary key` and run the migration again.';
        end if;
        if not exists (
            select from pg_catalog.pg_index i
            join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attname = 'id'
            where i.indrelid = v_table and i.indisunique and i.indisvalid and i.indpred is null
              and i.indnkeyatts = 1 and i.indkey[0] = a.attnum
        ) then
            raise exception 'krai_core.documents.id is not unique'
                using errcode = '42830', hint = 'alter table krai_core.documents add primary key (id); then run the migration again.';
        end if;
        if not exists (
            select from pg_catalog.pg_attribute a
            where a.attrelid = v_table and a.attname = 'filename' and not a.attisdropped
        ) then
            raise exception 'krai_core.documents has no column filename'
                using errcode = '42703', hint = 'Add a text column filename (a generated column will do) and run the migration again.';
        end if;
        select pg_catalog.format_type(a.atttypid, null) into v_type
        from pg_catalog.pg_attribute a
        where a.attrelid = v_table and a.attname = 'stage_status' and not a.attisdropped;
        if v_type <> 'jsonb' then
            raise exception 'krai_core.documents.stage_status is of type %, not jsonb', v_type
                using errcode = '42804',
                      hint = 'alter table krai_core.documents alter column stage_status type jsonb using stage_status::jsonb; then run the migration again.';
        end if;
    end if;
    -- A constant, not a function: a function default would break the inserts of roles that may not execute it, and a
    -- volatile one would rewrite the table.
    execute format('alter table krai_core.documents add column if not exists stage_status jsonb default %L::jsonb',
                   krai_core._default_stage_status());
    execute format('alter table krai_core.documents alter column stage_status set default %L::jsonb',
                   krai_core._default_stage_status());
end $$;

comment on column krai_core.documents.stage_status is
'The truth about each stage of this document: {"<stage>": {status, started_at, completed_at, duration_seconds, progress, error, metadata}}. status: pending, processing, completed, failed or skipped. Times: ISO 8601, UTC, database clock. duration_seconds: seconds. progress: percent, 0 to 100. Written by krai_core.start_stage and its like; a direct edit counts as it stands, except on stages that a worker holds.';

comment on table krai_core.stages is 'The stages of the pipeline, in order. A disabled stage counts as satisfied and is in no total.';
comment on column krai_core.stages.name is 'Key of the stage in documents.stage_status; lower case letters, digits and underscores.';
comment on column krai_core.stages.position is 'Order in the pipeline; unique.';
comment on column krai_core.stages.description is 'What the stage does, for people.';
comment on column krai_core.stages.weight is 'Share of the stage in the weighted progress of a document; greater than 0.';
comment on column krai_core.stages.lease_seconds is 'Seconds for which a claimed run is held without a sign of life; 1 to 604800.';
comment on column krai_core.stages.timeout_seconds is 'Seconds after which a run is lost even if it still beats; null: no bound.';
comment on column krai_core.stages.max_attempts is 'Attempts before a stage stays failed; counted since the last retry or reset by a person.';
comment on column krai_core.stages.backoff_seconds is 'Seconds before the first automatic retry; doubled for each further one.';
comment on column krai_core.stages.paused is 'While true nothing of this stage is handed out.';
comment on column krai_core.stages.enabled is 'false: the stage counts as satisfied and is in no total.';

comment on table krai_core.stage_prerequisites is 'The DAG: stage_name may start when every stage in requires is completed, skipped or disabled.';
comment on column krai_core.stage_prerequisites.stage_name is 'The stage that waits.';
comment on column krai_core.stage_prerequisites.requires is 'The stage that must be finished first.';

comment on table krai_core.stage_runs is 'One row per attempt to run a stage of a document. Open: ready, running. Closed: completed, failed, skipped, released, lost, cancelled.';
comment on column krai_core.stage_runs.id is 'Run id, ascending in order of opening.';
comment on column krai_core.stage_runs.document_id is 'The document, krai_core.documents.id.';
comment on column krai_core.stage_runs.stage_name is 'The stage, krai_core.stages.name.';
comment on column krai_core.stage_runs.status is 'ready, running, completed, failed, skipped, released (given back), lost (lease over, taken by another) or cancelled.';
comment on column krai_core.stage_runs.attempt is 'Number of this attempt, from 1; counted since the last success, retry or reset.';
comment on column krai_core.stage_runs.priority is 'Higher is handed out first.';
comment on column krai_core.stage_runs.available_at is 'From when a ready run may be handed out; UTC, database clock.';
comment on column krai_core.stage_runs.claim_id is 'The credential of the holder: a uuid made by the client. Null: started without one.';
comment on column krai_core.stage_runs.worker is 'Name that the worker gave itself.';
comment on column krai_core.stage_runs.lease_seconds is 'Length of the lease in seconds; renewed by progress and heartbeat.';
comment on column krai_core.stage_runs.lease_expires_at is 'When the run may be taken over by another; UTC, database clock.';
comment on column krai_core.stage_runs.heartbeat_at is 'Last renewal of the lease; UTC, database clock.';
comment on column krai_core.stage_runs.started_at is 'When the run began; null: the work was done outside and only reported. UTC, database clock.';
comment on column krai_core.stage_runs.finished_at is 'When the run was closed; null while open. UTC, database clock.';
comment on column krai_core.stage_runs.closed_by_holder is 'true: closed by a call that carried the run''s own claim id.';
comment on column krai_core.stage_runs.error is 'Error of this attempt, up to 65536 characters (the column documents.stage_status holds at most 4000).';
comment on column krai_core.stage_runs.progress is 'Progress in percent that this run had reached when a later run replaced it; null before.';
comment on column krai_core.stage_runs.metadata is 'Metadata of this run, kept when a later run replaced it; null before.';
comment on column krai_core.stage_runs.reset_at is 'When a person retried or reset the stage after this run; attempts count from there. UTC, database clock.';
comment on column krai_core.stage_runs.actor is 'Who retried, reset or cancelled after this run.';

-- Who may do what. service_role writes; authenticated reads the pipeline, and the runs of the documents that the
-- policies of krai_core.documents let it see, without the credentials; anon gets nothing.
alter table krai_core.stages enable row level security;
alter table krai_core.stage_prerequisites enable row level security;
alter table krai_core.stage_runs enable row level security;

drop policy if exists stages_select_authenticated on krai_core.stages;
create policy stages_select_authenticated on krai_core.stages for select to authenticated using (true);
drop policy if exists stage_prerequisites_select_authenticated on krai_core.stage_prerequisites;
create policy stage_prerequisites_select_authenticated on krai_core.stage_prerequisites for select to authenticated using (true);
drop policy if exists stage_runs_select_with_document on krai_core.stage_runs;
create policy stage_runs_select_with_document on krai_core.stage_runs for select to authenticated
    using (exists (select from krai_core.documents d where d.id = stage_runs.document_id));

grant usage on schema krai_core to authenticated, service_role;
grant select, insert, update, delete on krai_core.documents to service_role;
revoke all on krai_core.stages, krai_core.stage_prerequisites, krai_core.stage_runs from public, anon, authenticated;
grant select on krai_core.stages, krai_core.stage_prerequisites to authenticated, service_role;
grant select, insert, update, delete on krai_core.stage_runs to service_role;
grant select (id, document_id, stage_name, status, attempt, priority, available_at, lease_expires_at, heartbeat_at,
              started_at, finished_at, error, progress, metadata, reset_at)
    on krai_core.stage_runs to authenticated;
revoke execute on function krai_core._pending_stage(), krai_core._default_stage_status() from public, anon, authenticated;
grant execute on function krai_core._pending_stage(), krai_core._default_stage_status() to service_role;

commit;
