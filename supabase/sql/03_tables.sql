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
