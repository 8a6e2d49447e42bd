-- Per-stage document tracking: what the database must be like, and the tables of the tracker.
--
-- krai_core.stages           the pipeline as data: one row per stage, in order, with its lease and its retries.
-- krai_core.stage_prerequisites   the DAG: which stages must be finished before a stage may start.
-- krai_core.stage_runs       one narrow row per attempt to run a stage: queue entry, lease and history in one.
-- krai_core.document_priorities   the documents that are to go first, or last.
--
-- The file begins with checks that write nothing: a database in which a later file could not do its work (documents is a
-- view, its id is no uuid, a view of yours hangs on what must be replaced ...) is left as it was, with a sentence that says
-- what to do.
--
-- Rules
--   * documents.stage_status is the truth about where a document stands; stage_runs says who works on it and what was.
--   * At most one open run (ready or running) per stage of a document: stage_runs_document_open_stage makes a double run an
--     impossible row. A run never goes back to ready; it is closed and another one is opened.
--   * A claim id opens a given stage of a document once: start_stage and claim_stages look, each under a lock. No index says
--     so, because a unique one would be the largest of all.
--   * No index holds lease_expires_at or heartbeat_at, so that a heartbeat stays a HOT update.
--   * stage_runs has no foreign key to documents: triggers delete the runs of deleted documents set by set, `truncate
--     documents` keeps working, and opening a run does not lock the document a second time.
--   * Times are the database's (clock_timestamp()), never a client's.
-- Lock order, here and in every later file: documents rows in id order (for no key update), then stage_runs in id order.
--
-- Each file can be run again at any time; one that was interrupted has left nothing behind.

begin;

set local lock_timeout = '900ms';
set local client_min_messages = warning;

-- What is the matter and what to do about it stand in the message, because `supabase db push` shows no HINT; and one
-- statement for each kind of check, because it prints the one that failed.
do $$
declare
    v_names text := (
        select string_agg(wanted.name, ', ') from unnest(array['anon', 'authenticated', 'service_role']) as wanted (name)
        where to_regrole(wanted.name) is null);
begin
    if v_names is not null then
        raise exception 'the roles of a Supabase database are missing: %. Run this in a Supabase project, or create them and run it again: create role anon nologin; create role authenticated nologin; create role service_role nologin bypassrls;', v_names
            using errcode = '42704';
    end if;
end $$;

do $$
declare
    v_names text := (
        select string_agg(taken.name, ', ')
        from (values ('stages', 'lease_seconds'), ('stage_prerequisites', 'requires'), ('stage_runs', 'claim_id')) as taken (name, sign)
        where to_regclass('krai_core.' || taken.name) is not null and not exists (
            select from pg_catalog.pg_attribute a
            join pg_catalog.pg_class c on c.oid = a.attrelid and c.relkind = 'r'
            where a.attrelid = to_regclass('krai_core.' || taken.name) and a.attname = taken.sign and not a.attisdropped));
begin
    if v_names is not null then
        raise exception 'something else in schema krai_core bears a name that the tracker needs: %. Give it another name, and run the migration again', v_names
            using errcode = '42P07';
    end if;
end $$;

