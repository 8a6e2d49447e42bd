-- Stage tracker: all its objects, made from supabase/sql by tools/build_migrations.py. Do not edit it.
-- Safe to run again, over any older state. Blocks are short where they lock what others use.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;

-- ======== 01_preflight ========
-- Preflight: what the database must look like. Nothing here writes.
--
--   roles                  anon, authenticated and service_role exist
--   names                  nothing else has taken krai_core.stages, stage_prerequisites or stage_runs
--   dependent objects      no view or function of yours depends on one of an earlier tracker that will be replaced
--   documents              an ordinary table that the migration role owns
--   columns of documents   id is a unique, non-null uuid; filename exists; stage_status, if present, is plain jsonb
--   stage_runs             if present, made by a released version of the tracker
--
-- Rules
--   * A database in which the tracker could not work stays exactly as it was.
--   * The message itself states both the problem and the remedy, because `supabase db push` shows no HINT.
--   * Each kind of check is a statement of its own, because the CLI prints the statement that failed.

do $$
declare
    v_names text := (
        select string_agg(wanted.name, ', ')
        from unnest(array['anon', 'authenticated', 'service_role']) as wanted (name)
        where to_regrole(wanted.name) is null);
begin
    if v_names is not null then
        raise exception
            'the roles of a Supabase database are missing: %. Run this in a Supabase project, or create them and run '
            'it again: create role anon nologin; create role authenticated nologin; create role service_role nologin '
            'bypassrls;', v_names
            using errcode = '42704';
    end if;
end $$;

do $$
declare
    v_names text := (
        select string_agg(taken.name, ', ')
        from (values
            ('stages', 'lease_seconds'),
            ('stage_prerequisites', 'requires'),
            ('stage_runs', 'claim_id')) as taken (name, sign)
        where to_regclass('krai_core.' || taken.name) is not null and not exists (
            select from pg_catalog.pg_attribute a
            join pg_catalog.pg_class c on c.oid = a.attrelid and c.relkind = 'r'
            where a.attrelid = to_regclass('krai_core.' || taken.name)
              and a.attname = taken.sign and not a.attisdropped));
begin
    if v_names is not null then
        raise exception
            'something else in schema krai_core has a name that the tracker needs: %. Give it another name, and run '
            'the migration again', v_names
            using errcode = '42P07';
    end if;
end $$;

-- Later files drop what an earlier tracker left; objects that depend on it would have to be dropped too.
do $$
declare
    v_uses text := (
        with old as (
            select 'pg_catalog.pg_class'::regclass as classid, c.oid as objid, 'krai_core.' || c.relname as name
            from pg_catalog.pg_class c
            where c.relnamespace = to_regnamespace('krai_core') and c.relkind = 'v'
              and c.relname in ('vw_documents_by_stage', 'vw_stage_statistics')
              and not exists (
                  select from pg_catalog.pg_attribute a
                  where a.attrelid = c.oid and a.attname in ('stage_status', 'duration_seconds') and not a.attisdropped)
            union all
            select 'pg_catalog.pg_proc'::regclass, p.oid, 'krai_core.' || p.proname || '()'
            from pg_catalog.pg_proc p
            where p.pronamespace = to_regnamespace('krai_core')
              and p.proname in ('start_stage', 'update_stage_progress', 'complete_stage', 'fail_stage', 'skip_stage')
              and p.prorettype <> 'boolean'::regtype
        )
        select string_agg(distinct coalesce(
                   pg_catalog.pg_describe_object('pg_catalog.pg_class'::regclass, r.ev_class, 0),
                   pg_catalog.pg_describe_object(d.classid, d.objid, 0)) || ' uses ' || old.name, '; ')
        from old
        join pg_catalog.pg_depend d on d.refclassid = old.classid and d.refobjid = old.objid and d.deptype = 'n'
        left join pg_catalog.pg_rewrite r on d.classid = 'pg_catalog.pg_rewrite'::regclass and r.oid = d.objid
        where coalesce(r.ev_class, d.objid) not in (select o.objid from old o));
begin
    if v_uses is not null then
        raise exception
            'views and functions of an earlier tracker must be replaced, but %. Save the definition of yours '
            '(pg_get_viewdef, pg_get_functiondef), drop it, run the migration again, and recreate it on top of the new '
            'objects', v_uses
            using errcode = '2BP01';
    end if;
end $$;

do $$
declare
    v_table record;
begin
    select case c.relkind
               when 'v' then 'a view' when 'm' then 'a materialized view' when 'p' then 'a partitioned table'
               when 'f' then 'a foreign table' else 'of kind ' || c.relkind::text end as kind,
           c.relkind = 'r' as is_table, pg_catalog.pg_get_userbyid(c.relowner) as owner,
           pg_catalog.pg_has_role(current_user, c.relowner, 'usage') as is_ours
    into v_table
    from pg_catalog.pg_class c where c.oid = to_regclass('krai_core.documents');
    if not v_table.is_table then
        raise exception
            'krai_core.documents is %, and stages can be tracked in an ordinary table only. Rename it, give the name '
            'krai_core.documents to the table that holds the rows, then run the migration again', v_table.kind
            using errcode = '42809';
    elsif not v_table.is_ours then
        raise exception
            'krai_core.documents belongs to %, and % may not change it. As its owner: alter table krai_core.documents '
            'owner to %; then run the migration again', v_table.owner, current_user, quote_ident(current_user)
            using errcode = '42501';
    end if;
end $$;

do $$
declare
    v_column record;
begin
    for v_column in
        select wanted.name, pg_catalog.format_type(a.atttypid, null) as type, a.attgenerated <> '' as is_generated,
               a.attnotnull and exists (
                   select from pg_catalog.pg_index i
                   where i.indrelid = a.attrelid and i.indisunique and i.indisvalid and i.indpred is null
                     and i.indnkeyatts = 1 and i.indkey[0] = a.attnum) as is_key
        from unnest(array['id', 'filename', 'stage_status']) as wanted (name)
        left join pg_catalog.pg_attribute a
            on a.attrelid = to_regclass('krai_core.documents') and a.attname = wanted.name and not a.attisdropped
        where to_regclass('krai_core.documents') is not null
    loop
        if v_column.name = 'id' and v_column.type is distinct from 'uuid' then
            raise exception
                'krai_core.documents.id is %, and stages are tracked by uuid. Rename the old column if there is one, '
                'add `id uuid primary key default gen_random_uuid()`, and run the migration again',
                coalesce('of type ' || v_column.type, 'missing')
                using errcode = '42804';
        elsif v_column.name = 'id' and not v_column.is_key then
            raise exception
                'krai_core.documents.id is not a key: it must be unique and not null. Run alter table '
                'krai_core.documents add primary key (id); then run the migration again'
                using errcode = '42830';
        elsif v_column.name = 'filename' and v_column.type is null then
            raise exception
                'krai_core.documents has no column filename. Add it, for instance by alter table krai_core.documents '
                'add column filename text generated always as (<your column>) stored; then run the migration again'
                using errcode = '42703';
        elsif v_column.name = 'stage_status' and v_column.type <> 'jsonb' then
            raise exception
                'krai_core.documents.stage_status is of type %, not jsonb. Run alter table krai_core.documents alter '
                'column stage_status drop default, alter column stage_status type jsonb using stage_status::jsonb; '
                'then run the migration again', v_column.type
                using errcode = '42804';
        elsif v_column.name = 'stage_status' and v_column.is_generated then
            raise exception
                'krai_core.documents.stage_status is a generated column, which cannot be written. Run alter table '
                'krai_core.documents alter column stage_status drop expression; then run the migration again'
                using errcode = '428C9';
        end if;
    end loop;
end $$;

-- The list holds columns of the first released tracker: a table without one of them was made by an unreleased state.
do $$
declare
    v_missing text := (
        select string_agg(wanted.name, ', ' order by wanted.name)
        from unnest(array[
            'open_stage', 'opens_claim', 'is_current', 'error_fingerprint', 'reset_at', 'retry_at', 'progress',
            'metadata', 'actor', 'closed_by_holder']) as wanted (name)
        where to_regclass('krai_core.stage_runs') is not null and not exists (
            select from pg_catalog.pg_attribute a
            where a.attrelid = to_regclass('krai_core.stage_runs') and a.attname = wanted.name and not a.attisdropped));
begin
    if v_missing is not null then
        raise exception using errcode = '55000', message = format(
            'krai_core.stage_runs was made by an unreleased state of the tracker (it has no column %s) and cannot be '
            'upgraded in place. Run docs/rollback.sql of that state, which keeps the documents and their stage_status, '
            'then run the migration again: see "From an unreleased state" in docs/migrating.md', v_missing);
    end if;
end $$;

-- ======== 02_schemas ========
-- Schemas: the one that is the API, and the one that cannot be called over HTTP.
--
--   krai_core      what clients use: documents, stages, stage_runs, the views and the public functions. All tables live
--                  here, so that a dump of the schema loses nothing; tables closed to clients have no grants
--   krai_private   the functions and views that the public ones are built from; PostgREST never exposes it

create schema if not exists krai_core;

create schema if not exists krai_private;
comment on schema krai_private is
'Building blocks of the functions in krai_core. Not for clients; never expose it over HTTP.';

-- ======== 03_tables ========
-- Tables: the pipeline, the runs, the priorities. Grants are in 41_access.
--
--   krai_core.stages                the pipeline as data: one row per stage, with its order, lease and retry policy
--   krai_core.stage_prerequisites   the DAG: which stages must finish before a stage may start
--   krai_core.stage_runs            one narrow row per attempt to run a stage: queue entry, lease and history in one
--   krai_core.document_priorities   documents that are handed out before or after the others
--   krai_core.edited_documents      scratch table of the triggers on documents
--   with their indexes, comments and row level security, and the eight stages of the default pipeline
--
-- Rules
--   * documents.stage_status is the truth about where a document stands; stage_runs records who works on it and what
--     happened.
--   * At most one open run (ready or running) per stage of a document: the unique index stage_runs_document_open_stage
--     makes a double run impossible. A run never goes back to ready; it is closed, and a new one is opened.
--   * A claim id opens a given stage of a document once: start_stage and claim_stages check this under a lock. No index
--     enforces it, because a unique one would be the largest of all.
--   * No index contains lease_expires_at or heartbeat_at, so that a heartbeat stays a HOT update.
--   * stage_runs has no foreign key to documents: triggers delete the runs of deleted documents set by set, `truncate
--     documents` keeps working, and opening a run does not lock the document a second time.
--   * Times come from the database (clock_timestamp()), never from a client.
--   * Where the tables exist already, nothing here locks out readers or writers: indexes, policies and row level
--     security are looked up first. A later release adds columns in guarded steps at the end (ADD COLUMN IF NOT EXISTS
--     with a constant default).
-- Lock order, here and in every later file: documents in id order (for no key update), then stage_runs in id order.

create table if not exists krai_core.stages (
    name text primary key,
    position integer not null,
    description text not null default '',
    weight numeric not null default 1,
    lease_seconds integer not null default 300,
    timeout_seconds integer,
    max_attempts integer not null default 5,
    backoff_seconds integer not null default 10,
    backoff_max_seconds integer not null default 3600,
    paused boolean not null default false,
    enabled boolean not null default true,
    changed_at timestamptz,
    changed_by text,
    waits_for text[] not null default '{}',
    -- A new stage starts at the lowest id: existing documents get their ready runs batch by batch.
    fill_after uuid default '00000000-0000-0000-0000-000000000000',
    constraint stages_position_is_unique unique (position) deferrable initially immediate,
    constraint stages_name_is_snake_case check (name ~ '^[a-z][a-z0-9_]{0,62}$'),
    constraint stages_weight_is_positive check (weight > 0 and weight < 'infinity'),
    constraint stages_lease_is_a_second_to_a_week check (lease_seconds between 1 and 604800),
    constraint stages_timeout_is_positive check (timeout_seconds > 0),
    constraint stages_max_attempts_is_positive check (max_attempts > 0),
    constraint stages_backoff_is_not_negative check (backoff_seconds >= 0 and backoff_max_seconds >= backoff_seconds)
);

create table if not exists krai_core.stage_prerequisites (
    stage_name text not null references krai_core.stages (name) on update cascade on delete cascade,
    requires text not null references krai_core.stages (name) on update cascade on delete cascade,
    primary key (stage_name, requires),
    -- The reverse lookup: which stages wait for this one.
    constraint stage_prerequisites_requires_stage unique (requires, stage_name),
    constraint stage_prerequisites_not_itself check (stage_name <> requires)
);

create table if not exists krai_core.stage_runs (
    -- Fixed-length columns first, the longest ones leading, to keep alignment padding to a minimum.
    id bigint generated always as identity primary key,
    document_id uuid not null,
    claim_id uuid,
    available_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    heartbeat_at timestamptz,
    lease_expires_at timestamptz,
    retry_at timestamptz,
    reset_at timestamptz,
    error_fingerprint bigint,
    attempt integer not null default 1,
    priority integer not null default 0,
    closed_by_holder boolean not null default false,
    is_current boolean not null default false,
    opens_claim boolean not null default false,
    status text not null,
    stage_name text not null,
    open_stage text generated always as (case when finished_at is null then stage_name end) stored,
    worker text,
    lease_seconds numeric,
    progress numeric,
    actor text,
    error text,
    metadata jsonb,
    constraint stage_runs_status_is_known check (
        status in ('ready', 'running', 'completed', 'failed', 'skipped', 'released', 'lost', 'cancelled')
    ),
    constraint stage_runs_finished_unless_open check ((status in ('ready', 'running')) = (finished_at is null)),
    constraint stage_runs_running_has_a_lease check (
        status <> 'running' or (started_at is not null and lease_seconds > 0 and lease_expires_at is not null)
    ),
    constraint stage_runs_ready_is_due_at_a_time check (status <> 'ready' or available_at is not null),
    constraint stage_runs_attempt_is_positive check (attempt > 0)
    -- Leaves room on each page for heartbeats, so that they stay HOT updates without new index entries.
) with (fillfactor = 85);

-- CREATE INDEX IF NOT EXISTS would lock out writers before it checks.
do $$
begin
    if to_regclass('krai_core.stage_runs_document_open_stage') is null then
        -- Finds all runs of a document, and allows one open run per stage: nulls never equal each other. One index does
        -- both jobs, since each version of a run has an entry in it. Closed runs share a key, which the index
        -- deduplicates: it is a fifth of the size that it would have with the stage of each run.
        create unique index stage_runs_document_open_stage
            on krai_core.stage_runs (document_id, open_stage);
    end if;
    if to_regclass('krai_core.stage_runs_ready') is null then
        -- The queue of a stage, in the order in which it is handed out. By the last column, lists skip retries without
        -- fetching their rows: retries that are not due yet are the newest entries of all.
        create index stage_runs_ready
            on krai_core.stage_runs (stage_name, priority desc, available_at, id, retry_at) where status = 'ready';
    end if;
    if to_regclass('krai_core.stage_runs_running') is null then
        -- Running runs: newest first, by claim, or scanned for expired leases. The expiry itself is not in the index:
        -- see the rules above.
        create index stage_runs_running
            on krai_core.stage_runs (stage_name, started_at, id, claim_id) where status = 'running';
    end if;
    if to_regclass('krai_core.stage_runs_claim') is null then
        -- Shows that a claim was made already, so that a repeat takes nothing more. One run per claim is indexed, not
        -- every run that it took.
        create index stage_runs_claim
            on krai_core.stage_runs (claim_id) where opens_claim;
    end if;
    if to_regclass('krai_core.stage_runs_completed') is null then
        -- Documents that completed a stage, newest first. The next two: those that skipped it, and those that failed.
        create index stage_runs_completed
            on krai_core.stage_runs (stage_name, finished_at) where is_current and status = 'completed';
    end if;
    if to_regclass('krai_core.stage_runs_skipped') is null then
        create index stage_runs_skipped
            on krai_core.stage_runs (stage_name, finished_at) where is_current and status in ('skipped', 'cancelled');
    end if;
    if to_regclass('krai_core.stage_runs_failed') is null then
        create index stage_runs_failed
            on krai_core.stage_runs (stage_name, finished_at) include (error_fingerprint, id, attempt)
            where is_current and status in ('failed', 'lost');
    end if;
    if to_regclass('krai_core.stage_runs_failures') is null then
        -- The newest failures of all stages, grouped by one number for stage and kind of error, in an index-only scan.
        -- A query must state `id > 0` to get this index: otherwise the planner would also choose it for a single stage
        -- or fingerprint, and filter out everything else.
        create index stage_runs_failures
            on krai_core.stage_runs
                (finished_at, (coalesce(error_fingerprint, 0) # hashtextextended(stage_name, 0)))
            include (id, attempt, error_fingerprint, stage_name)
            where is_current and status in ('failed', 'lost') and id > 0;
    end if;
    if to_regclass('krai_core.stage_runs_fingerprint') is null then
        -- The newest failures of one kind.
        create index stage_runs_fingerprint
            on krai_core.stage_runs (error_fingerprint, finished_at) where is_current and status in ('failed', 'lost');
    end if;
    if to_regclass('krai_core.stage_runs_superseded_of_document') is null then
        -- Superseded runs of a document, for a stage that runs again. The next index: what may be pruned, oldest first.
        create index stage_runs_superseded_of_document
            on krai_core.stage_runs (document_id) where finished_at is not null and not is_current;
    end if;
    if to_regclass('krai_core.stage_runs_superseded') is null then
        create index stage_runs_superseded
            on krai_core.stage_runs (finished_at) where finished_at is not null and not is_current;
    end if;
end $$;

create table if not exists krai_core.document_priorities (
    document_id uuid primary key,
    priority integer not null,
    changed_at timestamptz not null default now(),
    changed_by text
);

-- Seeded once: a pipeline that has changed since is left alone. The guard is needed because even an INSERT of no rows
-- would fire the triggers of the pipeline, which lock everybody out.
do $$
begin
    if not exists (select from krai_core.stages) then
        insert into krai_core.stages (name, position, description) values
            ('upload', 1, 'Document ingestion & validation'),
            ('text_extraction', 2, 'PDF text & chunking'),
            ('image_processing', 3, 'OCR, Vision AI'),
            ('classification', 4, 'Manufacturer/product detection'),
            ('metadata_extraction', 5, 'Error codes, versions'),
            ('storage', 6, 'R2 upload'),
            ('embedding', 7, 'Vector embeddings'),
            ('search_indexing', 8, 'Search analytics');
        insert into krai_core.stage_prerequisites (stage_name, requires) values
            ('text_extraction', 'upload'),
            ('image_processing', 'upload'),
            ('classification', 'text_extraction'),
            ('metadata_extraction', 'text_extraction'),
            ('embedding', 'text_extraction'),
            ('storage', 'image_processing'),
            ('search_indexing', 'embedding'),
            ('search_indexing', 'metadata_extraction'),
            ('search_indexing', 'classification');
    end if;
end $$;

comment on table krai_core.stages is
'The stages of the pipeline, in order. A disabled stage counts as satisfied and is in no total.';
comment on column krai_core.stages.name is
'Key of the stage in documents.stage_status; lower case letters, digits and underscores.';
comment on column krai_core.stages.position is 'Order in the pipeline; unique.';
comment on column krai_core.stages.description is 'What the stage does, for people.';
comment on column krai_core.stages.weight is
'Share of the stage in the weighted progress of a document; greater than 0.';
comment on column krai_core.stages.lease_seconds is
'Seconds for which a claimed run is held without a sign of life; 1 to 604800.';
comment on column krai_core.stages.timeout_seconds is
'Seconds after which a run is lost even if it still beats; null: no bound.';
comment on column krai_core.stages.max_attempts is
'Attempts before a stage stays failed; counted since the last retry or reset by a person.';
comment on column krai_core.stages.backoff_seconds is
'Seconds before the first automatic retry; doubled for each further one.';
comment on column krai_core.stages.backoff_max_seconds is 'Longest wait before an automatic retry, in seconds.';
comment on column krai_core.stages.paused is 'While true nothing of this stage is handed out.';
comment on column krai_core.stages.enabled is 'false: the stage counts as satisfied and is in no total.';
comment on column krai_core.stages.changed_at is
'When the stage was last registered, disabled, paused or resumed; UTC, database clock.';
comment on column krai_core.stages.changed_by is 'Who did that.';
comment on column krai_core.stages.waits_for is
'Derived from stage_prerequisites: the enabled stages that must be finished before this one may start.';
comment on column krai_core.stages.fill_after is
'Documents with a greater id must still be checked for ready runs, because the pipeline changed; null: none.';

comment on table krai_core.stage_prerequisites is
'The DAG: stage_name may start when every stage in requires is completed, skipped or disabled.';
comment on column krai_core.stage_prerequisites.stage_name is 'The stage that waits.';
comment on column krai_core.stage_prerequisites.requires is 'The stage that must finish first.';

comment on table krai_core.stage_runs is
'One row per attempt to run a stage of a document. Open: ready, running. Closed: completed, failed, skipped, released,
lost, cancelled.';
comment on column krai_core.stage_runs.id is 'Run id, ascending in the order of opening.';
comment on column krai_core.stage_runs.document_id is 'The document, krai_core.documents.id.';
comment on column krai_core.stage_runs.stage_name is 'The stage, krai_core.stages.name.';
comment on column krai_core.stage_runs.open_stage is
'stage_name while the run is ready or running; null once it is closed. Computed.';
comment on column krai_core.stage_runs.status is
'ready, running, completed, failed, skipped, released (given back), lost (lease expired, taken over) or cancelled.';
comment on column krai_core.stage_runs.attempt is
'Number of this attempt, from 1; counted since the last success, retry or reset.';
comment on column krai_core.stage_runs.priority is 'Higher is handed out first.';
comment on column krai_core.stage_runs.available_at is
'When a ready run becomes available to workers; UTC, database clock.';
comment on column krai_core.stage_runs.claim_id is
'Credential of the holder: a uuid generated by the client. Null: started without one.';
comment on column krai_core.stage_runs.worker is 'Name that the worker gave itself.';
comment on column krai_core.stage_runs.lease_seconds is
'Length of the lease in seconds; progress and heartbeats renew it. Null again once its holder has closed the run.';
comment on column krai_core.stage_runs.lease_expires_at is
'When another worker may take the run over; null again once its holder has closed the run. UTC, database clock.';
comment on column krai_core.stage_runs.heartbeat_at is
'Last renewal of the lease; null again once its holder has closed the run. UTC, database clock.';
comment on column krai_core.stage_runs.started_at is
'When the run began; null: the work was done elsewhere and only reported. UTC, database clock.';
comment on column krai_core.stage_runs.finished_at is
'When the run was closed; null while it is open. UTC, database clock.';
comment on column krai_core.stage_runs.closed_by_holder is
'true: closed by a call that carried the run''s own claim id.';
comment on column krai_core.stage_runs.error is
'Error of this attempt, up to 65536 characters (the column documents.stage_status holds at most 4000).';
comment on column krai_core.stage_runs.progress is
'Highest progress of this run in percent, recorded when progress fell back or a later run replaced it; null before.';
comment on column krai_core.stage_runs.metadata is
'Metadata of this run, recorded when a later run replaced it; null before.';
comment on column krai_core.stage_runs.retry_at is
'Failed run: when it is retried automatically; null: never. Ready run: the same if it is the retry. '
'UTC, database clock.';
comment on column krai_core.stage_runs.reset_at is
'When a person retried or reset the stage after this run; attempts count from there. UTC, database clock.';
comment on column krai_core.stage_runs.actor is 'Who retried, reset or cancelled after this run.';
comment on column krai_core.stage_runs.is_current is
'true: a completed, failed or skipped stage rests on this closed run; false: open, released, or superseded by a later '
'run, a reset or an edit.';
comment on column krai_core.stage_runs.opens_claim is
'true: the first run of the stage that its claim took; identifies a repeat of that claim.';
comment on column krai_core.stage_runs.error_fingerprint is
'Failed or lost run: the same for errors that differ only in ids, digits and paths (error_fingerprint).';

comment on table krai_core.document_priorities is
'Documents whose runs are handed out before or after the others; documents without a row have priority 0.';
comment on column krai_core.document_priorities.document_id is 'The document, krai_core.documents.id.';
comment on column krai_core.document_priorities.priority is
'Applies to every run of the document that becomes ready; higher is handed out first.';
comment on column krai_core.document_priorities.changed_at is 'When it was set; UTC, database clock.';
comment on column krai_core.document_priorities.changed_by is 'Who set it.';

-- The documents that the current statement edits directly: filled row by row, emptied at the end of the statement. It
-- is a table, because our own writers would fill transition tables too, which costs them a tenth of their time; it is
-- unlogged, because nothing in it outlives its transaction.
create unlogged table if not exists krai_core.edited_documents (
    transaction_id xid8 not null,
    depth integer not null,
    document_id uuid not null,
    status_changed boolean not null,
    old_status jsonb,
    new_status jsonb,
    primary key (transaction_id, depth, document_id)
);

comment on table krai_core.edited_documents is
'Scratch table of the triggers: the documents that a running statement edits directly. Other sessions see it empty.';
comment on column krai_core.edited_documents.transaction_id is 'The transaction.';
comment on column krai_core.edited_documents.depth is 'Trigger nesting depth of the statement; 1 is outermost.';
comment on column krai_core.edited_documents.document_id is 'The document.';
comment on column krai_core.edited_documents.status_changed is
'true: a stage changed its status, not only its details.';
comment on column krai_core.edited_documents.old_status is 'stage_status before.';
comment on column krai_core.edited_documents.new_status is 'stage_status after.';

-- Row level security everywhere. Signed-in users read the pipeline, and the runs of the documents that they may see
-- (05_documents). Closed tables have a permissive policy that admits nobody and leaves room for policies of your own.
do $$
declare
    v_table text;
begin
    for v_table in
        select c.relname from pg_catalog.pg_class c
        where c.relnamespace = 'krai_core'::regnamespace and not c.relrowsecurity
          and c.relname in ('stages', 'stage_prerequisites', 'stage_runs', 'document_priorities', 'edited_documents')
    loop
        execute format('alter table krai_core.%I enable row level security', v_table);
    end loop;
    foreach v_table in array array['stages', 'stage_prerequisites'] loop
        if not exists (select from pg_catalog.pg_policy p where p.polname = v_table || '_select_authenticated'
                       and p.polrelid = ('krai_core.' || v_table)::regclass) then
            execute format('create policy %I on krai_core.%I for select to authenticated using (true)',
                v_table || '_select_authenticated', v_table);
        end if;
    end loop;
    foreach v_table in array array['document_priorities', 'edited_documents'] loop
        if not exists (select from pg_catalog.pg_policy p where p.polname = v_table || '_no_client'
                       and p.polrelid = ('krai_core.' || v_table)::regclass) then
            execute format(
                'create policy %I on krai_core.%I for all to anon, authenticated using (false) with check (false)',
                v_table || '_no_client', v_table);
        end if;
    end loop;
end $$;

-- ======== 04_figures_tables ========
-- Metrics: the tables behind the statistics.
--
--   stage_deltas     what each change adds to the metrics or takes away: append-only, never updated
--   stage_counters   roll-up of the deltas: how many documents are in each state of a stage, and how long they took
--   stage_flow       roll-up of the deltas by hour: arrivals, starts, outcomes, waiting and working time
--   stage_fold       how far the deltas have been folded into these two
--
-- Rules
--   * A metric is the folded sum plus the deltas not folded yet, read in one snapshot: it is exact at every commit.
--   * Every change appends, so that nobody waits for a hot row; a bulk statement appends one row per stage.
--   * Pending is not stored: it is the number of documents minus all other states. So a bulk insert costs one row, a
--     new stage costs nothing, and the sum over the states is documents x stages.
--   * Durations are whole microseconds, and leave their bucket with exactly the value that they entered with.
--   * stage_flow only grows, by one row per stage and hour; pruned runs remain counted in it.
--   * Only service_role may read these tables: the sums cover all tenants.

create table if not exists krai_core.stage_deltas (
    id bigint generated always as identity primary key,
    stage_name text not null default '',
    bucket smallint not null default -1,
    hour timestamptz not null default date_trunc('hour', clock_timestamp(), 'UTC'),
    documents bigint not null default 0,
    processing bigint not null default 0,
    completed bigint not null default 0,
    failed bigint not null default 0,
    skipped bigint not null default 0,
    timed bigint not null default 0,
    duration_us numeric not null default 0,
    arrived bigint not null default 0,
    started bigint not null default 0,
    retried bigint not null default 0,
    runs_completed bigint not null default 0,
    runs_failed bigint not null default 0,
    runs_skipped bigint not null default 0,
    waited bigint not null default 0,
    wait_us numeric not null default 0,
    work_us numeric not null default 0
    -- Each fold empties the table, so autovacuum goes by the number of dead rows, not by their share.
) with (autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_scale_factor = 0,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 10000);

create table if not exists krai_core.stage_counters (
    stage_name text not null,
    bucket smallint not null,
    documents bigint not null,
    processing bigint not null,
    completed bigint not null,
    failed bigint not null,
    skipped bigint not null,
    timed bigint not null,
    duration_us numeric not null,
    primary key (stage_name, bucket)
) with (fillfactor = 50);

create table if not exists krai_core.stage_flow (
    stage_name text not null,
    hour timestamptz not null,
    arrived bigint not null,
    started bigint not null,
    retried bigint not null,
    completed bigint not null,
    failed bigint not null,
    skipped bigint not null,
    waited bigint not null,
    wait_us numeric not null,
    work_us numeric not null,
    primary key (stage_name, hour)
);

create table if not exists krai_core.stage_fold (
    singleton boolean primary key default true,
    folded_to bigint not null default 0,
    constraint stage_fold_is_one_row check (singleton)
);

insert into krai_core.stage_fold (singleton) values (true) on conflict do nothing;

comment on table krai_core.stage_deltas is
'Changes of the metrics that are not folded yet: what to add to stage_counters and stage_flow.
fold_deltas keeps it short.';
comment on column krai_core.stage_deltas.id is 'In order of appending; every thousandth triggers a fold.';
comment on column krai_core.stage_deltas.stage_name is
'Key of the stage in documents.stage_status; empty: the documents as a whole.';
comment on column krai_core.stage_deltas.bucket is
'Bucket of the duration (duration_bucket) that timed and duration_us belong to; -1: none.';
comment on column krai_core.stage_deltas.hour is 'Hour in which it happened; UTC, database clock.';
comment on column krai_core.stage_deltas.documents is 'Documents inserted minus documents deleted.';
comment on column krai_core.stage_deltas.processing is
'Documents that entered the state processing, minus those that left it.';
comment on column krai_core.stage_deltas.completed is 'The same for completed.';
comment on column krai_core.stage_deltas.failed is 'The same for failed.';
comment on column krai_core.stage_deltas.skipped is 'The same for skipped.';
comment on column krai_core.stage_deltas.timed is 'The same for completed with a duration in this bucket.';
comment on column krai_core.stage_deltas.duration_us is 'Sum of those durations in whole microseconds.';
comment on column krai_core.stage_deltas.arrived is
'Runs that became ready, without retries and released runs; if stage_name is empty: documents inserted.';
comment on column krai_core.stage_deltas.started is 'Runs that began.';
comment on column krai_core.stage_deltas.retried is 'Those of them that were not a first attempt.';
comment on column krai_core.stage_deltas.runs_completed is 'Stages that completed.';
comment on column krai_core.stage_deltas.runs_failed is 'Stages that failed.';
comment on column krai_core.stage_deltas.runs_skipped is 'Stages that were skipped.';
comment on column krai_core.stage_deltas.waited is 'Runs that began after having been ready.';
comment on column krai_core.stage_deltas.wait_us is 'How long those runs had been due, in whole microseconds.';
comment on column krai_core.stage_deltas.work_us is
'How long the completed and failed stages were worked on, in whole microseconds.';

comment on table krai_core.stage_counters is
'How many documents are in each state of a stage, and the durations of the completed ones, as far as deltas are folded.
Query the metrics in vw_stage_statistics.';

comment on table krai_core.stage_flow is
'Arrivals, starts and outcomes in each hour, as far as deltas are folded; kept forever.
Query the metrics in vw_stage_flow.';

do $$
declare
    v_column record;
begin
    for v_column in
        select target.name as target, a.attname,
            coalesce(pg_catalog.col_description('krai_core.stage_deltas'::regclass, d.attnum), '') as text
        from (values ('stage_counters'), ('stage_flow')) as target (name)
        join pg_catalog.pg_attribute a
            on a.attrelid = ('krai_core.' || target.name)::regclass and a.attnum > 0 and not a.attisdropped
        join pg_catalog.pg_attribute d
            on d.attrelid = 'krai_core.stage_deltas'::regclass
            and d.attname = case
                when target.name = 'stage_flow' and a.attname in ('completed', 'failed', 'skipped')
                    then 'runs_' || a.attname
                else a.attname end
    loop
        execute format('comment on column krai_core.%I.%I is %L', v_column.target, v_column.attname, v_column.text);
    end loop;
end $$;

comment on table krai_core.stage_fold is 'One row: how far the deltas have been folded.';
comment on column krai_core.stage_fold.singleton is 'Always true, which allows one row only.';
comment on column krai_core.stage_fold.folded_to is 'Highest stage_deltas.id that had been assigned at the last fold.';

do $$
declare
    v_table text;
begin
    foreach v_table in array array['stage_deltas', 'stage_counters', 'stage_flow', 'stage_fold'] loop
        if not (
            select c.relrowsecurity from pg_catalog.pg_class c where c.oid = ('krai_core.' || v_table)::regclass
        ) then
            execute format('alter table krai_core.%I enable row level security', v_table);
        end if;
        if not exists (select from pg_catalog.pg_policy p where p.polname = v_table || '_no_client'
                       and p.polrelid = ('krai_core.' || v_table)::regclass) then
            execute format(
                'create policy %I on krai_core.%I for all to anon, authenticated using (false) with check (false)',
                v_table || '_no_client', v_table);
        end if;
    end loop;
end $$;

commit;

-- ======== 05_documents ========
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
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;

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

-- ======== 06_derived_views ========
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
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;
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
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;
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
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;
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
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;
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
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;
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
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;
comment on view krai_private.current_stages is
'Stages that are completed, failed or skipped according to stage_status: each rests on one current run.';
comment on column krai_private.current_stages.document_id is 'Id of the document.';
comment on column krai_private.current_stages.stage_name is 'Key of the stage in documents.stage_status.';
comment on column krai_private.current_stages.state is 'completed, failed or skipped.';
commit;

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;

-- ======== 07_errors ========
-- Errors: how they are raised, and the argument checks that raise them.
--
--   raise_error                             raises every error of the tracker, with an error word in DETAIL and a HINT
--   raise_unknown_document, raise_conflict  the two that many calls raise
--   check_stage, stage_named, stages_named  look up stages by name
--   checked_metadata, checked_limit, checked_lease, checked_age   return a valid argument or raise
--
-- Rules
--   * SQLSTATE PT404 (HTTP 404): unknown document. PT409 (409): conflict or lost lease. 22023 (400): bad argument.
--   * Never 40001: PostgREST before 16 retries such a call forever. Never P0002, which becomes HTTP 500.
--   * Callers never choose an SQLSTATE: raise_error derives it from the error word.

-- Not immutable: the planner would evaluate a call with constant arguments, and raise while only planning.
create or replace function krai_private.raise_error(p_word text, p_message text, p_detail jsonb, p_hint text)
returns void
language plpgsql stable
set search_path = ''
as $$
begin
    raise exception using
        errcode = case
            when p_word = 'unknown_document' then 'PT404'
            when p_word in ('conflict', 'lease_lost', 'claim_in_progress', 'stage_disabled') then 'PT409'
            else '22023' end,
        message = p_message,
        detail = (jsonb_build_object('error', p_word) || p_detail)::text,
        hint = p_hint;
end;
$$;
comment on function krai_private.raise_error(text, text, jsonb, text) is
'Raises an error of the tracker: machine-readable word, message, further keys of DETAIL, remedy.
The SQLSTATE follows from the word: PT404 unknown_document; PT409 conflict, lease_lost, claim_in_progress and
stage_disabled; 22023 any other.';

create or replace function krai_private.raise_unknown_document(p_document_id uuid) returns void
language plpgsql stable
set search_path = ''
as $$
begin
    if p_document_id is null then
        perform krai_private.raise_error('invalid_document_id', 'the document id is null', '{}',
            'Pass the id of a row of krai_core.documents.');
    end if;
    perform krai_private.raise_error('unknown_document', format('there is no document %s', p_document_id),
        jsonb_build_object('document_id', p_document_id),
        'Insert the row into krai_core.documents first; as a signed-in user, check that its policies let you see it.');
end;
$$;
comment on function krai_private.raise_unknown_document(uuid) is
'Raises PT404 unknown_document, or 22023 invalid_document_id for null.';

create or replace function krai_private.raise_conflict(
    p_call text,
    p_document_id uuid,
    p_stage_name text,
    p_status text,
    p_hint text,
    p_remark text default ''
)
returns void
language plpgsql stable
set search_path = ''
as $$
begin
    perform krai_private.raise_error('conflict',
        format('%s: stage %s of document %s is %s%s', p_call, p_stage_name, p_document_id, p_status, p_remark),
        jsonb_build_object('document_id', p_document_id, 'stage', p_stage_name, 'status', p_status), p_hint);
end;
$$;
comment on function krai_private.raise_conflict(text, uuid, text, text, text, text) is
'Raises PT409 conflict: the stage is in a state that does not allow the call.
p_remark: appended to the state in the message.';

create or replace function krai_private.require_service_role() returns void
language plpgsql stable
set search_path = ''
as $$
begin
    -- The right to execute this is the check: Postgres raises 42501 for everybody else.
end;
$$;
comment on function krai_private.require_service_role() is
'Raises 42501 unless the caller is service_role or the owner. For public functions that call nothing else of the kind.';

create or replace function krai_private.check_stage(p_stage_name text) returns void
language plpgsql stable
set search_path = ''
as $$
begin
    if not exists (select from krai_core.stages s where s.name = p_stage_name) then
        perform krai_private.raise_error('unknown_stage',
            format('unknown stage %s', coalesce(quote_literal(p_stage_name), 'null')),
            jsonb_build_object('stage', p_stage_name),
            coalesce(
                'Stages are: ' || (select string_agg(s.name, ', ' order by s.position) from krai_core.stages s) || '.',
                'There are no stages that you may see: register one, or ask for the right to read krai_core.stages.'));
    end if;
end;
$$;
comment on function krai_private.check_stage(text) is 'Raises 22023 unknown_stage unless the stage exists.';

create or replace function krai_private.stage_named(p_stage_name text) returns krai_core.stages
language plpgsql stable
set search_path = ''
as $$
declare
    v_stage krai_core.stages;
begin
    select * into v_stage from krai_core.stages s where s.name = p_stage_name;
    if not found then
        perform krai_private.check_stage(p_stage_name);
    end if;
    return v_stage;
end;
$$;
comment on function krai_private.stage_named(text) is
'The row of krai_core.stages with that name; raises 22023 unknown_stage.
For callers that may read all of its columns (service_role).';

create or replace function krai_private.stages_named(p_stage_name text) returns setof krai_core.stages
language plpgsql stable
set search_path = ''
as $$
declare
    v_names text[] := array[p_stage_name];
    v_found integer;
begin
    if p_stage_name like '[%' then
        begin
            v_names := array(select jsonb_array_elements_text(p_stage_name::jsonb));
        exception when invalid_text_representation then
            null;
        end;
    elsif p_stage_name like '{%' then
        begin
            v_names := p_stage_name::text[];
        exception when invalid_text_representation then
            null;
        end;
    end if;
    return query
        select s.*
        from unnest(v_names) with ordinality as given (name, n)
        join krai_core.stages s on s.name = given.name
        order by given.n;
    get diagnostics v_found = row_count;
    if v_found < cardinality(v_names) then
        perform krai_private.check_stage(given.name) from unnest(v_names) as given (name);
    end if;
end;
$$;
comment on function krai_private.stages_named(text) is
'The rows of krai_core.stages for one name, or for an array of names, in the order of the array.
p_stage_name: a name, or an array as text (["a", "b"] or {a,b}). Raises 22023 unknown_stage.';

create or replace function krai_private.checked_metadata(p_metadata jsonb) returns jsonb
language plpgsql stable
set search_path = ''
as $$
begin
    if jsonb_typeof(p_metadata) not in ('object', 'null') then
        perform krai_private.raise_error('invalid_metadata',
            format('metadata must be a JSON object, not %s: %s', jsonb_typeof(p_metadata), left(p_metadata::text, 200)),
            jsonb_build_object('type', jsonb_typeof(p_metadata)),
            'Pass an object such as {"pages_processed": 2000}.');
    end if;
    return case when jsonb_typeof(p_metadata) = 'object' then p_metadata else '{}' end;
end;
$$;
comment on function krai_private.checked_metadata(jsonb) is
'The metadata to merge; {} for null. Raises 22023 invalid_metadata for anything else that is not a JSON object.';

create or replace function krai_private.checked_limit(p_limit integer, p_most integer) returns integer
language plpgsql stable
set search_path = ''
as $$
begin
    if p_limit between 1 and p_most then
        return p_limit;
    end if;
    perform krai_private.raise_error('invalid_limit',
        format('a limit of %s is out of range', coalesce(p_limit::text, 'null')),
        jsonb_build_object('limit', p_limit), format('Pass 1 to %s.', p_most));
    return null;
end;
$$;
comment on function krai_private.checked_limit(integer, integer) is
'The limit; raises 22023 invalid_limit unless it is 1 to p_most.';

create or replace function krai_private.checked_lease(p_lease_seconds numeric) returns numeric
language plpgsql stable
set search_path = ''
as $$
begin
    if p_lease_seconds <= 0 or p_lease_seconds > 604800 then
        perform krai_private.raise_error('invalid_lease',
            format('a lease of %s seconds is out of range', p_lease_seconds),
            jsonb_build_object('lease_seconds', p_lease_seconds::text),
            'Pass more than 0 and at most 604800 seconds (a week), or null for the stage''s own.');
    end if;
    return p_lease_seconds;
end;
$$;
comment on function krai_private.checked_lease(numeric) is
'The lease in seconds; raises 22023 invalid_lease unless it is null, or more than 0 and at most 604800.';

create or replace function krai_private.checked_age(p_older_than interval) returns interval
language plpgsql stable
set search_path = ''
as $$
begin
    if p_older_than between interval '0' and interval '1000 years' then
        return p_older_than;
    end if;
    perform krai_private.raise_error('invalid_age',
        format('%s is no age', coalesce(p_older_than::text, 'null')), '{}',
        'Pass an interval such as 30 days, at most 1000 years.');
    return null;
end;
$$;
comment on function krai_private.checked_age(interval) is
'The age; raises 22023 invalid_age unless it is 0 to 1000 years; null is invalid.';

-- ======== 08_shapes ========
-- Shapes: what a stored value means, however malformed it is, and the values that writers store.
--
--   iso_time, time_or_null                 a time as text, and the time that a text means
--   stage_state, sql_stage_state           which of the five states a stored stage means: as a function, as SQL text
--   progress_of                            progress of a stored stage
--   short_error, full_error                an error as the column and as the history store it
--   error_pattern, error_fingerprint       what errors of one kind have in common
--   repaired_stage, repaired_stages        turn malformed values into the seven keys, losing nothing
--   is_sound                               whether there is anything to repair
--   started_stage, closed_stage            a stage as a run starts and as it ends
--   skip_metadata                          metadata of a skipped stage
--   archived_stages                        stage_status of a document that finished before stages were tracked
--
-- Rules
--   * A missing key is pending. The plain string "completed" is completed; any other string, and any status other than
--     the five, is pending: nobody owns such a run.
--   * A sound value is returned unchanged. What does not fit the seven keys is kept in metadata.v1 of its stage;
--     additional keys of a stage, and keys of unknown stages, stay where they are.
--   * Total functions: nothing here raises, and nothing depends on the session (time zone, DateStyle).
-- Nothing here locks or writes.

-- In plpgsql, like everything that writers call: plans are cached for the session. An SQL function with a pinned
-- search_path is not inlined, and is planned again in every transaction.
create or replace function krai_private.iso_time(p_time timestamptz) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return to_char(p_time at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
end;
$$;
comment on function krai_private.iso_time(timestamptz) is 'The time as ISO 8601 in UTC, with microseconds and Z.';

-- A text that is not a time must not break a view or a write, hence the exception block; hot paths avoid this function.
create or replace function krai_private.time_or_null(p_text text) returns timestamptz
language plpgsql stable
set search_path = ''
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
declare
    v_time timestamptz;
begin
    -- Postgres takes words such as now and epoch for times, but nobody records a time that way.
    if p_text !~ '^\s*\d' then
        return null;
    end if;
    v_time := p_text::timestamptz;
    -- Only years of four digits, which iso_time can write.
    return case when v_time >= '0001-01-01 00:00:00+00' and v_time < '10000-01-01 00:00:00+00' then v_time end;
exception when data_exception then
    return null;
end;
$$;
comment on function krai_private.time_or_null(text) is
'The time that a text means, in the years 1 to 9999; null if it means none.
UTC if the text names no zone; month before day if the order is ambiguous.';

-- sql_stage_state is the same as an SQL expression; a test compares the two on every malformed value.
create or replace function krai_private.stage_state(p_stage jsonb) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return case
        when p_stage ->> 'status' in ('pending', 'processing', 'completed', 'failed', 'skipped')
            then p_stage ->> 'status'
        when p_stage = '"completed"' then 'completed'
        else 'pending'
    end;
end;
$$;
comment on function krai_private.stage_state(jsonb) is
'The state that a stored stage means: its status, if that is one of the five.
The plain string "completed" means completed; anything else, and a missing key, means pending.';

create or replace function krai_private.progress_of(p_stage jsonb) returns numeric
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return case
        when jsonb_typeof(p_stage -> 'progress') = 'number' and p_stage -> 'progress' between '0' and '100'
            then (p_stage ->> 'progress')::numeric
        end;
end;
$$;
comment on function krai_private.progress_of(jsonb) is
'Progress of a stored stage in percent, 0 to 100; null if it has no valid one.';

-- SQL text, pasted into views and triggers: a function would not be inlined, and cost more than the rest of a view over
-- all documents, or of a trigger on a batch.
create or replace function krai_private.sql_stage_state(p_stage text) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    -- The simple form of CASE extracts the status once.
    return format($q$case %1$s ->> 'status'
            when 'pending' then 'pending'
            when 'completed' then 'completed'
            when 'processing' then 'processing'
            when 'failed' then 'failed'
            when 'skipped' then 'skipped'
            else case when %1$s = '"completed"' then 'completed' else 'pending' end
        end$q$, p_stage);
end;
$$;
comment on function krai_private.sql_stage_state(text) is
'SQL expression equivalent to stage_state. p_stage: SQL expression of a stored stage.';

create or replace function krai_private.short_error(p_error text) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return case
        when p_error !~ '\S' or p_error is null then 'failed without a message'
        when length(p_error) > 4000 then left(p_error, 3980) || ' ... [cut at 4000]'
        else p_error end;
end;
$$;
comment on function krai_private.short_error(text) is
'The error as the column stores it: never blank, at most 4000 characters.';

create or replace function krai_private.full_error(p_error text) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return case when p_error ~ '\S' then left(p_error, 65536) else 'failed without a message' end;
end;
$$;
comment on function krai_private.full_error(text) is
'The error as the history stores it: never blank, at most 65536 characters.';

create or replace function krai_private.error_pattern(p_error text) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
declare
    v_error text := left(coalesce(p_error, ''), 2000);
begin
    -- Each replacement only if it can match: replacing costs many times as much as searching.
    if strpos(v_error, '://') > 0 then
        v_error := regexp_replace(v_error, '[a-zA-Z][a-zA-Z0-9+.-]*://[^\s"''<>]+', '<url>', 'g');
    end if;
    if v_error ~ '[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-' then
        v_error := regexp_replace(v_error,
            '[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}', '<id>', 'g');
    end if;
    if strpos(v_error, '/') > 0 or strpos(v_error, '\') > 0 then
        -- At least two separators, or one at the start of a word: and/or is not a path.
        v_error := regexp_replace(v_error,
            '(?:[a-zA-Z]:[\\/]|\.{0,2}/)[^\s"''<>:,;()]*[\\/][^\s"''<>:,;()]*'
            '|(?<=[\s"''(=]|^)/[^\s"''<>:,;()/]+', '<path>', 'g');
    end if;
    if v_error ~ '0x|[0-9a-fA-F]{8}' then
        v_error := regexp_replace(v_error, '\m(?:0x[0-9a-fA-F]+|(?=[a-fA-F]*[0-9])[0-9a-fA-F]{8,})\M', '<id>', 'g');
    end if;
    if v_error ~ '\d' then
        v_error := regexp_replace(v_error, '\d+(?:[.,]\d+)*', '<n>', 'g');
    end if;
    if v_error ~ '\s\s|[^\S ]' then
        v_error := regexp_replace(v_error, '\s+', ' ', 'g');
    end if;
    return btrim(left(v_error, 500));
end;
$$;
comment on function krai_private.error_pattern(text) is
'An error without the parts that vary between failures of one kind; at most 500 characters.
URLs, ids, paths and numbers become <url>, <id>, <path> and <n>.';

create or replace function krai_private.error_fingerprint(p_error text) returns bigint
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return hashtextextended(krai_private.error_pattern(p_error), 0);
end;
$$;
comment on function krai_private.error_fingerprint(text) is
'A number that is the same for all errors of one kind: a hash of error_pattern.';

create or replace function krai_private.repaired_stage(p_stage jsonb) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
    v_state text := krai_private.stage_state(p_stage);
    v_stage jsonb := krai_private.pending_stage();
    v_odd boolean := false;
    v_key text;
    v_value jsonb;
    v_time timestamptz;
begin
    if v_state = 'completed' then
        v_stage := v_stage || '{"status": "completed", "progress": 100}';
    end if;
    if p_stage is null or p_stage = 'null' then
        return v_stage;
    elsif jsonb_typeof(p_stage) <> 'object' then
        return v_stage || jsonb_build_object('metadata', jsonb_build_object('v1', p_stage));
    elsif p_stage ->> 'status' is distinct from v_state and p_stage -> 'status' <> 'null' then
        -- The status of another system: nobody owns such a run, and its times belong to a run that we know nothing of.
        v_odd := true;
        v_stage := v_stage || (p_stage - array[
            'status', 'started_at', 'completed_at', 'duration_seconds', 'progress', 'error', 'metadata']);
    else
        v_stage := v_stage || p_stage || jsonb_build_object('status', v_state);
        foreach v_key in array array['started_at', 'completed_at'] loop
            v_value := v_stage -> v_key;
            v_time := case when jsonb_typeof(v_value) = 'string' then krai_private.time_or_null(v_value #>> '{}') end;
            v_odd := v_odd or (v_time is null and v_value <> 'null');
            v_stage := v_stage || jsonb_build_object(v_key, krai_private.iso_time(v_time));
        end loop;
        v_value := v_stage -> 'duration_seconds';
        if v_value <> 'null' and not (jsonb_typeof(v_value) = 'number' and v_value >= '0') then
            v_odd := true;
            v_stage := v_stage || '{"duration_seconds": null}';
        end if;
        v_value := v_stage -> 'progress';
        if not (jsonb_typeof(v_value) = 'number' and v_value >= '0' and v_value <= '100') then
            v_odd := v_odd or v_value <> 'null';
            v_stage := v_stage || jsonb_build_object('progress', case v_state when 'completed' then 100 else 0 end);
        end if;
        if jsonb_typeof(v_stage -> 'error') not in ('string', 'null') then
            v_stage := v_stage || jsonb_build_object('error', v_stage ->> 'error');
        end if;
    end if;
    v_value := p_stage -> 'metadata';
    if jsonb_typeof(v_value) = 'object' then
        v_stage := v_stage || jsonb_build_object('metadata', v_value);
    else
        v_odd := v_odd or v_value <> 'null';
        v_stage := v_stage || '{"metadata": {}}';
    end if;
    if v_odd then
        -- If an original is kept already, the new one is merged into it key by key: repeated malformed edits lose
        -- nothing and do not pile up.
        v_value := v_stage #> '{metadata,v1}';
        v_stage := jsonb_set(v_stage, '{metadata,v1}', case
            when v_value is null then p_stage
            when jsonb_typeof(v_value) = 'object' then v_value || (p_stage - 'metadata')
            else (p_stage - 'metadata') || jsonb_build_object('v1', v_value) end);
    end if;
    return v_stage;
end;
$$;
comment on function krai_private.repaired_stage(jsonb) is
'A stored stage in the shape of the seven keys.
A sound value is returned unchanged; if something did not fit, the original is kept in metadata.v1.';

create or replace function krai_private.repaired_stages(p_stage_status jsonb) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
    v_root jsonb := case when jsonb_typeof(p_stage_status) = 'object' then p_stage_status else '{}' end;
    v_stages jsonb;
    v_first text;
begin
    select coalesce(jsonb_object_agg(s.name, krai_private.repaired_stage(v_root -> s.name)), '{}'),
           (array_agg(s.name order by s.position))[1]
    into v_stages, v_first
    from krai_core.stages s
    where s.enabled or v_root ? s.name;
    if jsonb_typeof(p_stage_status) not in ('object', 'null') and v_first is not null then
        v_stages := jsonb_set(v_stages, array[v_first, 'metadata', 'v1'], p_stage_status);
    end if;
    return v_root || v_stages;
end;
$$;
comment on function krai_private.repaired_stages(jsonb) is
'stage_status with every enabled stage in the shape of the seven keys.
Unknown keys stay; a root that is not an object is kept in metadata.v1 of the first stage.';

-- Several times cheaper than repairing and comparing; a test checks it against repaired_stages on generated values. The
-- type of each value is tested first, because lax jsonpath unwraps arrays.
create or replace function krai_private.is_sound(p_stage_status jsonb) returns boolean
language plpgsql stable
set search_path = ''
as $$
begin
    return coalesce(jsonb_typeof(p_stage_status) = 'object' and not exists (
        select from krai_core.stages s
        cross join lateral (select p_stage_status -> s.name as stage offset 0) x
        where (s.enabled or p_stage_status ? s.name)
          -- The cheapest test first: it settles most stages of most documents.
          and x.stage is distinct from krai_private.pending_stage()
          and not coalesce(x.stage @@ '
            $.type() == "object"
            && $.status.type() == "string" && ($.status == "pending" || $.status == "processing"
                || $.status == "completed" || $.status == "failed" || $.status == "skipped")
            && $.metadata.type() == "object"
            && $.progress.type() == "number" && $.progress >= 0 && $.progress <= 100
            && ($.duration_seconds.type() == "null"
                || ($.duration_seconds.type() == "number" && $.duration_seconds >= 0))
            && ($.error.type() == "null" || $.error.type() == "string")
            && ($.started_at.type() == "null"
                || ($.started_at.type() == "string" && !($.started_at starts with "0000")
                    && exists($.started_at.datetime("YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\""))))
            && ($.completed_at.type() == "null"
                || ($.completed_at.type() == "string" && !($.completed_at starts with "0000")
                    && exists($.completed_at.datetime("YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\""))))'
            -- datetime() checks that the date exists; this checks that each part has all its digits.
            and coalesce(
                translate(x.stage ->> 'started_at', '012345678', '999999999') = '9999-99-99T99:99:99.999999Z', true)
            and coalesce(
                translate(x.stage ->> 'completed_at', '012345678', '999999999') = '9999-99-99T99:99:99.999999Z', true),
            false)
    ), false);
end;
$$;
comment on function krai_private.is_sound(jsonb) is
'True if every enabled stage is present and every stage has the seven keys with the right types.
repaired_stages then has nothing to do.';

create or replace function krai_private.started_stage(p_stage jsonb, p_now timestamptz) returns jsonb
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    -- The contents of a pending stage belong to no run: they were put there by hand or by the repair, and stay.
    return case when p_stage ->> 'status' = 'pending' then p_stage else krai_private.pending_stage() end
        || jsonb_build_object('status', 'processing', 'started_at', krai_private.iso_time(p_now),
            'completed_at', null, 'duration_seconds', null, 'progress', 0, 'error', null);
end;
$$;
comment on function krai_private.started_stage(jsonb, timestamptz) is
'A stage, in the shape of the seven keys, as a new run starts.';

create or replace function krai_private.closed_stage(
    p_stage jsonb,
    p_to text,
    p_error text,
    p_metadata jsonb,
    p_started_at timestamptz,
    p_now timestamptz
)
returns jsonb
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return p_stage || jsonb_build_object(
        'status', p_to,
        'started_at', krai_private.iso_time(p_started_at),
        'completed_at', krai_private.iso_time(p_now),
        -- No negative duration if the clock was set back.
        'duration_seconds', case when p_to <> 'skipped' and p_started_at is not null
            then trim_scale(round(greatest(extract(epoch from p_now - p_started_at), 0), 6)) end,
        'progress', case p_to when 'completed' then to_jsonb(100) else p_stage -> 'progress' end,
        'error', case when p_to = 'failed' then krai_private.short_error(p_error) end,
        'metadata', p_stage -> 'metadata' || p_metadata);
end;
$$;
comment on function krai_private.closed_stage(jsonb, text, text, jsonb, timestamptz, timestamptz) is
'A stage, in the shape of the seven keys, as a run ends: completed, failed or skipped.';

create or replace function krai_private.skip_metadata(p_reason text) returns jsonb
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return jsonb_build_object('reason',
        case when p_reason ~ '\S' then left(p_reason, 4000) else 'Not applicable' end);
end;
$$;
comment on function krai_private.skip_metadata(text) is
'Metadata of a skipped stage: {"reason": text}; "Not applicable" for null or blank; at most 4000 characters.';

create or replace function krai_private.archived_stages(p_stage_status jsonb) returns jsonb
language sql stable
set search_path = ''
as $$
    select p_stage_status || coalesce(jsonb_object_agg(s.name,
        p_stage_status -> s.name || krai_private.pending_stage() || jsonb_build_object(
            'status', 'completed',
            'progress', 100,
            'metadata', jsonb_build_object('v1',
                case p_stage_status -> s.name when krai_private.pending_stage() then '"completed"'
                    else p_stage_status -> s.name end)
                || (p_stage_status -> s.name -> 'metadata'))), '{}')
    from krai_core.stages s
    where krai_private.stage_state(p_stage_status -> s.name) = 'pending' and p_stage_status ? s.name
$$;
comment on function krai_private.archived_stages(jsonb) is
'A sound stage_status with every pending stage completed, times and duration null.
For documents that finished before stages were tracked. The contents of such a stage, or the string "completed" if it
had none, are kept in metadata.v1.';

-- ======== 09_figures ========
-- Metrics: how the statistics are kept up to date.
--
--   bucket_bounds, duration_bucket        the buckets that durations are counted in
--   duration_us, sql_duration_us          duration of a stored stage: as a function, as SQL text
--   fold_deltas, fold_deltas_if_due       roll up deltas, one session at a time, after every thousand of them
--   count_transition                      one stage of one document changes its state
--   count_outcomes                        many running stages end at once
--   sql_counted, count_edits              direct edits of many documents: as SQL text, as a function
--
-- Rules
--   * Whoever changes stage_status appends the change of the metrics in the same transaction: single writers through
--     count_transition, claim_stages and finish_stages with a statement of their own, triggers for everybody else.
--   * All keys of stage_status count, including those of disabled and unknown stages, so that a change of the pipeline
--     requires no recount.
--   * Nobody waits for a fold, and a fold waits for nobody. It is skipped unless the transaction is read committed: it
--     could abort any other with 40001.
-- Lock order: a fold takes an advisory lock, then stage_fold, then rows of the deltas (skip locked), then the sums; it
-- gives up after 1 ms on any lock.

-- Whole numbers, so that no difference in rounding between machines ever moves a duration to the next bucket.
do $make$
begin
    execute format($f$
create or replace function krai_private.bucket_bounds() returns bigint[]
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return %L::bigint[];
end;
$$$f$, (select array_agg(round(1000 * 2 ^ (i / 4.0))::bigint order by i) from generate_series(0, 140) i));
end $make$;
comment on function krai_private.bucket_bounds() is
'Bounds of the duration buckets in microseconds: 1 ms, then four per doubling, up to about 400 days.
Bucket n holds durations from bound n up to, but not including, bound n + 1; bucket 0 those below 1 ms.';

create or replace function krai_private.duration_bucket(p_duration_us bigint) returns smallint
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return coalesce(width_bucket(p_duration_us, krai_private.bucket_bounds()), -1);
end;
$$;
comment on function krai_private.duration_bucket(bigint) is
'Bucket of a duration in microseconds, 0 to 141; -1 for null.';

create or replace function krai_private.sql_duration_us(p_stage text) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    -- Capped at 31 years: a larger number is not a duration, and would make the sums useless.
    return format($q$case when jsonb_typeof(%1$s -> 'duration_seconds') = 'number' and %1$s -> 'duration_seconds' >= '0'
        then round(least((%1$s ->> 'duration_seconds')::numeric, 1e9) * 1e6)::bigint end$q$, p_stage);
end;
$$;
comment on function krai_private.sql_duration_us(text) is
'SQL expression for the duration of a stored stage in whole microseconds; null if it has none.
p_stage: SQL expression of the stage.';

do $make$
begin
    execute format($f$
create or replace function krai_private.duration_us(p_stage jsonb) returns bigint
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return %s;
end;
$$$f$, krai_private.sql_duration_us('p_stage'));
end $make$;
comment on function krai_private.duration_us(jsonb) is
'The duration of a stored stage in whole microseconds, at most 1e15; null if it has none.';

create or replace function krai_private.fold_deltas() returns integer
language plpgsql volatile
set search_path = ''
set lock_timeout = '1ms'
as $$
declare
    v_folded integer;
begin
    if current_setting('transaction_isolation') <> 'read committed'
        or not pg_try_advisory_xact_lock(hashtextextended('krai_core._fold', 0)) then
        return 0;
    end if;
    update krai_core.stage_fold f set folded_to = (select s.last_value from krai_core.stage_deltas_id_seq s);
    with free as materialized (
        -- Bounded: after an import of millions of rows, no single call has to fold them all.
        select d.id from krai_core.stage_deltas d order by d.id limit 20000 for update skip locked
    ),
    gone as materialized (
        delete from krai_core.stage_deltas d using free where d.id = free.id
        returning d.*
    ),
    counted as (
        insert into krai_core.stage_counters as c
            (stage_name, bucket, documents, processing, completed, failed, skipped, timed, duration_us)
        select g.stage_name, g.bucket, sum(g.documents), sum(g.processing), sum(g.completed), sum(g.failed),
            sum(g.skipped), sum(g.timed), sum(g.duration_us)
        from gone g
        group by g.stage_name, g.bucket
        having sum(abs(g.documents) + abs(g.processing) + abs(g.completed) + abs(g.failed) + abs(g.skipped)
            + abs(g.timed) + abs(g.duration_us)) > 0
        on conflict (stage_name, bucket) do update set
            documents = c.documents + excluded.documents, processing = c.processing + excluded.processing,
            completed = c.completed + excluded.completed, failed = c.failed + excluded.failed,
            skipped = c.skipped + excluded.skipped,
            timed = c.timed + excluded.timed, duration_us = c.duration_us + excluded.duration_us
    ),
    flowed as (
        insert into krai_core.stage_flow as f
            (stage_name, hour, arrived, started, retried, completed, failed, skipped, waited, wait_us, work_us)
        select g.stage_name, g.hour, sum(g.arrived), sum(g.started), sum(g.retried), sum(g.runs_completed),
            sum(g.runs_failed), sum(g.runs_skipped), sum(g.waited), sum(g.wait_us), sum(g.work_us)
        from gone g
        group by g.stage_name, g.hour
        having sum(g.arrived + g.started + g.runs_completed + g.runs_failed + g.runs_skipped) > 0
        on conflict (stage_name, hour) do update set
            arrived = f.arrived + excluded.arrived, started = f.started + excluded.started,
            retried = f.retried + excluded.retried,
            completed = f.completed + excluded.completed, failed = f.failed + excluded.failed,
            skipped = f.skipped + excluded.skipped,
            waited = f.waited + excluded.waited, wait_us = f.wait_us + excluded.wait_us,
            work_us = f.work_us + excluded.work_us
    )
    select count(*) into v_folded from gone;
    if v_folded = 20000 then
        -- More may be left: makes another fold due at once.
        update krai_core.stage_fold f set folded_to = f.folded_to - 1000;
    end if;
    return v_folded;
exception when lock_not_available then
    -- Somebody has locked rows of the sums by hand.
    return 0;
end;
$$;
comment on function krai_private.fold_deltas() is
'Folds the oldest 20,000 deltas into stage_counters and stage_flow.
Returns how many it folded; 0 if another session is folding, the transaction is not read committed, or a sum is locked.
Never waits.';

create or replace function krai_private.fold_deltas_if_due() returns void
language plpgsql volatile
set search_path = ''
as $$
begin
    if current_setting('transaction_isolation') = 'read committed'
        and (select s.last_value - f.folded_to >= 1000 from krai_core.stage_deltas_id_seq s, krai_core.stage_fold f)
        -- Not once a transaction has run for a second: it might be a long one, and would keep all others from folding
        -- until it ends. Only once in a transaction, because the rows that it has folded itself stay in its way.
        and clock_timestamp() - transaction_timestamp() < interval '1 second'
        and current_setting('krai_core.folded_in', true) is distinct from pg_current_xact_id()::text then
        perform set_config('krai_core.folded_in', pg_current_xact_id()::text, true);
        perform krai_private.fold_deltas();
    end if;
end;
$$;
comment on function krai_private.fold_deltas_if_due() is
'Folds if a thousand deltas or more have been appended since the last fold.';

create or replace function krai_private.count_transition(
    p_stage_name text,
    p_old jsonb,
    p_new jsonb,
    p_ready_at timestamptz default null,
    p_attempt integer default 1
)
returns void
language plpgsql volatile
set search_path = ''
as $$
declare
    v_from text := krai_private.stage_state(p_old);
    v_to text := krai_private.stage_state(p_new);
    v_now timestamptz := clock_timestamp();
    v_us bigint := krai_private.duration_us(case v_from when 'completed' then p_old else p_new end);
    -- A timed stage enters its bucket or leaves it.
    v_timed integer := case
        when v_us is null then 0
        when v_from = 'completed' then -1
        when v_to = 'completed' then 1
        else 0 end;
    v_waited boolean := v_to = 'processing' and p_ready_at <= v_now;
    v_id bigint;
begin
    if v_from = v_to then
        return;
    end if;
    insert into krai_core.stage_deltas
        (stage_name, bucket, processing, completed, failed, skipped, timed, duration_us,
         started, retried, runs_completed, runs_failed, runs_skipped, waited, wait_us, work_us)
    values (p_stage_name, case v_timed when 0 then -1 else krai_private.duration_bucket(v_us) end,
        (v_to = 'processing')::integer - (v_from = 'processing')::integer,
        (v_to = 'completed')::integer - (v_from = 'completed')::integer,
        (v_to = 'failed')::integer - (v_from = 'failed')::integer,
        (v_to = 'skipped')::integer - (v_from = 'skipped')::integer,
        v_timed, v_timed * coalesce(v_us, 0),
        (v_to = 'processing')::integer, (v_to = 'processing' and p_attempt > 1)::integer,
        (v_to = 'completed')::integer, (v_to = 'failed')::integer, (v_to = 'skipped')::integer,
        coalesce(v_waited, false)::integer,
        case when v_waited then round(extract(epoch from v_now - p_ready_at) * 1e6) else 0 end,
        case when v_from <> 'completed' and v_to in ('completed', 'failed') then coalesce(v_us, 0) else 0 end)
    returning id into v_id;
    if v_id % 1000 = 0 then
        perform krai_private.fold_deltas_if_due();
    end if;
end;
$$;
comment on function krai_private.count_transition(text, jsonb, jsonb, timestamptz, integer) is
'Counts the change of a stage of a document from one stored value to another; nothing if its state stays the same.
p_ready_at: for a start, since when the run was ready; null if it was not.
p_attempt: number of the attempt that starts.';

create or replace function krai_private.count_outcomes(p_stages text[], p_outcomes text[], p_us bigint[]) returns void
language plpgsql volatile
set search_path = ''
as $$
declare
    v_bounds bigint[] := krai_private.bucket_bounds();
begin
    insert into krai_core.stage_deltas
        (stage_name, bucket, processing, completed, failed, skipped, timed, duration_us,
         runs_completed, runs_failed, runs_skipped, work_us)
    select c.stage_name, c.bucket, - count(*), sum(c.completed), sum(c.failed), sum(c.skipped), sum(c.completed),
        sum(c.us * c.completed),
        sum(c.completed), sum(c.failed), sum(c.skipped), sum(c.us * (1 - c.skipped))
    from (
        select u.stage_name, u.us,
            (u.outcome = 'completed')::integer as completed,
            (u.outcome = 'failed')::integer as failed,
            (u.outcome = 'skipped')::integer as skipped,
            case u.outcome when 'completed' then width_bucket(u.us, v_bounds) else -1 end as bucket
        from unnest(p_stages, p_outcomes, p_us) as u (stage_name, outcome, us)
    ) c
    group by c.stage_name, c.bucket;
end;
$$;
comment on function krai_private.count_outcomes(text[], text[], bigint[]) is
'Counts running stages that end: parallel arrays of stage, outcome and duration in microseconds.
p_outcomes: completed, failed or skipped.';

-- SQL text, because the query must be planned together with the rows that it counts: see sql_stage_state.
create or replace function krai_private.sql_counted(p_pairs text) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return format($q$
        select x.key as stage_name, (case when x.state = 'completed' and x.us is not null
                then width_bucket(x.us, krai_private.bucket_bounds()) else -1 end)::smallint as bucket,
            coalesce(sum(x.sign) filter (where x.state = 'processing'), 0) as processing,
            coalesce(sum(x.sign) filter (where x.state = 'completed'), 0) as completed,
            coalesce(sum(x.sign) filter (where x.state = 'failed'), 0) as failed,
            coalesce(sum(x.sign) filter (where x.state = 'skipped'), 0) as skipped,
            coalesce(sum(x.sign) filter (where x.state = 'completed' and x.us is not null), 0) as timed,
            coalesce(sum(x.sign * x.us) filter (where x.state = 'completed'), 0) as duration_us,
            count(*) filter (where x.sign = 1 and x.state = 'processing' and x.other <> 'processing') as started,
            count(*) filter (where x.sign = 1 and x.state = 'completed' and x.other <> 'completed') as runs_completed,
            count(*) filter (where x.sign = 1 and x.state = 'failed' and x.other <> 'failed') as runs_failed,
            count(*) filter (where x.sign = 1 and x.state = 'skipped' and x.other <> 'skipped') as runs_skipped,
            coalesce(sum(x.us) filter (
                where x.sign = 1 and x.state in ('completed', 'failed') and x.other <> x.state), 0) as work_us
        from (
            select c.key, side.sign, side.state, side.other, side.us
            from (%1$s) pair
            cross join lateral (
                select n.key, pair.old -> n.key as old, n.value as new
                from jsonb_each(case when jsonb_typeof(pair.new) = 'object' then pair.new else '{}' end) n
                where pair.old -> n.key is distinct from n.value
                union all
                select o.key, o.value, null
                from jsonb_each(case when jsonb_typeof(pair.old) = 'object' then pair.old else '{}' end) o
                where (pair.new ? o.key) is not true
            ) c
            cross join lateral (select %2$s as old_state, %3$s as new_state offset 0) s
            cross join lateral (values
                (-1, s.old_state, s.new_state, %4$s),
                (1, s.new_state, s.old_state, %5$s)) side (sign, state, other, us)
            where side.state <> 'pending'
        ) x
        group by 1, 2$q$, p_pairs, krai_private.sql_stage_state('c.old'), krai_private.sql_stage_state('c.new'),
        krai_private.sql_duration_us('c.old'), krai_private.sql_duration_us('c.new'));
end;
$$;
comment on function krai_private.sql_counted(text) is
'SQL query for what many changes of stage_status add to the metrics.
Its columns: stage_name, bucket, processing, completed, failed, skipped, timed, duration_us, started, runs_completed,
runs_failed, runs_skipped, work_us. p_pairs: SQL query with the columns old and new, each a stage_status; {} as old for
an inserted document, as new for a deleted one.';

do $make$
begin
    execute format($f$
create or replace function krai_private.count_edits() returns void
language plpgsql volatile
set search_path = ''
as $$
begin
    insert into krai_core.stage_deltas (stage_name, bucket, processing, completed, failed, skipped, timed, duration_us,
        started, runs_completed, runs_failed, runs_skipped, work_us)
    select * from (%s) counted
    where (counted.processing, counted.completed, counted.failed, counted.skipped, counted.timed, counted.duration_us)
            <> (0, 0, 0, 0, 0, 0)
       or counted.started + counted.runs_completed + counted.runs_failed + counted.runs_skipped > 0;
end;
$$$f$, krai_private.sql_counted($q$
            select e.old_status as old, e.new_status as new from krai_core.edited_documents e
            where e.transaction_id = pg_current_xact_id() and e.depth = pg_trigger_depth()$q$));
end $make$;
comment on function krai_private.count_edits() is
'Counts the direct edits of the current statement (edited_documents).';

-- ======== 10_history ========
-- History: the runs of a stage, as the writers see them.
--
--   held_run                 the run that a call may act on, with or without a claim id
--   next_attempt, retry_at   how attempts count, and when a failed stage is retried
--   archive_last_run         before a stage starts again: moves what the column knows of the last run into the history
--   archive_failed_runs      the same for many failed stages that are claimed again
--   begin_run                makes the one open run of a stage a running one
--   state_of_run             the state of a stage that rests on a closed run
--   adopt_runs, adopt_closed_runs   runs for stages that somebody else wrote to the column
--
-- Rules
--   * A claim id opens a given stage of a document once, and acts on that run alone. If its own holder closed the run,
--     a repeated call gets the same answer as the first; if anybody else closed it, the call raises lease_lost, no
--     matter how much later it comes.
--   * Attempts count up from 1 over failed and lost runs, and start again after a success, a skip, a cancelled run, a
--     retry and a reset. A released run does not count.
--   * A stage that is completed, failed or skipped rests on exactly one closed run, the one with is_current.
--   * stage_runs keeps what the column forgets: error, times, progress, metadata, and keys beyond the seven.
--   * The last run of a stage, here and in later files, is `order by r.id + 0 desc limit 1`: with the bare id, a
--     planner that believes the table is small would walk down its primary key.
-- Lock order: callers hold the lock on the document; these functions lock rows of stage_runs.

create or replace function krai_private.held_run(p_call text, p_document_id uuid, p_stage_name text, p_claim_id uuid)
returns krai_core.stage_runs
language plpgsql stable
set search_path = ''
as $$
declare
    v_run krai_core.stage_runs;
begin
    if p_claim_id is null then
        select * into v_run from krai_core.stage_runs r
        where r.document_id = p_document_id and r.open_stage = p_stage_name and r.status = 'running';
        return v_run;
    end if;
    -- `is true`, here and in later files, keeps the planner off the index on claim_id: a whole batch shares one id.
    select * into v_run from krai_core.stage_runs r
    where r.document_id = p_document_id and r.stage_name = p_stage_name and (r.claim_id = p_claim_id) is true;
    if v_run.id is null or (v_run.status <> 'running' and not v_run.closed_by_holder) then
        perform krai_private.raise_error('lease_lost',
            format('%s: this run of stage %s of document %s is over: %s', p_call, p_stage_name, p_document_id, case
                when v_run.id is null then 'no run carries its claim id'
                when v_run.status = 'lost' then 'its lease ended and another took the stage over'
                else 'it was closed by somebody else as ' || v_run.status end),
            jsonb_build_object('document_id', p_document_id, 'stage', p_stage_name, 'run', v_run.status),
            'Stop this work and write nothing more for it; claim or start the stage again if it is still to be done.');
    end if;
    return v_run;
end;
$$;
comment on function krai_private.held_run(text, uuid, text, uuid) is
'The run that a call acts on.
Without a claim id: the running one, or a row of nulls. With one: the run that carries it, if it is running or was
closed by its own holder; anything else raises PT409 lease_lost.';

create or replace function krai_private.next_attempt(p_status text, p_attempt integer, p_reset_at timestamptz)
returns integer
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return case
        when p_status is null or p_reset_at is not null or p_status in ('completed', 'skipped', 'cancelled') then 1
        when p_status = 'released' then p_attempt
        else p_attempt + 1
    end;
end;
$$;
comment on function krai_private.next_attempt(text, integer, timestamptz) is
'Number of the attempt that follows a closed run with this status, attempt and reset_at.
p_status: null if there was no run before.';

-- Jitter between half and all of the wait, so that stages that failed together are not retried together.
create or replace function krai_private.retry_at(p_stage_name text, p_attempt integer, p_now timestamptz)
returns timestamptz
language plpgsql volatile
set search_path = ''
as $$
declare
    v_stage krai_core.stages := krai_private.stage_named(p_stage_name);
begin
    if p_attempt >= v_stage.max_attempts then
        return null;
    end if;
    return p_now + make_interval(secs => (0.5 + random() / 2)
        * least(v_stage.backoff_seconds * 2.0 ^ least(p_attempt - 1, 30), v_stage.backoff_max_seconds));
end;
$$;
comment on function krai_private.retry_at(text, integer, timestamptz) is
'When a stage that failed in this attempt is retried automatically; null if no attempt is left.
The wait is backoff_seconds, doubled for each attempt, at most backoff_max_seconds, with jitter.
Raises 22023 unknown_stage.';

create or replace function krai_private.archive_last_run(
    p_document_id uuid,
    p_stage_name text,
    p_stage jsonb,
    p_actor text default null,
    p_reset boolean default false
)
returns integer
language plpgsql volatile
set search_path = ''
as $$
declare
    v_last krai_core.stage_runs;
    v_status text := p_stage ->> 'status';
    v_started_at timestamptz;
    v_further jsonb := p_stage - array[
        'status', 'started_at', 'completed_at', 'duration_seconds', 'progress', 'error', 'metadata'];
begin
    select * into v_last from krai_core.stage_runs r
    where r.document_id = p_document_id and r.stage_name = p_stage_name and r.status <> 'ready'
    order by r.id + 0 desc limit 1;
    if v_last.id is null and v_status <> 'pending' then
        -- A run older than the history: its row is built from what the column still knows.
        v_started_at := krai_private.time_or_null(p_stage ->> 'started_at');
        insert into krai_core.stage_runs
            (document_id, stage_name, status, started_at, finished_at, error, error_fingerprint)
        values (p_document_id, p_stage_name,
                case v_status when 'processing' then 'lost' else v_status end,
                v_started_at,
                coalesce(krai_private.time_or_null(p_stage ->> 'completed_at'), v_started_at, clock_timestamp()),
                p_stage ->> 'error',
                case when v_status = 'failed' then krai_private.error_fingerprint(p_stage ->> 'error') end)
        returning * into v_last;
    end if;
    if v_last.id is null then
        return 1;
    end if;
    if v_status <> 'pending' or p_reset then
        update krai_core.stage_runs r
        set progress = case
                when v_status = 'pending' then r.progress
                else greatest(r.progress, (p_stage ->> 'progress')::numeric) end,
            metadata = case when v_status = 'pending' then r.metadata else v_further || (p_stage -> 'metadata') end,
            is_current = false,
            reset_at = case when p_reset then clock_timestamp() else r.reset_at end,
            actor = case when p_reset then p_actor else r.actor end
        where r.id = v_last.id;
    end if;
    return case when p_reset then 1 else krai_private.next_attempt(v_last.status, v_last.attempt, v_last.reset_at) end;
end;
$$;
comment on function krai_private.archive_last_run(uuid, text, jsonb, text, boolean) is
'Saves progress and metadata of the column with the last run of a stage, and returns the number of the next attempt.
Called before a stage is started again, retried or reset. p_stage: the stored stage, in the shape of the seven keys.
p_actor: who resets. p_reset: attempts start again at 1.';

create or replace function krai_private.archive_failed_runs(
    p_stage_name text,
    p_document_ids uuid[],
    p_stages jsonb[]
)
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
begin
    update krai_core.stage_runs r
    set progress = greatest(r.progress, krai_private.progress_of(f.stage)),
        metadata = f.stage -> 'metadata',
        is_current = false
    from unnest(p_document_ids, p_stages) as f (document_id, stage)
    where r.id = any (array(
        select last.id from krai_core.stage_runs last
        where last.document_id = f.document_id and last.stage_name = p_stage_name
          and last.status not in ('ready', 'running')
        order by last.id + 0 desc limit 1));
end;
$$;
comment on function krai_private.archive_failed_runs(text, uuid[], jsonb[]) is
'Saves progress and metadata of failed stages with their last runs, as the stages are claimed again.
p_document_ids, p_stages: parallel arrays; p_stages holds the stored stages as they were before the claim.';

create or replace function krai_private.begin_run(
    p_document_id uuid,
    p_stage_name text,
    p_attempt integer,
    p_claim_id uuid,
    p_worker text,
    p_lease_seconds numeric,
    p_now timestamptz
)
returns timestamptz
language plpgsql volatile
set search_path = ''
as $$
declare
    v_ready_at timestamptz;
begin
    -- A ready run becomes the running one, so that it keeps its priority and its wait.
    update krai_core.stage_runs r
    set status = 'running', attempt = p_attempt, retry_at = null,
        claim_id = p_claim_id, opens_claim = p_claim_id is not null, worker = p_worker,
        started_at = p_now, heartbeat_at = p_now,
        lease_seconds = p_lease_seconds,
        lease_expires_at = p_now + make_interval(secs => p_lease_seconds::double precision)
    where r.document_id = p_document_id and r.open_stage = p_stage_name and r.status = 'ready'
    returning r.available_at into v_ready_at;
    if not found then
        insert into krai_core.stage_runs
            (document_id, stage_name, status, attempt, claim_id, opens_claim, worker, started_at, heartbeat_at,
             lease_seconds, lease_expires_at)
        values (p_document_id, p_stage_name, 'running', p_attempt, p_claim_id, p_claim_id is not null, p_worker,
                p_now, p_now, p_lease_seconds, p_now + make_interval(secs => p_lease_seconds::double precision));
    end if;
    return v_ready_at;
end;
$$;
comment on function krai_private.begin_run(uuid, text, integer, uuid, text, numeric, timestamptz) is
'Makes the one open run of a stage a running one. Returns since when it was due; null if it was not ready.';

create or replace function krai_private.state_of_run(p_status text) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return case p_status when 'lost' then 'failed' when 'cancelled' then 'skipped' else p_status end;
end;
$$;
comment on function krai_private.state_of_run(text) is
'The state of a stage that rests on a closed run with this status.
completed for completed, failed for failed and lost, skipped for skipped and cancelled.';

create or replace function krai_private.adopt_runs(p_document_ids uuid[]) returns integer
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
    v_adopted integer;
begin
    delete from krai_core.stage_runs r
    using krai_core.documents d
    where r.document_id = any (p_document_ids) and d.id = any (array[r.document_id])
      and r.open_stage is not null and r.status = 'ready'
      and d.stage_status -> r.stage_name ->> 'status' = 'processing';
    insert into krai_core.stage_runs
        (document_id, stage_name, status, attempt, started_at, heartbeat_at, lease_seconds, lease_expires_at)
    select x.document_id, x.name, 'running',
        coalesce((
            select krai_private.next_attempt(last.status, last.attempt, last.reset_at)
            from krai_core.stage_runs last
            where last.document_id = x.document_id and last.stage_name = x.name
            order by last.id + 0 desc limit 1), 1),
        x.began, x.began, x.lease, x.began + make_interval(secs => x.lease)
    from (
        select d.id as document_id, s.name, greatest(s.lease_seconds, 3600) as lease,
            least(coalesce(krai_private.time_or_null(d.stage_status -> s.name ->> 'started_at'), v_now), v_now) as began
        from krai_core.documents d
        cross join krai_core.stages s
        where d.id = any (p_document_ids) and d.stage_status -> s.name ->> 'status' = 'processing'
    ) x
    on conflict (document_id, open_stage) do nothing;
    get diagnostics v_adopted = row_count;
    return v_adopted + krai_private.adopt_closed_runs(p_document_ids);
end;
$$;
comment on function krai_private.adopt_runs(uuid[]) is
'Opens a running run for each stage that is processing without one, because somebody wrote the column directly.
The run has no claim id and the lease of a plain start, counted from the started_at of the stage, so that the stage
returns to the queue if nobody ends it. Then calls adopt_closed_runs. Returns how many runs either of them adopted or
superseded. The caller must have locked the documents.';

create or replace function krai_private.adopt_closed_runs(p_document_ids uuid[]) returns integer
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
    v_superseded integer;
    v_adopted integer;
begin
    update krai_core.stage_runs r
    set is_current = false,
        -- Set back to pending by hand: counts as a reset, like reset_stage.
        reset_at = case
            when r.reset_at is null and (
                select krai_private.stage_state(d.stage_status -> r.stage_name)
                from krai_core.documents d where d.id = r.document_id) = 'pending'
                then v_now
            else r.reset_at end
    where r.document_id = any (p_document_ids) and r.is_current and not exists (
        select from krai_private.current_stages c
        where c.document_id = any (array[r.document_id]) and c.stage_name = any (array[r.stage_name])
          and c.state = krai_private.state_of_run(r.status));
    get diagnostics v_superseded = row_count;
    insert into krai_core.stage_runs
        (document_id, stage_name, status, started_at, finished_at, is_current, error, error_fingerprint)
    select c.document_id, c.stage_name, c.state, x.started_at, coalesce(x.finished_at, x.started_at, v_now), true,
        left(x.error, 65536),
        case when c.state = 'failed' then krai_private.error_fingerprint(x.error) end
    from krai_private.current_stages c
    cross join lateral (
        select krai_private.time_or_null(d.stage_status -> c.stage_name ->> 'started_at') as started_at,
            krai_private.time_or_null(d.stage_status -> c.stage_name ->> 'completed_at') as finished_at,
            d.stage_status -> c.stage_name ->> 'error' as error
        from krai_core.documents d where d.id = c.document_id offset 0) x
    where c.document_id = any (p_document_ids) and not exists (
        -- `offset 0` prevents a join: a planner that believes the table is empty would join all of it.
        select from krai_core.stage_runs r
        where r.document_id = c.document_id and r.stage_name = c.stage_name and r.is_current offset 0);
    get diagnostics v_adopted = row_count;
    return v_superseded + v_adopted;
end;
$$;
comment on function krai_private.adopt_closed_runs(uuid[]) is
'Adds the current run that a completed, failed or skipped stage lacks, and supersedes runs that no stage rests on.
A run is missing if somebody wrote the column directly, or if the stage is older than the history; it is built from what
the column knows. Returns how many runs it added and superseded. The caller must have locked the documents.';

-- ======== 11_ready ========
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

-- ======== 12_legacy_columns ========
-- Legacy columns: processing_status and processing_stage of documents follow the stages, where they exist as text.
--
--   follow_processing_status, follow_processing_stage   update one column each; no-ops where there is no such column
--   follow_legacy_columns                               updates both for some documents
--
-- Rules
--   * They are written only when a stage changes its status, and never by the migration.
--   * A value that the table refuses (check, trigger, length) is not written; a WARNING says so, and the stage goes on.
-- Lock order: documents, which the caller has locked.

-- Decided once, here: which of the two columns the table has. So each body is plain SQL.
do $$
begin
    if exists (
        select from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.oid = a.atttypid and t.typcategory = 'S' and t.typtype = 'b'
        where a.attrelid = 'krai_core.documents'::regclass and a.attname = 'processing_status'
          and not a.attisdropped and a.attgenerated = ''
    ) then
        create or replace function krai_private.follow_processing_status(p_document_ids uuid[], p_processing uuid[])
        returns void
        language plpgsql volatile
        set search_path = ''
        set plan_cache_mode = force_generic_plan
        set enable_seqscan = off
        set enable_hashjoin = off
        set enable_memoize = off
        set enable_mergejoin = off
        set jit = off
        as $body$
        begin
            if p_processing <> '{}' then
                -- Most of what workers report leaves a document processing; its stage_status is not even unpacked.
                update krai_core.documents d
                set processing_status = 'processing'
                where d.id = any (p_processing) and d.processing_status is distinct from 'processing';
            end if;
            if p_document_ids <> '{}' then
                update krai_core.documents d
                set processing_status = v.document_status
                from krai_core.vw_documents_by_stage v
                where v.id = any (p_document_ids) and d.id = any (array[v.id])
                  and d.processing_status is distinct from v.document_status;
            end if;
        exception when integrity_constraint_violation or data_exception or undefined_column or raise_exception then
            raise warning 'krai_core.documents.processing_status was left unchanged: %', sqlerrm;
        end;
        $body$;
    else
        create or replace function krai_private.follow_processing_status(p_document_ids uuid[], p_processing uuid[])
        returns void
        language sql volatile
        set search_path = ''
        as '';
    end if;
    if exists (
        select from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.oid = a.atttypid and t.typcategory = 'S' and t.typtype = 'b'
        where a.attrelid = 'krai_core.documents'::regclass and a.attname = 'processing_stage'
          and not a.attisdropped and a.attgenerated = ''
    ) then
        create or replace function krai_private.follow_processing_stage(p_document_ids uuid[]) returns void
        language plpgsql volatile
        set search_path = ''
        set plan_cache_mode = force_generic_plan
        set enable_seqscan = off
        set enable_hashjoin = off
        set enable_memoize = off
        set enable_mergejoin = off
        set jit = off
        as $body$
        begin
            update krai_core.documents d
            set processing_stage = v.current_stage
            from krai_core.vw_documents_by_stage v
            where v.id = any (p_document_ids) and d.id = any (array[v.id])
              and d.processing_stage is distinct from v.current_stage;
        exception when integrity_constraint_violation or data_exception or undefined_column or raise_exception then
            raise warning 'krai_core.documents.processing_stage was left unchanged: %', sqlerrm;
        end;
        $body$;
    else
        create or replace function krai_private.follow_processing_stage(p_document_ids uuid[]) returns void
        language sql volatile
        set search_path = ''
        as '';
    end if;
end $$;
comment on function krai_private.follow_processing_status(uuid[], uuid[]) is
'Sets processing_status (pending, processing, completed or failed) of documents.
Does nothing where the table has no such text column. p_processing: as in follow_legacy_columns.';
comment on function krai_private.follow_processing_stage(uuid[]) is
'Sets processing_stage (the current stage, or completed) of documents.
Does nothing where the table has no such text column.';

create or replace function krai_private.follow_legacy_columns(
    p_document_ids uuid[], p_processing uuid[] default '{}', p_unchanged uuid[] default '{}')
returns void
language plpgsql volatile security definer
set search_path = ''
as $$
declare
    v_writer text := coalesce(current_setting('krai_core.writer', true), '');
begin
    -- Written as progress is: no stage changes its status, so the triggers have nothing to do.
    perform set_config('krai_core.writer', 'progress', true);
    perform krai_private.follow_processing_status(p_document_ids, p_processing);
    perform krai_private.follow_processing_stage(p_document_ids || p_processing || p_unchanged);
    perform set_config('krai_core.writer', v_writer, true);
end;
$$;
comment on function krai_private.follow_legacy_columns(uuid[], uuid[], uuid[]) is
'Makes processing_status and processing_stage of documents match their stages.
p_processing: further ones, which the caller knows to be processing: a stage is at work or to come, and none has failed.
p_unchanged: further ones, whose document status has not changed, but whose current stage may have.
Security definer, because service_role may have no right to write these columns.';

-- ======== 20_pipeline ========
-- Pipeline: stages are data, and you may change them at any time, on live rows, while workers run.
--
--   register_stage           adds a stage, enables it again, or changes it
--   disable_stage            removes a stage from the pipeline: it counts as satisfied
--   enabled_prerequisites    what stages.waits_for holds
--   renew_default            makes the default of documents.stage_status name today's stages
--   attach_repair_insert     attaches the one trigger whose WHEN clause contains that default
--
-- The triggers pipeline_100_lock and pipeline_200_follow (40_trigger_functions) enforce the same rules on anyone who
-- writes the two tables by hand.
--
-- Rules
--   * A change never rewrites documents: a missing key means pending. Ready runs catch up in batches (fill_ready_runs);
--     meanwhile claim_stages hands out nothing that the new pipeline forbids.
--   * Everything that derives ready runs reads krai_core.stages, and a change locks that table exclusively, so the two
--     wait for each other. Either the change sees a document in flight, or that document's writer sees the change. The
--     lock times out after 0.9 s, before the deadlock detector would kill a worker; then repeat the change.
--   * Prerequisites never form a circle.
--   * The default of documents.stage_status is a constant. A change renews it if the table is free for a moment,
--     otherwise reap does so later. Until then new documents lack the key of a new stage, which means pending.
-- Lock order: stages, then documents.

create or replace function krai_private.enabled_prerequisites(p_stage_name text) returns text[]
language plpgsql stable
set search_path = ''
as $$
begin
    return array(
        select p.requires from krai_core.stage_prerequisites p
        join krai_core.stages required on required.name = p.requires and required.enabled
        where p.stage_name = p_stage_name
        order by required.position);
end;
$$;
comment on function krai_private.enabled_prerequisites(text) is
'The enabled stages that a stage requires, in pipeline order.';

create or replace function krai_private.attach_repair_insert() returns void
language plpgsql volatile
set search_path = ''
as $$
declare
    v_has_status boolean := exists (
        select from pg_catalog.pg_attribute a
        where a.attrelid = 'krai_core.documents'::regclass and a.attname = 'processing_status' and not a.attisdropped
          -- A BEFORE trigger cannot see a generated column, which is computed later.
          and a.attgenerated = '');
begin
    -- Nearly every new document has the default; the WHEN clause keeps those out of the function.
    execute format(
        'create or replace trigger documents_100_repair_insert before insert on krai_core.documents for each row
         when (new.stage_status is distinct from %L::jsonb %s) execute function krai_private.tg_documents_repair(%s)',
        krai_private.default_stage_status(),
        case when v_has_status then $q$or new.processing_status::text = 'completed'$q$ end,
        case when v_has_status then $q$'processing_status'$q$ end);
end;
$$;
comment on function krai_private.attach_repair_insert() is
'Attaches the trigger that repairs new documents; its WHEN clause lets through whatever equals the current default.';

create or replace function krai_private.renew_default() returns boolean
language plpgsql volatile security definer
set search_path = ''
set lock_timeout = '900ms'
as $$
declare
    v_default text := format('%L::jsonb', krai_private.default_stage_status());
begin
    if v_default is not distinct from (
        select pg_catalog.pg_get_expr(d.adbin, d.adrelid)
        from pg_catalog.pg_attrdef d
        join pg_catalog.pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
        where d.adrelid = 'krai_core.documents'::regclass and a.attname = 'stage_status')
    then
        return true;
    end if;
    execute format('alter table krai_core.documents alter column stage_status set default %s', v_default);
    perform krai_private.attach_repair_insert();
    return true;
exception when lock_not_available or object_in_use then
    raise notice 'the default of krai_core.documents.stage_status will be renewed later: the table is in use';
    return false;
end;
$$;
comment on function krai_private.renew_default() is
'Makes the default of documents.stage_status name the current stages.
Returns true; false if the table is in use, and then reap tries again later. Security definer, because only the owner
may alter the table.';

create or replace function krai_private.register_stage_as_owner(
    p_stage_name text,
    p_requires text[],
    p_position integer,
    p_description text,
    p_weight numeric,
    p_lease_seconds integer,
    p_timeout_seconds integer,
    p_max_attempts integer,
    p_backoff_seconds integer,
    p_actor text
) returns boolean
language plpgsql volatile security definer
set search_path = ''
set lock_timeout = '900ms'
as $$
declare
    v_before text[];
    v_constraint text;
    v_message text;
begin
    if coalesce(p_stage_name, '') !~ '^[a-z][a-z0-9_]{0,62}$' then
        perform krai_private.raise_error('invalid_stage',
            format('%s is no name for a stage', coalesce(quote_literal(p_stage_name), 'null')),
            jsonb_build_object('stage', p_stage_name),
            'Use lower case letters, digits and underscores, a letter first, at most 63.');
    elsif p_stage_name = any (p_requires) then
        perform krai_private.raise_error('invalid_stage', format('stage %s cannot require itself', p_stage_name),
            jsonb_build_object('stage', p_stage_name), 'Leave it out of p_requires.');
    end if;
    perform krai_private.check_stage(required.name) from unnest(p_requires) as required (name);
    select array_agg(p.requires) into v_before from krai_core.stage_prerequisites p where p.stage_name = p_stage_name;
    -- An application may register its stages every time it starts: a call that changes nothing must not take the lock.
    if not exists (select from krai_core.stages s where s.name = p_stage_name and s.enabled)
        or not (
            p_requires is null
            or (p_requires <@ coalesce(v_before, '{}') and coalesce(v_before, '{}') <@ p_requires))
    then
        lock table krai_core.stages in access exclusive mode;
        insert into krai_core.stages (name, position, changed_at, changed_by)
        select p_stage_name, coalesce(max(s.position), 0) + 1, clock_timestamp(), left(p_actor, 200)
        from krai_core.stages s
        where not exists (select from krai_core.stages known where known.name = p_stage_name)
        having not exists (select from krai_core.stages known where known.name = p_stage_name);
        update krai_core.stages s set enabled = true where s.name = p_stage_name and not s.enabled;
        if p_requires is not null then
            delete from krai_core.stage_prerequisites p
            where p.stage_name = p_stage_name and p.requires <> all (p_requires);
            insert into krai_core.stage_prerequisites (stage_name, requires)
            select distinct p_stage_name, required.name from unnest(p_requires) as required (name)
            on conflict do nothing;
        end if;
    end if;
    if p_position is not null and exists (
        select from krai_core.stages s where s.position = p_position and s.name <> p_stage_name)
    then
        update krai_core.stages s
        set position = case when s.name = p_stage_name then p_position else s.position + 1 end
        where s.name = p_stage_name or s.position >= p_position;
    end if;
    update krai_core.stages s
    set position = coalesce(p_position, s.position),
        description = coalesce(p_description, s.description),
        weight = coalesce(p_weight, s.weight),
        lease_seconds = coalesce(p_lease_seconds, s.lease_seconds),
        timeout_seconds = coalesce(p_timeout_seconds, s.timeout_seconds),
        max_attempts = coalesce(p_max_attempts, s.max_attempts),
        backoff_seconds = coalesce(p_backoff_seconds, s.backoff_seconds),
        backoff_max_seconds = greatest(s.backoff_max_seconds, p_backoff_seconds),
        changed_at = clock_timestamp(),
        changed_by = left(p_actor, 200)
    where s.name = p_stage_name;
    return true;
exception when check_violation or numeric_value_out_of_range then
    get stacked diagnostics v_constraint = constraint_name, v_message = message_text;
    perform krai_private.raise_error('invalid_stage',
        format('stage %s cannot be registered: %s', p_stage_name, v_message),
        jsonb_build_object('stage', p_stage_name, 'constraint', v_constraint),
        'The columns of krai_core.stages tell their ranges.');
    return null;
end;
$$;
comment on function krai_private.register_stage_as_owner(
    text, text[], integer, text, numeric, integer, integer, integer, integer, text) is
'What register_stage does. Security definer, because nobody may write the pipeline directly.';

create or replace function krai_core.register_stage(
    p_stage_name text,
    p_requires text[] default null,
    p_position integer default null,
    p_description text default null,
    p_weight numeric default null,
    p_lease_seconds integer default null,
    p_timeout_seconds integer default null,
    p_max_attempts integer default null,
    p_backoff_seconds integer default null,
    p_actor text default null
) returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
    return krai_private.register_stage_as_owner(p_stage_name, p_requires, p_position, p_description, p_weight,
        p_lease_seconds, p_timeout_seconds, p_max_attempts, p_backoff_seconds, p_actor);
end;
$$;
comment on function krai_core.register_stage(
    text, text[], integer, text, numeric, integer, integer, integer, integer, text) is
'Adds a stage to the pipeline, enables it again, or changes it; null keeps the current value.
p_stage_name: lower case letters, digits, underscores. p_requires: the stages that must be finished first; replaces
the current list. p_position: place in the order, later stages move up; null appends a new stage and leaves an
existing one where it is. p_description, p_weight, p_lease_seconds, p_timeout_seconds, p_max_attempts,
p_backoff_seconds: as the columns of krai_core.stages. p_actor: who asked for it. Returns true. Safe on live
documents, while workers run, and at every start of an application: existing documents are pending in a new stage,
and become ready for it in batches, through workers, reap and fill_ready_runs. Raises 22023 invalid_stage (name,
range, circle) or unknown_stage, 55P03 if others keep the pipeline busy for 0.9 s: call it again.';

create or replace function krai_private.disable_stage_as_owner(p_stage_name text, p_actor text) returns boolean
language plpgsql volatile security definer
set search_path = ''
set lock_timeout = '900ms'
as $$
begin
    perform krai_private.check_stage(p_stage_name);
    if exists (select from krai_core.stages s where s.name = p_stage_name and s.enabled) then
        lock table krai_core.stages in access exclusive mode;
        update krai_core.stages s
        set enabled = false, changed_at = clock_timestamp(), changed_by = left(p_actor, 200)
        where s.name = p_stage_name and s.enabled;
    end if;
    return true;
end;
$$;
comment on function krai_private.disable_stage_as_owner(text, text) is
'What disable_stage does. Security definer, because nobody may write the pipeline directly.';

create or replace function krai_core.disable_stage(p_stage_name text, p_actor text default null) returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
    return krai_private.disable_stage_as_owner(p_stage_name, p_actor);
end;
$$;
comment on function krai_core.disable_stage(text, text) is
'Removes a stage from the pipeline: it counts as satisfied, is in no total, and is not handed out.
Its data stays, and its running runs may finish; register_stage enables it again. p_actor: who asked for it. Returns
true. Raises 22023 unknown_stage, 55P03 if others keep the pipeline busy for 0.9 s: call it again.';

-- ======== 21_runs ========
-- Runs: the five calls a processor makes to run one stage of one document.
--
--   start_stage, update_stage_progress, complete_stage, fail_stage, skip_stage
--   close_stage           what the last three share
--   lock_document         locks a document and returns its stage_status; the first thing every writer does
--   write_stage_status    writes stage_status back, and updates what depends on it
--
-- What each call does in each state, without a claim id (the functions hold the rule, the tests hold every cell):
--
--   call \ state  pending      processing                        completed           failed           skipped
--   start         processing   false while another run lives,    processing          processing       processing
--                              taken over when its lease is over
--   progress      conflict     stored                            conflict            conflict         conflict
--   complete      completed    completed                         metadata merged     completed        conflict
--                 (start and duration null: it ran outside)
--   fail          failed       failed                            false, no change    new error        false, no change
--   skip          skipped      skipped                           false, no change    skipped          true, no change
--   retry         true         conflict                          conflict            pending          conflict
--   reset         true         conflict unless forced            pending             pending          pending
--
-- Rules
--   * The claim id is the credential: a uuid that the client makes for each run. With it, a call acts only on the run
--     that carries it, and a repeated call returns what the first one did; once anybody else has closed that run, the
--     call raises PT409 lease_lost. Without it, a call acts on whatever run is open, and start grants a lease of at
--     least an hour, because processors that know nothing of claim ids send no heartbeats.
--   * Every writer locks the document first (lock_document; progress by its own update) and reads stage_runs in a later
--     statement. The statement that waits for the lock would test the claim id against a snapshot from before the wait.
--   * Metadata is merged, never replaced; a null argument never erases anything.
-- Lock order: documents rows in id order, then stage_runs rows.

-- An older signature next to ours would make calls ambiguous, so the transaction that creates the eight functions also
-- drops whatever else has their names.
do $$
declare
    v_old regprocedure;
    v_detail text;
begin
    for v_old in
        select p.oid
        from pg_catalog.pg_proc p
        left join (values
            ('start_stage', 'uuid, text, uuid, text, numeric', 'boolean'),
            ('update_stage_progress', 'uuid, text, numeric, jsonb, uuid', 'boolean'),
            ('complete_stage', 'uuid, text, jsonb, uuid', 'boolean'),
            ('fail_stage', 'uuid, text, text, jsonb, uuid, boolean', 'boolean'),
            ('skip_stage', 'uuid, text, text, uuid', 'boolean'),
            ('get_document_progress', 'uuid', 'numeric'),
            ('get_current_stage', 'uuid', 'text'),
            ('can_start_stage', 'uuid, text', 'boolean')
        ) as ours (name, arguments, result)
            on ours.name = p.proname
            and ours.arguments = pg_catalog.oidvectortypes(p.proargtypes)
            and ours.result = pg_catalog.format_type(p.prorettype, null)
        where p.pronamespace = 'krai_core'::regnamespace
          and p.proname in ('start_stage', 'update_stage_progress', 'complete_stage', 'fail_stage', 'skip_stage',
                            'get_document_progress', 'get_current_stage', 'can_start_stage')
          and ours.name is null
    loop
        execute format('drop routine %s', v_old);
    end loop;
exception when dependent_objects_still_exist then
    -- Only the detail names the dependent object.
    get stacked diagnostics v_detail = pg_exception_detail;
    raise exception 'the old function % cannot be replaced: %', v_old, v_detail
        using errcode = '2BP01',
              hint = 'Something of yours uses it. Drop that, run the migration again, then create it anew.';
end $$;

-- Every writer calls this first: the row lock serialises all writers of a document. `no key update`, because
-- `for update` would collide with every open insert of a child row. Read stage_runs in a later statement: only that one
-- sees what was committed while this one waited.
create or replace function krai_private.lock_document(p_document_id uuid, p_stage_name text) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_stage_status jsonb;
begin
    if not exists (select from krai_core.stages s where s.name = p_stage_name) then
        perform krai_private.check_stage(p_stage_name);
    end if;
    select d.stage_status into v_stage_status
    from krai_core.documents d
    where d.id = p_document_id
    for no key update;
    if not found then
        perform krai_private.raise_unknown_document(p_document_id);
    end if;
    if krai_private.is_sound(v_stage_status) and v_stage_status ? p_stage_name then
        return v_stage_status;
    end if;
    return jsonb_build_object(p_stage_name, krai_private.pending_stage())
        || krai_private.repaired_stages(v_stage_status);
end;
$$;
comment on function krai_private.lock_document(uuid, text) is
'Locks the document and returns its stage_status, repaired.
The given stage is always in it, even if it is disabled. Raises 22023 unknown_stage, PT404 unknown_document.';

-- All calls for one document write stage_status here, except the fast path of update_stage_progress. The setting tells
-- the triggers that this is no direct edit; it is cleared at once, because direct edits may follow in the transaction.
-- Update stage_runs before you call this: ready runs are derived from both.
create or replace function krai_private.write_stage_status(
    p_document_id uuid,
    p_stage_status jsonb,
    p_changed text[] default null,
    p_writer text default 'tracker'
) returns void
language plpgsql volatile
set search_path = ''
as $$
begin
    perform set_config('krai_core.writer', p_writer, true);
    update krai_core.documents d set stage_status = p_stage_status where d.id = p_document_id;
    perform set_config('krai_core.writer', '', true);
    if p_writer <> 'progress' then
        perform krai_private.follow_legacy_columns(array[p_document_id]);
    end if;
    if p_changed is not null then
        perform krai_private.derive_ready_runs(array[p_document_id], krai_private.affected_stages(p_changed));
    end if;
end;
$$;
comment on function krai_private.write_stage_status(uuid, jsonb, text[], text) is
'Writes stage_status of a document that the caller has locked.
p_changed: the stages whose change may make others ready or unready, null for none. p_writer: tracker, or progress if
no status changes.';

create or replace function krai_core.start_stage(
    p_document_id uuid,
    p_stage_name text,
    p_claim_id uuid default null,
    p_worker text default null,
    p_lease_seconds numeric default null
) returns boolean
language plpgsql volatile
set search_path = ''
as $$
declare
    v_settings krai_core.stages := krai_private.stage_named(p_stage_name);
    v_stage_status jsonb := krai_private.lock_document(p_document_id, p_stage_name);
    v_stage jsonb := v_stage_status -> p_stage_name;
    v_run krai_core.stage_runs;
    v_attempt integer;
    v_ready_at timestamptz;
    v_before jsonb := krai_private.pending_stage();
    v_started jsonb;
    v_now timestamptz;
begin
    perform krai_private.checked_lease(p_lease_seconds);
    if p_claim_id is not null then
        perform from krai_core.stage_runs r
        where r.document_id = p_document_id and r.stage_name = p_stage_name and (r.claim_id = p_claim_id) is true;
        if found then
            -- A repeated call: true again, or lease_lost.
            perform krai_private.held_run('start', p_document_id, p_stage_name, p_claim_id);
            return true;
        end if;
    end if;
    if not v_settings.enabled then
        perform krai_private.raise_error('stage_disabled', format('start: stage %s is disabled', p_stage_name),
            jsonb_build_object('document_id', p_document_id, 'stage', p_stage_name),
            'Leave the stage out, or enable it in krai_core.stages.');
    end if;
    v_now := clock_timestamp();
    v_run := krai_private.held_run('start', p_document_id, p_stage_name, null);
    if v_stage ->> 'status' <> 'processing' then
        -- stage_status is the truth: it knows nothing of this run after, say, a restore without triggers.
        update krai_core.stage_runs r
        set status = 'cancelled', finished_at = v_now, error = 'stage_status was written without its triggers'
        where r.id = v_run.id;
    elsif v_run.lease_expires_at > v_now
        and (
            v_settings.timeout_seconds is null
            or v_run.started_at + make_interval(secs => v_settings.timeout_seconds) > v_now)
    then
        return false;
    else
        update krai_core.stage_runs r
        set status = 'lost', finished_at = v_now, error = 'the lease ended and another took the stage over'
        where r.id = v_run.id;
    end if;
    if v_stage ->> 'status' = 'processing' then
        -- Counted as two transitions: the lost run goes back to pending, then the new one starts.
        perform krai_private.count_transition(p_stage_name, v_stage, v_before);
    else
        v_before := v_stage;
    end if;
    v_attempt := krai_private.archive_last_run(p_document_id, p_stage_name, v_stage);
    v_ready_at := krai_private.begin_run(
        p_document_id, p_stage_name, v_attempt, p_claim_id, left(p_worker, 200),
        coalesce(p_lease_seconds, case
            when p_claim_id is null then greatest(v_settings.lease_seconds, 3600)
            else v_settings.lease_seconds end),
        v_now);
    v_started := krai_private.started_stage(v_stage, v_now);
    perform krai_private.count_transition(p_stage_name, v_before, v_started, v_ready_at, v_attempt);
    perform krai_private.write_stage_status(
        p_document_id, v_stage_status || jsonb_build_object(p_stage_name, v_started),
        -- Nothing can be ready on the strength of a stage that was not finished.
        case when v_stage ->> 'status' in ('completed', 'skipped') then array[p_stage_name] end);
    return true;
end;
$$;
comment on function krai_core.start_stage(uuid, text, uuid, text, numeric) is
'Starts a stage of a document: a new run, status processing.
Does not check prerequisites (see can_start_stage). Returns true if the caller holds the stage, false while another
run of it lives. From pending, completed, failed and skipped a new run begins and clears what the last one left
(stage_runs keeps it; the metadata of a pending stage stays); a run whose lease is over is taken over. p_claim_id:
credential of the run, made by the client; a repeated start with it returns true again, or raises PT409 lease_lost
once somebody else has closed that run. p_lease_seconds: more than 0, at most 604800; null: that of the stage, and at
least an hour without a claim id. Raises PT404 unknown_document, 22023 unknown_stage or invalid_lease, PT409
stage_disabled.';

create or replace function krai_core.update_stage_progress(
    p_document_id uuid,
    p_stage_name text,
    p_progress numeric,
    p_metadata jsonb default '{}',
    p_claim_id uuid default null
) returns boolean
language plpgsql volatile
set search_path = ''
as $$
declare
    v_metadata jsonb := case
        when jsonb_typeof(p_metadata) = 'object' then p_metadata
        else krai_private.checked_metadata(p_metadata) end;
    v_stage_status jsonb;
    v_run krai_core.stage_runs;
    v_run_id bigint;
    v_is_due boolean;
    v_now timestamptz;
begin
    -- NaN sorts above every number, so it fails here too.
    if p_progress < 0 or p_progress > 100 then
        perform krai_private.raise_error('invalid_progress',
            format('progress %s is outside of 0 to 100 percent', p_progress),
            jsonb_build_object('progress', p_progress::text),
            'Pass percent: 45.5 means 45.5 %; fractions are not rescaled, 0.5 means half a percent.');
    end if;
    -- Losing the last half second of progress costs nothing. Only if this call is the whole transaction, as PostgREST
    -- tells by request.path: never for the commit of anybody else's work.
    if current_setting('request.path', true) = '/rpc/update_stage_progress' then
        perform set_config('synchronous_commit', 'off', true);
    end if;
    -- Fast path: one statement, which locks the document as it writes. The check that the caller still holds the run
    -- comes afterwards, as always, and its error rolls this back.
    perform set_config('krai_core.writer', 'progress', true);
    update krai_core.documents d
    set stage_status = d.stage_status || jsonb_build_object(
        p_stage_name, d.stage_status -> p_stage_name || jsonb_build_object(
            'progress', coalesce(trim_scale(p_progress), (d.stage_status -> p_stage_name ->> 'progress')::numeric),
            'metadata', d.stage_status -> p_stage_name -> 'metadata' || v_metadata))
    where d.id = p_document_id and jsonb_typeof(d.stage_status) = 'object'
      and d.stage_status -> p_stage_name @@ '$.status == "processing" && $.progress.type() == "number"
          && $.progress >= 0 && $.progress <= 100 && $.metadata.type() == "object"'
      and (to_jsonb(p_progress) >= d.stage_status -> p_stage_name -> 'progress') is not false;
    if not found then
        v_stage_status := krai_private.lock_document(p_document_id, p_stage_name);
        v_run := krai_private.held_run('progress', p_document_id, p_stage_name, p_claim_id);
        if v_stage_status -> p_stage_name ->> 'status' <> 'processing' or v_run.status <> 'running' then
            perform krai_private.raise_conflict('progress', p_document_id, p_stage_name,
                coalesce(nullif(v_run.status, 'running'), v_stage_status -> p_stage_name ->> 'status'),
                'Start the stage before reporting progress.',
                case when v_run.status <> 'running' then ' by this run already' else '' end);
        end if;
        -- The row was malformed and is sound now, or progress went down: then the run keeps the highest value.
        update krai_core.stage_runs r
        set progress = greatest(r.progress, (v_stage_status -> p_stage_name ->> 'progress')::numeric)
        where r.id = v_run.id and p_progress < (v_stage_status -> p_stage_name ->> 'progress')::numeric;
        perform krai_private.write_stage_status(p_document_id, jsonb_set(v_stage_status, array[p_stage_name],
            v_stage_status -> p_stage_name || jsonb_build_object(
                'progress', coalesce(to_jsonb(trim_scale(p_progress)), v_stage_status -> p_stage_name -> 'progress'),
                'metadata', v_stage_status -> p_stage_name -> 'metadata' || v_metadata)), null, 'progress');
    end if;
    perform set_config('krai_core.writer', '', true);
    v_now := clock_timestamp();
    select r.id, r.lease_expires_at < v_now + make_interval(secs => r.lease_seconds::double precision * 0.95)
    into v_run_id, v_is_due
    from krai_core.stage_runs r
    where r.document_id = p_document_id and r.open_stage = p_stage_name and r.status = 'running'
      and (p_claim_id is null or r.claim_id = p_claim_id);
    if v_run_id is null and p_claim_id is not null then
        v_run := krai_private.held_run('progress', p_document_id, p_stage_name, p_claim_id);
        perform krai_private.raise_conflict('progress', p_document_id, p_stage_name, v_run.status,
            'Start the stage before reporting progress.', ' by this run already');
    elsif v_is_due then
        -- Progress is a sign of life. Skipping leases renewed a moment ago halves the writes of a busy loop.
        update krai_core.stage_runs r
        set heartbeat_at = v_now, lease_expires_at = v_now + make_interval(secs => r.lease_seconds::double precision)
        where r.id = v_run_id;
    end if;
    return true;
end;
$$;
comment on function krai_core.update_stage_progress(uuid, text, numeric, jsonb, uuid) is
'Stores the progress of a running stage and renews its lease.
p_progress: percent, 0 to 100, never rescaled; null keeps the stored one. p_metadata is merged into the stored
object. Returns true. Raises PT409 conflict unless the stage is processing, PT409 lease_lost if the run of p_claim_id
is over, PT404 unknown_document, 22023 unknown_stage, invalid_progress or invalid_metadata. Called as an rpc of its
own, its commit does not wait for the disk.';

create or replace function krai_private.close_stage(
    p_document_id uuid,
    p_stage_name text,
    p_to text,
    p_error text,
    p_metadata jsonb,
    p_claim_id uuid,
    p_retry boolean default false
) returns boolean
language plpgsql volatile
set search_path = ''
as $$
declare
    v_metadata jsonb := case
        when jsonb_typeof(p_metadata) = 'object' then p_metadata
        else krai_private.checked_metadata(p_metadata) end;
    v_stage_status jsonb := krai_private.lock_document(p_document_id, p_stage_name);
    v_stage jsonb := v_stage_status -> p_stage_name;
    v_from text := v_stage ->> 'status';
    v_call text := case p_to when 'completed' then 'complete' when 'failed' then 'fail' else 'skip' end;
    v_run krai_core.stage_runs := krai_private.held_run(v_call, p_document_id, p_stage_name, p_claim_id);
    v_now timestamptz := clock_timestamp();
    v_error text := case when p_to = 'failed' then krai_private.full_error(p_error) end;
    v_started_at timestamptz;
    v_retry_at timestamptz;
    v_attempt integer;
    v_closed jsonb;
begin
    if p_claim_id is not null and v_run.status <> 'running' then
        -- This holder closed the run itself: a repeat of that call returns true, any other call comes too late.
        if v_run.status <> p_to then
            perform krai_private.raise_conflict(v_call, p_document_id, p_stage_name, v_run.status,
                'A run ends once: start the stage again to change its outcome.', ' by this run already');
        end if;
        return true;
    elsif v_from = 'completed' and p_to <> 'completed' or v_from = 'skipped' and p_to = 'failed' then
        return false;
    elsif v_from = 'skipped' and p_to = 'completed' then
        perform krai_private.raise_conflict(v_call, p_document_id, p_stage_name, v_from,
            'Start the stage if it is to be run after all.');
    elsif v_from = 'skipped' then
        return true;
    elsif v_from = p_to then
        update krai_core.stage_runs r
        set error = v_error, error_fingerprint = krai_private.error_fingerprint(v_error)
        where p_to = 'failed' and r.document_id = p_document_id and r.stage_name = p_stage_name and r.is_current;
        perform krai_private.write_stage_status(p_document_id, v_stage_status || jsonb_build_object(
            p_stage_name, v_stage || jsonb_build_object(
                'metadata', v_stage -> 'metadata' || v_metadata,
                'error', case when p_to = 'failed' then krai_private.short_error(p_error) end)));
        return true;
    end if;
    if v_from = 'processing' then
        v_started_at := coalesce(v_run.started_at, krai_private.time_or_null(v_stage ->> 'started_at'));
    end if;
    if v_run.id is null then
        -- Work done outside and only reported: a run without a beginning, in place of the ready one. A processing stage
        -- without a run is this very run, so there is no earlier one to archive.
        v_attempt := krai_private.archive_last_run(p_document_id, p_stage_name,
            case v_from when 'processing' then krai_private.pending_stage() else v_stage end);
        delete from krai_core.stage_runs r
        where r.document_id = p_document_id and r.open_stage = p_stage_name and r.status = 'ready';
        insert into krai_core.stage_runs (document_id, stage_name, status, attempt, started_at, finished_at, is_current,
            error, error_fingerprint, retry_at)
        values (p_document_id, p_stage_name, p_to, v_attempt, v_started_at, v_now, true, v_error,
                case when p_to = 'failed' then krai_private.error_fingerprint(v_error) end,
                case when p_retry and p_to = 'failed' then krai_private.retry_at(p_stage_name, v_attempt, v_now) end)
        returning retry_at into v_retry_at;
    else
        update krai_core.stage_runs r
        set status = p_to, finished_at = v_now, closed_by_holder = p_claim_id is not null, is_current = true,
            error = v_error,
            lease_seconds = null, lease_expires_at = null, heartbeat_at = null,
            error_fingerprint = case when p_to = 'failed' then krai_private.error_fingerprint(v_error) end,
            retry_at = case
                when p_retry and p_to = 'failed' then krai_private.retry_at(p_stage_name, r.attempt, v_now) end
        where r.id = v_run.id
        returning retry_at into v_retry_at;
    end if;
    v_closed := krai_private.closed_stage(v_stage, p_to, p_error, v_metadata, v_started_at, v_now);
    perform krai_private.count_transition(p_stage_name, v_stage, v_closed);
    perform krai_private.write_stage_status(p_document_id, v_stage_status || jsonb_build_object(p_stage_name, v_closed),
        case when p_to <> 'failed' or v_retry_at is not null then array[p_stage_name] end);
    return true;
end;
$$;
comment on function krai_private.close_stage(uuid, text, text, text, jsonb, uuid, boolean) is
'What complete_stage, fail_stage and skip_stage share: moves a stage to p_to and closes its run.
p_to: completed, failed or skipped. p_retry: a failed stage is retried automatically while attempts are left.';

create or replace function krai_core.complete_stage(
    p_document_id uuid,
    p_stage_name text,
    p_metadata jsonb default '{}',
    p_claim_id uuid default null
) returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
    return krai_private.close_stage(p_document_id, p_stage_name, 'completed', null, p_metadata, p_claim_id);
end;
$$;
comment on function krai_core.complete_stage(uuid, text, jsonb, uuid) is
'Marks a stage as completed: progress 100, error cleared, metadata merged.
Returns true. A stage that was never started becomes completed with started_at and duration_seconds null; a completed
stage stays completed, its metadata merged. With p_claim_id a repeated call returns true and changes nothing.
duration_seconds: seconds since started_at. Raises PT409 conflict on a skipped stage, PT409 lease_lost if the run of
p_claim_id is over, PT404 unknown_document, 22023 unknown_stage or invalid_metadata.';

create or replace function krai_core.fail_stage(
    p_document_id uuid,
    p_stage_name text,
    p_error text,
    p_metadata jsonb default '{}',
    p_claim_id uuid default null,
    p_retry boolean default false
) returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
    return krai_private.close_stage(
        p_document_id, p_stage_name, 'failed', p_error, p_metadata, p_claim_id, coalesce(p_retry, false));
end;
$$;
comment on function krai_core.fail_stage(uuid, text, text, jsonb, uuid, boolean) is
'Marks a stage as failed; completed_at is when it failed, progress and metadata stay.
p_error: null or blank is stored as "failed without a message"; over 4000 characters it is truncated with a mark
(stage_runs keeps 65536). p_retry: while attempts are left (stages.max_attempts), the stage is handed out again after
the backoff; a permanent error needs none. Returns true; false, changing nothing, on a completed or skipped stage
without p_claim_id. A failed stage takes the new error. Raises PT409 conflict or lease_lost if the run of p_claim_id
is over, PT404 unknown_document, 22023 unknown_stage or invalid_metadata.';

create or replace function krai_core.skip_stage(
    p_document_id uuid,
    p_stage_name text,
    p_reason text default 'Not applicable',
    p_claim_id uuid default null
) returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
    return krai_private.close_stage(
        p_document_id, p_stage_name, 'skipped', null, krai_private.skip_metadata(p_reason), p_claim_id);
end;
$$;
comment on function krai_core.skip_stage(uuid, text, text, uuid) is
'Marks a stage as not applicable to this document, which counts as finished.
The reason is stored in metadata.reason. Returns true; false, changing nothing, on a completed stage without
p_claim_id; a skipped stage stays as it is. Raises PT409 conflict or lease_lost if the run of p_claim_id is over,
PT404 unknown_document, 22023 unknown_stage.';

-- ======== 22_queue_claim ========
-- Queue: claims. Any number of workers, on any machines, with no coordinator but the database.
--
--   claim_stages             hands out ready runs; never waits, never hands one out twice
--   get_next_document        the same for callers that send no heartbeats
--   requeue_expired          takes runs back from workers that died or overran the timeout
--   claim_ready_or_expired, claim_ready, lock_ready_runs, begin_ready_runs   steps of claim_stages, outermost first
--   runs_json                the answer to a repeated claim
--
-- Rules
--   * A run is handed out when its stage is enabled and not paused, it is due, and stage_status of the locked document
--     still says that the stage is ready. Higher priority first, then longest due.
--   * Documents and runs that somebody else is writing are skipped, not waited for.
--   * A repeated claim id returns the same runs, as far as they still run. A repeat that arrives during the first call
--     raises PT409 claim_in_progress, and the client tries again later.
--   * A run whose lease has expired, or that has worked longer than timeout_seconds, is lost: it returns to the queue,
--     or, after max_attempts, its stage ends as failed. claim_stages looks for such runs when ready ones do not fill
--     the batch.
--   * Where claim_stages is the whole transaction, its commit does not wait for the disk. A claim that a crash of the
--     server wipes out never happened: the runs are ready, and calls with its claim id are refused.
-- Lock order: documents and stage_runs together, skipping locked rows.

-- `= any (array[...])` is an equality that the planner cannot reverse. With a plain one it would start from a table
-- that was nearly empty when last analysed, and read all of it.
create or replace function krai_private.lock_ready_runs(
    p_stage krai_core.stages, p_priority bigint, p_now timestamptz, p_limit integer,
    out o_runs bigint[], out o_documents uuid[], out o_stages jsonb[])
language plpgsql volatile
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
begin
    with picked as (
        select r.id as run_id, r.document_id, w.stage
        from krai_core.stage_runs r
        join krai_core.documents d on d.id = any (array[r.document_id])
        -- Detoasted once per document.
        cross join lateral (
            select u.whole, u.whole -> p_stage.name as stage
            from (select d.stage_status || '{}' as whole offset 0) u offset 0) w
        where r.stage_name = p_stage.name and r.status = 'ready' and r.priority = p_priority and r.available_at <= p_now
          and coalesce(w.stage ->> 'status', '') not in ('processing', 'completed', 'skipped')
          and w.stage is distinct from '"completed"'
          -- While the pipeline is being changed, the queue may lag behind stage_status.
          and not exists (
              select from unnest(p_stage.waits_for) as required (name)
              where coalesce(w.whole -> required.name ->> 'status', '') not in ('completed', 'skipped')
                and w.whole -> required.name is distinct from '"completed"')
        order by r.stage_name, r.priority desc, r.available_at, r.id
        limit p_limit
        for no key update of r, d skip locked
    )
    select array_agg(p.run_id), array_agg(p.document_id), array_agg(p.stage) into o_runs, o_documents, o_stages
    from picked p;
end;
$$;
comment on function krai_private.lock_ready_runs(krai_core.stages, bigint, timestamptz, integer) is
'Locks up to p_limit ready runs of a stage and a priority that are due at p_now, with their documents.
Skips locked rows. Returns runs, documents and the stored stages, in queue order; null when there are none.';

-- Marks locked runs as running and their stages as processing, and counts both.
create or replace function krai_private.begin_ready_runs(
    p_stage krai_core.stages,
    p_runs bigint[],
    p_documents uuid[],
    p_stages jsonb[],
    p_worker text,
    p_lease_seconds numeric,
    p_claim_id uuid,
    p_now timestamptz)
returns jsonb
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
    -- What every pending stage becomes.
    v_started jsonb := krai_private.started_stage('{"status": "pending"}', p_now);
    v_all record;
begin
    perform set_config('krai_core.writer', 'tracker', true);
    with picked as (
        select * from unnest(p_runs, p_documents, p_stages) with ordinality as p (run_id, document_id, stage, n)
    ),
    opened as (
        update krai_core.stage_runs r
        set status = 'running', retry_at = null, claim_id = p_claim_id, opens_claim = p.n = 1, worker = p_worker,
            started_at = p_now, heartbeat_at = p_now, lease_seconds = p_lease_seconds,
            lease_expires_at = p_now + make_interval(secs => p_lease_seconds::double precision)
        from picked p
        where r.id = any (array[p.run_id])
        returning r.id, r.document_id, r.available_at, r.attempt, p.stage, p.stage ->> 'status' = 'failed' as is_retry
    ),
    counted as (
        insert into krai_core.stage_deltas (stage_name, processing, failed, started, retried, waited, wait_us)
        select p_stage.name, count(*), - count(*) filter (where o.is_retry), count(*),
            count(*) filter (where o.attempt > 1), count(*),
            sum(round(extract(epoch from p_now - o.available_at) * 1e6))
        from opened o having count(*) > 0
    ),
    written as (
        update krai_core.documents d
        -- Where the stage was found, stage_status is an object.
        set stage_status = case
                when o.stage is not null or jsonb_typeof(d.stage_status) = 'object' then d.stage_status
                else krai_private.repaired_stages(d.stage_status) end
            || jsonb_build_object(p_stage.name, case
                when o.stage ->> 'status' = 'pending' and jsonb_typeof(o.stage -> 'metadata') = 'object'
                    then o.stage || v_started
                else krai_private.started_stage(krai_private.repaired_stage(o.stage), p_now) end)
        from opened o
        where d.id = any (array[o.document_id])
        -- Returned here, because joining afterwards takes quadratic time.
        returning o.id, o.available_at, o.document_id, d.filename, o.attempt, o.stage, o.is_retry,
            d.stage_status -> p_stage.name -> 'metadata' as metadata,
            d.stage_status @? '$.* ? (@.status == "failed")' as has_failed
    )
    -- One to_jsonb of rows, for the reason given in documents_json.
    select to_jsonb(array(
            select given from (
                select w.document_id, w.filename, p_stage.name as stage_name, w.attempt, p_stage.max_attempts,
                    p_claim_id as claim_id, round(p_lease_seconds * 1000) as lease_ms, w.metadata
                from written w order by w.available_at, w.id) given)) as answer,
        coalesce(array_agg(w.document_id) filter (where w.has_failed), '{}') as has_failed,
        coalesce(array_agg(w.document_id) filter (where not w.has_failed), '{}') as processing,
        array_agg(w.document_id) filter (where w.is_retry) as retried,
        array_agg(w.stage) filter (where w.is_retry) as failed
    into v_all
    from written w;
    perform set_config('krai_core.writer', '', true);
    perform krai_private.follow_legacy_columns(v_all.has_failed, v_all.processing);
    perform krai_private.archive_failed_runs(p_stage.name, v_all.retried, v_all.failed) where v_all.retried is not null;
    return v_all.answer;
end;
$$;
comment on function krai_private.begin_ready_runs(
    krai_core.stages, bigint[], uuid[], jsonb[], text, numeric, uuid, timestamptz) is
'Starts the runs that lock_ready_runs has locked, and returns them as claim_stages does.';

create or replace function krai_private.claim_ready(
    p_stage krai_core.stages, p_worker text, p_limit integer, p_lease_seconds numeric, p_claim_id uuid)
returns jsonb
language plpgsql volatile
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_now timestamptz := clock_timestamp();
    -- Starts above every integer, so that each lookup asks the index for the next priority below.
    v_level bigint := 2147483648;
    v_answer jsonb := '[]'::jsonb;
    v_picked record;
begin
    -- One priority at a time: runs not yet due sort behind due ones only within their own priority.
    while jsonb_array_length(v_answer) < p_limit loop
        select r.priority into v_level from krai_core.stage_runs r
        where r.stage_name = p_stage.name and r.status = 'ready' and r.priority < v_level
        order by r.priority desc limit 1;
        exit when not found;
        v_picked := krai_private.lock_ready_runs(p_stage, v_level, v_now, p_limit - jsonb_array_length(v_answer));
        if v_picked.o_runs is not null then
            v_answer := v_answer || krai_private.begin_ready_runs(p_stage, v_picked.o_runs, v_picked.o_documents,
                v_picked.o_stages, p_worker, coalesce(p_lease_seconds, p_stage.lease_seconds), p_claim_id, v_now);
        end if;
    end loop;
    return v_answer;
end;
$$;
comment on function krai_private.claim_ready(krai_core.stages, text, integer, numeric, uuid) is
'Hands out up to p_limit ready runs of a stage; returns them as claim_stages does.';

create or replace function krai_private.requeue_expired(
    p_stage krai_core.stages,
    p_limit integer,
    out o_requeued integer,
    out o_failed integer)
language plpgsql volatile
set search_path = ''
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_run krai_core.stage_runs;
    v_stage_status jsonb;
    v_stage jsonb;
    v_failed jsonb;
    v_why text;
begin
    o_requeued := 0;
    o_failed := 0;
    -- Most calls find none; this check alone takes a third of the time.
    if not exists (
        select from krai_core.stage_runs r where r.stage_name = p_stage.name and r.status = 'running'
          and (r.lease_expires_at <= v_now or r.started_at + make_interval(secs => p_stage.timeout_seconds) <= v_now)
    ) then
        return;
    end if;
    for v_run in
        select r.* from krai_core.stage_runs r
        join krai_core.documents d on d.id = r.document_id
        where r.stage_name = p_stage.name and r.status = 'running'
          and (r.lease_expires_at <= v_now or r.started_at + make_interval(secs => p_stage.timeout_seconds) <= v_now)
        order by r.id limit p_limit
        for no key update of r, d skip locked
    loop
        v_stage_status := krai_private.lock_document(v_run.document_id, p_stage.name);
        v_stage := v_stage_status -> p_stage.name;
        v_why := case when v_run.lease_expires_at <= v_now then 'the lease ended without a sign of life'
                      else format('it took longer than %s seconds', p_stage.timeout_seconds) end;
        update krai_core.stage_runs r
        set status = case when v_stage ->> 'status' = 'processing' then 'lost' else 'cancelled' end,
            finished_at = v_now,
            error = case when v_stage ->> 'status' = 'processing' then v_why
                else 'stage_status was written without its triggers' end,
            error_fingerprint = krai_private.error_fingerprint(v_why),
            is_current = v_stage ->> 'status' = 'processing' and v_run.attempt >= p_stage.max_attempts
        where r.id = v_run.id;
        if v_stage ->> 'status' <> 'processing' then
            perform krai_private.derive_ready_runs(array[v_run.document_id], array[p_stage.name]);
        elsif v_run.attempt < p_stage.max_attempts then
            perform krai_private.archive_last_run(v_run.document_id, p_stage.name, v_stage);
            perform krai_private.count_transition(p_stage.name, v_stage, krai_private.pending_stage());
            perform krai_private.write_stage_status(v_run.document_id,
                v_stage_status || jsonb_build_object(p_stage.name, krai_private.pending_stage()), array[p_stage.name]);
            o_requeued := o_requeued + 1;
        else
            v_failed := krai_private.closed_stage(v_stage, 'failed',
                format('given up after %s of %s attempts: %s', v_run.attempt, p_stage.max_attempts, v_why),
                '{}', v_run.started_at, v_now);
            perform krai_private.count_transition(p_stage.name, v_stage, v_failed);
            perform krai_private.write_stage_status(v_run.document_id,
                v_stage_status || jsonb_build_object(p_stage.name, v_failed));
            o_failed := o_failed + 1;
        end if;
    end loop;
end;
$$;
comment on function krai_private.requeue_expired(krai_core.stages, integer) is
'Closes as lost up to p_limit runs of a stage whose lease has expired or whose timeout has passed.
Returns how many went back to the queue, and how many ended as failed because no attempt is left. Counts in neither, and
cancels, a run whose stage is no longer processing.';

create or replace function krai_private.claim_ready_or_expired(
    p_stage krai_core.stages, p_worker text, p_limit integer, p_lease_seconds numeric, p_claim_id uuid)
returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_answer jsonb := krai_private.claim_ready(p_stage, p_worker, p_limit, p_lease_seconds, p_claim_id);
    v_left integer := p_limit - jsonb_array_length(v_answer);
begin
    if v_left > 0 and (krai_private.requeue_expired(p_stage, v_left)).o_requeued > 0 then
        v_answer := v_answer || krai_private.claim_ready(p_stage, p_worker, v_left, p_lease_seconds, p_claim_id);
    end if;
    return v_answer;
end;
$$;
comment on function krai_private.claim_ready_or_expired(krai_core.stages, text, integer, numeric, uuid) is
'As claim_ready; where ready runs do not fill the batch, requeues expired ones and hands out what is ready then.';

create or replace function krai_private.runs_json(p_claim_id uuid) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_stages text[] := array(select s.name from krai_core.stages s);
    v_answer jsonb;
begin
    -- A repeat is a sign of life: the leases count from now, as the answer says.
    with mine as (
        select r.id from krai_core.stage_runs r
        where r.stage_name = any (v_stages) and r.claim_id = p_claim_id and r.status = 'running'
        order by r.id
        for no key update skip locked
    ),
    renewed as (
        update krai_core.stage_runs r
        set heartbeat_at = clock_timestamp(),
            lease_expires_at = clock_timestamp() + make_interval(secs => r.lease_seconds::double precision)
        from mine m
        where r.id = m.id
    )
    select coalesce(jsonb_agg(jsonb_build_object(
        'document_id', r.document_id, 'filename', d.filename, 'stage_name', r.stage_name,
        'attempt', r.attempt, 'max_attempts', s.max_attempts, 'claim_id', p_claim_id,
        'lease_ms', round(r.lease_seconds * 1000),
        'metadata', d.stage_status -> r.stage_name -> 'metadata') order by r.priority desc, r.available_at, r.id), '[]')
    into v_answer
    from krai_core.stage_runs r
    join krai_core.documents d on d.id = r.document_id
    join krai_core.stages s on s.name = r.stage_name
    where r.stage_name = any (v_stages) and r.claim_id = p_claim_id and r.status = 'running';
    return v_answer;
end;
$$;
comment on function krai_private.runs_json(uuid) is
'The runs of a claim that still run, as claim_stages returns them; renews their leases.';

create or replace function krai_core.claim_stages(
    p_stage_name text,
    p_worker text,
    p_limit integer default 1,
    p_lease_seconds numeric default null,
    p_claim_id uuid default null
) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_claim_id uuid := coalesce(p_claim_id, gen_random_uuid());
    v_worker text := left(p_worker, 200);
    v_stage krai_core.stages;
    v_answer jsonb := '[]'::jsonb;
    v_left integer := krai_private.checked_limit(p_limit, 1000);
begin
    perform krai_private.checked_lease(p_lease_seconds);
    if current_setting('request.path', true) = '/rpc/claim_stages' then
        perform set_config('synchronous_commit', 'off', true);
    end if;
    if p_claim_id is not null then
        if not pg_try_advisory_xact_lock(hashtextextended(p_claim_id::text, 0)) then
            perform krai_private.raise_error('claim_in_progress',
                format('the first call with claim id %s is still in progress', p_claim_id),
                jsonb_build_object('claim_id', p_claim_id),
                'Repeat the call in a moment: it returns the runs of the first.');
        end if;
        perform from krai_core.stage_runs r where r.claim_id = p_claim_id and r.opens_claim limit 1;
        if found then
            return krai_private.runs_json(p_claim_id);
        end if;
    end if;
    for v_stage in select * from krai_private.stages_named(p_stage_name) loop
        exit when v_left = 0;
        continue when v_stage.paused or not v_stage.enabled;
        v_answer := v_answer
            || krai_private.claim_ready_or_expired(v_stage, v_worker, v_left, p_lease_seconds, v_claim_id);
        v_left := p_limit - jsonb_array_length(v_answer);
    end loop;
    return v_answer;
end;
$$;
comment on function krai_core.claim_stages(text, text, integer, numeric, uuid) is
'Hands out up to p_limit ready runs to a worker: marks the stages as processing and opens their leases. Never waits.
Where ready runs do not fill the batch, takes back runs whose lease has expired or whose timeout has passed.
As an rpc of its own, its commit does not wait for the disk.
p_stage_name: a stage, or an array of stages in order of preference as text: ["a", "b"].
p_worker: the name to show for whoever works on the runs; cut to 200 characters. p_limit: 1 to 1000.
p_lease_seconds: more than 0, at most 604800; null: that of the stage.
p_claim_id: credential of the runs, made by the client, so that the call can be repeated: a repeat returns the same
runs, as far as they still run; null: made by the call.
Returns an array of {document_id, filename, stage_name, attempt, max_attempts, claim_id, lease_ms, metadata}; [] when
nothing is ready. Raises 22023 unknown_stage, invalid_limit or invalid_lease, PT409 claim_in_progress while the first
call with the claim id still runs.';

create or replace function krai_core.get_next_document(
    p_stage_name text,
    p_worker text default null,
    p_claim_id uuid default null
) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_stage krai_core.stages := krai_private.stage_named(p_stage_name);
    v_claimed jsonb := krai_core.claim_stages(
        p_stage_name, p_worker, 1, greatest(v_stage.lease_seconds, 3600), p_claim_id);
begin
    return (select to_jsonb(d) from krai_core.documents d where d.id = (v_claimed -> 0 ->> 'document_id')::uuid);
end;
$$;
comment on function krai_core.get_next_document(text, text, uuid) is
'Hands out the next ready document of a stage to a caller that sends no heartbeats.
The stage is processing then, with a lease of at least an hour, which progress renews.
p_worker, p_claim_id: as for claim_stages.
Returns the whole row of krai_core.documents as an object, or null when nothing is ready.
Raises 22023 unknown_stage, PT409 claim_in_progress.';

-- ======== 23_queue_lease ========
-- Queue: keeping claimed runs alive, and giving them back.
--
--   heartbeat         renews many leases
--   release_stages    gives runs back untouched
--   checked_runs      the argument of both, checked and unpacked
--
-- Rules
--   * A heartbeat for a closed run renews nothing and says so: lost, or cancelled if somebody took the run away on
--     purpose.
--   * A released run counts as no attempt and keeps its place in the queue.
--   * The commit of heartbeat does not wait for the disk if the call is the whole transaction.
-- Lock order: release_stages locks documents in id order, then stage_runs. heartbeat locks only stage_runs, in id
-- order, and skips locked rows: whoever holds one is writing a newer sign of life.

create or replace function krai_private.checked_runs(p_call text, p_runs jsonb)
returns table (n bigint, document_id uuid, stage_name text, claim_id uuid, run jsonb)
language plpgsql stable
set search_path = ''
as $$
begin
    if jsonb_typeof(p_runs) is distinct from 'array' or exists (
        select from jsonb_array_elements(p_runs) r
        where jsonb_typeof(r) <> 'object'
           or coalesce(r ->> 'document_id', '') !~ '^[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}$'
           or coalesce(r ->> 'claim_id', '') !~ '^[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}$'
           or r ->> 'stage_name' is null
    ) then
        perform krai_private.raise_error('invalid_runs',
            format('%s takes an array of objects with document_id, stage_name and claim_id', p_call), '{}',
            'Pass [{"document_id": "<uuid>", "stage_name": "<stage>", "claim_id": "<uuid>"}, ...].');
    end if;
    return query
        select r.n, (r.run ->> 'document_id')::uuid, r.run ->> 'stage_name', (r.run ->> 'claim_id')::uuid, r.run
        from jsonb_array_elements(p_runs) with ordinality r (run, n);
end;
$$;
comment on function krai_private.checked_runs(text, jsonb) is
'The runs of an array of {document_id, stage_name, claim_id}; raises 22023 invalid_runs for anything else.';

-- Planned by index, whatever the statistics say; for `= any (array[...])` see 22_queue_claim.
create or replace function krai_core.heartbeat(p_runs jsonb) returns jsonb
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
    v_answer jsonb;
begin
    if current_setting('request.path', true) = '/rpc/heartbeat' then
        perform set_config('synchronous_commit', 'off', true);
    end if;
    with asked as materialized (
        select * from krai_private.checked_runs('heartbeat', p_runs)
    ),
    free as (
        select r.id from krai_core.stage_runs r
        join asked a on r.document_id = any (array[a.document_id]) and r.open_stage = any (array[a.stage_name])
            -- A claim id implies running. A condition on status might make the planner read every running run.
            and (r.claim_id = a.claim_id) is true
        order by r.id
        for no key update of r skip locked
    ),
    renewed as (
        update krai_core.stage_runs r
        set heartbeat_at = clock_timestamp(),
            lease_expires_at = clock_timestamp() + make_interval(secs => r.lease_seconds::double precision)
        from free f
        where r.id = any (array[f.id])
    )
    select jsonb_build_object(
        'alive', coalesce(
            jsonb_agg(a.run || jsonb_build_object('lease_ms', round(r.lease_seconds * 1000)) order by a.n)
                filter (where r.status = 'running'), '[]'),
        'lost', coalesce(
            jsonb_agg(a.run order by a.n)
                filter (where r.status is null or r.status not in ('running', 'cancelled')), '[]'),
        'cancelled', coalesce(jsonb_agg(a.run order by a.n) filter (where r.status = 'cancelled'), '[]'))
    into v_answer
    from asked a
    left join lateral (
        select * from krai_core.stage_runs of_claim
        where of_claim.document_id = a.document_id and of_claim.stage_name = a.stage_name
          and (of_claim.claim_id = a.claim_id) is true
        offset 0) r on true;
    return v_answer;
end;
$$;
comment on function krai_core.heartbeat(jsonb) is
'Renews the leases of many runs in one call.
p_runs: array of {document_id, stage_name, claim_id}. Returns {"alive": [...], "lost": [...], "cancelled": [...]},
each an array of the objects passed in: alive runs are held for another lease, whose length in milliseconds is added
as lease_ms; lost runs were closed, cancelled ones taken away on purpose: stop working on either. Safe to repeat.
Raises 22023 invalid_runs. Called as an rpc of its own, its commit does not wait for the disk.';

create or replace function krai_core.release_stages(p_runs jsonb) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_asked record;
    v_stage_status jsonb;
    v_stage jsonb;
    v_run krai_core.stage_runs;
    v_released jsonb := '[]'::jsonb;
    v_lost jsonb := '[]'::jsonb;
begin
    perform from krai_core.documents d
    where d.id in (select a.document_id from krai_private.checked_runs('release_stages', p_runs) a)
    order by d.id for no key update;
    for v_asked in select * from krai_private.checked_runs('release_stages', p_runs) loop
        select * into v_run from krai_core.stage_runs r
        where r.document_id = v_asked.document_id and r.stage_name = v_asked.stage_name
          and (r.claim_id = v_asked.claim_id) is true;
        if v_run.status = 'running' then
            v_stage_status := krai_private.lock_document(v_asked.document_id, v_asked.stage_name);
            v_stage := v_stage_status -> v_asked.stage_name;
            update krai_core.stage_runs r
            set status = 'released', finished_at = clock_timestamp(), closed_by_holder = true,
                progress = greatest(r.progress, krai_private.progress_of(v_stage))
            where r.id = v_run.id;
            if v_stage ->> 'status' = 'processing' then
                perform krai_private.count_transition(v_asked.stage_name, v_stage, krai_private.pending_stage());
                v_stage := krai_private.pending_stage() || jsonb_build_object('metadata', v_stage -> 'metadata');
            end if;
            perform krai_private.write_stage_status(v_asked.document_id,
                v_stage_status || jsonb_build_object(v_asked.stage_name, v_stage), array[v_asked.stage_name]);
        end if;
        if v_run.status = 'running' or v_run.status = 'released' and v_run.closed_by_holder then
            v_released := v_released || jsonb_build_array(v_asked.run);
        else
            v_lost := v_lost || jsonb_build_array(v_asked.run);
        end if;
    end loop;
    return jsonb_build_object('released', v_released, 'lost', v_lost);
end;
$$;
comment on function krai_core.release_stages(jsonb) is
'Gives claimed runs back untouched: their stages are pending again, and no attempt counts.
They keep their place in the queue. p_runs: array of {document_id, stage_name, claim_id}. Returns {"released": [...],
"lost": [...]}, each an array of the objects passed in; somebody else had already closed the lost ones. Safe to
repeat. Raises 22023 invalid_runs.';

-- ======== 24_queue_finish ========
-- Queue: outcomes. Many of them reported in one call.
--
--   finish_stages      reports completed, failed, skipped or progress of many runs, each answered individually
--   checked_outcomes   its first step: refuses what is no array of outcomes
--   finish_batch       its second: writes the ordinary outcomes together; batch_outcomes picks them, reported_stage
--                      says what a stage becomes
--   finish_one         its third: writes each of the others as the single call would
--
-- Rules
--   * An outcome has the effect and the answer of the single call with the same claim id. One that is refused changes
--     nothing and does not affect the others.
--   * Ordinary outcomes, each for a running run of its own whose stage has the seven keys, are written together: one
--     update of documents, with one patch per document however many of its stages are reported, and one of the runs.
--     The others, such as repeats and late ones, go through the single calls.
-- Lock order: documents in id order, then stage_runs. The runs are read in a later statement than the one that waits
-- for the locks, so that it sees what was committed meanwhile.

create or replace function krai_private.reported_stage(
    p_stage jsonb,
    p_outcome text,
    p_error text,
    p_reason text,
    p_progress numeric,
    p_metadata jsonb,
    p_started_at timestamptz,
    p_now timestamptz)
returns jsonb
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    if p_outcome = 'progress' then
        return p_stage || jsonb_build_object(
            'progress', coalesce(to_jsonb(trim_scale(p_progress)), p_stage -> 'progress'),
            'metadata', p_stage -> 'metadata' || p_metadata);
    end if;
    return krai_private.closed_stage(p_stage, p_outcome, p_error,
        case p_outcome when 'skipped' then krai_private.skip_metadata(p_reason) else p_metadata end,
        p_started_at, p_now);
end;
$$;
comment on function krai_private.reported_stage(jsonb, text, text, text, numeric, jsonb, timestamptz, timestamptz) is
'What a running stage, in the shape of the seven keys, becomes by an outcome.';

create or replace function krai_private.batch_outcomes(p_outcomes jsonb, p_now timestamptz)
returns table (
    place bigint, document_id uuid, stage_name text, outcome text,
    error text, reason text, progress numeric, metadata jsonb,
    retry_at timestamptz, run_id bigint, started_at timestamptz, lease_seconds numeric, stage jsonb)
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
    return query
    with asked as (
        select a.place, a.document_id, a.stage_name, a.outcome, a.error, a.reason, a.progress,
            coalesce(nullif(a.metadata, 'null'), '{}') as metadata,
            case when a.outcome = 'failed' and a.retry
                then krai_private.retry_at(a.stage_name, r.attempt, p_now) end as retry_at,
            r.id as run_id, r.started_at, r.lease_seconds, d.stage
        from rows from (jsonb_to_recordset(p_outcomes) as (
                document_id uuid, stage_name text, claim_id uuid, outcome text,
                metadata jsonb, error text, retry boolean, reason text, progress numeric)) with ordinality
            as a (document_id, stage_name, claim_id, outcome, metadata, error, retry, reason, progress, place)
        -- Open and with a claim id means running. Given the status, the planner might read every running run.
        cross join lateral (
            select h.id, h.attempt, h.started_at, h.lease_seconds from krai_core.stage_runs h
            where h.document_id = a.document_id and h.open_stage = a.stage_name and (h.claim_id = a.claim_id) is true
            offset 0) r
        -- Where the stage is found, stage_status is an object.
        cross join lateral (
            select d.stage_status -> a.stage_name as stage from krai_core.documents d
            where d.id = a.document_id offset 0) d
        where coalesce(jsonb_typeof(a.metadata), 'null') in ('object', 'null')
          and (a.progress between 0 and 100 or a.progress is null)
          -- Progress that goes down is left to the single call, which notes on the run how far it had come.
          and (a.outcome <> 'progress' or to_jsonb(a.progress) >= d.stage -> 'progress') is not false
          and d.stage ->> 'status' = 'processing' and jsonb_typeof(d.stage -> 'metadata') = 'object'
          and jsonb_typeof(d.stage -> 'started_at') = 'string' and jsonb_typeof(d.stage -> 'progress') = 'number'
          and d.stage -> 'progress' between '0' and '100'
    )
    select a.* from asked a
    where a.run_id <> all (array(select twin.run_id from asked twin group by twin.run_id having count(*) > 1));
end;
$$;
comment on function krai_private.batch_outcomes(jsonb, timestamptz) is
'The outcomes that can be written together.
Each belongs to a running run of its own, and to a stage in the shape of the seven keys. place: in the array, from 1.
retry_at: when a failed stage is retried automatically; null: never.';

create or replace function krai_private.finish_batch(p_outcomes jsonb, out o_done bigint[], out o_retries jsonb)
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
    -- The stage that most documents finish last; null where a disabled one may be finished without counting.
    v_last text := (
        select s.name from krai_core.stages s where not exists (select from krai_core.stages off where not off.enabled)
        order by s.position desc limit 1);
    -- What closed_stage says alike of every completed stage: calling it for each one takes a tenth of the whole time.
    v_completed jsonb := krai_private.closed_stage(
            '{"metadata": {}}'::jsonb, 'completed', null, '{}'::jsonb, null, v_now)
        - array['started_at', 'duration_seconds', 'metadata'];
    v_may_be_ready text[];
    v_all record;
begin
    perform set_config('krai_core.writer', 'tracker', true);
    with batch as (
        select b.*, greatest(extract(epoch from v_now - b.started_at), 0) as seconds
        from krai_private.batch_outcomes(p_outcomes, v_now) b
    ),
    written as (
        update krai_core.documents d
        set stage_status = d.stage_status || patch.stages
        from (
            select b.document_id, jsonb_object_agg(b.stage_name, case b.outcome
                when 'completed' then b.stage || v_completed || jsonb_build_object(
                    'duration_seconds', trim_scale(round(b.seconds, 6)),
                    'metadata', b.stage -> 'metadata' || b.metadata)
                else krai_private.reported_stage(
                    b.stage, b.outcome, b.error, b.reason, b.progress, b.metadata, b.started_at, v_now) end) as stages,
                bool_or(b.outcome <> 'progress') as has_ended
            from batch b group by b.document_id
        ) patch
        where d.id = any (array[patch.document_id])
        returning patch.document_id, patch.has_ended,
            d.stage_status -> v_last ->> 'status' in ('pending', 'processing')
                and not d.stage_status @? '$.* ? (@.status == "failed")' as is_processing
    ),
    closed as (
        update krai_core.stage_runs r
        set status = b.outcome, finished_at = v_now, closed_by_holder = true, is_current = true, retry_at = b.retry_at,
            lease_seconds = null, lease_expires_at = null, heartbeat_at = null,
            error = case when b.outcome = 'failed' then krai_private.full_error(b.error) end,
            error_fingerprint = case when b.outcome = 'failed' then
                krai_private.error_fingerprint(krai_private.full_error(b.error)) end
        from batch b
        where r.id = any (array[b.run_id]) and b.outcome <> 'progress'
    ),
    renewed as (
        update krai_core.stage_runs r
        set heartbeat_at = v_now, lease_expires_at = v_now + make_interval(secs => b.lease_seconds::double precision)
        from batch b
        where r.id = any (array[b.run_id]) and b.outcome = 'progress'
    )
    select array_agg(b.place) as done,
        array(select w.document_id from written w where w.has_ended and w.is_processing is not true) as ended,
        array(select w.document_id from written w where w.has_ended and w.is_processing) as processing,
        jsonb_object_agg(b.place, krai_private.iso_time(b.retry_at)) filter (where b.retry_at is not null) as retries,
        array_agg(b.document_id)
            filter (where b.outcome in ('completed', 'skipped') or b.retry_at is not null) as touched,
        (select array_agg(f.stage_name) from (
            select b.stage_name from batch b where b.outcome in ('completed', 'skipped') group by 1) f) as finished,
        (select array_agg(f.stage_name) from (
            select b.stage_name from batch b where b.retry_at is not null group by 1) f) as failed,
        array_agg(b.stage_name) filter (where b.outcome <> 'progress') as stages,
        array_agg(b.outcome) filter (where b.outcome <> 'progress') as outcomes,
        array_agg(round(b.seconds * 1e6)::bigint) filter (where b.outcome <> 'progress') as us
    into v_all
    from batch b;
    perform set_config('krai_core.writer', '', true);
    perform krai_private.count_outcomes(v_all.stages, v_all.outcomes, v_all.us) where v_all.stages is not null;
    v_may_be_ready := array(select s.name from krai_core.stages s where s.waits_for && v_all.finished) || v_all.failed;
    perform krai_private.derive_ready_runs(v_all.touched, v_may_be_ready, true) where v_may_be_ready <> '{}';
    -- A document that is still processing was so before: its column need not be looked at.
    perform krai_private.follow_legacy_columns(v_all.ended, p_unchanged => v_all.processing);
    o_done := v_all.done;
    o_retries := v_all.retries;
end;
$$;
comment on function krai_private.finish_batch(jsonb) is
'Writes the outcomes that batch_outcomes picks.
Returns their places in the array, from 1, and {"<place>": time of the automatic retry}; each null when there are none.
The caller has locked the documents.';

create or replace function krai_private.finish_one(p_outcome jsonb) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_document_id uuid := (p_outcome ->> 'document_id')::uuid;
    v_claim_id uuid := (p_outcome ->> 'claim_id')::uuid;
    v_stage_name text := p_outcome ->> 'stage_name';
    v_to text := p_outcome ->> 'outcome';
    v_retry_at timestamptz;
    v_done boolean;
    v_state text;
    v_message text;
    v_detail text;
    v_hint text;
begin
    if v_to = 'progress' then
        v_done := krai_core.update_stage_progress(v_document_id, v_stage_name, (p_outcome ->> 'progress')::numeric,
            p_outcome -> 'metadata', v_claim_id);
    else
        v_done := krai_private.close_stage(v_document_id, v_stage_name, v_to, p_outcome ->> 'error',
            case v_to when 'skipped' then krai_private.skip_metadata(p_outcome ->> 'reason')
                else p_outcome -> 'metadata' end,
            v_claim_id, coalesce((p_outcome ->> 'retry')::boolean, false));
        select r.retry_at into v_retry_at from krai_core.stage_runs r
        where r.document_id = v_document_id and r.stage_name = v_stage_name and (r.claim_id = v_claim_id) is true;
    end if;
    if not v_done then
        return jsonb_build_object('ok', false, 'error', 'conflict',
            'message', format('stage %s of document %s was finished by somebody else', v_stage_name, v_document_id),
            'hint', 'Nothing was changed.');
    end if;
    return jsonb_build_object('ok', true) || case when v_retry_at is null then '{}'
        else jsonb_build_object('next_retry_at', krai_private.iso_time(v_retry_at)) end;
exception when sqlstate 'PT404' or sqlstate 'PT409' or sqlstate '22023' then
    get stacked diagnostics v_state = returned_sqlstate, v_message = message_text, v_detail = pg_exception_detail,
        v_hint = pg_exception_hint;
    if v_detail not like '{%' then
        raise;
    end if;
    return v_detail::jsonb || jsonb_build_object('ok', false, 'code', v_state, 'message', v_message, 'hint', v_hint);
end;
$$;
comment on function krai_private.finish_one(jsonb) is
'Writes one outcome as the single call would, and returns its error instead of raising it.';

create or replace function krai_private.checked_outcomes(p_outcomes jsonb) returns uuid[]
language plpgsql stable
set search_path = ''
as $$
declare
    v_place bigint;
    v_outcome text;
    v_told text;
    v_ids uuid[];
    v_are_whole boolean;
begin
    if jsonb_typeof(p_outcomes) = 'array' then
        begin
            -- Whether all can be read is seen in one pass; which one cannot is looked for only then.
            select coalesce(array_agg(a.document_id), '{}'),
                coalesce(bool_and(num_nulls(a.document_id, a.stage_name, a.claim_id) = 0
                    and coalesce(a.outcome, '') in ('completed', 'failed', 'skipped', 'progress')), true)
            into v_ids, v_are_whole
            from jsonb_to_recordset(p_outcomes)
                as a (document_id uuid, stage_name text, claim_id uuid, outcome text, retry boolean, progress numeric);
            if v_are_whole then
                return v_ids;
            end if;
        exception when data_exception then
            v_told := sqlerrm;
        end;
        select o.n, o.outcome::text into v_place, v_outcome
        from jsonb_array_elements(p_outcomes) with ordinality o (outcome, n)
        where jsonb_typeof(o.outcome) <> 'object'
           or o.outcome ->> 'stage_name' is null
           or o.outcome ->> 'claim_id' is null
           or o.outcome ->> 'document_id' is null
           or coalesce(o.outcome ->> 'outcome', '') not in ('completed', 'failed', 'skipped', 'progress')
        limit 1;
    end if;
    perform krai_private.raise_error('invalid_outcomes',
        case when jsonb_typeof(p_outcomes) is distinct from 'array' then 'outcomes are not a JSON array'
             else format('outcome %s cannot be read: %s', coalesce(v_place::text, ''),
                 left(coalesce(v_outcome, v_told), 200)) end,
        jsonb_build_object('place', v_place),
        'Pass [{"document_id": "<uuid>", "stage_name": "<stage>", "claim_id": "<uuid>", '
        '"outcome": "completed", "failed", "skipped" or "progress", ...}, ...].');
    return null;
end;
$$;
comment on function krai_private.checked_outcomes(jsonb) is
'The document ids of outcomes, in their order; raises 22023 invalid_outcomes for anything else.';

create or replace function krai_core.finish_stages(p_outcomes jsonb) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_ids uuid[] := krai_private.checked_outcomes(p_outcomes);
    v_usual record;
    v_answers jsonb[];
    v_place integer;
begin
    if v_ids = '{}' then
        return '[]'::jsonb;
    end if;
    perform from krai_core.documents d where d.id = any (v_ids) order by d.id for no key update;
    v_usual := krai_private.finish_batch(p_outcomes);
    v_answers := array_fill('{"ok": true}'::jsonb, array[cardinality(v_ids)]);
    for v_place in select (jsonb_object_keys(v_usual.o_retries))::integer loop
        v_answers[v_place] := jsonb_build_object('ok', true, 'next_retry_at', v_usual.o_retries -> v_place::text);
    end loop;
    if cardinality(v_usual.o_done) is distinct from cardinality(v_ids) then
        for v_place in
            select generate_series(1, cardinality(v_ids)) except select unnest(v_usual.o_done) order by 1
        loop
            v_answers[v_place] := krai_private.finish_one(p_outcomes -> (v_place - 1));
        end loop;
    end if;
    perform krai_private.fold_deltas_if_due();
    return to_jsonb(v_answers);
end;
$$;
comment on function krai_core.finish_stages(jsonb) is
'Reports the outcomes of many runs in one call, and answers each as the single call with its claim id would.
p_outcomes: array of {document_id, stage_name, claim_id, outcome, metadata?, error?, retry?, reason?, progress?}.
outcome: completed, failed, skipped or progress. metadata: object, merged. error, retry: of failed, as in fail_stage.
reason: of skipped. progress: percent, 0 to 100.
Returns an array in the same order: {"ok": true}, with next_retry_at where a failed stage is retried automatically, or
{"ok": false, "error": word, "message", "hint", ...} with the words of the single calls (lease_lost, conflict,
unknown_document, unknown_stage, invalid_metadata, invalid_progress); an outcome so refused changes nothing.
Safe to repeat. Raises 22023 invalid_outcomes, with no change at all, when an outcome lacks its document, stage or
claim id, or is none of the four.';

-- ======== 25_operations ========
-- Operations: what people do to the queue.
--
--   retry_stage, retry_failed, reset_stage    bring stages back to pending
--   cancel_document                           skips every unfinished stage
--   set_priority, pause_stage, resume_stage   decide what is handed out first, or not at all
--
-- Each records who asked: with the last run of the stage, with the priority, or with the stage.
-- Lock order: documents in id order, then stage_runs.

create or replace function krai_core.retry_stage(p_document_id uuid, p_stage_name text, p_actor text default null)
returns boolean
language plpgsql volatile
set search_path = ''
as $$
declare
    v_stage_status jsonb := krai_private.lock_document(p_document_id, p_stage_name);
    v_status text := v_stage_status -> p_stage_name ->> 'status';
begin
    if v_status = 'pending' then
        return true;
    elsif v_status <> 'failed' then
        perform krai_private.raise_conflict('retry', p_document_id, p_stage_name, v_status, case v_status
            when 'processing' then 'Wait until the run ends, or use reset_stage with p_force to take it away.'
            else 'Only a failed stage is retried: use reset_stage to run it again.' end);
    end if;
    perform krai_private.archive_last_run(
        p_document_id, p_stage_name, v_stage_status -> p_stage_name, left(p_actor, 200), true);
    -- Replaces a retry that waits for its backoff.
    delete from krai_core.stage_runs r
    where r.document_id = p_document_id and r.open_stage = p_stage_name and r.status = 'ready';
    perform krai_private.count_transition(p_stage_name, v_stage_status -> p_stage_name, krai_private.pending_stage());
    perform krai_private.write_stage_status(p_document_id,
        v_stage_status || jsonb_build_object(p_stage_name, krai_private.pending_stage()), array[p_stage_name]);
    return true;
end;
$$;
comment on function krai_core.retry_stage(uuid, text, text) is
'Brings a failed stage back to pending and counts its attempts from 1 again.
p_actor: who asked for it. Returns true, also for a pending stage, which stays as it is. stage_runs keeps error,
progress and metadata of the failed run. Raises PT409 conflict on a processing, completed or skipped stage, PT404
unknown_document, 22023 unknown_stage.';

create or replace function krai_core.reset_stage(
    p_document_id uuid,
    p_stage_name text,
    p_cascade boolean default false,
    p_force boolean default false,
    p_actor text default null
) returns boolean
language plpgsql volatile
set search_path = ''
as $$
declare
    v_stage_status jsonb := krai_private.lock_document(p_document_id, p_stage_name);
    v_name text;
    v_status text;
    v_changed text[] := array[]::text[];
begin
    for v_name in
        with recursive reached (stage_name) as (
            select p_stage_name
            union
            select p.stage_name from krai_core.stage_prerequisites p
            join reached r on r.stage_name = p.requires
            where p_cascade
        )
        select s.name from krai_core.stages s join reached r on r.stage_name = s.name order by s.position
    loop
        v_status := v_stage_status -> v_name ->> 'status';
        continue when v_status is null or v_status = 'pending';
        if v_status = 'processing' then
            if p_force is not true then
                perform krai_private.raise_conflict('reset', p_document_id, v_name, v_status,
                    'Nothing was changed. Wait until the run ends, or pass p_force => true to take it away '
                    'from its holder.');
            end if;
            update krai_core.stage_runs r
            set status = 'cancelled', finished_at = clock_timestamp(), error = 'reset while it ran'
            where r.document_id = p_document_id and r.open_stage = v_name and r.status = 'running';
        end if;
        perform krai_private.archive_last_run(
            p_document_id, v_name, v_stage_status -> v_name, left(p_actor, 200), true);
        perform krai_private.count_transition(v_name, v_stage_status -> v_name, krai_private.pending_stage());
        v_stage_status := v_stage_status || jsonb_build_object(v_name, krai_private.pending_stage());
        v_changed := v_changed || v_name;
    end loop;
    if v_changed <> '{}' then
        delete from krai_core.stage_runs r
        where r.document_id = p_document_id and r.open_stage = any (v_changed) and r.status = 'ready';
        perform krai_private.write_stage_status(p_document_id, v_stage_status, v_changed);
    end if;
    return true;
end;
$$;
comment on function krai_core.reset_stage(uuid, text, boolean, boolean, text) is
'Brings a stage back to pending from any state, so that it runs again.
p_cascade: also every stage that depends on it, directly or not. p_force: also while it is processing, which raises
lease_lost in the holder. p_actor: who asked for it. Returns true, also for pending stages, which stay as they are.
stage_runs keeps what the stage held. Raises PT409 conflict, changing nothing, if one of the stages is processing and
p_force is not true, PT404 unknown_document, 22023 unknown_stage.';

create or replace function krai_core.retry_failed(
    p_stage_name text default null,
    p_error text default null,
    p_since timestamptz default null,
    p_limit integer default 1000,
    p_dry_run boolean default false,
    p_actor text default null
) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_found record;
    v_runs jsonb := '[]'::jsonb;
    v_more boolean := false;
begin
    perform krai_private.checked_limit(p_limit, 10000);
    if p_stage_name is not null then
        perform krai_private.check_stage(p_stage_name);
    end if;
    for v_found in
        select d.id as document_id, s.name as stage_name, d.stage_status -> s.name ->> 'error' as error
        from krai_core.stages s
        join krai_core.documents d on d.stage_status @> jsonb_build_object(s.name, '{"status": "failed"}'::jsonb)
        where s.enabled and (p_stage_name is null or s.name = p_stage_name)
          and (p_error is null or d.stage_status -> s.name ->> 'error' ilike '%' || p_error || '%')
          and (p_since is null or krai_private.time_or_null(d.stage_status -> s.name ->> 'completed_at') >= p_since)
        order by d.id, s.position
        limit p_limit + 1
    loop
        if jsonb_array_length(v_runs) = p_limit then
            v_more := true;
            exit;
        end if;
        if p_dry_run is not true then
            -- Somebody may have retried the stage, or deleted the document, in the meantime.
            perform from krai_core.documents d where d.id = v_found.document_id for no key update;
            continue when not found
                or krai_private.lock_document(v_found.document_id, v_found.stage_name)
                    -> v_found.stage_name ->> 'status' <> 'failed';
            perform krai_core.retry_stage(v_found.document_id, v_found.stage_name, p_actor);
        end if;
        v_runs := v_runs || jsonb_build_array(to_jsonb(v_found));
    end loop;
    return jsonb_build_object('count', jsonb_array_length(v_runs), 'more', v_more,
        'dry_run', coalesce(p_dry_run, false), 'runs', v_runs);
end;
$$;
comment on function krai_core.retry_failed(text, text, timestamptz, integer, boolean, text) is
'Brings the failed stages that match a filter back to pending, as retry_stage does.
p_stage_name: null for all enabled stages. p_error: part of the error, case-insensitive; % and _ stand for any text
and any character, as in LIKE. p_since: failed at that time or later. p_limit: 1 to 10000. p_dry_run: only reports
what it would do. p_actor: who asked for it. Returns {"count", "more", "dry_run", "runs": [{document_id, stage_name,
error}]}; more: the limit cut the list off. Raises 22023 unknown_stage or invalid_limit.';

create or replace function krai_core.cancel_document(
    p_document_id uuid,
    p_reason text default 'Cancelled',
    p_actor text default null
) returns boolean
language plpgsql volatile
set search_path = ''
as $$
declare
    v_stage_status jsonb := krai_private.lock_document(
        p_document_id, (select s.name from krai_core.stages s order by s.position limit 1));
    v_reason text := case when p_reason ~ '\S' then p_reason else 'Cancelled' end;
    v_now timestamptz := clock_timestamp();
    v_name text;
    v_stage jsonb;
    v_skipped jsonb;
    v_run krai_core.stage_runs;
    v_changed text[] := array[]::text[];
begin
    for v_name in select s.name from krai_core.stages s where s.enabled order by s.position loop
        v_stage := v_stage_status -> v_name;
        continue when v_stage ->> 'status' in ('completed', 'skipped');
        v_run := krai_private.held_run('cancel', p_document_id, v_name, null);
        if v_run.id is null then
            perform krai_private.archive_last_run(p_document_id, v_name, v_stage);
            delete from krai_core.stage_runs r
            where r.document_id = p_document_id and r.open_stage = v_name and r.status = 'ready';
            insert into krai_core.stage_runs (document_id, stage_name, status, finished_at, is_current, error, actor)
            values (p_document_id, v_name, 'cancelled', v_now, true, left(v_reason, 65536), left(p_actor, 200));
        else
            update krai_core.stage_runs r
            set status = 'cancelled', finished_at = v_now, is_current = true,
                error = left(v_reason, 65536), actor = left(p_actor, 200)
            where r.id = v_run.id;
        end if;
        v_skipped := krai_private.closed_stage(
            v_stage, 'skipped', null, krai_private.skip_metadata(v_reason), v_run.started_at, v_now);
        perform krai_private.count_transition(v_name, v_stage, v_skipped);
        v_stage_status := v_stage_status || jsonb_build_object(v_name, v_skipped);
        v_changed := v_changed || v_name;
    end loop;
    if v_changed <> '{}' then
        perform krai_private.write_stage_status(p_document_id, v_stage_status, v_changed);
    end if;
    return true;
end;
$$;
comment on function krai_core.cancel_document(uuid, text, text) is
'Gives a document up: every unfinished stage becomes skipped, with the reason in metadata.reason.
Whoever is working on one learns of it with the next heartbeat or call. p_actor: who asked for it. Returns true, also
if every stage was finished. reset_stage brings a stage back. Raises PT404 unknown_document.';

create or replace function krai_core.set_priority(p_document_id uuid, p_priority integer, p_actor text default null)
returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
    perform krai_private.require_service_role();
    perform from krai_core.documents d where d.id = p_document_id for no key update;
    if not found then
        perform krai_private.raise_unknown_document(p_document_id);
    end if;
    if coalesce(p_priority, 0) = 0 then
        delete from krai_core.document_priorities p where p.document_id = p_document_id;
    else
        insert into krai_core.document_priorities (document_id, priority, changed_at, changed_by)
        values (p_document_id, p_priority, clock_timestamp(), left(p_actor, 200))
        on conflict (document_id) do update
        set priority = excluded.priority, changed_at = excluded.changed_at, changed_by = excluded.changed_by;
    end if;
    update krai_core.stage_runs r set priority = coalesce(p_priority, 0)
    where r.document_id = p_document_id and r.open_stage is not null and r.priority <> coalesce(p_priority, 0);
    return true;
end;
$$;
comment on function krai_core.set_priority(uuid, integer, text) is
'Sets how early the stages of a document are handed out: higher priority first, 0 by default.
Below 0 means after all others. Applies to ready runs and to all that become ready later. p_priority: null means 0.
p_actor: who asked for it. Returns true. Raises PT404 unknown_document.';

create or replace function krai_core.pause_stage(p_stage_name text, p_actor text default null) returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
    perform krai_private.require_service_role();
    perform krai_private.check_stage(p_stage_name);
    update krai_core.stages s set paused = true, changed_at = clock_timestamp(), changed_by = left(p_actor, 200)
    where s.name = p_stage_name and not s.paused;
    return true;
end;
$$;
comment on function krai_core.pause_stage(text, text) is
'Hands out no more runs of a stage until resume_stage; running ones continue.
start_stage still starts it. p_actor: who asked for it. Returns true. Raises 22023 unknown_stage.';

create or replace function krai_core.resume_stage(p_stage_name text, p_actor text default null) returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
    perform krai_private.require_service_role();
    perform krai_private.check_stage(p_stage_name);
    update krai_core.stages s set paused = false, changed_at = clock_timestamp(), changed_by = left(p_actor, 200)
    where s.name = p_stage_name and s.paused;
    return true;
end;
$$;
comment on function krai_core.resume_stage(text, text) is
'Hands out a paused stage again.
p_actor: who asked for it. Returns true. Raises 22023 unknown_stage.';

-- ======== 30_questions_document ========
-- Questions about one document: where it stands, how it got there, and why a stage is not running.
--
--   get_document_progress, get_current_stage, can_start_stage    one value each
--   get_document_status      the payload of the HTTP API
--   get_weighted_progress    one number for a progress bar: unfinished stages count in part, heavy stages count more
--   get_document_timeline    every run of the document
--   explain_stage            why a stage is not running, or who is running it; its helpers age_in_words,
--                            place_in_queue and unfinished_prerequisites
--
-- Rules
--   * Finished = completed or skipped. A disabled stage counts as satisfied and is in no total.
--   * Malformed rows (null, {}, arrays, plain strings, foreign values) are read as repaired_stages would repair them.
--   * Weighted progress never falls until a stage is reset: a stage counts with the furthest that any of its runs got
--     since its last reset. get_document_progress is the plain share of finished stages.
--   * explain_stage is for service_role; the others answer whoever may see the document.
--   * The functions are stable, so that GET /rest/v1/rpc/<name> serves them. Nothing here locks or writes.

create or replace function krai_core.get_document_progress(p_document_id uuid) returns numeric
language plpgsql stable
set search_path = ''
as $$
declare
    v_progress numeric(5, 2);
begin
    select v.progress_percentage into v_progress from krai_core.vw_documents_by_stage v where v.id = p_document_id;
    if not found then
        perform krai_private.raise_unknown_document(p_document_id);
    end if;
    return v_progress;
end;
$$;
comment on function krai_core.get_document_progress(uuid) is
'Finished stages (completed or skipped) as a percentage of the enabled ones: 3 of 8 is 37.50.
Raises PT404 unknown_document.';

create or replace function krai_core.get_current_stage(p_document_id uuid) returns text
language plpgsql stable
set search_path = ''
as $$
declare
    v_stage text;
begin
    select v.current_stage into v_stage from krai_core.vw_documents_by_stage v where v.id = p_document_id;
    if not found then
        perform krai_private.raise_unknown_document(p_document_id);
    end if;
    return v_stage;
end;
$$;
comment on function krai_core.get_current_stage(uuid) is
'The first enabled stage in pipeline order that is not finished; ''completed'' when all are.
Raises PT404 unknown_document.';

create or replace function krai_core.can_start_stage(p_document_id uuid, p_stage_name text) returns boolean
language plpgsql stable
set search_path = ''
as $$
declare
    v_can boolean;
begin
    perform krai_private.check_stage(p_stage_name);
    select coalesce(bool_or(ds.stage_name = p_stage_name and ds.status in ('pending', 'failed')), false)
       and not coalesce(bool_or(ds.status not in ('completed', 'skipped') and ds.stage_name in (
               select p.requires from krai_core.stage_prerequisites p where p.stage_name = p_stage_name)), false)
    into v_can
    from krai_core.vw_document_stages ds
    where ds.document_id = p_document_id
    group by ds.document_id;
    if v_can is null then
        if not exists (select from krai_core.documents d where d.id = p_document_id) then
            perform krai_private.raise_unknown_document(p_document_id);
        end if;
        return false;
    end if;
    return v_can;
end;
$$;
comment on function krai_core.can_start_stage(uuid, text) is
'True when the stage is enabled, pending or failed, and its prerequisites are completed, skipped or disabled.
Ignores pauses and backoff. Raises PT404 unknown_document, 22023 unknown_stage.';

create or replace function krai_core.get_document_status(p_document_id uuid) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
    v_document record;
    v_stage_status jsonb;
    v_times record;
begin
    select v.document_status, v.current_stage, v.progress_percentage, v.stage_status into v_document
    from krai_core.vw_documents_by_stage v where v.id = p_document_id;
    if not found then
        perform krai_private.raise_unknown_document(p_document_id);
    end if;
    v_stage_status := v_document.stage_status;
    if not krai_private.is_sound(v_stage_status) then
        v_stage_status := krai_private.repaired_stages(v_stage_status);
    end if;
    -- iso_time wrote all times in one form, or the repair brought them to it, so that they sort as text.
    select min(v_stage_status -> s.name ->> 'started_at' collate "C") as started_at,
           max(v_stage_status -> s.name ->> 'completed_at' collate "C") as completed_at,
           (array_agg(v_stage_status -> s.name ->> 'error' order by s.position)
               filter (where v_stage_status -> s.name ->> 'status' = 'failed'))[1] as error
    into v_times
    from krai_core.stages s
    where s.enabled;
    return jsonb_build_object(
        'document_id', p_document_id,
        'status', v_document.document_status,
        'current_stage', v_document.current_stage,
        'progress', trim_scale(v_document.progress_percentage),
        'started_at', v_times.started_at,
        'completed_at', case when v_document.current_stage = 'completed' then v_times.completed_at end,
        'error', v_times.error,
        'stage_status', v_stage_status);
end;
$$;
comment on function krai_core.get_document_status(uuid) is
'Everything about one document as one JSON object.
Returns {document_id, status, current_stage, progress, started_at, completed_at, error, stage_status}.
status: pending, processing, completed or failed, derived from the stages. progress: percent, 0 to 100.
started_at: earliest start of a stage, or null. completed_at: latest end once every stage is finished, else null.
error: that of the first failed stage in pipeline order, or null. Times: ISO 8601, UTC.
Raises PT404 unknown_document.';

create or replace function krai_core.get_weighted_progress(p_document_id uuid) returns numeric
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_progress numeric(5, 2);
    v_found boolean;
begin
    select coalesce(sum(s.weight * case when x.state in ('completed', 'skipped') then 100
            else greatest(case when x.state in ('processing', 'failed') then krai_private.progress_of(x.stage) end, (
                select max(case
                    when r.status in ('completed', 'skipped')
                      or r.status = 'cancelled' and r.progress is not null then 100
                    else r.progress end)
                from krai_core.stage_runs r
                where r.document_id = d.id and r.stage_name = s.name and r.id > coalesce((
                    -- Retrying a failed stage keeps the progress that it had made.
                    select max(b.id + 0) from krai_core.stage_runs b
                    where b.document_id = d.id and b.stage_name = s.name
                      and b.reset_at is not null and b.status not in ('failed', 'lost')), 0)), 0) end)
            / nullif(sum(s.weight), 0), 100), count(*) > 0
    into v_progress, v_found
    from krai_core.documents d
    cross join krai_core.stages s
    cross join lateral (
        select d.stage_status -> s.name as stage, krai_private.stage_state(d.stage_status -> s.name) as state) x
    where d.id = p_document_id and s.enabled;
    if not v_found and not exists (select from krai_core.documents d where d.id = p_document_id) then
        perform krai_private.raise_unknown_document(p_document_id);
    end if;
    return v_progress;
end;
$$;
comment on function krai_core.get_weighted_progress(uuid) is
'Percent of a document, 0 to 100, weighted by stages.weight; running and failed stages count in part.
Never falls while no stage is reset and the pipeline does not change.
Raises PT404 unknown_document.';

create or replace function krai_core.get_document_timeline(p_document_id uuid) returns jsonb
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_filename text := (select d.filename from krai_core.documents d where d.id = p_document_id);
    v_hidden jsonb;
begin
    if not exists (select from krai_core.documents d where d.id = p_document_id) then
        perform krai_private.raise_unknown_document(p_document_id);
    end if;
    if pg_catalog.has_column_privilege('krai_core.stage_runs', 'worker', 'select') then
        select jsonb_object_agg(r.id, jsonb_build_object('worker', r.worker, 'actor', r.actor)) into v_hidden
        from krai_core.stage_runs r where r.document_id = p_document_id;
    end if;
    -- `id + 0`: see 10_history.
    return jsonb_build_object('document_id', p_document_id, 'filename', v_filename, 'runs', coalesce((
        select jsonb_agg(jsonb_build_object('stage_name', r.stage_name, 'status', r.status, 'attempt', r.attempt,
            'ready_at', krai_private.iso_time(r.available_at),
            'started_at', krai_private.iso_time(r.started_at),
            'finished_at', krai_private.iso_time(r.finished_at),
            'wait_seconds', case when r.started_at >= r.available_at then
                trim_scale(round(extract(epoch from r.started_at - r.available_at), 6)) end,
            'work_seconds', case when r.status <> 'ready' then
                trim_scale(round(extract(epoch from coalesce(r.finished_at, clock_timestamp()) - r.started_at), 6)) end,
            'progress', coalesce(r.progress, case when r.is_current or r.status = 'running' then
                krai_private.progress_of(d.stage_status -> r.stage_name) end),
            'error', left(r.error, 4000),
            'retry_at', krai_private.iso_time(r.retry_at), 'reset_at', krai_private.iso_time(r.reset_at))
            || coalesce(v_hidden -> r.id::text, '{"worker": null, "actor": null}') order by r.id + 0)
        from krai_core.stage_runs r
        join krai_core.documents d on d.id = r.document_id
        where r.document_id = p_document_id), '[]'));
end;
$$;
comment on function krai_core.get_document_timeline(uuid) is
'All runs of a document in the order in which they were opened.
Returns {document_id, filename, runs: [{stage_name, status, attempt, ready_at, started_at, finished_at, wait_seconds,
work_seconds, progress, error, retry_at, reset_at, worker, actor}]}.
status: as in stage_runs. wait_seconds: from ready to start; null for a run that has not started or was never ready.
work_seconds: from start to end, or to now. Times: ISO 8601, UTC. worker and actor are null except for service_role.
Raises PT404 unknown_document.';

create or replace function krai_private.age_in_words(p_from timestamptz, p_to timestamptz) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
declare
    v_seconds numeric := round(abs(extract(epoch from p_to - p_from)));
begin
    return case
        when v_seconds < 120 then v_seconds || ' s'
        when v_seconds < 7200 then round(v_seconds / 60) || ' min'
        when v_seconds < 172800 then round(v_seconds / 3600) || ' h'
        else round(v_seconds / 86400) || ' days' end;
end;
$$;
comment on function krai_private.age_in_words(timestamptz, timestamptz) is
'The time between two instants in seconds, minutes, hours or days, for people.';

create or replace function krai_private.place_in_queue(p_run krai_core.stage_runs) returns integer
language plpgsql stable
set search_path = ''
as $$
begin
    return 1 + (
        select count(*) from (
            select from krai_core.stage_runs r
            where r.stage_name = p_run.stage_name and r.status = 'ready' and r.available_at <= clock_timestamp()
              and (r.priority > p_run.priority
                   or (r.priority = p_run.priority and (r.available_at, r.id) < (p_run.available_at, p_run.id)))
            limit 1000) ahead);
end;
$$;
comment on function krai_private.place_in_queue(krai_core.stage_runs) is
'Place of a ready run among the due runs of its stage: 1 is next in line. Counted up to 1001.';

create or replace function krai_private.unfinished_prerequisites(p_document_id uuid, p_stage_name text) returns jsonb
language plpgsql stable
set search_path = ''
as $$
begin
    return (
        select coalesce(jsonb_agg(jsonb_build_object('stage', s.name, 'status', x.status) order by s.position), '[]')
        from krai_core.stage_prerequisites p
        join krai_core.stages s on s.name = p.requires and s.enabled
        join krai_core.documents d on d.id = p_document_id
        cross join lateral (select krai_private.stage_state(d.stage_status -> s.name) as status) x
        where p.stage_name = p_stage_name and x.status not in ('completed', 'skipped'));
end;
$$;
comment on function krai_private.unfinished_prerequisites(uuid, text) is
'The unfinished prerequisites of a stage, in pipeline order: [{"stage", "status"}].';

create or replace function krai_core.explain_stage(p_document_id uuid, p_stage_name text) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
    v_stage krai_core.stages := krai_private.stage_named(p_stage_name);
    v_now timestamptz := clock_timestamp();
    v_status text;
    v_stored jsonb;
    v_waits_for jsonb := krai_private.unfinished_prerequisites(p_document_id, p_stage_name);
    v_open krai_core.stage_runs;
    v_last krai_core.stage_runs;
    v_place integer;
    v_reason text;
    v_message text;
begin
    select krai_private.stage_state(d.stage_status -> p_stage_name), d.stage_status -> p_stage_name
    into v_status, v_stored from krai_core.documents d where d.id = p_document_id;
    if not found then
        perform krai_private.raise_unknown_document(p_document_id);
    end if;
    select * into v_open from krai_core.stage_runs where document_id = p_document_id and open_stage = p_stage_name;
    select * into v_last from krai_core.stage_runs
    where document_id = p_document_id and stage_name = p_stage_name and status not in ('ready', 'running')
    order by id + 0 desc limit 1;
    if v_status in ('completed', 'skipped') then
        v_reason := v_status;
        v_message := case v_status when 'completed' then 'Completed'
            else format('Skipped: %s', coalesce(v_stored -> 'metadata' ->> 'reason', 'no reason given')) end;
    elsif v_status = 'processing' and v_open.status = 'running' and v_open.lease_expires_at > v_now then
        v_reason := 'running';
        v_message := format('%s has been running it for %s (attempt %s of %s); the lease expires in %s unless renewed',
            coalesce(v_open.worker, 'An unnamed worker'), krai_private.age_in_words(v_open.started_at, v_now),
            v_open.attempt, v_stage.max_attempts, krai_private.age_in_words(v_now, v_open.lease_expires_at));
    elsif v_status = 'processing' then
        v_reason := 'lease_over';
        v_message := case when v_open.status = 'running' then format(
            '%s sent no heartbeat and its lease expired %s ago; the next worker or reap takes the stage over',
            coalesce(v_open.worker, 'Its worker'), krai_private.age_in_words(v_open.lease_expires_at, v_now))
            else 'Marked as processing, but nobody holds it; start_stage takes it over' end;
    elsif not v_stage.enabled then
        v_reason := 'disabled';
        v_message := 'The stage is disabled and counts as satisfied';
    elsif v_waits_for <> '[]' then
        v_reason := 'waits_for_stages';
        v_message := 'Waiting for ' || (select string_agg(format('%s (%s)', w ->> 'stage', w ->> 'status'), ', ')
            from jsonb_array_elements(v_waits_for) w);
    elsif v_status = 'failed' and v_open.status is distinct from 'ready' then
        v_reason := 'failed';
        v_message := format('Failed%s and will not be retried automatically; call retry_stage to try again. Error: %s',
            coalesce(format(' in attempt %s of %s', v_last.attempt, v_stage.max_attempts), ''),
            coalesce(v_stored ->> 'error', 'none given'));
    elsif v_stage.paused then
        v_reason := 'paused';
        v_message := format('Ready, but the stage was paused%s%s', coalesce(' by ' || v_stage.changed_by, ''),
            coalesce(format(' %s ago', krai_private.age_in_words(v_stage.changed_at, v_now)), ''));
    elsif v_open.available_at > v_now then
        v_reason := 'backoff';
        v_message := format('Attempt %s of %s failed; next retry in %s. Error: %s', v_open.attempt - 1,
            v_stage.max_attempts, krai_private.age_in_words(v_now, v_open.available_at),
            coalesce(v_stored ->> 'error', 'none given'));
    elsif v_open.status = 'ready' then
        v_place := krai_private.place_in_queue(v_open);
        v_reason := 'ready';
        v_message := format('Ready for %s; %s', krai_private.age_in_words(v_open.available_at, v_now), case
            when v_place = 1 then 'next in line' when v_place > 1000 then 'more than 1000 ahead of it in the queue'
            else format('%s ahead of it in the queue', v_place - 1) end);
    else
        v_reason := 'not_queued';
        v_message := 'Not queued yet: fill_ready_runs has not reached the document since the pipeline changed';
    end if;
    return jsonb_build_object('document_id', p_document_id, 'stage_name', p_stage_name, 'status', v_status,
        'reason', v_reason, 'message', v_message || '.', 'waits_for', v_waits_for, 'enabled', v_stage.enabled,
        'paused', v_stage.paused, 'attempt', coalesce(v_open.attempt, v_last.attempt), 'priority', v_open.priority,
        'max_attempts', v_stage.max_attempts, 'place', v_place, 'place_is_bound', coalesce(v_place > 1000, false),
        'next_retry_at', case when v_status = 'failed' and v_open.status = 'ready' then
            krai_private.iso_time(v_open.available_at) end,
        'worker', case when v_open.status = 'running' then v_open.worker end,
        'lease_expires_at', krai_private.iso_time(case when v_open.status = 'running' then v_open.lease_expires_at end),
        'started_at', krai_private.iso_time(case when v_open.status = 'running' then v_open.started_at end),
        'heartbeat_at', krai_private.iso_time(case when v_open.status = 'running' then v_open.heartbeat_at end));
end;
$$;
comment on function krai_core.explain_stage(uuid, text) is
'Why a stage of a document is not running, or who is running it.
Returns {document_id, stage_name, status, reason, message, waits_for, enabled, paused, attempt, max_attempts, priority,
place, place_is_bound, next_retry_at, worker, started_at, heartbeat_at, lease_expires_at}.
reason: completed, skipped, running, lease_over, disabled, waits_for_stages, failed, paused, backoff, ready or
not_queued; message says the same in a sentence. waits_for: [{stage, status}], the unfinished prerequisites.
place: 1 is next in line, counted up to 1001 (place_is_bound), null unless ready. Times: ISO 8601, UTC.
Raises PT404 unknown_document, 22023 unknown_stage.';

-- ======== 31_questions_lists ========
-- Lists of documents: by stage and status, newest first, a page at a time.
--
--   list_documents    the public function
--   list_cursor, newest_runs, upstream_stages, merged_runs, page_of_runs, documents_json    its steps, in this order
--
-- Words: a source is a pair of stage and kind of run whose newest runs one index range yields; merged_runs merges them.
--
-- Rules
--   * A page costs as much as it is long, at any depth and with any number of documents: it is read from the indexes of
--     the runs that the stages stand on. A stage in a given state has one such run (see stage_runs.is_current).
--   * A pending stage has no run of its own unless it is ready. It is found through the stages before it that are
--     ready, running or failed; the document is listed under the newest of those.
--   * The cursor is the time and the run that the previous page ended with. A document that changes meanwhile appears
--     on at most one page.
--   * For service_role. Nothing here locks or writes.

create or replace function krai_private.list_cursor(p_after text, out o_at timestamptz, out o_id bigint)
language plpgsql stable
set search_path = ''
as $$
begin
    o_at := 'infinity';
    o_id := 9223372036854775807;
    if p_after is not null then
        begin
            o_at := split_part(p_after, ' ', 1)::timestamptz;
            o_id := split_part(p_after, ' ', 2)::bigint;
        exception when data_exception then
            perform krai_private.raise_error('invalid_cursor',
                format('%s is no place in a list', quote_literal(left(p_after, 100))),
                '{}', 'Pass what the call before returned as next, or null for the beginning.');
        end;
    end if;
end;
$$;
comment on function krai_private.list_cursor(text) is
'The place in a list after which a page continues; raises 22023 invalid_cursor.';

-- Reads one range of one index per source. Each kind has its own query, because the planner uses a partial index only
-- where its condition is written out. The caller sets the planner options.
create or replace function krai_private.newest_runs(
    p_kind text,
    p_stages text[],
    p_sources integer[],
    p_since timestamptz,
    p_at timestamptz[],
    p_id bigint[],
    p_limit integer,
    p_fingerprint bigint)
returns table (source integer, run_id bigint, document_id uuid, since timestamptz)
language plpgsql stable
set search_path = ''
as $$
begin
    if p_kind = 'completed' then
        return query select u.source, x.* from unnest(p_sources) as u (source) cross join lateral (
            select r.id, r.document_id, r.finished_at from krai_core.stage_runs r
            where r.stage_name = p_stages[u.source] and r.is_current and r.status = 'completed'
              and r.finished_at between p_since and p_at[u.source]
              and (r.finished_at, r.id) < (p_at[u.source], p_id[u.source])
            order by r.finished_at desc, r.id desc limit p_limit) x;
    elsif p_kind = 'skipped' then
        return query select u.source, x.* from unnest(p_sources) as u (source) cross join lateral (
            select r.id, r.document_id, r.finished_at from krai_core.stage_runs r
            where r.stage_name = p_stages[u.source] and r.is_current and r.status in ('skipped', 'cancelled')
              and r.finished_at between p_since and p_at[u.source]
              and (r.finished_at, r.id) < (p_at[u.source], p_id[u.source])
            order by r.finished_at desc, r.id desc limit p_limit) x;
    elsif p_kind = 'failed' and p_fingerprint is not null then
        return query select p_sources[1], r.id, r.document_id, r.finished_at from krai_core.stage_runs r
        where r.error_fingerprint = p_fingerprint and r.is_current and r.status in ('failed', 'lost')
          and r.finished_at between p_since and p_at[1]
          and (r.finished_at, r.id) < (p_at[1], p_id[1])
          and (p_stages[1] is null or r.stage_name = p_stages[1])
        order by r.finished_at desc, r.id desc limit p_limit;
    elsif p_kind = 'failed' and p_stages[1] is null then
        return query select p_sources[1], r.id, r.document_id, r.finished_at from krai_core.stage_runs r
        where r.id > 0 and r.is_current and r.status in ('failed', 'lost') and r.finished_at between p_since and p_at[1]
          and (r.finished_at, r.id) < (p_at[1], p_id[1])
        order by r.finished_at desc, r.id desc limit p_limit;
    elsif p_kind = 'failed' then
        return query select u.source, x.* from unnest(p_sources) as u (source) cross join lateral (
            select r.id, r.document_id, r.finished_at from krai_core.stage_runs r
            where r.stage_name = p_stages[u.source] and r.is_current and r.status in ('failed', 'lost')
              and r.finished_at between p_since and p_at[u.source]
              and (r.finished_at, r.id) < (p_at[u.source], p_id[u.source])
            order by r.finished_at desc, r.id desc limit p_limit) x;
    elsif p_kind = 'processing' then
        return query select u.source, x.* from unnest(p_sources) as u (source) cross join lateral (
            select r.id, r.document_id, r.started_at from krai_core.stage_runs r
            where r.stage_name = p_stages[u.source] and r.status = 'running' and r.started_at >= p_since
              and (r.started_at, r.id) < (p_at[u.source], p_id[u.source])
            order by r.started_at desc, r.id desc limit p_limit) x;
    else
        -- Ready: newest first within each priority level, then all levels of a stage together. A failed stage that
        -- waits for its retry is not pending.
        return query
        with recursive levels (source, priority) as (
            select u.source, (select r.priority from krai_core.stage_runs r
                where r.stage_name = p_stages[u.source] and r.status = 'ready' order by r.priority desc limit 1)
            from unnest(p_sources) as u (source)
            union all
            select l.source, (select r.priority from krai_core.stage_runs r
                where r.stage_name = p_stages[l.source] and r.status = 'ready' and r.priority < l.priority
                order by r.priority desc limit 1)
            from levels l where l.priority is not null
        )
        select y.source, y.id, y.document_id, y.available_at
        from (
            select l.source, x.*,
                row_number() over (partition by l.source order by x.available_at desc, x.id desc) as place
            from levels l
            cross join lateral (
                select r.id, r.document_id, r.available_at from krai_core.stage_runs r
                where r.stage_name = p_stages[l.source] and r.status = 'ready' and r.priority = l.priority
                  and r.available_at >= p_since
                  and (r.available_at, r.id) < (p_at[l.source], p_id[l.source]) and r.retry_at is null
                order by r.stage_name desc, r.priority, r.available_at desc, r.id desc limit p_limit) x
        ) y
        where y.place <= p_limit;
    end if;
end;
$$;
comment on function krai_private.newest_runs(
    text, text[], integer[], timestamptz, timestamptz[], bigint[], integer, bigint) is
'The newest runs of one kind (ready, processing, completed, failed, skipped) of each source.
Source, run, document and since when; from p_since on and behind the place (p_at, p_id), at most p_limit per source.
p_sources: indexes into p_stages, p_at and p_id. For failed runs a single source may have a null stage, which means
any, and p_fingerprint restricts them to one kind of error.';

create or replace function krai_private.upstream_stages(p_stage_name text) returns text[]
language plpgsql stable
set search_path = ''
as $$
begin
    return array(
        with recursive reached (name) as (
            select p_stage_name
            union
            select required.name from reached
            join krai_core.stages s on s.name = reached.name
            cross join unnest(s.waits_for) as required (name)
        )
        select reached.name from reached);
end;
$$;
comment on function krai_private.upstream_stages(text) is
'A stage and every enabled stage that must finish before it.';

create or replace function krai_private.merged_runs(
    p_stages text[], p_kinds text[], p_at timestamptz, p_id bigint, p_limit integer, p_fingerprint bigint,
    out o_runs bigint[], out o_documents uuid[], out o_since timestamptz[], out o_are_newest boolean[])
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_count integer := cardinality(p_stages);
    -- With several sources, read a few runs of each first; the rest only of those that may fill the page.
    v_part integer := case when v_count = 1 then p_limit else least(p_limit, greatest(2 * p_limit / v_count, 8)) end;
    v_open integer[] := array(select generate_series(1, v_count));
    v_at timestamptz[] := array_fill(p_at, array[v_count]);
    v_id bigint[] := array_fill(p_id, array[v_count]);
    v_kind text;
    v_asked integer[];
    v_found record;
    v_sources integer[] := '{}'::integer[];
    v_runs bigint[] := '{}'::bigint[];
    v_documents uuid[] := '{}'::uuid[];
    v_since timestamptz[] := '{}'::timestamptz[];
    -- Runs older than the p_limit newest found so far are not on the page.
    v_floor timestamptz := '-infinity'::timestamptz;
begin
    while v_open <> '{}' loop
        -- Running runs are newer than most others: reading them first raises the floor, which spares the rest.
        foreach v_kind in array array['processing', 'ready', 'completed', 'failed', 'skipped'] loop
            v_asked := array(select source from unnest(v_open) as source where p_kinds[source] = v_kind);
            continue when v_asked = '{}';
            select array_agg(n.source) as sources, array_agg(n.run_id) as runs,
                array_agg(n.document_id) as documents, array_agg(n.since) as since
            into v_found
            from krai_private.newest_runs(v_kind, p_stages, v_asked, v_floor, v_at, v_id, v_part, p_fingerprint) n;
            continue when v_found.runs is null;
            v_sources := v_sources || v_found.sources;
            v_runs := v_runs || v_found.runs;
            v_documents := v_documents || v_found.documents;
            v_since := v_since || v_found.since;
            if v_count > 1 and cardinality(v_runs) >= p_limit then
                v_floor := (select n.at from unnest(v_since) as n (at) order by n.at desc offset p_limit - 1 limit 1);
            end if;
        end loop;
        v_open := '{}';
        exit when v_part = p_limit;
        for v_found in
            select n.source, min(n.since) as at, (array_agg(n.run_id order by n.since, n.run_id))[1] as id
            from unnest(v_sources, v_runs, v_since) as n (source, run_id, since)
            group by n.source having count(*) = v_part and min(n.since) >= v_floor
        loop
            v_open := v_open || v_found.source;
            v_at[v_found.source] := v_found.at;
            v_id[v_found.source] := v_found.id;
        end loop;
        v_part := p_limit;
    end loop;
    -- A document is listed at its newest run on the page; its older runs are marked as such.
    select array_agg(x.run_id order by x.since desc, x.run_id desc),
        array_agg(x.document_id order by x.since desc, x.run_id desc),
        array_agg(x.since order by x.since desc, x.run_id desc),
        array_agg(x.place = 1 order by x.since desc, x.run_id desc)
    into o_runs, o_documents, o_since, o_are_newest
    from (
        select page.*,
            row_number() over (partition by page.document_id order by page.since desc, page.run_id desc) as place
        from (
            select n.* from unnest(v_runs, v_documents, v_since) as n (run_id, document_id, since)
            order by n.since desc, n.run_id desc
            limit p_limit
        ) page
    ) x;
end;
$$;
comment on function krai_private.merged_runs(text[], text[], timestamptz, bigint, integer, bigint) is
'The newest p_limit runs of all sources after a cursor, newest first, and whether each is the newest of its document.
p_stages, p_kinds: the sources, pairwise. p_at, p_id: the cursor. Of a document only runs in this answer are compared.';

create or replace function krai_private.page_of_runs(
    p_stages text[],
    p_kinds text[],
    p_pending text,
    p_at timestamptz,
    p_id bigint,
    p_limit integer,
    p_error text,
    p_fingerprint bigint,
    p_most integer,
    out o_runs bigint[], out o_seen integer, out o_last_at timestamptz, out o_last_id bigint)
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_page record := krai_private.merged_runs(p_stages, p_kinds, p_at, p_id, p_limit, p_fingerprint);
    -- After the first page a document may have been listed already, at a newer run of another stage; within one stage
    -- there is only one run to list it at.
    v_may_be_before boolean := p_at < 'infinity' and (p_stages[1] is null or p_stages[1] <> any (p_stages));
    v_any_closed boolean := p_kinds && array['completed', 'failed', 'skipped'];
    v_listed record;
begin
    -- Already in the order of the page: a sort would keep the scan from ending early.
    select array_agg(x.run_id) as runs, max(x.n) as last into v_listed
    from (
        select c.run_id, c.n
        from unnest(v_page.o_runs, v_page.o_documents, v_page.o_since, v_page.o_are_newest) with ordinality
            as c (run_id, document_id, since, is_newest, n)
        left join lateral (
            select krai_private.stage_state(d.stage_status -> p_pending) as state,
                d.stage_status @? '$.* ? (@.status == "failed")' as any_failed
            from krai_core.documents d where p_pending is not null and d.id = c.document_id offset 0) d on true
        where c.is_newest
          and (p_pending is null or d.state = 'pending')
          and (p_error is null or (
              select r.error ilike '%' || p_error || '%' from krai_core.stage_runs r where r.id = c.run_id))
          and (not v_may_be_before or not exists (
              select from (
                  select * from krai_core.stage_runs r where r.document_id = c.document_id and r.open_stage is not null
                  union all
                  -- Of closed runs only failures keep a document pending, and most documents have none.
                  select * from krai_core.stage_runs r
                  where v_any_closed and (p_pending is null or d.any_failed)
                    and r.document_id = c.document_id and r.is_current
              ) o
              where (o.status = 'running' or o.is_current or o.status = 'ready' and o.retry_at is null)
                and (p_fingerprint is null or o.error_fingerprint = p_fingerprint)
                and (case o.status
                        when 'ready' then o.available_at
                        when 'running' then o.started_at
                        else o.finished_at end, o.id) > (c.since, c.run_id)
                and exists (
                    select from unnest(p_stages, p_kinds) as source (stage_name, kind)
                    where (source.stage_name is null or source.stage_name = o.stage_name)
                      and source.kind = case o.status
                          when 'ready' then 'ready'
                          when 'running' then 'processing'
                          else krai_private.state_of_run(o.status) end)))
        limit p_most
    ) x;
    o_runs := coalesce(v_listed.runs, '{}');
    o_seen := case
        when cardinality(o_runs) = p_most then v_listed.last
        else coalesce(cardinality(v_page.o_runs), 0) end;
    o_last_at := v_page.o_since[o_seen];
    o_last_id := v_page.o_runs[o_seen];
end;
$$;
comment on function krai_private.page_of_runs(
    text[], text[], text, timestamptz, bigint, integer, text, bigint, integer) is
'Of the p_limit runs after a cursor, the first p_most to list; and how many were read, with the place of the last.
p_stages, p_kinds: the sources, as for merged_runs. p_pending: only documents whose stage of that name is pending.';

create or replace function krai_private.documents_json(
    p_runs bigint[],
    p_stage_name text,
    p_with_run boolean,
    p_next text
) returns jsonb
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
begin
    -- One to_jsonb of nested rows: each level of jsonb_build_object and jsonb_agg would copy everything in it again.
    return (select to_jsonb(answer) from (select p_next as next, array(
        select listed from (
            select v.id as document_id, v.filename, v.document_status as status, v.current_stage,
                trim_scale(v.progress_percentage) as progress, coalesce(p_stage_name, r.stage_name) as stage_name,
                case when x.stage ->> 'status' in ('pending', 'processing', 'completed', 'failed', 'skipped')
                    then x.stage
                    else krai_private.repaired_stage(x.stage) end as stage,
                case when p_with_run or r.stage_name = p_stage_name then (
                    select shown from (
                        select r.status, r.attempt, r.worker, left(r.error, 4000) as error,
                            krai_private.iso_time(case r.status
                                when 'ready' then r.available_at
                                when 'running' then r.started_at
                                else r.finished_at end) as since
                    ) shown) end as run
            from unnest(p_runs) with ordinality as asked (run, place)
            join krai_core.stage_runs r on r.id = any (array[asked.run])
            join krai_private.unpacked_documents v on v.id = any (array[r.document_id])
            cross join lateral (select v.whole -> coalesce(p_stage_name, r.stage_name) as stage offset 0) x
            order by asked.place
        ) listed) as documents) answer);
end;
$$;
comment on function krai_private.documents_json(bigint[], text, boolean, text) is
'The answer of list_documents: the documents of these runs, in the given order, and next.
p_stage_name: the stage to show; null: that of the run. p_with_run: show the run, whatever its stage.';

create or replace function krai_core.list_documents(
    p_stage_name text default null,
    p_status text default null,
    p_limit integer default 50,
    p_after text default null,
    p_error text default null,
    p_fingerprint text default null
) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
    v_status text := coalesce(p_status, case when coalesce(p_error, p_fingerprint) is not null then 'failed' end);
    v_stages text[];
    v_kinds text[];
    v_pending text;
    v_place record := krai_private.list_cursor(p_after);
    v_page record;
    v_before text[];
    v_runs bigint[] := '{}'::bigint[];
    v_seen integer := 0;
    v_most integer := krai_private.checked_limit(p_limit, 1000);
    v_size integer;
begin
    if p_stage_name is not null then
        perform krai_private.check_stage(p_stage_name);
    end if;
    if v_status not in ('pending', 'processing', 'completed', 'failed', 'skipped')
        or p_stage_name is null and v_status not in ('processing', 'failed') then
        perform krai_private.raise_error('invalid_status',
            format('%s is no status to list %s by', quote_literal(v_status),
                case when p_stage_name is null then 'documents of any stage' else 'documents' end),
            jsonb_build_object('status', v_status),
            case when p_stage_name is null
                then 'Name a stage; without one, pass failed or processing, or no status for all documents.'
                else 'Pass pending, processing, completed, failed or skipped, or null for all.' end);
    elsif coalesce(p_error, p_fingerprint) is not null and v_status <> 'failed' then
        perform krai_private.raise_error('invalid_status',
            format('an error is asked for, and %s stages have none', v_status),
            jsonb_build_object('status', v_status), 'Pass failed, or no status.');
    elsif p_fingerprint !~ '^-?\d{1,19}$'
        or p_fingerprint::numeric not between -9223372036854775808 and 9223372036854775807 then
        perform krai_private.raise_error('invalid_fingerprint',
            format('%s is no fingerprint', quote_literal(left(p_fingerprint, 100))),
            '{}', 'Pass that of a group of get_failures.');
    end if;
    if v_status = 'pending' then
        v_pending := p_stage_name;
        v_before := krai_private.upstream_stages(p_stage_name);
    end if;
    -- All documents: each has a run of the first root of the pipeline, which waits for no other stage.
    select array_agg(s.name order by s.position), array_agg(kind.name order by s.position) into v_stages, v_kinds
    from krai_core.stages s
    cross join unnest(case
        when v_status = 'pending' and s.name = p_stage_name then array['ready']
        when v_status = 'pending' then array['ready', 'processing', 'failed']
        when v_status is null then array['ready', 'processing', 'completed', 'failed', 'skipped']
        else array[v_status] end) as kind (name)
    where case
        when v_status = 'pending' then s.name = any (v_before)
        when v_status is null then s.name = (
            select root.name from krai_core.stages root
            where root.enabled and root.waits_for = '{}' order by root.position limit 1)
        else s.enabled and p_stage_name is null or s.name = p_stage_name end;
    if p_stage_name is null and v_status = 'failed' then
        v_stages := array[null]::text[];
        v_kinds := array['failed'];
    end if;
    -- Over-fetch: duplicates of a document are dropped below, and few failures may contain p_error.
    v_size := least(case
        when p_error is not null then v_most * 4
        when v_stages[1] <> any (v_stages) then v_most * 3 / 2
        else v_most end, 1000);
    while cardinality(v_runs) < v_most and v_seen < 2000 loop
        v_page := krai_private.page_of_runs(v_stages, v_kinds, v_pending, v_place.o_at, v_place.o_id, v_size,
            p_error, p_fingerprint::bigint, v_most - cardinality(v_runs));
        exit when v_page.o_seen = 0;
        v_seen := v_seen + v_page.o_seen;
        v_runs := v_runs || v_page.o_runs;
        v_place.o_at := v_page.o_last_at;
        v_place.o_id := v_page.o_last_id;
        exit when v_page.o_seen < v_size;
        v_size := least(v_size * case when p_error is not null then 1 else 3 end, 1000);
    end loop;
    return krai_private.documents_json(v_runs, p_stage_name, p_stage_name is null,
        case when cardinality(v_runs) = v_most or v_seen >= 2000 then
            krai_private.iso_time(v_place.o_at) || ' ' || v_place.o_id end);
end;
$$;
comment on function krai_core.list_documents(text, text, integer, text, text, text) is
'Documents by stage and status, newest first, a page at a time.
{"documents": [{document_id, filename, status, current_stage, progress, stage_name, stage, run}], "next": text or null}.
Newest by when the stage entered the status; a pending one by when the newest of the stages before it became ready,
started or failed. stage: the seven keys of the stage. run: {status, attempt, worker, error, since} of the run that the
stage stands on, null where it has none. A search for a rare error ends after 2,000 runs, with a short page and a next.
p_stage_name: null with failed or processing means any stage, each document once; null without a status, all documents.
p_status: pending, processing, completed, failed or skipped; null: any. p_limit: 1 to 1000.
p_after: the next of the previous page. p_error: part of the error text, case-insensitive; % and _ as in LIKE.
p_fingerprint: of a group of get_failures.
Raises 22023 unknown_stage, invalid_status, invalid_limit, invalid_cursor or invalid_fingerprint.';

-- ======== 32_questions_statistics ========
-- Statistics of the stages, and the durations that estimates are made from.
--
--   get_stage_statistics     one JSON object per stage: counts, durations, waits, throughput
--   stage_statistics         the rows of vw_stage_statistics (views: 50_questions_views)
--   histograms, quantile_us, remaining_us    durations by bucket, for these and for the estimates
--   flow_since, oldest_ready
--
-- Rules
--   * Nothing here reads documents: every metric is a sum that the writers keep (stage_counters, stage_flow,
--     stage_deltas) or the end of an index. The cost does not grow with the number of documents.
--   * Pending = documents minus all other states. Disabled stages are not shown.
--   * Quantiles are interpolated within a bucket of 19 % width.
--   * For service_role: others get 42501, neither zeros nor the sums of other tenants.
--   * Nothing here locks or writes.

create or replace function krai_private.histograms(p_stages text[] default null)
returns table (stage_name text, timed double precision, buckets integer[], upto double precision[])
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
begin
    return query
    select x.stage_name, max(x.upto), array_agg(x.bucket order by x.bucket), array_agg(x.upto order by x.bucket)
    from (
        -- Reads only what it needs of stage_sums, as floating point: exact for such counts, and summed in place where
        -- numeric allocates a new value for each sum.
        select k.stage_name, k.bucket::integer as bucket,
            sum(sum(k.timed)) over (partition by k.stage_name order by k.bucket) as upto
        from (
            select c.stage_name, c.bucket, c.timed::double precision as timed from krai_core.stage_counters c
            where c.bucket >= 0 and (p_stages is null or c.stage_name = any (p_stages))
            union all
            select d.stage_name, d.bucket, d.timed from krai_core.stage_deltas d
            where d.timed <> 0 and d.bucket >= 0 and (p_stages is null or d.stage_name = any (p_stages))
        ) k
        group by k.stage_name, k.bucket having sum(k.timed) > 0
    ) x
    group by x.stage_name;
end;
$$;
comment on function krai_private.histograms(text[]) is
'Histograms of the durations of stages, null for all.
Per stage: how many durations there are, the non-empty buckets, and the cumulative count up to the end of each.';

-- Here and below bucket_bounds() is a constant of the expression: each call would copy a variable.
create or replace function krai_private.quantile_us(
    p_buckets integer[],
    p_upto double precision[],
    p_rank double precision
) returns double precision
language plpgsql immutable parallel safe
set search_path = ''
as $$
declare
    -- A rank that equals the cumulative count of a bucket is the end of that bucket, not the start of the next.
    v_place integer := least(width_bucket(p_rank - 0.000001, p_upto) + 1, cardinality(p_upto));
    v_before double precision := case v_place when 1 then 0 else p_upto[v_place - 1] end;
    v_share double precision := least(greatest((p_rank - v_before) / (p_upto[v_place] - v_before), 0), 1);
    v_bucket integer := p_buckets[v_place];
begin
    return case
        when v_bucket = 0 then 1000 * v_share
        when v_bucket >= 141 then (krai_private.bucket_bounds())[141]
        else (krai_private.bucket_bounds())[v_bucket] * 1.189207115 ^ v_share end;
end;
$$;
comment on function krai_private.quantile_us(integer[], double precision[], double precision) is
'The duration in microseconds that p_rank durations of a histogram stay below.';

create or replace function krai_private.remaining_us(
    p_buckets integer[],
    p_upto double precision[],
    p_elapsed_us double precision,
    out o_p50 double precision,
    out o_p90 double precision)
language plpgsql immutable parallel safe
set search_path = ''
as $$
declare
    v_total double precision := p_upto[cardinality(p_upto)];
    v_bucket integer := width_bucket(p_elapsed_us::bigint, krai_private.bucket_bounds());
    v_place integer := width_bucket(v_bucket, p_buckets);
    v_before double precision := case when v_place < 2 then 0 else p_upto[v_place - 1] end;
    v_passed double precision;
begin
    -- How many were shorter than p_elapsed_us: all in the buckets below its bucket, and a share of those in it.
    v_passed := case
        when v_place = 0 then 0
        when p_buckets[v_place] < v_bucket then p_upto[v_place]
        when v_bucket = 0 then v_before + (p_upto[v_place] - v_before) * p_elapsed_us / 1000
        when v_bucket >= 141 then v_before
        else v_before + (p_upto[v_place] - v_before)
            * least(ln(p_elapsed_us / (krai_private.bucket_bounds())[v_bucket]) / ln(1.189207115), 1) end;
    if v_total - v_passed > 0.5 or p_elapsed_us <= 0 then
        o_p50 := greatest(
            krai_private.quantile_us(p_buckets, p_upto, v_passed + (v_total - v_passed) * 0.5) - p_elapsed_us, 0);
        o_p90 := greatest(
            krai_private.quantile_us(p_buckets, p_upto, v_passed + (v_total - v_passed) * 0.9) - p_elapsed_us, 0);
    end if;
end;
$$;
comment on function krai_private.remaining_us(integer[], double precision[], double precision) is
'What is left of a run after p_elapsed_us, in microseconds: median and 90 % quantile of the durations that were longer.
Null when none was.';

create or replace function krai_private.flow_since(p_since timestamptz)
returns table (
    stage_name text,
    arrived numeric,
    started numeric,
    retried numeric,
    completed numeric,
    failed numeric,
    skipped numeric,
    waited numeric,
    wait_us numeric,
    work_us numeric,
    first_hour timestamptz)
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
begin
    return query
    select x.stage_name, sum(x.arrived), sum(x.started), sum(x.retried),
        sum(x.completed), sum(x.failed), sum(x.skipped), sum(x.waited), sum(x.wait_us), sum(x.work_us), min(x.hour)
    from (
        select f.stage_name, f.hour, f.arrived, f.started, f.retried, f.completed, f.failed, f.skipped,
            f.waited, f.wait_us, f.work_us
        from (select s.name from krai_core.stages s union all select '') known
        -- Per stage, so that each is a range of the primary key, however many years there are.
        cross join lateral (
            select * from krai_core.stage_flow f where f.stage_name = known.name and f.hour >= p_since offset 0) f
        union all
        select d.stage_name, d.hour, d.arrived, d.started, d.retried, d.runs_completed, d.runs_failed, d.runs_skipped,
            d.waited, d.wait_us, d.work_us
        from krai_core.stage_deltas d
        where d.hour >= p_since and d.arrived + d.started + d.runs_completed + d.runs_failed + d.runs_skipped > 0
    ) x
    group by x.stage_name;
end;
$$;
comment on function krai_private.flow_since(timestamptz) is
'What arrived, started and ended per stage in the hours from p_since on, and the first of these hours with any activity.
The empty stage name counts the documents that were inserted.';

create or replace function krai_private.oldest_ready(p_stage_name text) returns timestamptz
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_level bigint;
    v_lowest bigint;
    v_first timestamptz;
    v_oldest timestamptz;
begin
    -- Both ends of the queue in one statement: nearly always it has only one priority level.
    select first.priority, first.available_at, (
        select r.priority from krai_core.stage_runs r
        where r.stage_name = p_stage_name and r.status = 'ready' order by r.priority limit 1)
    into v_level, v_oldest, v_lowest
    from krai_core.stage_runs first
    where first.stage_name = p_stage_name and first.status = 'ready'
    order by first.priority desc, first.available_at, first.id limit 1;
    -- Then the first run of each lower level; beyond a hundred levels the answer is the oldest of those.
    for i in 2..100 loop
        exit when v_level is null or v_level <= v_lowest;
        select r.priority, r.available_at into v_level, v_first from krai_core.stage_runs r
        where r.stage_name = p_stage_name and r.status = 'ready' and r.priority < v_level
        order by r.priority desc, r.available_at, r.id limit 1;
        v_oldest := least(v_oldest, v_first);
    end loop;
    return case when v_oldest <= clock_timestamp() then v_oldest end;
end;
$$;
comment on function krai_private.oldest_ready(text) is
'When the longest waiting ready run of a stage became due; null when none is due.';

create or replace function krai_private.stage_statistics()
returns table (
    stage_name text,
    pending_count bigint,
    processing_count bigint,
    completed_count bigint,
    failed_count bigint,
    skipped_count bigint,
    avg_duration_seconds numeric,
    timed_count bigint,
    p50_duration_seconds numeric,
    p95_duration_seconds numeric,
    p99_duration_seconds numeric,
    avg_wait_seconds numeric,
    throughput_per_hour numeric,
    oldest_waiting_at timestamptz,
    workers_busy bigint)
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_recent timestamptz := date_trunc('hour', clock_timestamp(), 'UTC') - interval '1 hour';
    v_day timestamptz := v_recent - interval '23 hours';
begin
    return query
    with parts as materialized (
        -- Reads the deltas once for everything. Counts as floating point: see histograms.
        select k.stage_name, k.bucket, sum(k.documents) as documents, sum(k.processing) as processing,
            sum(k.completed) as completed, sum(k.failed) as failed, sum(k.skipped) as skipped, sum(k.timed) as timed,
            sum(k.duration_us) as duration_us, sum(k.waited) as waited, sum(k.wait_us) as wait_us,
            sum(k.recent) as recent
        from (
            select c.stage_name, c.bucket::integer as bucket, c.documents::double precision as documents,
                c.processing::double precision as processing, c.completed::double precision as completed,
                c.failed::double precision as failed, c.skipped::double precision as skipped,
                c.timed::double precision as timed, c.duration_us, 0::double precision as waited,
                0::double precision as wait_us, 0::double precision as recent
            from krai_core.stage_counters c
            union all
            select d.stage_name, d.bucket, d.documents, d.processing, d.completed, d.failed, d.skipped,
                d.timed, d.duration_us,
                case when d.hour >= v_day then d.waited else 0 end, case when d.hour >= v_day then d.wait_us else 0 end,
                case when d.hour >= v_recent then d.runs_completed else 0 end
            from krai_core.stage_deltas d
            union all
            select f.stage_name, -1, 0, 0, 0, 0, 0, 0, 0, f.waited, f.wait_us,
                case when f.hour >= v_recent then f.completed else 0 end
            from krai_core.stages known
            -- Per stage, so that each is a range of the primary key, however many years there are.
            cross join lateral (
                select * from krai_core.stage_flow f where f.stage_name = known.name and f.hour >= v_day offset 0) f
        ) k
        group by k.stage_name, k.bucket
    ),
    sums as materialized (
        select p.stage_name, sum(p.documents) as documents, sum(p.processing) as processing,
            sum(p.completed) as completed, sum(p.failed) as failed, sum(p.skipped) as skipped, sum(p.timed) as timed,
            sum(p.duration_us) as duration_us, sum(p.waited) as waited, sum(p.wait_us)::numeric as wait_us,
            sum(p.recent)::numeric as recent,
            array_agg(p.bucket order by p.bucket) filter (where p.timed > 0) as buckets,
            array_agg(p.upto order by p.bucket) filter (where p.timed > 0) as upto
        from (select p.*, sum(p.timed) over (partition by p.stage_name order by p.bucket) as upto from parts p) p
        group by p.stage_name
    ),
    busy as materialized (
        select x.stage_name, count(*) as workers
        from (
            select r.stage_name from krai_core.stage_runs r
            where r.status = 'running' and r.lease_expires_at > v_now
            group by r.stage_name, coalesce(r.worker, r.id::text)
        ) x
        group by x.stage_name
    )
    select s.name,
        (coalesce(whole.documents, 0) - coalesce(k.processing + k.completed + k.failed + k.skipped, 0))::bigint,
        coalesce(k.processing, 0)::bigint, coalesce(k.completed, 0)::bigint, coalesce(k.failed, 0)::bigint,
        coalesce(k.skipped, 0)::bigint,
        k.duration_us / nullif(k.timed, 0)::bigint / 1000000, coalesce(k.timed, 0)::bigint,
        round((krai_private.quantile_us(k.buckets, k.upto, k.timed * 0.5) / 1e6)::numeric, 6),
        round((krai_private.quantile_us(k.buckets, k.upto, k.timed * 0.95) / 1e6)::numeric, 6),
        round((krai_private.quantile_us(k.buckets, k.upto, k.timed * 0.99) / 1e6)::numeric, 6),
        round(k.wait_us / nullif(k.waited, 0)::bigint / 1000000, 6),
        round(coalesce(k.recent, 0) * 3600 / extract(epoch from v_now - v_recent), 3),
        krai_private.oldest_ready(s.name), coalesce(b.workers, 0)
    from krai_core.stages s
    left join sums whole on whole.stage_name = ''
    left join sums k on k.stage_name = s.name
    left join busy b on b.stage_name = s.name
    where s.enabled
    order by s.position;
end;
$$;
comment on function krai_private.stage_statistics() is
'The rows of vw_stage_statistics; a function, so that its plan is kept for the session.';

create or replace function krai_core.get_stage_statistics() returns jsonb
language plpgsql stable
set search_path = ''
as $$
begin
    return jsonb_build_object(
        'timestamp', krai_private.iso_time(clock_timestamp()),
        'stages', coalesce((select jsonb_object_agg(v.stage_name, jsonb_build_object(
            'pending', v.pending_count, 'processing', v.processing_count, 'completed', v.completed_count,
            'failed', v.failed_count, 'skipped', v.skipped_count,
            'avg_duration', trim_scale(round(v.avg_duration_seconds, 6)), 'timed', v.timed_count,
            'p50_duration', trim_scale(v.p50_duration_seconds), 'p95_duration', trim_scale(v.p95_duration_seconds),
            'p99_duration', trim_scale(v.p99_duration_seconds), 'avg_wait', trim_scale(v.avg_wait_seconds),
            'throughput_per_hour', trim_scale(v.throughput_per_hour),
            'oldest_waiting_at', krai_private.iso_time(v.oldest_waiting_at),
            'oldest_waiting', trim_scale(v.oldest_waiting_seconds), 'workers_busy', v.workers_busy))
            from krai_core.vw_stage_statistics v), '{}'));
end;
$$;
comment on function krai_core.get_stage_statistics() is
'Statistics of all enabled stages as one JSON object.
Returns {timestamp, stages: {"<stage>": {pending, processing, completed, failed, skipped, avg_duration, timed,
p50_duration, p95_duration, p99_duration, avg_wait, throughput_per_hour, oldest_waiting_at, oldest_waiting,
workers_busy}}}. Counts of documents; durations and waits in seconds, null where nothing was timed; each as the column
of vw_stage_statistics says. Times: ISO 8601, UTC. For service_role: others get 42501.';

-- ======== 33_questions_work ========
-- Questions about work: what runs, what is stuck, what failed, and what is ready.
--
--   running_stages             the rows of vw_running_stages (views: 50_questions_views)
--   get_workers                who is running what
--   get_stuck_stages           stalled, slow and starved, told apart
--   get_failures               failed stages, grouped by kind of error; failure_kinds finds the groups
--   get_documents_ready_for    the queue of a stage, in order, without claiming
--
-- Rules
--   * Stalled: the lease has expired, so the worker is dead or cut off. Slow: alive, and running longer than 95 % of
--     the completed runs of its stage, of which there are at least five. Starved: ready, and nobody claims.
--   * The remaining time of a running stage is extrapolated from its progress, or from units in its metadata
--     (<x>_processed and total_<x>); else from the durations of its stage that exceed the elapsed time. Below five
--     durations it is unknown.
--   * For service_role. Nothing here locks or writes.

create or replace function krai_private.running_stages(p_document_id uuid default null, p_stuck boolean default false)
returns table (
    document_id uuid,
    filename text,
    stage_name text,
    worker text,
    attempt integer,
    started_at timestamptz,
    running_seconds numeric,
    heartbeat_at timestamptz,
    lease_expires_at timestamptz,
    progress numeric,
    metadata jsonb,
    condition text,
    remaining_p50_seconds numeric,
    remaining_p90_seconds numeric,
    estimated_from text)
language plpgsql stable
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
    return query
    with histograms as materialized (
        select h.*, krai_private.quantile_us(h.buckets, h.upto, h.timed * 0.95) as p95,
            case when h.timed >= 5 then
                krai_private.quantile_us(h.buckets, h.upto, h.timed * 0.9)
                / greatest(krai_private.quantile_us(h.buckets, h.upto, h.timed * 0.5), 1) end as spread
        from krai_private.histograms(case when p_document_id is not null then array(
            select r.stage_name from krai_core.stage_runs r
            where r.document_id = p_document_id and r.open_stage is not null and r.status = 'running') end) h
    ),
    running as (
        -- Two queries for two indexes: all running runs (stage_name > '' makes the planner take it), or a document's.
        select r.* from krai_core.stage_runs r
        where p_document_id is null and r.status = 'running' and r.stage_name > ''
        union all
        select r.* from krai_core.stage_runs r
        where r.document_id = p_document_id and r.open_stage is not null and r.status = 'running'
    )
    -- Seconds from whole microseconds: a floating point number becomes numeric by way of text.
    select r.document_id, d.filename::text, r.stage_name, r.worker, r.attempt, r.started_at,
        r.elapsed_us::bigint * 0.000001, r.heartbeat_at, r.lease_expires_at,
        case when jsonb_typeof(x.progress) = 'number' then (x.progress #>> '{}')::numeric end, x.metadata,
        case
            when r.lease_expires_at <= v_now then 'stalled'
            when r.timed >= 5 and r.elapsed_us > r.p95 then 'slow'
            else 'working' end,
        -- p50: at its own rate so far. p90: more, by the spread of the stage, which matters less the more is done.
        coalesce(r.elapsed_us / y.share * (1 - y.share), z.o_p50)::bigint * 0.000001,
        coalesce(
            r.elapsed_us / y.share * (1 - y.share) * (1 + (coalesce(r.spread, 2) - 1) * (1 - y.share)),
            z.o_p90)::bigint * 0.000001,
        case
            when y.share is not null and x.by_progress then 'progress'
            when y.share is not null then 'units'
            when z.o_p50 is not null then 'durations'
            else 'unknown' end
    from (
        -- Filtered before the documents are read.
        select r.document_id, r.stage_name, r.worker, r.attempt, r.started_at, r.heartbeat_at, r.lease_expires_at,
            e.elapsed_us,
            h.timed, h.p95, h.spread, h.buckets, h.upto
        from running r
        cross join lateral (
            select greatest(extract(epoch from v_now - r.started_at) * 1e6, 1)::double precision as elapsed_us
            offset 0) e
        left join histograms h on h.stage_name = r.stage_name
        where not p_stuck or r.lease_expires_at <= v_now or h.timed >= 5 and e.elapsed_us > h.p95
        offset 0
    ) r
    join krai_core.documents d on d.id = any (array[r.document_id])
    cross join lateral (
        -- Detoasted once.
        select s.stage -> 'metadata' as metadata, s.stage -> 'progress' as progress,
            jsonb_typeof(s.stage -> 'progress') = 'number'
                and s.stage -> 'progress' > '0' and s.stage -> 'progress' <= '100' as by_progress
        from (select d.stage_status -> r.stage_name as stage offset 0) s offset 0) x
    cross join lateral (
        select case when x.by_progress then (x.progress #>> '{}')::double precision / 100 when x.metadata <> '{}' then (
            -- Units as most stages report them: <x>_processed of total_<x>.
            select (done.value #>> '{}')::double precision / (total.value #>> '{}')::double precision
            from jsonb_each(case when jsonb_typeof(x.metadata) = 'object' then x.metadata else '{}' end)
                as done (key, value)
            cross join lateral (select x.metadata -> ('total_' || left(done.key, -10)) as value offset 0) total
            where right(done.key, 10) = '_processed' and length(done.key) > 10
              and jsonb_typeof(done.value) = 'number' and jsonb_typeof(total.value) = 'number'
              and done.value > '0' and total.value >= done.value and total.value < '1e15'
            order by done.key limit 1) end as share offset 0) y
    left join lateral (
        select m.o_p50, m.o_p90 from krai_private.remaining_us(r.buckets, r.upto, r.elapsed_us) m
        where y.share is null and r.timed >= 5 offset 0) z on true;
end;
$$;
comment on function krai_private.running_stages(uuid, boolean) is
'The rows of vw_running_stages, of one document or (null) of all. p_stuck: only those that are stalled or slow.';

create or replace function krai_core.get_workers() returns jsonb
language plpgsql stable
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
    return coalesce((
        select jsonb_agg(jsonb_build_object(
            'worker', w.worker, 'running', w.running, 'stalled', w.stalled, 'stages', w.stages,
            'oldest_started_at', krai_private.iso_time(w.oldest),
            'last_heartbeat_at', krai_private.iso_time(w.last)) order by w.worker nulls last)
        from (
            select x.worker, sum(x.running) as running, sum(x.stalled) as stalled,
                jsonb_object_agg(x.stage_name, x.running) as stages, min(x.oldest) as oldest, max(x.last) as last
            from (
                select r.worker, r.stage_name, count(*) as running,
                    count(*) filter (where r.lease_expires_at <= v_now) as stalled,
                    min(r.started_at) as oldest, max(r.heartbeat_at) as last
                from krai_core.stage_runs r where r.status = 'running' group by r.worker, r.stage_name
            ) x
            group by x.worker
        ) w), '[]');
end;
$$;
comment on function krai_core.get_workers() is
'Who is running what, ordered by name of the worker.
Returns [{worker, running, stalled, stages: {"<stage>": n}, oldest_started_at, last_heartbeat_at}].
worker: null for runs whose worker gave no name. running: runs that it holds. stalled: those whose lease has expired.
For the documents see vw_running_stages. Times: ISO 8601, UTC. For service_role: others get 42501.';

create or replace function krai_core.get_stuck_stages(
    p_limit integer default 100,
    p_starved_after_seconds numeric default 60
) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_starved jsonb;
begin
    perform krai_private.checked_limit(p_limit, 1000);
    if p_starved_after_seconds is null or not p_starved_after_seconds between 0 and 1e9 then
        perform krai_private.raise_error('invalid_age',
            format('%s is no number of seconds to wait', coalesce(p_starved_after_seconds::text, 'null')),
            '{}', 'Pass 0 or more.');
    end if;
    select coalesce(jsonb_agg(jsonb_build_object(
        'stage_name', x.name, 'oldest_ready_at', krai_private.iso_time(x.oldest),
        'waiting_seconds', trim_scale(round(extract(epoch from v_now - x.oldest), 6)),
        'is_paused', x.paused) order by x.position), '[]')
    into v_starved
    from (
        select s.name, s.position, s.paused, krai_private.oldest_ready(s.name) as oldest
        from krai_core.stages s where s.enabled offset 0
    ) x
    where x.oldest <= v_now - make_interval(secs => p_starved_after_seconds::double precision)
      -- A worker with a live run of the stage will come back for more.
      and not exists (
          select from krai_core.stage_runs r
          where r.stage_name = x.name and r.status = 'running' and r.lease_expires_at > v_now);
    -- One to_jsonb of rows: see documents_json.
    return (
        with stuck as materialized (
            select * from krai_private.running_stages(null, true)
        )
        select to_jsonb(answer) from (select
            array(
                select x from (
                    select * from stuck r where r.condition = 'stalled' order by r.lease_expires_at limit p_limit) x
            ) as stalled,
            array(
                select x from (
                    select * from stuck r where r.condition = 'slow' order by r.started_at limit p_limit) x
            ) as slow,
            v_starved as starved) answer);
end;
$$;
comment on function krai_core.get_stuck_stages(integer, numeric) is
'Stuck stages by kind: {"stalled": [...], "slow": [...], "starved": [...]}.
stalled: running with an expired lease, the longest expired first. slow: alive, but running longer than 95 % of the
completed runs of the stage, the longest running first. Both as rows of vw_running_stages, at most p_limit each.
starved: {stage_name, oldest_ready_at, waiting_seconds, is_paused} of stages that have had a due run for
p_starved_after_seconds while nobody runs any. For service_role: others get 42501.
p_limit: 1 to 1000. p_starved_after_seconds: 0 or more. Raises 22023 invalid_limit or invalid_age.';

create or replace function krai_private.failure_kinds(p_stage_name text, p_since timestamptz)
returns table (count bigint, first_at timestamptz, last_at timestamptz, max_attempt integer, sample_id bigint)
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
begin
    if p_stage_name is null then
        -- Grouped by one number for stage and kind, which is in the index: comparing names takes longer than reading
        -- the rows.
        return query
        select count(*), min(n.finished_at), max(n.finished_at), max(n.attempt), max(n.id)
        from (
            select coalesce(r.error_fingerprint, 0) # hashtextextended(r.stage_name, 0) as kind,
                r.finished_at, r.attempt, r.id
            from krai_core.stage_runs r
            where r.is_current and r.status in ('failed', 'lost') and r.id > 0 and r.finished_at >= p_since
            order by r.finished_at desc limit 10000
        ) n
        group by n.kind;
    else
        return query
        select count(*), min(n.finished_at), max(n.finished_at), max(n.attempt), max(n.id)
        from (
            select r.error_fingerprint as kind, r.finished_at, r.attempt, r.id
            from krai_core.stage_runs r
            where r.stage_name = p_stage_name and r.is_current and r.status in ('failed', 'lost')
              and r.finished_at >= p_since
            order by r.finished_at desc limit 10000
        ) n
        group by n.kind;
    end if;
end;
$$;
comment on function krai_private.failure_kinds(text, timestamptz) is
'The newest 10,000 failures since p_since, grouped by stage and kind of error; p_stage_name: null for all.
Per group: how many, first and last, the highest attempt, and the run of the newest.';

create or replace function krai_core.get_failures(
    p_stage_name text default null,
    p_since timestamptz default null,
    p_limit integer default 50
) returns jsonb
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
begin
    perform krai_private.checked_limit(p_limit, 1000);
    if p_stage_name is not null then
        perform krai_private.check_stage(p_stage_name);
    end if;
    return (
        with kinds as materialized (
            select * from krai_private.failure_kinds(p_stage_name, coalesce(p_since, '-infinity'))
        ),
        groups as materialized (
            select k.*, r.stage_name, r.error_fingerprint, r.document_id, r.attempt, r.error,
                -- The pattern of a kind of error is computed from one of its errors.
                row_number() over (partition by r.error_fingerprint) = 1 as is_for_kind
            from (select * from kinds k order by k.count desc, k.last_at desc limit p_limit) k
            join krai_core.stage_runs r on r.id = any (array[k.sample_id])
        ),
        folded as materialized (
            select g.error_fingerprint, krai_private.error_pattern(g.error) as error from groups g where g.is_for_kind
        )
        -- One to_jsonb of rows: see documents_json.
        select to_jsonb(answer) from (select array(
            select shown from (
                select g.stage_name, g.error_fingerprint::text as fingerprint, g.count,
                    krai_private.iso_time(g.first_at) as first_at, krai_private.iso_time(g.last_at) as last_at,
                    g.max_attempt, coalesce(f.error, krai_private.error_pattern(g.error)) as error,
                    (select example from (
                        select g.document_id, g.attempt, krai_private.short_error(g.error) as error) example) as sample
                from groups g left join folded f on f.error_fingerprint = g.error_fingerprint
                order by g.count desc, g.last_at desc) shown) as groups,
            (select coalesce(sum(k.count), 0) from kinds k) as looked_at,
            (select coalesce(sum(k.count), 0) < 10000 from kinds k) as is_all) answer);
end;
$$;
comment on function krai_core.get_failures(text, timestamptz, integer) is
'Failed stages grouped by the kind of their error, the most frequent first.
{"groups": [{stage_name, fingerprint, count, first_at, last_at, max_attempt, error, sample}], "looked_at", "is_all"}.
Counts the newest 10,000 of the stages that are failed now, including those that wait for a retry; looked_at: how many
that were; is_all: there are no more. error: without its ids, digits and paths; sample: {document_id, attempt, error}
of the newest. list_documents lists the documents of a fingerprint. Times: ISO 8601, UTC. For service_role.
p_stage_name: null for all. p_since: failed then or later. p_limit: groups, 1 to 1000.
Raises 22023 unknown_stage or invalid_limit.';

create or replace function krai_core.get_documents_ready_for(
    p_stage_name text,
    p_limit integer default 100,
    p_after text default null
) returns jsonb
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_stage krai_core.stages := krai_private.stage_named(p_stage_name);
    v_now timestamptz := clock_timestamp();
    v_after text[] := string_to_array(p_after, ' ');
    v_priority bigint := 2147483648;
    v_available_at timestamptz := 'infinity'::timestamptz;
    v_id bigint := 0;
    v_answer jsonb;
begin
    perform krai_private.checked_limit(p_limit, 1000);
    if p_after is not null then
        begin
            v_priority := v_after[1]::integer;
            v_available_at := v_after[2]::timestamptz;
            v_id := v_after[3]::bigint;
        exception when data_exception then
            v_id := null;
        end;
        if v_priority is null or v_available_at is null or v_id is null then
            perform krai_private.raise_error('invalid_cursor',
                format('%s is no place in the queue', quote_literal(left(p_after, 100))),
                '{}', 'Pass what the call before returned as next, or null for the beginning.');
        end if;
    end if;
    if v_stage.paused or not v_stage.enabled then
        return '{"documents": [], "next": null}'::jsonb;
    end if;
    -- The rest of the priority level that the last page ended in, then the levels below: each is a range of the index.
    with page as materialized (
        (select r.id, r.document_id, r.priority, r.available_at from krai_core.stage_runs r
         where r.stage_name = p_stage_name and r.status = 'ready' and r.priority = v_priority
           and (r.available_at, r.id) > (v_available_at, v_id) and r.available_at <= v_now
         order by r.available_at, r.id limit p_limit)
        union all
        (select r.id, r.document_id, r.priority, r.available_at from krai_core.stage_runs r
         where r.stage_name = p_stage_name and r.status = 'ready'
           and r.priority < v_priority and r.available_at <= v_now
         order by r.priority desc, r.available_at, r.id limit p_limit)
        limit p_limit
    )
    -- One to_jsonb of nested rows: see documents_json.
    select to_jsonb(answer) into v_answer
    from (select array(
            select d from page p join krai_core.documents d on d.id = any (array[p.document_id])
            order by p.priority desc, p.available_at, p.id) as documents, (
            select case when count(*) over () = p_limit then
                format('%s %s %s', p.priority, krai_private.iso_time(p.available_at), p.id) end
            from page p order by p.priority, p.available_at desc, p.id desc limit 1) as next) answer;
    return v_answer;
end;
$$;
comment on function krai_core.get_documents_ready_for(text, integer, text) is
'The documents whose stage would be claimed now, in queue order, without claiming any.
Returns {"documents": [whole rows as objects], "next": text or null}. A paused or disabled stage has none.
p_limit: 1 to 1000. p_after: the next of the previous page, null for the first page.
Raises 22023 unknown_stage, invalid_limit or invalid_cursor.';

-- ======== 34_questions_estimates ========
-- Estimates: when a document will be done, and when the queues will be empty.
--
--   get_document_eta    remaining time of a document along the DAG; stage_estimates has that of each stage
--   get_forecast        per stage: arrivals, drain, utilisation, and when its queue is empty;
--                       stage_rates and seconds_until_empty compute it
--
-- Rules
--   * An estimate is a range, from the median (p50) to what nine of ten do not exceed (p90). Where a stage has
--     fewer than five durations it is unknown, and the answer names the stage.
--   * The forecast assumes the workers of today: those running now, or as many as the work of the last hours took.
--   * For service_role. Nothing here locks or writes.

create or replace function krai_private.stage_estimates(p_document_id uuid)
returns table (
    stage_name text,
    "position" integer,
    waits_for text[],
    state text,
    is_paused boolean,
    is_stuck boolean,
    p50 numeric,
    p90 numeric,
    estimated_from text)
language plpgsql stable
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
    -- Only unfinished stages need an estimate.
    v_open text[] := array(
        select s.name from krai_core.documents d cross join krai_core.stages s
        where d.id = p_document_id and s.enabled
          and krai_private.stage_state(d.stage_status -> s.name) not in ('completed', 'skipped'));
begin
    return query
    with histograms as materialized (select * from krai_private.histograms(v_open)),
    waits as materialized (
        select x.stage_name, sum(x.wait_us) / nullif(sum(x.waited), 0) / 1000000 as seconds
        from (
            select f.stage_name, f.waited, f.wait_us
            from unnest(v_open) as known (name)
            cross join lateral (
                select * from krai_core.stage_flow f
                where f.stage_name = known.name and f.hour >= v_now - interval '1 day' offset 0) f
            union all
            select d.stage_name, d.waited, d.wait_us from krai_core.stage_deltas d
            where d.waited > 0 and d.hour >= v_now - interval '1 day' and d.stage_name = any (v_open)
        ) x
        group by x.stage_name),
    running as materialized (select * from krai_private.running_stages(p_document_id))
    select s.name, s.position, s.waits_for, x.state, s.paused, x.state = 'failed' and ready.available_at is null,
        case
            when x.state in ('completed', 'skipped') then 0
            when x.state = 'processing' and u.condition <> 'stalled' then u.remaining_p50_seconds
            else w.before + (q.p50 / 1e6)::numeric end,
        case
            when x.state in ('completed', 'skipped') then 0
            when x.state = 'processing' and u.condition <> 'stalled' then u.remaining_p90_seconds
            else w.before + (q.p90 / 1e6)::numeric end,
        case
            when x.state in ('completed', 'skipped') then null
            when x.state = 'processing' and u.condition <> 'stalled' then u.estimated_from
            when q.p50 is null then 'unknown'
            else 'durations' end
    from krai_core.stages s
    join krai_core.documents d on d.id = p_document_id
    cross join lateral (select krai_private.stage_state(d.stage_status -> s.name) as state offset 0) x
    left join histograms h on h.stage_name = s.name and h.timed >= 5
    cross join lateral (
        select krai_private.quantile_us(h.buckets, h.upto, h.timed * 0.5) as p50,
            krai_private.quantile_us(h.buckets, h.upto, h.timed * 0.9) as p90
        offset 0) q
    left join running u on u.stage_name = s.name
    left join krai_core.stage_runs ready
        on ready.document_id = d.id and ready.open_stage = s.name and ready.status = 'ready'
    left join waits k on k.stage_name = s.name
    -- The usual wait of the last day, less what it has waited already; or the time until its retry is due.
    cross join lateral (
        select greatest(
            coalesce(k.seconds, 0) - greatest(coalesce(extract(epoch from v_now - ready.available_at), 0), 0),
            extract(epoch from ready.available_at - v_now), 0) as before offset 0) w
    where s.enabled;
end;
$$;
comment on function krai_private.stage_estimates(uuid) is
'Remaining seconds of each enabled stage of a document, including its own wait but not that for other stages.
is_stuck: the stage failed and will not be retried automatically.';

create or replace function krai_core.get_document_eta(p_document_id uuid) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_status text := (select v.document_status from krai_core.vw_documents_by_stage v where v.id = p_document_id);
    v_estimate record;
    -- Seconds from now until each stage is done, as far as computed.
    v_done50 jsonb := '{}'::jsonb;
    v_done90 jsonb := '{}'::jsonb;
    v_stages jsonb := '{}'::jsonb;
    v_before jsonb;
    v_left boolean := true;
    v_unknown text[] := '{}'::text[];
    v_paused text[] := '{}'::text[];
    v_failed text[] := '{}'::text[];
begin
    if v_status is null then
        perform krai_private.raise_unknown_document(p_document_id);
    end if;
    -- Each stage after those that it waits for. The DAG has no cycle, and positions mostly follow it, so that one pass
    -- usually does.
    while v_left loop
        v_left := false;
        v_before := v_stages;
        for v_estimate in select * from krai_private.stage_estimates(p_document_id) e order by e.position loop
            continue when v_stages ? v_estimate.stage_name;
            if not v_stages ?& v_estimate.waits_for then
                v_left := true;
                continue;
            end if;
            v_done50 := v_done50 || jsonb_build_object(v_estimate.stage_name, v_estimate.p50
                + case when v_estimate.p50 > 0 then coalesce((
                    select max((v_done50 ->> name)::numeric)
                    from unnest(v_estimate.waits_for) as required (name)), 0) else 0 end);
            v_done90 := v_done90 || jsonb_build_object(v_estimate.stage_name, v_estimate.p90
                + case when v_estimate.p90 > 0 then coalesce((
                    select max((v_done90 ->> name)::numeric)
                    from unnest(v_estimate.waits_for) as required (name)), 0) else 0 end);
            v_stages := v_stages || jsonb_build_object(v_estimate.stage_name, jsonb_build_object(
                'status', v_estimate.state, 'p50', trim_scale(round(v_estimate.p50, 3)),
                'p90', trim_scale(round(v_estimate.p90, 3)), 'estimated_from', v_estimate.estimated_from));
            if v_estimate.estimated_from = 'unknown' then
                v_unknown := v_unknown || v_estimate.stage_name;
            end if;
            if v_estimate.is_paused and v_estimate.state not in ('completed', 'skipped', 'processing') then
                v_paused := v_paused || v_estimate.stage_name;
            end if;
            if v_estimate.is_stuck then
                v_failed := v_failed || v_estimate.stage_name;
            end if;
        end loop;
        exit when v_stages = v_before;
    end loop;
    select max(d.value::numeric) as p50, max(e.value::numeric) as p90 into v_estimate
    from jsonb_each_text(v_done50) d join jsonb_each_text(v_done90) e using (key)
    where v_unknown = '{}' and v_paused = '{}' and v_failed = '{}';
    return jsonb_build_object('document_id', p_document_id, 'status', v_status,
        'weighted_progress', trim_scale(krai_core.get_weighted_progress(p_document_id)),
        'remaining', case when v_estimate.p50 is not null then jsonb_build_object(
            'p50', trim_scale(round(v_estimate.p50, 3)), 'p90', trim_scale(round(v_estimate.p90, 3))) end,
        'done_at', case when v_estimate.p50 is not null then jsonb_build_object(
            'p50', krai_private.iso_time(v_now + make_interval(secs => v_estimate.p50::double precision)),
            'p90', krai_private.iso_time(v_now + make_interval(secs => v_estimate.p90::double precision))) end,
        'unknown', to_jsonb(v_unknown), 'paused', to_jsonb(v_paused), 'failed', to_jsonb(v_failed), 'stages', v_stages);
end;
$$;
comment on function krai_core.get_document_eta(uuid) is
'When a document will be done, as a range.
Returns {document_id, status, weighted_progress, remaining: {p50, p90}, done_at: {p50, p90}, unknown, paused, failed,
stages: {"<stage>": {status, p50, p90, estimated_from}}}. Seconds; p50: the median, p90: not exceeded in nine of ten
cases. Along the DAG: the longest path through the unfinished stages, each with the usual wait of the last day.
remaining and done_at are null while a stage blocks the estimate: unknown (fewer than five durations), paused, or failed
without a retry to come; these arrays name the stages. Times: ISO 8601, UTC. For service_role: others get 42501.
Raises PT404 unknown_document.';

create or replace function krai_private.seconds_until_empty(
    p_waiting numeric,
    p_capacity numeric,
    p_inflow numeric
) returns numeric
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return case
        when p_waiting <= 0 then 0
        when p_capacity > p_inflow then p_waiting / (p_capacity - p_inflow) * 3600 end;
end;
$$;
comment on function krai_private.seconds_until_empty(numeric, numeric, numeric) is
'Seconds until a queue is empty that p_capacity leave and p_inflow join per hour; null: never, or unknown.';

create or replace function krai_private.stage_rates(p_flow jsonb, p_hours numeric)
returns table (
    stage_name text,
    waiting bigint,
    running bigint,
    arrival numeric,
    drain numeric,
    avg_work numeric,
    workers numeric,
    per_worker numeric,
    timed numeric,
    mean numeric,
    deviation numeric)
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
begin
    return query
    with sums as materialized (
        select k.stage_name, sum(k.documents)::numeric as documents, sum(k.processing)::numeric as processing,
            sum(k.rest)::numeric as rest, sum(k.timed)::numeric as timed,
            (sum(k.seconds) / nullif(sum(k.timed), 0))::numeric as mean,
            -- Each bucket counts with its own mean.
            (sum(k.seconds * k.seconds / nullif(k.timed, 0)) / nullif(sum(k.timed), 0))::numeric as mean_square
        from (
            -- As floating point: see histograms.
            select x.stage_name, x.bucket, sum(x.documents) as documents, sum(x.processing) as processing,
                sum(x.rest) as rest, sum(x.timed) as timed,
                sum(x.duration_us) / 1000000 as seconds
            from (
                select c.stage_name, c.bucket, c.documents::double precision as documents,
                    c.processing::double precision as processing,
                    (c.completed + c.failed + c.skipped)::double precision as rest,
                    c.timed::double precision as timed, c.duration_us::double precision as duration_us
                from krai_core.stage_counters c
                union all
                select d.stage_name, d.bucket, d.documents, d.processing, d.completed + d.failed + d.skipped,
                    d.timed, d.duration_us
                from krai_core.stage_deltas d
            ) x
            group by x.stage_name, x.bucket
        ) k
        group by k.stage_name
    )
    select s.name, (coalesce(whole.documents, 0) - coalesce(k.processing + k.rest, 0))::bigint,
        coalesce(k.processing, 0)::bigint,
        coalesce(f.arrived, 0) / p_hours, coalesce(f.completed + f.skipped, 0) / p_hours,
        nullif(f.work_us, 0) / nullif(f.completed + f.failed, 0) / 1000000,
        greatest(coalesce(k.processing, 0), ceil(coalesce(f.work_us, 0) / 3600000000 / p_hours)),
        (f.completed + f.skipped) / nullif(f.work_us / 3600000000, 0),
        k.timed, k.mean, sqrt(greatest(k.mean_square - k.mean * k.mean, 0))
    from krai_core.stages s
    left join sums whole on whole.stage_name = ''
    left join sums k on k.stage_name = s.name
    left join jsonb_to_recordset(p_flow) as f (
            stage_name text, arrived numeric, completed numeric, failed numeric, skipped numeric, work_us numeric)
        on f.stage_name = s.name
    where s.enabled;
end;
$$;
comment on function krai_private.stage_rates(jsonb, numeric) is
'The rates of each enabled stage: waiting, running, arrivals, drain, work, workers, and their durations.
waiting, running: documents. arrival, drain: runs that became ready and stages finished per hour. avg_work: seconds per
run. workers: at work. per_worker: stages that one of them finishes per hour. timed: how many durations there are; mean,
deviation (standard) in seconds. p_flow: rows of flow_since; p_hours: how many hours they cover.';

create or replace function krai_core.get_forecast(p_hours integer default 3) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_since timestamptz;
    v_flow jsonb;
    v_span numeric;
    v_inflow numeric;
    v_rates jsonb;
    v_stages jsonb;
begin
    if p_hours is null or p_hours not between 1 and 720 then
        perform krai_private.raise_error('invalid_age',
            format('%s is no number of hours to look back', coalesce(p_hours::text, 'null')), '{}', 'Pass 1 to 720.');
    end if;
    -- Starts with the first of these hours that had any activity.
    select jsonb_agg(to_jsonb(f)), coalesce(min(f.first_hour), date_trunc('hour', v_now, 'UTC')),
        coalesce(sum(f.arrived) filter (where f.stage_name = ''), 0)
    into v_flow, v_since, v_inflow
    from krai_private.flow_since(date_trunc('hour', v_now, 'UTC') - make_interval(hours => p_hours - 1)) f;
    v_span := greatest(extract(epoch from v_now - v_since) / 3600, 0.01);
    v_inflow := v_inflow / v_span;
    v_rates := (select coalesce(jsonb_object_agg(r.stage_name, to_jsonb(r) || jsonb_build_object(
            'today', krai_private.seconds_until_empty(r.waiting, r.workers * r.per_worker, v_inflow),
            'one_more', krai_private.seconds_until_empty(r.waiting, (r.workers + 1) * r.per_worker, v_inflow),
            'one_fewer', krai_private.seconds_until_empty(r.waiting, (r.workers - 1) * r.per_worker, v_inflow),
            -- The sum of many durations is nearly normally distributed: 1.2816 deviations are its 90 % quantile.
            'backlog', case when r.timed >= 5 and r.workers > 0 then jsonb_build_object(
                'p50', round(r.waiting * r.mean / r.workers, 3),
                'p90', round(
                    (r.waiting * r.mean + 1.2816 * sqrt(r.waiting::numeric) * r.deviation) / r.workers, 3)) end)), '{}')
        from krai_private.stage_rates(v_flow, v_span) r);
    -- A queue is empty no earlier than those upstream, whose documents still arrive in it.
    select jsonb_object_agg(x.key, jsonb_build_object(
        'waiting', x.value -> 'waiting', 'running', x.value -> 'running',
        'arrival_per_hour', round((x.value ->> 'arrival')::numeric, 3),
        'drain_per_hour', round((x.value ->> 'drain')::numeric, 3),
        'workers', (x.value ->> 'workers')::numeric,
        'utilisation', round(
            (x.value ->> 'arrival')::numeric * (x.value ->> 'avg_work')::numeric / 3600
            / nullif((x.value ->> 'workers')::numeric, 0), 4),
        'avg_work', round((x.value ->> 'avg_work')::numeric, 6), 'backlog', nullif(x.value -> 'backlog', 'null'),
        'empty', (select jsonb_build_object(
            'today', round(
                case when b.is_known then greatest(b.longest, (x.value ->> 'today')::numeric) end
                + (x.value ->> 'today')::numeric * 0),
            'one_more', round(
                case when b.is_known then greatest(b.longest, (x.value ->> 'one_more')::numeric) end
                + (x.value ->> 'one_more')::numeric * 0),
            'one_fewer', round(
                case when b.is_known then greatest(b.longest, (x.value ->> 'one_fewer')::numeric) end
                + (x.value ->> 'one_fewer')::numeric * 0))
            from (
                select coalesce(max((v_rates -> before.name ->> 'today')::numeric), 0) as longest,
                    coalesce(bool_and(v_rates -> before.name ->> 'today' is not null), true) as is_known
                from unnest(krai_private.upstream_stages(x.key)) as before (name) where before.name <> x.key
            ) b)))
    into v_stages
    from jsonb_each(v_rates) x;
    return jsonb_build_object('timestamp', krai_private.iso_time(v_now), 'hours', round(v_span, 3),
        'documents_per_hour', round(v_inflow, 3), 'stages', coalesce(v_stages, '{}'));
end;
$$;
comment on function krai_core.get_forecast(integer) is
'What to expect of the queues, from the hours before.
Returns {timestamp, hours, documents_per_hour, stages: {"<stage>": {waiting, running, arrival_per_hour, drain_per_hour,
workers, utilisation, avg_work, backlog: {p50, p90}, empty: {today, one_more, one_fewer}}}}. hours: how many hours the
rates cover. waiting: documents pending. arrival_per_hour: runs that became ready. drain_per_hour: stages completed or
skipped. workers: at work now, or as many as the work took. utilisation: arriving work as a share of what these workers
can do; above 1 the queue grows. avg_work: seconds per run. backlog: seconds that these workers need for what is
pending, by the durations of the stage, as median and as what nine of ten cases do not exceed; null below five
durations. empty: seconds from now until nothing of the stage is pending if documents keep arriving as they did, with
the workers of today, one more or one fewer (upstream stages with those of today); null: never, or unknown.
For service_role: others get 42501.
p_hours: how many hours to look back, 1 to 720, including the current one. Raises 22023 invalid_age.';

-- ======== 35_events ========
-- Events: what changed since the caller last looked, for live displays.
--
--   get_document_events    for many documents in one call: where each stands now, and every stage change since then
--   event_cursor           what the caller has seen once it has the answer
--   events_after           the changes of one document since a cursor
--
-- Rules
--   * The answer holds only documents written to since then, so polling hundreds costs one index lookup each.
--   * Changes come from stage_runs, which misses nothing between two calls: if a stage started and ended in between,
--     both are reported, each once.
--   * A cursor is neither a number nor a time. It names the document's last run, the runs that were open then, and its
--     last reset. Runs of one document are opened and reset under the lock of its row, so whatever commits later comes
--     after the cursor; pruning does not shift it.
-- Read only, no locks.

create or replace function krai_private.event_cursor(p_document_id uuid) returns text
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
begin
    -- `id + 0`: see 10_history.
    return (
        select concat(coalesce(max(r.id), 0),
            string_agg(case r.status when 'ready' then '.r' || r.id when 'running' then '.s' || r.id end, ''
                order by r.id + 0),
            '@' || (extract(epoch from max(r.reset_at)) * 1000000)::bigint)
        from krai_core.stage_runs r where r.document_id = p_document_id);
end;
$$;
comment on function krai_private.event_cursor(uuid) is
'What there is to see of the runs of a document now, as the cursor of get_document_events.
Its form: <last run>[.r<ready run>|.s<running run>]...[@<last reset, microseconds of the epoch>].';

create or replace function krai_private.events_after(p_document_id uuid, p_mark text) returns jsonb
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_last bigint := substring(p_mark from '^\d+')::bigint;
    v_ready bigint[] := array(select m[1]::bigint from regexp_matches(p_mark, '\.r(\d+)', 'g') m);
    v_running bigint[] := array(select m[1]::bigint from regexp_matches(p_mark, '\.s(\d+)', 'g') m);
    v_reset bigint := coalesce(substring(p_mark from '@(\d+)$'), '0')::bigint;
begin
    return coalesce((
        select jsonb_agg(jsonb_build_object(
            'stage_name', r.stage_name, 'change', e.change, 'at', krai_private.iso_time(e.at),
            'attempt', r.attempt, 'error', left(e.error, 4000)) order by e.at, r.id, e.step)
        from krai_core.stage_runs r
        cross join lateral (values
            (1, 'started', r.started_at, null, r.id > v_last or r.id = any (v_ready)),
            -- Taking a ready run back changes no stage.
            (2, r.status, r.finished_at, r.error,
                (r.id > v_last or r.id = any (v_ready) or r.id = any (v_running))
                and (r.status <> 'cancelled' or r.started_at is not null)),
            (3, 'reset', r.reset_at, null, (extract(epoch from r.reset_at) * 1000000)::bigint > v_reset)
        ) as e (step, change, at, error, is_new)
        where r.document_id = p_document_id and e.at is not null and e.is_new), '[]');
end;
$$;
comment on function krai_private.events_after(uuid, text) is
'The changes of a document since cursor p_mark, as get_document_events returns them.';

create or replace function krai_core.get_document_events(p_documents jsonb) returns jsonb
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_odd text;
    -- A change of the pipeline may change progress and current stage without a write to the document.
    v_pipeline text := (
        select coalesce((extract(epoch from max(s.changed_at)) * 1000000)::bigint::text, '') from krai_core.stages s);
begin
    if jsonb_typeof(p_documents) is distinct from 'object' then
        v_odd := format('documents are given as %s', coalesce(jsonb_typeof(p_documents), 'null'));
    elsif (select count(*) from jsonb_object_keys(p_documents)) > 1000 then
        v_odd := format('%s documents are too many', (select count(*) from jsonb_object_keys(p_documents)));
    else
        select format('%s: %s', quote_literal(left(k.key, 100)), left(k.value::text, 200)) into v_odd
        from jsonb_each(p_documents) k
        where k.key !~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'
           or k.value <> 'null' and (jsonb_typeof(k.value) <> 'object'
               or coalesce(k.value ->> 'seen', '') !~ '^\d{1,18}(\.[rs]\d{1,18})*(@\d{1,18})?$'
               or jsonb_typeof(k.value -> 'version') not in ('string', 'null'))
        limit 1;
    end if;
    if v_odd is not null then
        perform krai_private.raise_error('invalid_documents', format('events cannot be read: %s', v_odd), '{}',
            'Pass at most 1000 as {"<document id>": null, or {"seen": "<as last given>", '
            '"version": "<as last given>"}}.');
    end if;
    return coalesce((
        select jsonb_object_agg(k.key, jsonb_build_object(
            'version', d.version,
            'seen', case when d.version is not null then krai_private.event_cursor(k.id) end,
            'state', case when d.version is not null then krai_core.get_document_status(k.id) end,
            'changes', case
                when d.version is not null and k.seen is not null then krai_private.events_after(k.id, k.seen)
                else '[]' end,
            'is_open', exists (
                select from krai_core.stage_runs r where r.document_id = k.id and r.open_stage is not null)))
        from (
            select a.key, a.key::uuid as id, a.value ->> 'seen' as seen, a.value ->> 'version' as version
            from jsonb_each(p_documents) a
        ) k
        -- Every write to the row, one to its stages included, makes a new version of it.
        left join lateral (
            select x.xmin::text || '.' || v_pipeline as version from krai_core.documents x where x.id = k.id offset 0
        ) d on true
        where k.version is null or d.version is distinct from k.version), '{}');
end;
$$;
comment on function krai_core.get_document_events(jsonb) is
'Returns those of many documents that changed since the caller last looked, with their changes.
p_documents: at most 1000, as {"<document id>": null} the first time, then {"<document id>": {"seen", "version"}},
both as last returned; leave version out, or null, to get an answer in any case. Returns {"<document id>": {version,
seen, state, changes: [{stage_name, change, at, attempt, error}], is_open}}, without the documents that were not
written to since. state: as get_document_status returns it; null, like version and seen, if there is no such document
or the caller may not see it. changes: those after "seen", oldest first, none the first time: started, completed,
failed, skipped, released (given back), lost (its lease or its time was over), cancelled, and reset (retried or reset
by a person). at: ISO 8601, UTC. error: of the attempt that failed. is_open: false if nothing of it runs or may run
until a person steps in. Raises 22023 invalid_documents.';

-- ======== 36_upkeep ========
-- Upkeep: what keeps the queue going and the database small without anyone's attention.
--
--   reap                   requeues the runs of dead workers, and makes ready runs match a changed pipeline
--   fill_ready_runs        the second half of that: the next batch of documents after a pipeline change
--   rebuild_ready_runs     checks the ready runs of all documents; changes nothing unless triggers were switched off
--   rebuild_statistics     checks the metrics against all documents; likewise
--   prune_runs             deletes superseded runs that ended long ago, a bounded number at a time
--   schedule_maintenance   has pg_cron call reap and prune_runs, if the database has pg_cron
--
-- Rules
--   * Pruning keeps open runs, current ones, and the last closed run of a stage, from which attempts and retries are
--     counted. Statistics keep what is pruned (stage_flow, stage_counters).
--   * reap and prune_runs skip runs that somebody is writing, rather than wait for them.
--   * Nothing is scheduled unless somebody asks for it: workers reap automatically.
-- Lock order: documents in id order, then stage_runs. Advisory locks let one session at a time fill ready runs, and one
-- rebuild statistics.

create or replace function krai_private.fill_ready_runs_as_owner(p_limit integer) returns integer
language plpgsql volatile security definer
set search_path = ''
set lock_timeout = '900ms'
as $$
declare
    v_after uuid;
    v_ids uuid[];
    v_free uuid[];
    v_held uuid;
begin
    perform krai_private.checked_limit(p_limit, 100000);
    v_after := (
        select s.fill_after from krai_core.stages s where s.fill_after is not null order by s.fill_after limit 1);
    -- One session at a time; the others have nothing to do here.
    if v_after is null or not pg_try_advisory_xact_lock(hashtextextended('krai_core.fill_ready_runs', 0)) then
        return 0;
    end if;
    -- Read again under the lock: another session may have advanced it.
    v_after := (
        select s.fill_after from krai_core.stages s where s.fill_after is not null order by s.fill_after limit 1);
    v_ids := array(select d.id from krai_core.documents d where d.id > v_after order by d.id limit p_limit);
    -- Waits only for the first document and stops before the next one that is locked: whoever waits for a document of
    -- this batch never waits for other people's locks as well.
    perform from krai_core.documents d where d.id = v_ids[1] for no key update;
    v_free := v_ids[1:1] || array(
        select d.id from krai_core.documents d where d.id = any (v_ids[2:])
        order by d.id for no key update skip locked);
    v_held := (
        select held.id from (select unnest(v_ids) except select unnest(v_free)) as held (id) order by held.id limit 1);
    v_ids := array(select given.id from unnest(v_ids) as given (id) where v_held is null or given.id < v_held);
    perform krai_private.adopt_runs(v_ids);
    perform krai_private.derive_ready_runs(v_ids);
    update krai_core.stages s
    set fill_after = case when cardinality(v_ids) = p_limit or v_held is not null then v_ids[cardinality(v_ids)] end
    where s.fill_after = v_after;
    return cardinality(v_ids);
end;
$$;
comment on function krai_private.fill_ready_runs_as_owner(integer) is
'What fill_ready_runs does. Security definer, because nobody may write stages.fill_after directly.';

create or replace function krai_core.fill_ready_runs(p_limit integer default 1000) returns integer
language plpgsql volatile
set search_path = ''
as $$
begin
    return krai_private.fill_ready_runs_as_owner(p_limit);
end;
$$;
comment on function krai_core.fill_ready_runs(integer) is
'Makes the ready runs of the next p_limit documents, in id order, match a changed pipeline.
p_limit: 1 to 100000. Returns how many documents it looked at; 0 if nothing is left to do, or another session is
doing it. Workers and reap call it. Raises 22023 invalid_limit, 55P03 if a document stays locked for 0.9 s: call it
again.';

create or replace function krai_core.rebuild_ready_runs() returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_ids uuid[];
begin
    with truth as (
        select t.document_id, t.stage_name from krai_private.startable_stages t
        where not exists (
            select from krai_core.stage_runs r
            where r.document_id = t.document_id and r.open_stage = t.stage_name and r.status = 'running')
          and (not t.is_failed or (
            select stood.retry_at is not null and stood.reset_at is null from krai_core.stage_runs stood
            where stood.document_id = t.document_id and stood.stage_name = t.stage_name and stood.is_current limit 1))
    ),
    ready as (
        select r.document_id, r.stage_name from krai_core.stage_runs r where r.status = 'ready'
    ),
    orphaned as (
        select d.id as document_id from krai_core.documents d cross join krai_core.stages s
        where d.stage_status -> s.name ->> 'status' = 'processing' and not exists (
            select from krai_core.stage_runs r
            where r.document_id = d.id and r.open_stage = s.name and r.status = 'running')
    ),
    current as (
        -- state_of_run inlined, because it would be called millions of times.
        select r.document_id, r.stage_name,
            case r.status when 'lost' then 'failed' when 'cancelled' then 'skipped' else r.status end as state
        from krai_core.stage_runs r where r.is_current
    )
    select array_agg(wrong.document_id order by wrong.document_id) into v_ids
    from (
        (select t.document_id from (table truth except table ready) t)
        union (select t.document_id from (table ready except table truth) t)
        union (select o.document_id from orphaned o)
        union (select c.document_id from (table krai_private.current_stages except all table current) c)
        union (select c.document_id from (table current except all table krai_private.current_stages) c)
    ) wrong;
    if v_ids is null then
        return '{"added": 0, "removed": 0, "adopted": 0}'::jsonb;
    end if;
    perform from krai_core.documents d where d.id = any (v_ids) order by d.id for no key update;
    return jsonb_build_object('adopted', krai_private.adopt_runs(v_ids)) || krai_private.derive_and_count(v_ids);
end;
$$;
comment on function krai_core.rebuild_ready_runs() is
'Compares the ready runs of all documents with stage_status and repairs the differences.
Returns {"added", "removed", "adopted"}, how many runs; all 0 unless triggers were switched off (a restore with
session_replication_role = replica). Reads every document. Raises only 42501, for lack of rights.';

do $make$
begin
    execute format($f$
create or replace function krai_core.rebuild_statistics() returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_mended bigint;
begin
    -- One session at a time, or two would both add what is missing.
    perform pg_advisory_xact_lock(hashtextextended('krai_core.rebuild_statistics', 0));
    with truth as (
        select t.stage_name, t.bucket, 0::bigint as documents,
            t.processing, t.completed, t.failed, t.skipped, t.timed, t.duration_us
        from (%s) t
        union all
        select '', -1, count(*), 0, 0, 0, 0, 0, 0 from krai_core.documents
    ),
    both_sides as (
        select 1 as sign, t.* from truth t
        union all
        select -1, k.* from krai_private.stage_sums k
    )
    insert into krai_core.stage_deltas (
        stage_name, bucket, documents, processing, completed, failed, skipped, timed, duration_us)
    select x.stage_name, x.bucket, sum(x.documents),
        sum(x.processing), sum(x.completed), sum(x.failed), sum(x.skipped), sum(x.timed), sum(x.duration_us)
    from (
        -- A count of states means something only as a sum over all buckets, so its correction goes into one, -1.
        select b.stage_name, -1 as bucket, b.sign * b.documents as documents,
            b.sign * b.processing as processing, b.sign * b.completed as completed,
            b.sign * b.failed as failed, b.sign * b.skipped as skipped, 0 as timed, 0 as duration_us
        from both_sides b
        union all
        select b.stage_name, b.bucket, 0, 0, 0, 0, 0, b.sign * b.timed, b.sign * b.duration_us from both_sides b
    ) x
    group by 1, 2
    having (sum(x.documents), sum(x.processing), sum(x.completed), sum(x.failed), sum(x.skipped),
        sum(x.timed), sum(x.duration_us)) <> (0, 0, 0, 0, 0, 0, 0);
    get diagnostics v_mended = row_count;
    perform krai_private.fold_deltas_if_due();
    return jsonb_build_object('mended', v_mended);
end;
$$$f$, krai_private.sql_counted('select ''{}''::jsonb as old, d.stage_status as new from krai_core.documents d'));
end $make$;
comment on function krai_core.rebuild_statistics() is
'Compares the metrics with all documents, in one snapshot and without locks, and appends corrections.
Returns {"mended": n}, how many sums; 0 unless triggers were switched off (a restore with session_replication_role =
replica). Reads every document. Raises only 42501, for lack of rights.';

create or replace function krai_core.reap(p_limit integer default 1000) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_stage krai_core.stages;
    v_expired record;
    v_left integer := krai_private.checked_limit(p_limit, 100000);
    v_requeued integer := 0;
    v_failed integer := 0;
    v_filled integer := 0;
begin
    for v_stage in select * from krai_core.stages s order by s.position loop
        exit when v_left = 0;
        v_expired := krai_private.requeue_expired(v_stage, v_left);
        v_requeued := v_requeued + v_expired.o_requeued;
        v_failed := v_failed + v_expired.o_failed;
        v_left := v_left - v_expired.o_requeued - v_expired.o_failed;
    end loop;
    begin
        v_filled := krai_core.fill_ready_runs(p_limit);
    exception when lock_not_available then
        -- Somebody keeps a document locked: the next call tries again.
        raise warning 'ready runs were not filled: %', sqlerrm;
    end;
    perform krai_private.renew_default();
    perform krai_private.fold_deltas_if_due();
    return jsonb_build_object('requeued', v_requeued, 'failed', v_failed, 'filled', v_filled);
end;
$$;
comment on function krai_core.reap(integer) is
'Does the periodic work, for cron or a worker: requeues expired runs, fills ready runs, rolls up deltas.
Runs whose lease or timeout is over return to the queue, or end as failed if no attempt is left; ready runs are made
to match a changed pipeline (fill_ready_runs); the deltas of the metrics are rolled up into their sums. p_limit: at
most that many runs, and as many documents; 1 to 100000. Returns {"requeued", "failed", "filled"}: runs, runs,
documents. Never waits for runs that somebody is writing. Raises 22023 invalid_limit.';

create or replace function krai_core.prune_runs(
    p_older_than interval default '30 days',
    p_keep_failures boolean default true,
    p_limit integer default 10000
) returns jsonb
language plpgsql volatile
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_before timestamptz := clock_timestamp() - krai_private.checked_age(p_older_than);
    v_pruned integer;
begin
    perform krai_private.checked_limit(p_limit, 100000);
    with old as materialized (
        select r.id from krai_core.stage_runs r
        where r.finished_at is not null and not r.is_current and r.finished_at < v_before
          and not (p_keep_failures is not false and r.status in ('failed', 'lost'))
          and exists (
              select from krai_core.stage_runs later
              where later.document_id = r.document_id and later.stage_name = r.stage_name and later.id > r.id
                and later.finished_at is not null
                -- A run that got further than every later one still counts in the weighted progress.
                and (
                    coalesce(r.progress, 0) = 0
                    or later.status in ('completed', 'skipped')
                    or later.progress >= r.progress))
        order by r.finished_at
        limit p_limit
        for update skip locked
    )
    delete from krai_core.stage_runs r using old where r.id = any (array[old.id]);
    get diagnostics v_pruned = row_count;
    return jsonb_build_object('pruned', v_pruned, 'more', v_pruned = p_limit);
end;
$$;
comment on function krai_core.prune_runs(interval, boolean, integer) is
'Deletes runs that ended longer ago than p_older_than and have been superseded.
Never deletes the last run of a stage, nor its current one; statistics keep what is pruned. p_keep_failures: failed
and lost runs stay; null means true. p_limit: at most that many at once, 1 to 100000. Returns {"pruned": n, "more":
true if the limit stopped it: call it again}. Waits for nobody. Raises 22023 invalid_age or invalid_limit.';

create or replace function krai_private.schedule_maintenance_as_owner(
    p_prune_older_than interval,
    p_keep_failures boolean
) returns jsonb
language plpgsql volatile security definer
set search_path = ''
as $$
declare
    v_jobs text[] := array['krai_core_reap'];
begin
    if p_prune_older_than is not null then
        perform krai_private.checked_age(p_prune_older_than);
    end if;
    if to_regprocedure('cron.schedule(text,text,text)') is null then
        return jsonb_build_object('scheduled', false, 'jobs', '[]'::jsonb,
            'message', 'There is no pg_cron: enable the extension and call this again, '
                'or rely on the workers, which reap automatically.');
    end if;
    -- By name, so that another call replaces what the first one scheduled.
    execute format('select %I.schedule($1, $2, $3)', 'cron')
    using 'krai_core_reap', '* * * * *', 'select krai_core.reap()';
    if p_prune_older_than is not null then
        v_jobs := v_jobs || 'krai_core_prune'::text;
        execute format('select %I.schedule($1, $2, $3)', 'cron')
        using 'krai_core_prune', '17 * * * *',
            format('select krai_core.prune_runs(%L, %L, 100000)', p_prune_older_than, p_keep_failures is not false);
    else
        execute format(
            'select %1$I.unschedule(j.jobname) from %1$I.job j
            where j.jobname = $1 and j.username = current_user', 'cron')
        using 'krai_core_prune';
    end if;
    return jsonb_build_object('scheduled', true, 'jobs', to_jsonb(v_jobs),
        'message', 'pg_cron calls them from now on.');
end;
$$;
comment on function krai_private.schedule_maintenance_as_owner(interval, boolean) is
'What schedule_maintenance does. Security definer, because only the owner may schedule jobs.';

create or replace function krai_core.schedule_maintenance(
    p_prune_older_than interval default null,
    p_keep_failures boolean default true
) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
begin
    return krai_private.schedule_maintenance_as_owner(p_prune_older_than, p_keep_failures);
end;
$$;
comment on function krai_core.schedule_maintenance(interval, boolean) is
'Has pg_cron call reap every minute, and prune_runs every hour if an age is given.
Another call replaces the schedule; without an age it ends the pruning. Without pg_cron nothing happens.
p_prune_older_than, p_keep_failures: as in prune_runs; null: nothing is pruned. Returns {"scheduled": true or false,
"jobs": [names], "message"}. Raises 22023 invalid_age.';

-- ======== 40_trigger_functions ========
-- Trigger functions: anybody may write stage_status, from an old script or by hand in Studio; triggers do the rest.
--
-- The triggers of krai_core.documents (attached in 51_triggers; the first one by attach_repair_insert of 20_pipeline):
--   documents_100_repair_insert    before insert, row: repairs malformed values; a row that an earlier tracker called
--       completed starts as completed in every stage
--   zzy_documents_repair_update    before update, row, after your own triggers: repairs malformed values; stages that a
--       worker holds keep their value despite a direct edit, with a WARNING
--   zzz_documents_keep_rest        before update, row, last by name: while the migration repairs stage_status, no other
--       column changes, whatever your own triggers (updated_at = now()) wrote into the row
--   documents_150_note             after update, row: notes a direct edit and what it changed (edited_documents)
--   documents_200_inserted         after insert: opens the ready runs
--   documents_200_edited           after update: makes the runs match a direct edit, in both directions, as well as the
--       metrics, and processing_status and processing_stage if the table has them as text
--   documents_400_delete_runs, documents_400_truncate_runs    after delete, truncate: deletes the runs, too
-- The triggers of krai_core.stages and krai_core.stage_prerequisites:
--   pipeline_100_lock              before a change of the pipeline, row: locks out whoever derives from it
--   pipeline_200_follow            after it: rejects circles, marks all documents for fill_ready_runs, and renews the
--       default of stage_status
--
-- Rules
--   * Total: a missing or unknown status counts as pending, nothing is cast without a type test, and the triggers on
--     documents never raise.
--   * Set-based: the after triggers are statement-level. Those on update have no transition tables, which our own
--     writers would fill, too; those writers update what depends on stage_status themselves (write_stage_status,
--     claim_ready, finish_batch), with the functions that the triggers use.
--   * Security definer, with EXECUTE revoked, because a signed-in user's plain `update documents set filename = ...`
--     fires them, and that user may not write stage_runs.
--   * Our own writers (setting krai_core.writer, see write_stage_status) have closed their runs and write sound values.
--     A WHEN clause, which costs next to nothing, lets them bypass what direct edits need.
--   * Legacy columns are written only if the status of a stage changes, and never by the migration. A value that the
--     table rejects leaves them unchanged, with a WARNING.
-- Lock order: documents (the statement has locked them), then stage_runs.

create or replace function krai_private.tg_documents_repair() returns trigger
language plpgsql security definer
set search_path = ''
as $$
declare
    v_run record;
begin
    if not krai_private.is_sound(new.stage_status) then
        new.stage_status := krai_private.repaired_stages(new.stage_status);
    end if;
    if tg_op = 'INSERT' then
        -- The argument says that the table has a column processing_status. Nested, because `and` would name it anyway.
        if tg_nargs > 0 then
            if new.processing_status::text = 'completed' then
                new.stage_status := krai_private.archived_stages(new.stage_status);
            end if;
        end if;
        return new;
    end if;
    for v_run in
        select r.stage_name, r.worker from krai_core.stage_runs r
        where r.document_id = new.id and r.open_stage is not null and r.status = 'running'
          and r.claim_id is not null and r.lease_expires_at > clock_timestamp()
          and old.stage_status -> r.stage_name is distinct from new.stage_status -> r.stage_name
    loop
        new.stage_status := new.stage_status
            || jsonb_build_object(v_run.stage_name, old.stage_status -> v_run.stage_name);
        raise warning 'stage % of document % is being worked on: the direct edit of it was left out',
            v_run.stage_name, new.id
            using hint = 'Use krai_core.reset_stage with p_force => true to take it away from its worker.';
    end loop;
    return new;
end;
$$;
comment on function krai_private.tg_documents_repair() is
'Repairs stage_status as it is written, and protects the stages that a worker holds.';

create or replace function krai_private.tg_documents_note() returns trigger
language plpgsql security definer
set search_path = ''
as $$
begin
    insert into krai_core.edited_documents (transaction_id, depth, document_id, status_changed, old_status, new_status)
    values (pg_current_xact_id(), pg_trigger_depth(), new.id,
            jsonb_path_query_array(new.stage_status, '$.*.status')
                is distinct from jsonb_path_query_array(old.stage_status, '$.*.status'),
            old.stage_status, new.stage_status);
    return null;
end;
$$;
comment on function krai_private.tg_documents_note() is
'Notes what a direct edit changes, for the end of its statement.';

create or replace function krai_private.tg_documents_edited() returns trigger
language plpgsql security definer
set search_path = ''
as $$
declare
    v_ids uuid[];
    v_changed uuid[];
begin
    perform krai_private.count_edits();
    perform krai_private.fold_deltas_if_due();
    with mine as (
        delete from krai_core.edited_documents e
        where e.transaction_id = pg_current_xact_id() and e.depth = pg_trigger_depth()
        returning e.document_id, e.status_changed
    )
    select array_agg(m.document_id order by m.document_id),
        array_agg(m.document_id order by m.document_id) filter (where m.status_changed)
    into v_ids, v_changed
    from mine m;
    if v_ids is not null then
        perform krai_private.follow_edits(v_ids);
    end if;
    if v_changed is not null then
        perform krai_private.follow_legacy_columns(v_changed);
    end if;
    return null;
end;
$$;
comment on function krai_private.tg_documents_edited() is
'Makes the runs, the metrics and the legacy columns match a direct edit of stage_status.';

create or replace function krai_private.tg_documents_inserted() returns trigger
language plpgsql security definer
set search_path = ''
as $$
declare
    v_default jsonb := krai_private.default_stage_status();
    v_now timestamptz := clock_timestamp();
    v_others uuid[];
    v_count bigint := (select count(*) from after_rows);
begin
    if v_count = 0 then
        return null;
    end if;
    insert into krai_core.stage_deltas (stage_name, documents, arrived) values ('', v_count, v_count);
    -- Nearly all documents start untouched: they have no history, and the same stages are ready in each. Comparing byte
    -- by byte is many times faster than by value; a value that only looks different takes the general path below.
    with opened as (
        insert into krai_core.stage_runs (document_id, stage_name, status, available_at)
        select a.id, first.name, 'ready', v_now
        from after_rows a
        cross join (
            select s.name from krai_core.stages s where s.enabled and s.waits_for = '{}'
        ) first
        where row(a.stage_status)::record operator(pg_catalog.*=) row(v_default)::record
        returning stage_name
    )
    insert into krai_core.stage_deltas (stage_name, arrived)
    select o.stage_name, count(*) from opened o group by o.stage_name;
    perform krai_private.fold_deltas_if_due();
    v_others := array(
        select a.id from after_rows a
        where row(a.stage_status)::record operator(pg_catalog.*<>) row(v_default)::record
        order by a.id);
    if v_others <> '{}' then
        execute format('
            insert into krai_core.stage_deltas (
                stage_name, bucket, processing, completed, failed, skipped, timed, duration_us)
            select c.stage_name, c.bucket, c.processing, c.completed, c.failed, c.skipped, c.timed, c.duration_us
            from (%s) c',
            krai_private.sql_counted('select ''{}''::jsonb as old, a.stage_status as new from after_rows a'));
        perform krai_private.adopt_runs(v_others);
        perform krai_private.derive_ready_runs(v_others);
    end if;
    return null;
end;
$$;
comment on function krai_private.tg_documents_inserted() is 'Opens the ready runs of new documents, and counts them.';

create or replace function krai_private.tg_documents_delete_runs() returns trigger
language plpgsql security definer
set search_path = ''
as $$
begin
    if tg_op = 'TRUNCATE' then
        truncate krai_core.stage_runs, krai_core.document_priorities;
        -- Appends the negative of every sum, so a concurrent fold changes nothing. A repeatable read transaction misses
        -- what others inserted after its snapshot; rebuild_statistics corrects that.
        insert into krai_core.stage_deltas (
            stage_name, bucket, documents, processing, completed, failed, skipped, timed, duration_us)
        select k.stage_name, k.bucket, - k.documents, - k.processing, - k.completed, - k.failed, - k.skipped,
            - k.timed, - k.duration_us
        from krai_private.stage_sums k;
    elsif exists (select from before_rows) then
        execute format('
            insert into krai_core.stage_deltas (
                stage_name, bucket, documents, processing, completed, failed, skipped, timed, duration_us)
            select c.stage_name, c.bucket, 0, c.processing, c.completed, c.failed, c.skipped, c.timed, c.duration_us
            from (%s) c
            union all select '''', -1, - count(*), 0, 0, 0, 0, 0, 0 from before_rows',
            krai_private.sql_counted('select b.stage_status as old, ''{}''::jsonb as new from before_rows b'));
        perform krai_private.fold_deltas_if_due();
        delete from krai_core.stage_runs r using before_rows b where r.document_id = b.id;
        delete from krai_core.document_priorities p using before_rows b where p.document_id = b.id;
    end if;
    return null;
end;
$$;
comment on function krai_private.tg_documents_delete_runs() is
'Deletes the runs of deleted documents, and takes them out of the metrics.';

create or replace function krai_private.tg_documents_keep_rest() returns trigger
language plpgsql security definer
set search_path = ''
as $$
begin
    -- Not `new := old` and an assignment: Postgres 15 crashes on that if a row is older than one of its columns.
    return jsonb_populate_record(old, jsonb_build_object('stage_status', new.stage_status));
end;
$$;
comment on function krai_private.tg_documents_keep_rest() is
'Undoes what other triggers changed in a row whose stage_status the migration repairs.';

create or replace function krai_private.tg_pipeline_lock() returns trigger
language plpgsql security definer
set search_path = ''
set lock_timeout = '900ms'
as $$
begin
    lock table krai_core.stages in access exclusive mode;
    -- Tells the trigger at the end of the statement that there is something to follow.
    perform set_config('krai_core.pipeline_changes', 'yes', true);
    return case tg_op when 'DELETE' then old else new end;
end;
$$;
comment on function krai_private.tg_pipeline_lock() is
'Waits until nobody derives from the pipeline, then keeps others waiting until the change commits.
Fires for each row, so that a statement that changes none, because row level security shows it none, locks nobody
out.';

create or replace function krai_private.tg_pipeline_follow() returns trigger
language plpgsql security definer
set search_path = ''
as $$
declare
    v_circle text;
begin
    if current_setting('krai_core.pipeline_changes', true) is distinct from 'yes' then
        return null;
    end if;
    perform set_config('krai_core.pipeline_changes', '', true);
    with recursive way (stage_name, path) as (
        select s.name, array[s.name] from krai_core.stages s
        union all
        select p.requires, w.path || p.requires from way w
        join krai_core.stage_prerequisites p on p.stage_name = w.stage_name
        where w.stage_name <> all (w.path[:cardinality(w.path) - 1])
    )
    select array_to_string(w.path, ' requires ') into v_circle from way w
    where cardinality(w.path) > 1 and w.path[1] = w.stage_name
    order by cardinality(w.path), w.path limit 1;
    if v_circle is not null then
        perform krai_private.raise_error('invalid_stage', format('prerequisites form a circle: %s', v_circle), '{}',
            'Leave out one of them: none of these stages could ever start.');
    end if;
    update krai_core.stages s
    set waits_for = krai_private.enabled_prerequisites(s.name), fill_after = '00000000-0000-0000-0000-000000000000';
    perform krai_private.renew_default();
    return null;
end;
$$;
comment on function krai_private.tg_pipeline_follow() is
'Rejects circles, and makes ready runs and the column default follow the pipeline.';

-- ======== 41_access ========
-- Access: the one list of what the tracker consists of, and who may do what with it.
--
--   access_list      the list: every object of the API, and those in krai_private that others than service_role may use
--   wanted_rights    what the list means for the objects that exist
--   missing_rights, excess_rights    how the database differs from that
--   apply_access     grants and revokes accordingly, for all objects or for one
--
-- At the end it revokes wrappers of an earlier tracker, and warns if anon may read documents.
--
-- Rules
--   * A function, view or table of krai_core that is not in the list is not ours. A helper in krai_private needs no
--     entry: without one, only service_role may call it, and nobody may call a trigger function.
--   * doctor, the tests and docs/rollback.sql read the names from here; they are written down nowhere else.
--   * documents is yours: missing rights are added to it, and none are taken away.

create or replace function krai_private.access_list()
returns table (name text, kind text, anon text, authenticated text, service_role text)
language sql stable
set search_path = ''
as $$
    values
    -- Tables. A column list means these columns only.
    ('krai_core.documents', 'adopted table', '', '', 'select, update (stage_status)'),
    ('krai_core.stages', 'table', '',
        'select (name, position, description, weight, lease_seconds, timeout_seconds, max_attempts, backoff_seconds,
            backoff_max_seconds, paused, enabled, changed_at, waits_for, fill_after)',
        'select, update (paused, changed_at, changed_by)'),
    ('krai_core.stage_prerequisites', 'table', '', 'select', 'select'),
    ('krai_core.stage_runs', 'table', '',
        'select (id, document_id, stage_name, open_stage, status, attempt, priority, available_at, lease_expires_at,
            heartbeat_at, started_at, finished_at, error, progress, metadata, retry_at, reset_at, is_current)',
        'select, insert, update, delete'),
    ('krai_core.document_priorities', 'table', '', '', 'select, insert, update, delete'),
    ('krai_core.edited_documents', 'table', '', '', 'select'),
    ('krai_core.stage_deltas', 'table', '', '', 'select, insert, update, delete'),
    ('krai_core.stage_counters', 'table', '', '', 'select, insert, update'),
    ('krai_core.stage_flow', 'table', '', '', 'select, insert, update'),
    ('krai_core.stage_fold', 'table', '', '', 'select, insert, update'),
    ('krai_core.stage_runs_id_seq', 'sequence', '', '', ''),
    ('krai_core.stage_deltas_id_seq', 'sequence', '', '', 'select'),
    -- Triggers on documents, and the index of the seed: they carry no rights, but doctor checks for them.
    ('documents_100_repair_insert', 'trigger', '', '', ''),
    ('documents_150_note', 'trigger', '', '', ''),
    ('documents_200_edited', 'trigger', '', '', ''),
    ('documents_200_inserted', 'trigger', '', '', ''),
    ('documents_400_delete_runs', 'trigger', '', '', ''), ('documents_400_truncate_runs', 'trigger', '', '', ''),
    ('zzy_documents_repair_update', 'trigger', '', '', ''), ('zzz_documents_keep_rest', 'trigger', '', '', ''),
    ('krai_core.idx_documents_stage_status', 'index', '', '', ''),
    -- pipeline
    ('krai_core.register_stage', 'writer', '', '', 'execute'),
    ('krai_core.disable_stage', 'writer', '', '', 'execute'),
    -- runs
    ('krai_core.start_stage', 'writer', '', '', 'execute'),
    ('krai_core.update_stage_progress', 'writer', '', '', 'execute'),
    ('krai_core.complete_stage', 'writer', '', '', 'execute'),
    ('krai_core.fail_stage', 'writer', '', '', 'execute'),
    ('krai_core.skip_stage', 'writer', '', '', 'execute'),
    -- queue
    ('krai_core.claim_stages', 'writer', '', '', 'execute'),
    ('krai_core.get_next_document', 'writer', '', '', 'execute'),
    ('krai_core.heartbeat', 'writer', '', '', 'execute'),
    ('krai_core.release_stages', 'writer', '', '', 'execute'),
    ('krai_core.finish_stages', 'writer', '', '', 'execute'),
    -- operations
    ('krai_core.retry_stage', 'writer', '', '', 'execute'),
    ('krai_core.retry_failed', 'writer', '', '', 'execute'),
    ('krai_core.reset_stage', 'writer', '', '', 'execute'),
    ('krai_core.cancel_document', 'writer', '', '', 'execute'),
    ('krai_core.set_priority', 'writer', '', '', 'execute'),
    ('krai_core.pause_stage', 'writer', '', '', 'execute'),
    ('krai_core.resume_stage', 'writer', '', '', 'execute'),
    -- questions
    ('krai_core.vw_document_stages', 'view', '', 'select', 'select'),
    ('krai_core.vw_documents_by_stage', 'view', '', 'select', 'select'),
    ('krai_core.vw_stage_statistics', 'view', '', '', 'select'),
    ('krai_core.vw_stage_flow', 'view', '', '', 'select'),
    ('krai_core.vw_running_stages', 'view', '', '', 'select'),
    ('krai_core.get_document_progress', 'reader', '', 'execute', 'execute'),
    ('krai_core.get_current_stage', 'reader', '', 'execute', 'execute'),
    ('krai_core.can_start_stage', 'reader', '', 'execute', 'execute'),
    ('krai_core.get_document_status', 'reader', '', 'execute', 'execute'),
    ('krai_core.get_weighted_progress', 'reader', '', 'execute', 'execute'),
    ('krai_core.get_document_timeline', 'reader', '', 'execute', 'execute'),
    ('krai_core.explain_stage', 'reader', '', '', 'execute'),
    ('krai_core.list_documents', 'reader', '', '', 'execute'),
    ('krai_core.get_documents_ready_for', 'reader', '', '', 'execute'),
    ('krai_core.get_failures', 'reader', '', '', 'execute'),
    ('krai_core.get_stuck_stages', 'reader', '', '', 'execute'),
    ('krai_core.get_workers', 'reader', '', '', 'execute'),
    ('krai_core.get_stage_statistics', 'reader', '', '', 'execute'),
    ('krai_core.get_document_eta', 'reader', '', '', 'execute'),
    ('krai_core.get_forecast', 'reader', '', '', 'execute'),
    -- events
    ('krai_core.get_document_events', 'reader', '', 'execute', 'execute'),
    -- upkeep
    ('krai_core.reap', 'writer', '', '', 'execute'),
    ('krai_core.fill_ready_runs', 'writer', '', '', 'execute'),
    ('krai_core.rebuild_ready_runs', 'writer', '', '', 'execute'),
    ('krai_core.rebuild_statistics', 'writer', '', '', 'execute'),
    ('krai_core.prune_runs', 'writer', '', '', 'execute'),
    ('krai_core.schedule_maintenance', 'writer', '', '', 'execute'),
    ('krai_core.get_installation', 'reader', '', '', 'execute'),
    ('krai_core.schema_version', 'reader', '', 'execute', 'execute'),
    -- Helpers behind the reads of signed-in users. None of them takes an SQLSTATE, a table name, or SQL.
    ('krai_private.raise_error', 'helper', '', 'execute', 'execute'),
    ('krai_private.raise_unknown_document', 'helper', '', 'execute', 'execute'),
    ('krai_private.check_stage', 'helper', '', 'execute', 'execute'),
    ('krai_private.iso_time', 'helper', '', 'execute', 'execute'),
    ('krai_private.time_or_null', 'helper', '', 'execute', 'execute'),
    ('krai_private.pending_stage', 'helper', '', 'execute', 'execute'),
    ('krai_private.stage_state', 'helper', '', 'execute', 'execute'),
    ('krai_private.progress_of', 'helper', '', 'execute', 'execute'),
    ('krai_private.repaired_stage', 'helper', '', 'execute', 'execute'),
    ('krai_private.repaired_stages', 'helper', '', 'execute', 'execute'),
    ('krai_private.is_sound', 'helper', '', 'execute', 'execute'),
    ('krai_private.installed_version', 'helper', '', 'execute', 'execute'),
    ('krai_private.event_cursor', 'helper', '', 'execute', 'execute'),
    ('krai_private.events_after', 'helper', '', 'execute', 'execute')
$$;
comment on function krai_private.access_list() is
'What the tracker consists of and who may do what with it.
Each row: name, kind, and the rights of anon, authenticated and service_role as a GRANT names them, empty for none.
Kinds: adopted table, table, sequence, view, reader (a STABLE function), writer (a VOLATILE function), helper (a
function of krai_private that signed-in users need), trigger (on documents), index.';

create or replace function krai_private.wanted_rights()
returns table (class regclass, oid oid, object text, is_adopted boolean, role text, rights text)
language sql stable
set search_path = ''
as $$
    with found as (
        select 'pg_catalog.pg_proc'::regclass as class, p.oid, format('%s.%s', n.nspname, p.proname) as name,
            format('function %s', p.oid::regprocedure) as object, n.nspname = 'krai_private' as is_private,
            case when p.prorettype <> 'trigger'::regtype then 'execute' else '' end as usual
        from pg_catalog.pg_proc p
        join pg_catalog.pg_namespace n on n.oid = p.pronamespace and n.nspname in ('krai_core', 'krai_private')
        union all
        select 'pg_catalog.pg_class'::regclass, c.oid, format('%s.%s', n.nspname, c.relname),
            format('%s %s', case c.relkind when 'S' then 'sequence' else 'table' end, c.oid::regclass),
            n.nspname = 'krai_private', 'select'
        from pg_catalog.pg_class c
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace and n.nspname in ('krai_core', 'krai_private')
        where c.relkind in ('r', 'v', 'S')
    )
    select f.class, f.oid, f.object, coalesce(l.kind = 'adopted table', false), r.role, coalesce(r.rights, '')
    from found f
    left join krai_private.access_list() l on l.name = f.name
    cross join lateral (values
        ('anon', l.anon), ('authenticated', l.authenticated),
        ('service_role', case when l.name is null then f.usual else l.service_role end)) as r (role, rights)
    where l.name is not null or f.is_private
    union all
    select 'pg_catalog.pg_namespace'::regclass, n.oid, format('schema %I', n.nspname), n.nspname = 'krai_core',
        r.role, r.rights
    from pg_catalog.pg_namespace n
    cross join (values ('anon', ''), ('authenticated', 'usage'), ('service_role', 'usage')) as r (role, rights)
    where n.nspname in ('krai_core', 'krai_private')
$$;
comment on function krai_private.wanted_rights() is
'Each existing object of the tracker, as GRANT names it, with the rights each role should have; empty for none.
is_adopted: it is yours, and rights beyond these are not taken away.';

create or replace function krai_private.missing_rights()
returns table (oid oid, object text, role text, privilege text)
language plpgsql stable
set search_path = ''
as $$
begin
    return query
    select w.oid, w.object, w.role, p.privilege || coalesce(' (' || quote_ident(k.column_name) || ')', '')
    from krai_private.wanted_rights() w
    cross join lateral regexp_matches(w.rights, '(\w+)(?: \(([^)]*)\))?', 'g') as m (part)
    cross join lateral (select m.part[1] as privilege) p
    left join lateral regexp_split_to_table(m.part[2], ',\s*') as k (column_name) on true
    where not case
        when w.class = 'pg_catalog.pg_proc'::regclass then has_function_privilege(w.role, w.oid, p.privilege)
        when w.class = 'pg_catalog.pg_namespace'::regclass then has_schema_privilege(w.role, w.oid, p.privilege)
        when w.object like 'sequence %' then has_sequence_privilege(w.role, w.oid, p.privilege)
        when k.column_name is not null then has_column_privilege(w.role, w.oid, k.column_name, p.privilege)
        else has_table_privilege(w.role, w.oid, p.privilege) end;
end;
$$;
comment on function krai_private.missing_rights() is
'The rights of the access list that roles lack, one privilege a row.
The object as GRANT names it, the role, and the privilege, on the whole object or on one column.';

create or replace function krai_private.excess_rights()
returns table (object text, role text, privileges text, rights text)
language plpgsql stable
set search_path = ''
as $$
begin
    return query
    with given as (
        select 'pg_catalog.pg_proc'::regclass as class, p.oid, null::name as column_name,
            coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner)) as acl
        from pg_catalog.pg_proc p
        union all
        select 'pg_catalog.pg_class'::regclass, c.oid, null, c.relacl from pg_catalog.pg_class c
        union all
        select 'pg_catalog.pg_class'::regclass, a.attrelid, a.attname, a.attacl from pg_catalog.pg_attribute a
        where a.attacl is not null
        union all
        select 'pg_catalog.pg_namespace'::regclass, n.oid, null, n.nspacl from pg_catalog.pg_namespace n
    ),
    held as (
        select w.object, w.rights, w.role, lower(x.privilege_type) as privilege, g.column_name,
            x.grantee = 0 as is_public
        from krai_private.wanted_rights() w
        join given g on g.class = w.class and g.oid = w.oid
        cross join lateral pg_catalog.aclexplode(g.acl) x
        where w.role in ('anon', 'authenticated') and not w.is_adopted
          and (x.grantee = to_regrole(w.role)::oid or x.grantee = 0 and w.role = 'anon')
    )
    select h.object, case when h.is_public then 'public' else h.role end,
        string_agg(h.privilege || coalesce(' (' || quote_ident(h.column_name) || ')', ''), ', '
            order by h.privilege, h.column_name),
        case when h.is_public then '' else h.rights end
    from held h
    where h.is_public or not exists (
        select from regexp_matches(h.rights, '(\w+)(?: \(([^)]*)\))?', 'g') as m (part)
        where m.part[1] = h.privilege
          and (m.part[2] is null or h.column_name::text = any (regexp_split_to_array(m.part[2], ',\s*'))))
    group by h.object, h.role, h.is_public, h.rights;
end;
$$;
comment on function krai_private.excess_rights() is
'What anon, authenticated and PUBLIC hold beyond the access list.
The object as REVOKE names it, the role, the excess privileges, and the rights the role should have.';

create or replace function krai_private.apply_access(p_object oid default null) returns void
language plpgsql volatile
set search_path = ''
as $$
declare
    v_right record;
begin
    for v_right in
        select w.object, w.role, w.rights from krai_private.wanted_rights() w
        where not w.is_adopted and (p_object is null or w.oid = p_object)
    loop
        execute format('revoke all on %s from public, %I', v_right.object, v_right.role);
        if v_right.rights <> '' then
            execute format('grant %s on %s to %I', v_right.rights, v_right.object, v_right.role);
        end if;
    end loop;
    for v_right in
        select m.object, m.role, m.privilege from krai_private.missing_rights() m
        where p_object is null or m.oid = p_object
    loop
        execute format('grant %s on %s to %I', v_right.privilege, v_right.object, v_right.role);
    end loop;
end;
$$;
comment on function krai_private.apply_access(oid) is
'Grants what the access list says and revokes the rest, for all objects or for one. For the owner.';

do $$ begin perform krai_private.apply_access(); end $$;

-- Revokes wrappers in public that an earlier tracker left executable by everybody, with the rights of their owner.
do $$
declare
    v_function record;
    v_wrappers text[] := '{}';
begin
    for v_function in
        select p.oid::regprocedure as signature,
               format('public.%s(%s)', p.proname, pg_catalog.oidvectortypes(p.proargtypes)) as name,
               pg_catalog.pg_has_role(current_user, p.proowner, 'usage') as is_ours
        from pg_catalog.pg_proc p
        where p.pronamespace = 'public'::regnamespace
          and p.proname in ('start_stage', 'update_stage_progress', 'complete_stage', 'fail_stage', 'skip_stage',
                            'get_document_progress', 'get_current_stage', 'can_start_stage')
          -- Not another system's functions of the same name. Reads the whole definition, because the schema may be
          -- named in its search_path only.
          and case p.prokind when 'f' then pg_catalog.pg_get_functiondef(p.oid) ~* '\m(krai_core|stage_status)\M' end
          and exists (
              select from pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) acl
              where acl.grantee in (0, 'anon'::regrole, 'authenticated'::regrole) and acl.privilege_type = 'EXECUTE')
    loop
        if v_function.is_ours then
            execute format('revoke execute on function %s from public, anon, authenticated', v_function.signature);
            execute format('grant execute on function %s to service_role', v_function.signature);
        end if;
        v_wrappers := v_wrappers
            || (v_function.name || case when v_function.is_ours then '' else ' (NOT OURS TO REVOKE)' end);
    end loop;
    if v_wrappers <> '{}' then
        raise warning 'execute on functions of an earlier tracker was revoked from public, anon and authenticated: %',
            array_to_string(v_wrappers, ', ')
            using hint = 'Call the functions of schema krai_core, or drop the wrappers. '
                'Signed-in users read through krai_core.get_document_status.';
    end if;
    if pg_catalog.has_schema_privilege('anon', 'krai_core', 'usage')
        and pg_catalog.has_column_privilege('anon', 'krai_core.documents', 'stage_status', 'select')
    then
        raise warning 'anon may select from krai_core.documents and so sees stage_status wherever its policies allow'
            using hint = 'revoke select on krai_core.documents from anon; unless that is what you want.';
    end if;
end $$;

-- ======== 42_leftovers ========
-- Leftovers: helpers from before 0.1.1, which lived in krai_core and have other names in krai_private now.
--
--   leftovers        those that still exist
--   drop_leftovers   drops them
--
-- Rules
--   * A transaction that began before the functions were replaced may still run an old body, which calls old helpers by
--     name. 53_leftovers waits a few seconds for such transactions before it drops anything; if they take longer, the
--     next run drops the helpers.
--   * If something of yours uses a helper, the helper stays, and a WARNING names it. Nothing is dropped with CASCADE.

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
        -- Views first: a function cannot be dropped while a view calls it.
        order by 1 desc);
end;
$$;
comment on function krai_private.leftovers() is
'Functions and views from before 0.1.1 that are still in krai_core, as DROP names them.';

create or replace function krai_private.drop_leftovers() returns text[]
language plpgsql volatile
set search_path = ''
set lock_timeout = '900ms'
as $$
declare
    v_object text;
    v_dropped boolean := true;
begin
    -- Some take row types of others as arguments, so trial finds the order.
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
'Drops what is left from before 0.1.1; returns what something else still uses. For the owner.';

commit;

-- ======== 50_questions_views ========
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
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;
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
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;
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
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;
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
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;
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
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;
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
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;
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
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;
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
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;
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
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;
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
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;
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

-- ======== 51_triggers ========
-- Triggers: attached here, in short blocks, because CREATE TRIGGER keeps writers waiting until it commits.
--
-- 40_trigger_functions lists them and tells what they do, and by which rules. documents_100_repair_insert contains the
-- default of stage_status, so attach_repair_insert (20_pipeline) creates it.
-- Locks: documents, then stages and stage_prerequisites, each for the length of one block.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;

-- An autovacuum yields to whoever has waited for a second, longer than lock_timeout allows. This lock blocks no
-- reader and no writer, and keeps new vacuums out until the commit.
do $$
begin
    if to_regclass('krai_core.documents') is not null then
        set local lock_timeout = '5s';
        lock table krai_core.documents in share update exclusive mode;
        set local lock_timeout = '900ms';
    end if;
end $$;
create or replace trigger zzy_documents_repair_update
    before update on krai_core.documents for each row
    when (
        coalesce(current_setting('krai_core.writer', true), '') = ''
        and new.stage_status is distinct from old.stage_status)
    execute function krai_private.tg_documents_repair();
create or replace trigger documents_150_note
    after update on krai_core.documents for each row
    when (
        coalesce(current_setting('krai_core.writer', true), '') = ''
        and new.stage_status is distinct from old.stage_status)
    execute function krai_private.tg_documents_note();
create or replace trigger zzz_documents_keep_rest
    before update on krai_core.documents for each row
    when (current_setting('krai_core.writer', true) = 'migration')
    execute function krai_private.tg_documents_keep_rest();
create or replace trigger documents_200_inserted
    after insert on krai_core.documents referencing new table as after_rows
    for each statement execute function krai_private.tg_documents_inserted();
create or replace trigger documents_200_edited
    after update on krai_core.documents for each statement
    when (coalesce(current_setting('krai_core.writer', true), '') = '')
    execute function krai_private.tg_documents_edited();
create or replace trigger documents_400_delete_runs
    after delete on krai_core.documents referencing old table as before_rows
    for each statement execute function krai_private.tg_documents_delete_runs();
create or replace trigger documents_400_truncate_runs
    after truncate on krai_core.documents
    for each statement execute function krai_private.tg_documents_delete_runs();

do $$ begin perform krai_private.attach_repair_insert(); end $$;

commit;

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;
create or replace trigger pipeline_100_lock before insert or delete or update of name, enabled on krai_core.stages
    for each row execute function krai_private.tg_pipeline_lock();
create or replace trigger pipeline_200_follow after insert or delete or update of name, enabled on krai_core.stages
    for each statement execute function krai_private.tg_pipeline_follow();
create or replace trigger pipeline_100_lock before insert or update or delete on krai_core.stage_prerequisites
    for each row execute function krai_private.tg_pipeline_lock();
create or replace trigger pipeline_200_follow after insert or update or delete on krai_core.stage_prerequisites
    for each statement execute function krai_private.tg_pipeline_follow();

update krai_core.stages s set waits_for = krai_private.enabled_prerequisites(s.name)
where s.waits_for <> krai_private.enabled_prerequisites(s.name);

commit;

-- ======== 52_upkeep_installation ========
-- Upkeep: which version of the tracker a database has, and whether its installation is whole.
--
--   schema_version     the version, from installed_version; clients ask for it at first use
--   get_installation   version, missing objects, missing and excess rights, row level security, readers of documents
--   missing_objects, missing_grants, excess_grants, readers_of_documents    the parts of that answer
--
-- Rules
--   * This comes after everything that a database needs to be used, so a half-migrated one has no version, or an older
--     one.
--   * The access list names what should exist, not a pattern: krai_core is yours too, and what you add to it is never
--     missing.
--   * Missing rights are those of service_role only, which workers use; excess rights are those of anon, authenticated
--     and PUBLIC.
--   * Each finding is the statement that repairs it, if a single statement can.
-- Read only, no locks.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;

create or replace function krai_private.installed_version() returns text
language plpgsql stable
set search_path = ''
as $$
begin
    return '0.1.1';
end;
$$;
comment on function krai_private.installed_version() is 'The version that schema_version returns.';

create or replace function krai_core.schema_version() returns text
language plpgsql stable
set search_path = ''
as $$
begin
    return krai_private.installed_version();
end;
$$;
comment on function krai_core.schema_version() is
'The version of these functions, as <major>.<minor>; before its release with a third number.
A client of the same version knows all of them. For signed-in users and service_role; others get 42501.';

create or replace function krai_private.missing_grants() returns text[]
language plpgsql stable
set search_path = ''
as $$
begin
    return array(
        select format('grant %s on %s to %I', m.privilege, m.object, m.role) from krai_private.missing_rights() m
        where m.role = 'service_role' order by m.object, m.privilege);
end;
$$;
comment on function krai_private.missing_grants() is
'The rights that service_role lacks, as the statements that grant them.';

create or replace function krai_private.excess_grants() returns text[]
language plpgsql stable
set search_path = ''
as $$
begin
    return array(
        -- Revoking a right on a whole table also revokes it on the columns: so grant those again.
        select format('revoke %s on %s from %s', e.privileges, e.object, e.role)
            || case when e.rights = '' then '' else format('; grant %s on %s to %s',
                regexp_replace(e.rights, '\s+', ' ', 'g'), e.object, e.role) end
        from krai_private.excess_rights() e order by e.object, e.role);
end;
$$;
comment on function krai_private.excess_grants() is
'The rights that anon, authenticated and PUBLIC hold beyond the access list, as statements that revoke them.';

create or replace function krai_private.missing_objects() returns text[]
language plpgsql stable
set search_path = ''
as $$
begin
    return array(
        select format('%s %s', case when l.kind in ('reader', 'writer', 'helper') then 'function'
            when l.kind in ('trigger', 'index') then l.kind
            else 'relation' end, regexp_replace(l.name, '^krai_core\.', ''))
        from krai_private.access_list() l
        where case
            when l.kind in ('reader', 'writer', 'helper') then not exists (
                select from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
                where format('%s.%s', n.nspname, p.proname) = l.name)
            when l.kind = 'trigger' then not exists (
                select from pg_catalog.pg_trigger t
                where t.tgrelid = 'krai_core.documents'::regclass and t.tgname = l.name and t.tgenabled in ('O', 'A'))
            when l.kind = 'index' then not exists (
                select from pg_catalog.pg_index i where i.indexrelid = to_regclass(l.name) and i.indisvalid)
            else to_regclass(l.name) is null end);
end;
$$;
comment on function krai_private.missing_objects() is
'What the migrations create and the database lacks, as kind and name.
Functions, relations, triggers that are gone or disabled, and the index if it is gone or invalid.';

create or replace function krai_private.readers_of_documents() returns jsonb
language plpgsql stable
set search_path = ''
as $$
begin
    return (
        select coalesce(jsonb_object_agg(w.role, case
            when not c.relrowsecurity then '["*"]'
            else coalesce((
                select jsonb_agg(p.polname order by p.polname) from pg_catalog.pg_policy p
                where p.polrelid = c.oid and p.polpermissive and p.polcmd in ('r', '*')
                  and p.polroles && array[0::oid, to_regrole(w.role)]
                  and coalesce(pg_catalog.pg_get_expr(p.polqual, p.polrelid), '') <> 'false'), '[]') end), '{}')
        from pg_catalog.pg_class c
        cross join unnest(array['anon', 'authenticated']) as w (role)
        where c.oid = 'krai_core.documents'::regclass
          and has_schema_privilege(w.role, 'krai_core', 'usage')
          and has_column_privilege(w.role, c.oid, 'stage_status', 'select'));
end;
$$;
comment on function krai_private.readers_of_documents() is
'Which of anon and authenticated may select stage_status, with the policies that admit rows to them.
["*"] if row level security is off, which admits all rows.';

create or replace function krai_core.get_installation() returns jsonb
language plpgsql stable
set search_path = ''
as $$
begin
    return jsonb_build_object(
        'version', krai_core.schema_version(),
        'time', krai_private.iso_time(clock_timestamp()),
        'missing_objects', to_jsonb(krai_private.missing_objects()),
        'missing_grants', to_jsonb(krai_private.missing_grants()),
        'excess_grants', to_jsonb(krai_private.excess_grants()),
        'tables_without_rls', coalesce((
            select jsonb_agg(c.relname order by c.relname) from krai_private.access_list() l
            join pg_catalog.pg_class c on c.oid = to_regclass(l.name) and c.relkind = 'r'
            where not c.relrowsecurity), '[]'),
        'leftovers', to_jsonb(krai_private.leftovers()),
        'readers_of_documents', krai_private.readers_of_documents());
end;
$$;
comment on function krai_core.get_installation() is
'Tells whether the installation is whole: what is missing, what is too much, and what is left over.
Returns {version, time, missing_objects, missing_grants, excess_grants, tables_without_rls, leftovers,
readers_of_documents}. version: as schema_version returns it. time: that of the database, ISO 8601, UTC.
missing_objects: [<kind and name>], disabled triggers and an invalid index included. missing_grants: [statements that
grant what service_role lacks]. excess_grants: [statements that revoke what anon, authenticated and PUBLIC hold
beyond their rights]. tables_without_rls: [names], of the tracker''s tables and documents. leftovers: [functions and
views of an earlier version, to be dropped]. readers_of_documents: {"anon": [policies that admit rows],
"authenticated": [...]}, only of those who may select stage_status; ["*"] without row level security. Raises 42501
for all but service_role.';

do $$ begin perform krai_private.apply_access(); end $$;

notify pgrst, 'reload schema';

commit;

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;

-- ======== 53_leftovers ========
-- Leftovers: drops what 42_leftovers finds, once no transaction is left that may be using it.

do $$
declare
    -- Every transaction holds its own virtual transaction id, which all roles may see.
    v_before text[] := array(
        select l.virtualxid from pg_catalog.pg_locks l
        where l.locktype = 'virtualxid' and l.granted and l.pid <> pg_backend_pid());
    v_kept text[];
begin
    if krai_private.leftovers() = '{}' then
        return;
    end if;
    for i in 1..50 loop
        exit when not exists (
            select from pg_catalog.pg_locks l where l.locktype = 'virtualxid' and l.virtualxid = any (v_before));
        perform pg_sleep(0.1);
    end loop;
    if exists (select from pg_catalog.pg_locks l where l.locktype = 'virtualxid' and l.virtualxid = any (v_before)) then
        raise warning 'helpers of the earlier version are still there: a transaction from before may be using them'
            using hint = 'They do no harm. Once it is over: select krai_private.drop_leftovers();';
        return;
    end if;
    v_kept := krai_private.drop_leftovers();
    if v_kept <> '{}' then
        raise warning 'something of yours uses helpers of the earlier version, which are no longer called: %',
            array_to_string(v_kept, ', ') using hint = 'Drop it, then: select krai_private.drop_leftovers();';
    end if;
end $$;

commit;
