-- Per-stage document tracking: the tables of the statistics.
--
--   stage_deltas     what each change adds and takes away: appended, never updated
--   stage_counters   the sums of deltas: how many documents are in which state of a stage, and for how long they were worked on
--   stage_flow       the sums of deltas by hour: what came, began and ended, waited and worked
--   stage_fold       how far the deltas were folded into the two
--
-- Rules
--   * A figure is what is folded plus what is not folded yet, read in one snapshot: it is right at every commit.
--   * Every change appends, so that nobody waits for a hot row, and a bulk statement is one row for each stage.
--   * Pending is not stored: it is the documents minus the rest. So a bulk insert is one row, a new stage costs nothing, and the
--     sum over the states is documents x stages.
--   * Durations are whole microseconds, and leave their bucket with the very number that they came with.
--   * stage_flow only grows, a row for each stage and hour; pruned runs stay counted in it.
-- For service_role alone: sums tell of all tenants.

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
    -- Emptied by each fold: to be vacuumed by the number of dead rows, not by their share.
) with (autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_insert_scale_factor = 0,
        autovacuum_vacuum_insert_threshold = 10000);

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

comment on table krai_core.stage_deltas is 'Changes of the figures that are not folded yet: what to add to stage_counters and stage_flow. Kept short by fold_deltas.';
comment on column krai_core.stage_deltas.id is 'In order of appending; every thousandth brings a fold.';
comment on column krai_core.stage_deltas.stage_name is 'Key of the stage in documents.stage_status; empty: of the documents as a whole.';
comment on column krai_core.stage_deltas.bucket is 'Bucket of the duration (duration_bucket) that timed and duration_us belong to; -1: none.';
comment on column krai_core.stage_deltas.hour is 'Hour in which it happened; UTC, database clock.';
comment on column krai_core.stage_deltas.documents is 'Documents that came, minus those that went.';
comment on column krai_core.stage_deltas.processing is 'Documents that came to the state processing, minus those that left it.';
comment on column krai_core.stage_deltas.completed is 'The same for completed.';
comment on column krai_core.stage_deltas.failed is 'The same for failed.';
comment on column krai_core.stage_deltas.skipped is 'The same for skipped.';
comment on column krai_core.stage_deltas.timed is 'The same for completed with a duration in this bucket.';
comment on column krai_core.stage_deltas.duration_us is 'Sum of those durations in whole microseconds.';
comment on column krai_core.stage_deltas.arrived is 'Runs that became ready, without retries and what was given back; without a stage: documents that were inserted.';
comment on column krai_core.stage_deltas.started is 'Runs that began.';
comment on column krai_core.stage_deltas.retried is 'Those of them that were no first attempt.';
comment on column krai_core.stage_deltas.runs_completed is 'Stages that were completed.';
comment on column krai_core.stage_deltas.runs_failed is 'Stages that failed.';
comment on column krai_core.stage_deltas.runs_skipped is 'Stages that were skipped.';
comment on column krai_core.stage_deltas.waited is 'Runs that began and had been ready before.';
comment on column krai_core.stage_deltas.wait_us is 'For how long those had been due, in whole microseconds.';
comment on column krai_core.stage_deltas.work_us is 'For how long the completed and the failed were worked on, in whole microseconds.';

comment on table krai_core.stage_counters is 'How many documents are in which state of a stage, and the durations of the completed ones, as far as deltas were folded. The figures are in vw_stage_statistics.';

comment on table krai_core.stage_flow is 'What came, began and ended in each hour, as far as deltas were folded; kept for ever. The figures are in vw_stage_flow.';

do $$
declare
    v_column record;
begin
    for v_column in
        select target.name as target, a.attname, coalesce(pg_catalog.col_description('krai_core.stage_deltas'::regclass, d.attnum), '') as text
        from (values ('stage_counters'), ('stage_flow')) as target (name)
        join pg_catalog.pg_attribute a on a.attrelid = ('krai_core.' || target.name)::regclass and a.attnum > 0 and not a.attisdropped
        join pg_catalog.pg_attribute d on d.attrelid = 'krai_core.stage_deltas'::regclass
            and d.attname = case when target.name = 'stage_flow' and a.attname in ('completed', 'failed', 'skipped') then 'runs_' || a.attname else a.attname end
    loop
        execute format('comment on column krai_core.%I.%I is %L', v_column.target, v_column.attname, v_column.text);
    end loop;
end $$;

comment on table krai_core.stage_fold is 'One row: how far the deltas were folded.';
comment on column krai_core.stage_fold.singleton is 'true: there is one row.';
comment on column krai_core.stage_fold.folded_to is 'Highest stage_deltas.id that had been given out at the last fold.';

do $$
declare
    v_table text;
begin
    foreach v_table in array array['stage_deltas', 'stage_counters', 'stage_flow', 'stage_fold'] loop
        if not (select c.relrowsecurity from pg_catalog.pg_class c where c.oid = ('krai_core.' || v_table)::regclass) then
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