-- What an earlier tracker left goes in later files, and what hangs on it would have to go with it.
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
        raise exception 'views and functions of an earlier tracker must be replaced, but %. Keep the definition of yours (pg_get_viewdef, pg_get_functiondef), drop it, run the migration again, and create it anew over what is there then', v_uses
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
        raise exception 'krai_core.documents is %, and stages can be tracked in an ordinary table only. Give it another name, and the name krai_core.documents to the table that holds the rows; then run the migration again', v_table.kind
            using errcode = '42809';
    elsif not v_table.is_ours then
        raise exception 'krai_core.documents belongs to %, and % may not change it. As its owner: alter table krai_core.documents owner to %; then run the migration again', v_table.owner, current_user, quote_ident(current_user)
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
            raise exception 'krai_core.documents.id is %, and stages are tracked by uuid. Rename the old column if there is one, add `id uuid primary key default gen_random_uuid()`, and run the migration again', coalesce('of type ' || v_column.type, 'missing')
                using errcode = '42804';
        elsif v_column.name = 'id' and not v_column.is_key then
            raise exception 'krai_core.documents.id is not a key: it must be unique and not null. Run alter table krai_core.documents add primary key (id); then run the migration again'
                using errcode = '42830';
        elsif v_column.name = 'filename' and v_column.type is null then
            raise exception 'krai_core.documents has no column filename. Add it, for instance by alter table krai_core.documents add column filename text generated always as (<your column>) stored; then run the migration again'
                using errcode = '42703';
        elsif v_column.name = 'stage_status' and v_column.type <> 'jsonb' then
            raise exception 'krai_core.documents.stage_status is of type %, not jsonb. Run alter table krai_core.documents alter column stage_status drop default, alter column stage_status type jsonb using stage_status::jsonb; then run the migration again', v_column.type
                using errcode = '42804';
        elsif v_column.name = 'stage_status' and v_column.is_generated then
            raise exception 'krai_core.documents.stage_status is a generated column, and nobody could write it. Run alter table krai_core.documents alter column stage_status drop expression; then run the migration again'
                using errcode = '428C9';
        end if;
    end loop;
end $$;

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
    backoff_max_seconds integer not null default 3600,
    paused boolean not null default false,
    enabled boolean not null default true,
    changed_at timestamptz,
    changed_by text,
    waits_for text[] not null default '{}',
    -- A stage that has just come: the documents that are there get their ready runs bit by bit.
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
    -- The same pair from the other side: which stages wait for this one.
    constraint stage_prerequisites_requires_stage unique (requires, stage_name),
    constraint stage_prerequisites_not_itself check (stage_name <> requires)
);

create table if not exists krai_core.stage_runs (
    -- What has a fixed length comes first, the longest first: a row is padded no more than it must be.
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
    -- Room on each page for the heartbeats, which then need no new index entries.
) with (fillfactor = 85);

-- All runs of a document, and at most one of them open for each stage: nulls are never equal to each other. One index for both,
-- since each version of a run has an entry in it. Of a key that many rows share an index keeps one, so it takes a fifth of what
-- it would with the stage of each run.
create unique index if not exists stage_runs_document_open_stage
    on krai_core.stage_runs (document_id, open_stage);
-- The queue of a stage, in the order in which it is handed out. Lists pass over retries by the last column, without a look at
-- their rows: those of the future are the newest of all.
create index if not exists stage_runs_ready
    on krai_core.stage_runs (stage_name, priority desc, available_at, id, retry_at) where status = 'ready';
-- What is being worked on, newest first or to look for leases that are over, and what of it one claim holds. Without the lease
-- itself: see above.
create index if not exists stage_runs_running
    on krai_core.stage_runs (stage_name, started_at, id, claim_id) where status = 'running';
-- Whether there was a claim, so that its repeat takes nothing more. One run tells, and not all that it took.
create index if not exists stage_runs_claim
    on krai_core.stage_runs (claim_id) where opens_claim;
-- Which documents have come through a stage, newest first; likewise those that it was skipped for, and those that failed.
create index if not exists stage_runs_completed
    on krai_core.stage_runs (stage_name, finished_at) where is_current and status = 'completed';
create index if not exists stage_runs_skipped
    on krai_core.stage_runs (stage_name, finished_at) where is_current and status in ('skipped', 'cancelled');
create index if not exists stage_runs_failed
    on krai_core.stage_runs (stage_name, finished_at) include (error_fingerprint, id, attempt) where is_current and status in ('failed', 'lost');
