-- Per-stage document tracking: the triggers on krai_core.documents. The truth may be written by anybody, by an old script
-- or by hand in Studio; what follows from it is made here.
--
--   documents_100_repair_insert   before insert, row: odd values are repaired; a row that an earlier tracker calls completed
--       starts as completed in every stage
--   zzy_documents_repair_update   before update, row, after triggers of yours: odd values are repaired; stages that a worker
--       holds keep their value against a direct edit, with a WARNING
--   documents_150_note           after update, row: that there was a direct edit, and of what, is noted (edited_documents)
--   documents_200_inserted       after insert: opens the ready runs
--   documents_200_edited         after update: the runs follow a direct edit, in both directions; so do the figures, and
--       processing_status and processing_stage, where the table has them as text
--   documents_400_delete_runs, documents_400_truncate_runs     after delete, truncate: the runs go with their documents
--   zzz_documents_keep_rest      before, row, last by its name: while the migration repairs stage_status, no other column
--       changes, whatever triggers of yours (updated_at = now()) wrote into the row
--
-- Rules
--   * Total: a missing or foreign status counts as pending, nothing is cast without a type test, nothing raises.
--   * Set by set: the after triggers are statement-level. For updates without transition tables, which would be filled by
--     our own writers, too; those bring after the truth by themselves what follows from it (write_stage_status, claim_ready,
--     finish_batch), with the functions that the triggers use.
--   * SECURITY DEFINER with EXECUTE revoked, because a signed-in user's plain `update documents set filename = ...` fires
--     them and may not write stage_runs himself.
--   * Our own writers (setting krai_core.writer, see write_stage_status) have closed their runs and write sound values: what is for
--     direct edits is passed over for them, behind a WHEN that costs next to nothing.
--   * Legacy columns are written only when the status of a stage changes, and never by the migration. A value that the
--     table refuses is left alone with a WARNING.
-- The file is short because CREATE TRIGGER keeps writers waiting until it commits.
-- Lock order: documents (the statement has them), then stage_runs.

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
        -- The argument says that the table has a column processing_status.
        if tg_nargs > 0 then
            if new.processing_status::text = 'completed' then
                new.stage_status := krai_private.archived_stages(new.stage_status);
            end if;
        end if;
        return new;
    end if;
    for v_run in
        select r.stage_name, r.worker from krai_core.stage_runs r
        where r.document_id = new.id and r.open_stage is not null and r.status = 'running' and r.claim_id is not null and r.lease_expires_at > clock_timestamp()
          and old.stage_status -> r.stage_name is distinct from new.stage_status -> r.stage_name
    loop
        new.stage_status := new.stage_status || jsonb_build_object(v_run.stage_name, old.stage_status -> v_run.stage_name);
        raise warning 'stage % of document % is being worked on: the direct edit of it was left out', v_run.stage_name, new.id
            using hint = 'Use krai_core.reset_stage with p_force => true to take it away from its worker.';
    end loop;
    return new;
end;
$$;
comment on function krai_private.tg_documents_repair() is 'Repairs stage_status as it is written, and keeps the stages that a worker holds.';

create or replace function krai_private.tg_documents_note() returns trigger
language plpgsql security definer
set search_path = ''
as $$
begin
    insert into krai_core.edited_documents (transaction_id, depth, document_id, status_changed, old_status, new_status)
    values (pg_current_xact_id(), pg_trigger_depth(), new.id,
            jsonb_path_query_array(new.stage_status, '$.*.status') is distinct from jsonb_path_query_array(old.stage_status, '$.*.status'),
            old.stage_status, new.stage_status);
    return null;
end;
$$;
comment on function krai_private.tg_documents_note() is 'Notes what a direct edit changes, for the end of its statement.';

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
    select array_agg(m.document_id order by m.document_id), array_agg(m.document_id order by m.document_id) filter (where m.status_changed)
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
comment on function krai_private.tg_documents_edited() is 'Brings the runs and the legacy columns after a direct edit of stage_status.';

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
    -- Nearly all begin with nothing done: what is ready of those is the same for each, and they have no history. Compared
    -- byte by byte, which is many times faster than value by value; what only looks different takes the other way.
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
    insert into krai_core.stage_deltas (stage_name, arrived) select o.stage_name, count(*) from opened o group by o.stage_name;
    perform krai_private.fold_deltas_if_due();
    v_others := array(select a.id from after_rows a where row(a.stage_status)::record operator(pg_catalog.*<>) row(v_default)::record order by a.id);
    if v_others <> '{}' then
        execute format('insert into krai_core.stage_deltas (stage_name, bucket, processing, completed, failed, skipped, timed, duration_us)
            select c.stage_name, c.bucket, c.processing, c.completed, c.failed, c.skipped, c.timed, c.duration_us from (%s) c',
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
        -- All that there is, taken away: a fold at the same time changes no sum. What others inserted since the snapshot of a
        -- repeatable read transaction it cannot see; rebuild_statistics mends that.
        insert into krai_core.stage_deltas (stage_name, bucket, documents, processing, completed, failed, skipped, timed, duration_us)
        select k.stage_name, k.bucket, - k.documents, - k.processing, - k.completed, - k.failed, - k.skipped, - k.timed, - k.duration_us
        from krai_private.stage_sums k;
    elsif exists (select from before_rows) then
        execute format('insert into krai_core.stage_deltas (stage_name, bucket, documents, processing, completed, failed, skipped, timed, duration_us)
            select c.stage_name, c.bucket, 0, c.processing, c.completed, c.failed, c.skipped, c.timed, c.duration_us from (%s) c
            union all select '''', -1, - count(*), 0, 0, 0, 0, 0, 0 from before_rows',
            krai_private.sql_counted('select b.stage_status as old, ''{}''::jsonb as new from before_rows b'));
        perform krai_private.fold_deltas_if_due();
        delete from krai_core.stage_runs r using before_rows b where r.document_id = b.id;
        delete from krai_core.document_priorities p using before_rows b where p.document_id = b.id;
    end if;
    return null;
end;
$$;
comment on function krai_private.tg_documents_delete_runs() is 'Deletes the runs of deleted documents, and takes them out of the figures.';

create or replace function krai_private.tg_documents_keep_rest() returns trigger
language plpgsql security definer
set search_path = ''
as $$
begin
    -- Not `new := old` and one assignment: Postgres 15 crashes on that where a row is older than one of its columns.
    return jsonb_populate_record(old, jsonb_build_object('stage_status', new.stage_status));
end;
$$;
comment on function krai_private.tg_documents_keep_rest() is 'Takes back what other triggers changed in a row whose stage_status the migration repairs.';

create or replace function krai_private.tg_pipeline_lock() returns trigger
language plpgsql security definer
set search_path = ''
set lock_timeout = '900ms'
as $$
begin
    lock table krai_core.stages in access exclusive mode;
    -- Tells the end of the statement that there is something to follow.
    perform set_config('krai_core.pipeline_changes', 'yes', true);
    return case tg_op when 'DELETE' then old else new end;
end;
$$;
comment on function krai_private.tg_pipeline_lock() is
'Waits until nobody derives from the pipeline, and keeps them waiting until the change is committed. For each row, so that a
statement that changes none, because row level security shows it none, locks nobody out.';

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
    update krai_core.stages s set waits_for = krai_private.enabled_prerequisites(s.name), fill_after = '00000000-0000-0000-0000-000000000000';
    perform krai_private.renew_default();
    return null;
end;
$$;
comment on function krai_private.tg_pipeline_follow() is 'Refuses circles, and has ready runs and the column default follow the pipeline.';
