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