-- The newest failures of all stages by stage and kind, one number for both, without a look at the rows. Only who says `id > 0`
-- gets it: the planner would take it for a stage or a fingerprint, too, and pass over all others.
create index if not exists stage_runs_failures
    on krai_core.stage_runs (finished_at, (coalesce(error_fingerprint, 0) # hashtextextended(stage_name, 0))) include (id, attempt, error_fingerprint, stage_name)
    where is_current and status in ('failed', 'lost') and id > 0;
-- The newest failures of one kind.
create index if not exists stage_runs_fingerprint
    on krai_core.stage_runs (error_fingerprint, finished_at) where is_current and status in ('failed', 'lost');
-- Earlier runs of a stage that is to run again; and what may be pruned, oldest first.
create index if not exists stage_runs_superseded_of_document
    on krai_core.stage_runs (document_id) where finished_at is not null and not is_current;
create index if not exists stage_runs_superseded
    on krai_core.stage_runs (finished_at) where finished_at is not null and not is_current;

create table if not exists krai_core.document_priorities (
    document_id uuid primary key,
    priority integer not null,
    changed_at timestamptz not null default now(),
    changed_by text
);

-- Seeded once: a pipeline that was changed since is left as it is.
with seeded as (
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
    where not exists (select from krai_core.stages)
    returning name
)
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
where exists (select from seeded);

comment on table krai_core.stages is 'The stages of the pipeline, in order. A disabled stage counts as satisfied and is in no total.';
comment on column krai_core.stages.name is 'Key of the stage in documents.stage_status; lower case letters, digits and underscores.';
comment on column krai_core.stages.position is 'Order in the pipeline; unique.';
comment on column krai_core.stages.description is 'What the stage does, for people.';
comment on column krai_core.stages.weight is 'Share of the stage in the weighted progress of a document; greater than 0.';
comment on column krai_core.stages.lease_seconds is 'Seconds for which a claimed run is held without a sign of life; 1 to 604800.';
comment on column krai_core.stages.timeout_seconds is 'Seconds after which a run is lost even if it still beats; null: no bound.';
comment on column krai_core.stages.max_attempts is 'Attempts before a stage stays failed; counted since the last retry or reset by a person.';
comment on column krai_core.stages.backoff_seconds is 'Seconds before the first automatic retry; doubled for each further one.';
comment on column krai_core.stages.backoff_max_seconds is 'Longest wait before an automatic retry, in seconds.';
comment on column krai_core.stages.paused is 'While true nothing of this stage is handed out.';
comment on column krai_core.stages.enabled is 'false: the stage counts as satisfied and is in no total.';
comment on column krai_core.stages.changed_at is 'When the stage was last registered, disabled, paused or resumed; UTC, database clock.';
comment on column krai_core.stages.changed_by is 'Who did that.';
comment on column krai_core.stages.waits_for is 'Derived from stage_prerequisites: the enabled stages that must be finished before this one may start.';
comment on column krai_core.stages.fill_after is 'Documents with a greater id still have to be looked at for ready runs, because the pipeline changed; null: none.';

comment on table krai_core.stage_prerequisites is 'The DAG: stage_name may start when every stage in requires is completed, skipped or disabled.';
comment on column krai_core.stage_prerequisites.stage_name is 'The stage that waits.';
comment on column krai_core.stage_prerequisites.requires is 'The stage that must be finished first.';

comment on table krai_core.stage_runs is 'One row per attempt to run a stage of a document. Open: ready, running. Closed: completed, failed, skipped, released, lost, cancelled.';
comment on column krai_core.stage_runs.id is 'Run id, ascending in order of opening.';
comment on column krai_core.stage_runs.document_id is 'The document, krai_core.documents.id.';
comment on column krai_core.stage_runs.stage_name is 'The stage, krai_core.stages.name.';
comment on column krai_core.stage_runs.open_stage is 'stage_name while the run is ready or running; null once it is closed. Computed.';
comment on column krai_core.stage_runs.status is 'ready, running, completed, failed, skipped, released (given back), lost (lease over, taken by another) or cancelled.';
comment on column krai_core.stage_runs.attempt is 'Number of this attempt, from 1; counted since the last success, retry or reset.';
comment on column krai_core.stage_runs.priority is 'Higher is handed out first.';
comment on column krai_core.stage_runs.available_at is 'From when a ready run may be handed out; UTC, database clock.';
comment on column krai_core.stage_runs.claim_id is 'The credential of the holder: a uuid made by the client. Null: started without one.';
comment on column krai_core.stage_runs.worker is 'Name that the worker gave itself.';
comment on column krai_core.stage_runs.lease_seconds is 'Length of the lease in seconds; renewed by progress and heartbeat. Null again once its holder has closed the run.';
comment on column krai_core.stage_runs.lease_expires_at is 'When the run may be taken over by another; null again once its holder has closed the run. UTC, database clock.';
comment on column krai_core.stage_runs.heartbeat_at is 'Last renewal of the lease; null again once its holder has closed the run. UTC, database clock.';
comment on column krai_core.stage_runs.started_at is 'When the run began; null: the work was done outside and only reported. UTC, database clock.';
comment on column krai_core.stage_runs.finished_at is 'When the run was closed; null while open. UTC, database clock.';
comment on column krai_core.stage_runs.closed_by_holder is 'true: closed by a call that carried the run''s own claim id.';
comment on column krai_core.stage_runs.error is 'Error of this attempt, up to 65536 characters (the column documents.stage_status holds at most 4000).';
comment on column krai_core.stage_runs.progress is 'Highest progress in percent that this run had reached, noted when it fell back and when a later run replaced it; null before.';
comment on column krai_core.stage_runs.metadata is 'Metadata of this run, kept when a later run replaced it; null before.';
comment on column krai_core.stage_runs.retry_at is 'Of a failed run: when it is tried again by itself; null: not. Of a ready run: the same, where it is that further try. UTC, database clock.';
comment on column krai_core.stage_runs.reset_at is 'When a person retried or reset the stage after this run; attempts count from there. UTC, database clock.';
comment on column krai_core.stage_runs.actor is 'Who retried, reset or cancelled after this run.';
comment on column krai_core.stage_runs.is_current is 'true: a completed, failed or skipped stage stands on this closed run; false: open, given back, or superseded by a later run, a reset or an edit.';
comment on column krai_core.stage_runs.opens_claim is 'true: the first run that its claim took of the stage, by which a repeat of the claim is known.';
comment on column krai_core.stage_runs.error_fingerprint is 'Of a failed or lost run: the same for errors that differ in ids, digits and paths only (_error_fingerprint).';

comment on table krai_core.document_priorities is 'Documents whose runs are handed out before or after the others; all that are not here have priority 0.';
comment on column krai_core.document_priorities.document_id is 'The document, krai_core.documents.id.';
comment on column krai_core.document_priorities.priority is 'Of all runs of the document that become ready; higher is handed out first.';
comment on column krai_core.document_priorities.changed_at is 'When it was set; UTC, database clock.';
comment on column krai_core.document_priorities.changed_by is 'Who set it.';

-- Who may do what. service_role writes; authenticated reads the pipeline, and the runs of the documents that it may
-- see (the policy for that comes with the documents), without the credentials; anon gets nothing. What default
-- privileges of the schema gave away is taken back in the transaction that made the tables.
alter table krai_core.stages enable row level security;
alter table krai_core.stage_prerequisites enable row level security;
alter table krai_core.stage_runs enable row level security;
alter table krai_core.document_priorities enable row level security;

drop policy if exists stages_select_authenticated on krai_core.stages;
create policy stages_select_authenticated on krai_core.stages for select to authenticated using (true);
drop policy if exists stage_prerequisites_select_authenticated on krai_core.stage_prerequisites;
create policy stage_prerequisites_select_authenticated on krai_core.stage_prerequisites for select to authenticated using (true);

-- Admitting nobody, and not in the way of policies of yours.
drop policy if exists document_priorities_no_client on krai_core.document_priorities;
create policy document_priorities_no_client on krai_core.document_priorities for all to anon, authenticated using (false) with check (false);

grant usage on schema krai_core to authenticated, service_role;
revoke all on krai_core.stages, krai_core.stage_prerequisites, krai_core.stage_runs, krai_core.document_priorities
    from public, anon, authenticated;
revoke all on sequence krai_core.stage_runs_id_seq from public, anon, authenticated;
grant select on krai_core.stages, krai_core.stage_prerequisites to authenticated, service_role;
grant update (paused, changed_at, changed_by) on krai_core.stages to service_role;
grant select, insert, update, delete on krai_core.stage_runs, krai_core.document_priorities to service_role;
grant select (id, document_id, stage_name, open_stage, status, attempt, priority, available_at, lease_expires_at, heartbeat_at,
              started_at, finished_at, error, progress, metadata, retry_at, reset_at, is_current)
    on krai_core.stage_runs to authenticated;

commit;
