-- Documents: krai_core.documents, your table, adopted but never owned.
--
--   pending_stage, default_stage_status   the initial value of one stage, and of all of them
--   krai_core.documents                   created if missing: a minimal table, closed to everybody but service_role
--   documents.stage_status                the one column that is added, with its default
--   stage_runs_select_with_document       policy: who may see a document may read its runs
--
-- Rules
--   * The table must have `id uuid` (unique, not null) and `filename`. Nothing else of an existing table changes.
--   * The default of stage_status is a constant: a function would break inserts by roles that may not execute it, and a
--     volatile one would rewrite the table. With a constant, adding the column takes milliseconds, however many rows
--     there are.
--   * Existing values of stage_status are left to the repair (60_repair), which runs later and in batches.
--   * service_role is granted what the functions need: to read documents and to write stage_status.
-- Lock: documents, exclusively, until the end of this short block; none if there is nothing left to do. Behind a long
-- reader the ALTER TABLE would queue every writer, so it gives up within a second and can be run again.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;

-- Autovacuum yields only to a session that has waited for a second, longer than lock_timeout allows. This lock blocks
-- neither readers nor writers, and no vacuum can start before the commit.
do $$
begin
    if to_regclass('krai_core.documents') is not null then
        set local lock_timeout = '5s';
        lock table krai_core.documents in share update exclusive mode;
        set local lock_timeout = '900ms';
    end if;
end $$;

create or replace function krai_private.pending_stage() returns jsonb
language sql immutable parallel safe
set search_path = ''
as $$
    select '{"status": "pending", "started_at": null, "completed_at": null, "duration_seconds": null,
             "progress": 0, "error": null, "metadata": {}}'::jsonb
$$;
comment on function krai_private.pending_stage() is
'The seven keys of a stage that has not started.
They are status, started_at, completed_at, duration_seconds, progress, error and metadata.';

create or replace function krai_private.default_stage_status() returns jsonb
language sql stable
set search_path = ''
as $$
    select coalesce(jsonb_object_agg(s.name, krai_private.pending_stage()), '{}')
    from krai_core.stages s
    where s.enabled
$$;
comment on function krai_private.default_stage_status() is
'stage_status of a new document: every enabled stage pending.';

do $$
declare
    v_default text := format('%L::jsonb', krai_private.default_stage_status());
begin
    if to_regclass('krai_core.documents') is null then
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
        comment on column krai_core.documents.updated_at is
            'When the application last changed the row; the tracker does not touch it.';
        alter table krai_core.documents enable row level security;
        -- Permissive, but admits nobody: the policies that you add later can still grant access.
        create policy documents_no_client on krai_core.documents
            for all to anon, authenticated using (false) with check (false);
        revoke all on krai_core.documents from public, anon, authenticated;
        grant select, insert, update, delete on krai_core.documents to service_role;
    end if;
    if not exists (
        select from pg_catalog.pg_attribute a
        where a.attrelid = 'krai_core.documents'::regclass and a.attname = 'stage_status' and not a.attisdropped
    ) then
        execute format('alter table krai_core.documents add column stage_status jsonb default %s', v_default);
    elsif v_default is distinct from (
        select pg_catalog.pg_get_expr(d.adbin, d.adrelid)
        from pg_catalog.pg_attrdef d
        join pg_catalog.pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
        where d.adrelid = 'krai_core.documents'::regclass and a.attname = 'stage_status'
    ) then
        execute format('alter table krai_core.documents alter column stage_status set default %s', v_default);
    end if;
    if not pg_catalog.has_table_privilege('service_role', 'krai_core.documents', 'select') then
        grant select on krai_core.documents to service_role;
    end if;
    if not pg_catalog.has_column_privilege('service_role', 'krai_core.documents', 'stage_status', 'update') then
        grant update (stage_status) on krai_core.documents to service_role;
    end if;
end $$;

comment on column krai_core.documents.stage_status is
'The truth about each stage of this document: {"<stage>": {status, started_at, completed_at, duration_seconds, '
'progress, error, metadata}}. status: pending, processing, completed, failed or skipped. Times: ISO 8601, UTC, '
'database clock. duration_seconds: seconds. progress: percent, 0 to 100. Written by krai_core.start_stage and the '
'other writers; a direct edit takes effect as written, except on stages that a worker holds.';

do $$
begin
    if not exists (select from pg_catalog.pg_policy p where p.polname = 'stage_runs_select_with_document'
                   and p.polrelid = 'krai_core.stage_runs'::regclass) then
        create policy stage_runs_select_with_document on krai_core.stage_runs for select to authenticated
            using (exists (select from krai_core.documents d where d.id = stage_runs.document_id));
    end if;
end $$;

commit;
