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
--     our own writers, too; those bring after the truth by themselves what follows from it (_write, _claim_ready,
--     _finish_usual), with the functions that the triggers use.
--   * SECURITY DEFINER with EXECUTE revoked, because a signed-in user's plain `update documents set filename = ...` fires
--     them and may not write stage_runs himself.
--   * Our own writers (setting krai_core.writer, see _write) have closed their runs and write sound values: what is for
--     direct edits is passed over for them, behind a WHEN that costs next to nothing.
--   * Legacy columns are written only when the status of a stage changes, and never by the migration. A value that the
--     table refuses is left alone with a WARNING.
-- The file is short because CREATE TRIGGER keeps writers waiting until it commits.
-- Lock order: documents (the statement has them), then stage_runs.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;

-- An autovacuum gives way to whoever has waited for a second, which lock_timeout does not leave it. This lock keeps no reader and no
-- writer waiting, and no vacuum begins before the commit.
do $$
begin
    if to_regclass('krai_core.documents') is not null then
        set local lock_timeout = '5s';
        lock table krai_core.documents in share update exclusive mode;
        set local lock_timeout = '900ms';
    end if;
end $$;

create or replace function krai_core._tg_documents_repair() returns trigger
language plpgsql security definer
set search_path = ''
as $$
declare
    v_run record;
begin
    if not krai_core._is_sound(new.stage_status) then
        new.stage_status := krai_core._repaired(new.stage_status);
    end if;
    if tg_op = 'INSERT' then
        -- The argument says that the table has a column processing_status.
        if tg_nargs > 0 then
            if new.processing_status::text = 'completed' then
                new.stage_status := krai_core._completed_before(new.stage_status);
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
comment on function krai_core._tg_documents_repair() is 'Repairs stage_status as it is written, and keeps the stages that a worker holds.';

create or replace function krai_core._tg_documents_note() returns trigger
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
comment on function krai_core._tg_documents_note() is 'Notes what a direct edit changes, for the end of its statement.';

create or replace function krai_core._completed_before(p_stage_status jsonb) returns jsonb
language sql stable
set search_path = ''
as $$
    select p_stage_status || coalesce(jsonb_object_agg(s.name,
        p_stage_status -> s.name || krai_core._pending_stage() || jsonb_build_object('status', 'completed', 'progress', 100,
            'metadata', jsonb_build_object('v1', case p_stage_status -> s.name when krai_core._pending_stage()
                then '"completed"' else p_stage_status -> s.name end) || (p_stage_status -> s.name -> 'metadata'))), '{}')
    from krai_core.stages s
    where krai_core._stage_state(p_stage_status -> s.name) = 'pending' and p_stage_status ? s.name
$$;
comment on function krai_core._completed_before(jsonb) is
'A sound stage_status with every pending stage completed, times and duration null: for documents that were finished before stages were tracked. What such a stage held, or that there was nothing, is kept in metadata.v1.';

create or replace function krai_core._tg_documents_edited() returns trigger
language plpgsql security definer
set search_path = ''
as $$
declare
    v_ids uuid[];
    v_changed uuid[];
begin
    perform krai_core._count_edits();
    perform krai_core._fold_if_due();
    with mine as (
        delete from krai_core.edited_documents e
        where e.transaction_id = pg_current_xact_id() and e.depth = pg_trigger_depth()
        returning e.document_id, e.status_changed
    )
    select array_agg(m.document_id order by m.document_id), array_agg(m.document_id order by m.document_id) filter (where m.status_changed)
    into v_ids, v_changed
    from mine m;
    if v_ids is not null then
        perform krai_core._follow_edit(v_ids);
    end if;
    if v_changed is not null then
        perform krai_core._follow_legacy(v_changed);
    end if;
    return null;
end;
$$;
comment on function krai_core._tg_documents_edited() is 'Brings the runs and the legacy columns after a direct edit of stage_status.';

create or replace function krai_core._follow_edit(p_document_ids uuid[]) returns void
language plpgsql volatile
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
begin
    update krai_core.stage_runs r
    set status = 'cancelled', finished_at = clock_timestamp(), error = 'stage_status was edited directly'
    from krai_core.documents d
    where r.document_id = any (p_document_ids) and d.id = any (array[r.document_id]) and r.open_stage is not null and r.status = 'running'
      and krai_core._stage_state(d.stage_status -> r.stage_name) <> 'processing';
    -- A failure that somebody takes out of the column by hand is settled by a person, as by retry_stage: attempts begin anew.
    with retried as (
        update krai_core.stage_runs r
        set reset_at = clock_timestamp()
        from krai_core.documents d
        where r.document_id = any (p_document_ids) and d.id = any (array[r.document_id]) and r.reset_at is null
          and (r.status = 'failed' or r.status = 'lost' and r.attempt >= (select s.max_attempts from krai_core.stages s where s.name = r.stage_name))
          and krai_core._stage_state(d.stage_status -> r.stage_name) not in ('failed', 'processing')
          and not exists (
              select from krai_core.stage_runs later
              where later.document_id = r.document_id and later.stage_name = r.stage_name and later.id > r.id and later.status <> 'ready')
        returning r.document_id, r.stage_name
    )
    delete from krai_core.stage_runs r using retried t
    where r.document_id = t.document_id and r.open_stage = t.stage_name and r.status = 'ready';
    perform krai_core._adopt_runs(p_document_ids);
    perform krai_core._derive_ready_runs(p_document_ids);
end;
$$;
comment on function krai_core._follow_edit(uuid[]) is
'After a direct edit of stage_status: runs of stages that are no longer processing are cancelled, those set to processing get one, and ready runs follow.';

create or replace function krai_core._tg_documents_inserted() returns trigger
language plpgsql security definer
set search_path = ''
as $$
declare
    v_default jsonb := krai_core._default_stage_status();
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
    perform krai_core._fold_if_due();
    v_others := array(select a.id from after_rows a where row(a.stage_status)::record operator(pg_catalog.*<>) row(v_default)::record order by a.id);
    if v_others <> '{}' then
        execute format('insert into krai_core.stage_deltas (stage_name, bucket, processing, completed, failed, skipped, timed, duration_us)
            select c.stage_name, c.bucket, c.processing, c.completed, c.failed, c.skipped, c.timed, c.duration_us from (%s) c',
            krai_core._sql_counted('select ''{}''::jsonb as old, a.stage_status as new from after_rows a'));
        perform krai_core._adopt_runs(v_others);
        perform krai_core._derive_ready_runs(v_others);
    end if;
    return null;
end;
$$;
comment on function krai_core._tg_documents_inserted() is 'Opens the ready runs of new documents, and counts them.';

-- Made anew by each run of the migration, because it names the columns that the table has.
do $make$
declare
    v_names text[] := '{}';
    -- As it is where no look at the rows tells anything.
    v_look text := E'\n    perform p_rows, p_started;';
    v_columns text := '';
    v_legacy record;
begin
    for v_legacy in
        select legacy.* from (values ('processing_status', 'document_status'), ('processing_stage', 'current_stage')) as legacy (name, source)
        join pg_catalog.pg_attribute a
            on a.attrelid = 'krai_core.documents'::regclass and a.attname = legacy.name and not a.attisdropped and a.attgenerated = ''
        join pg_catalog.pg_type t on t.oid = a.atttypid and t.typcategory = 'S' and t.typtype = 'b'
    loop
        v_names := v_names || v_legacy.name;
        v_columns := v_columns || format($f$
    begin
        update krai_core.documents d
        set %1$I = wrong.value
        from (
            select now.ctid as row, o.%2$s as value
            from krai_core.documents now
            cross join lateral (%3$s) o
            where now.id = any (p_document_ids) and now.%1$I is distinct from o.%2$s%4$s
            offset 0
        ) wrong
        where d.ctid = wrong.row;
    exception when integrity_constraint_violation or data_exception or undefined_column or raise_exception then
        raise warning 'krai_core.documents.%1$s was left as it is: %%', sqlerrm;
    end;$f$, v_legacy.name, v_legacy.source, krai_core._sql_document_state('now.stage_status'),
            -- What is processing stays so while its last stage is not finished: most of the calls of workers.
            case v_legacy.name when 'processing_status' then $q$
              and not (p_forward and now.processing_status = 'processing' and now.stage_status -> v_last ->> 'status' in ('pending', 'processing'))$q$ end);
    end loop;
    if v_names = '{processing_status}' then
        v_look := $f$
    -- Most calls of workers change nothing here, which a look at the rows where they were just written shows. Where a trigger of
    -- somebody else has moved one of them since, all are looked for.
    declare
        v_found record;
    begin
        select array_agg(now.id) filter (where not (now.processing_status = 'processing'
                and (p_started or now.stage_status -> v_last ->> 'status' in ('pending', 'processing')))) as unsettled, count(*) as seen
        into v_found from krai_core.documents now where now.ctid = any (p_rows);
        if p_forward and v_found.seen = cardinality(p_rows) then
            p_document_ids := v_found.unsettled;
        end if;
    exception when undefined_column then
        null;
    end;
    if p_document_ids is null then
        return;
    end if;$f$;
    end if;
    execute format($f$
create or replace function krai_core._follow_legacy(p_document_ids uuid[], p_forward boolean default false, p_rows tid[] default null, p_started boolean default false) returns void
language plpgsql volatile security definer
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_writer text := coalesce(current_setting('krai_core.writer', true), '');
    v_last text := (select s.name from krai_core.stages s where s.enabled order by s.position desc limit 1);
begin%s
    -- As for progress: no status changes by this, so that no trigger of ours has anything to do.
    perform set_config('krai_core.writer', 'progress', true);%s
    perform set_config('krai_core.writer', v_writer, true);
end;
$$$f$, v_look, v_columns);
end $make$;
comment on function krai_core._follow_legacy(uuid[], boolean, tid[], boolean) is
'Brings processing_status (pending, processing, completed or failed) and processing_stage (the current stage, or completed) of documents after their stages, where the table has these columns as text. p_forward: nothing but that stages started, were completed or skipped; p_rows: where the rows of all of them are, for who has just written them; p_started: nothing but that stages started. Security definer, because service_role may have been given no right to write them.';

create or replace function krai_core._tg_documents_delete_runs() returns trigger
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
        from krai_core._stage_sums k;
    elsif exists (select from before_rows) then
        execute format('insert into krai_core.stage_deltas (stage_name, bucket, documents, processing, completed, failed, skipped, timed, duration_us)
            select c.stage_name, c.bucket, 0, c.processing, c.completed, c.failed, c.skipped, c.timed, c.duration_us from (%s) c
            union all select '''', -1, - count(*), 0, 0, 0, 0, 0, 0 from before_rows',
            krai_core._sql_counted('select b.stage_status as old, ''{}''::jsonb as new from before_rows b'));
        perform krai_core._fold_if_due();
        delete from krai_core.stage_runs r using before_rows b where r.document_id = b.id;
        delete from krai_core.document_priorities p using before_rows b where p.document_id = b.id;
    end if;
    return null;
end;
$$;
comment on function krai_core._tg_documents_delete_runs() is 'Deletes the runs of deleted documents, and takes them out of the figures.';

create or replace function krai_core._tg_documents_keep_rest() returns trigger
language plpgsql security definer
set search_path = ''
as $$
begin
    -- Not `new := old` and one assignment: Postgres 15 crashes on that where a row is older than one of its columns.
    return jsonb_populate_record(old, jsonb_build_object('stage_status', new.stage_status));
end;
$$;
comment on function krai_core._tg_documents_keep_rest() is 'Takes back what other triggers changed in a row whose stage_status the migration repairs.';

revoke execute on function
    krai_core._tg_documents_keep_rest(), krai_core._tg_documents_repair(), krai_core._tg_documents_note(), krai_core._tg_documents_inserted(), krai_core._tg_documents_edited(),
    krai_core._follow_edit(uuid[]), krai_core._tg_documents_delete_runs(), krai_core._completed_before(jsonb)
    from public, anon, authenticated, service_role;

create or replace function krai_core._attach_repair_insert() returns void
language plpgsql volatile
set search_path = ''
as $$
declare
    v_has_status boolean := exists (
        select from pg_catalog.pg_attribute a
        where a.attrelid = 'krai_core.documents'::regclass and a.attname = 'processing_status' and not a.attisdropped
          -- What a BEFORE trigger cannot see, because it is computed later.
          and a.attgenerated = '');
begin
    -- A new document with the default, which is nearly every one, does not enter the function.
    execute format(
        'create or replace trigger documents_100_repair_insert before insert on krai_core.documents for each row
         when (new.stage_status is distinct from %L::jsonb %s) execute function krai_core._tg_documents_repair(%s)',
        krai_core._default_stage_status(),
        case when v_has_status then $q$or new.processing_status::text = 'completed'$q$ end,
        case when v_has_status then $q$'processing_status'$q$ end);
end;
$$;
comment on function krai_core._attach_repair_insert() is 'Attaches the trigger that repairs new documents, with the default of today as the value that needs none.';

revoke execute on function krai_core._attach_repair_insert() from public, anon, authenticated, service_role;
revoke execute on function krai_core._follow_legacy(uuid[], boolean, tid[], boolean) from public, anon, authenticated;
grant execute on function krai_core._follow_legacy(uuid[], boolean, tid[], boolean) to service_role;

do $$ begin perform krai_core._attach_repair_insert(); end $$;

create or replace trigger zzy_documents_repair_update
    before update on krai_core.documents for each row
    when (coalesce(current_setting('krai_core.writer', true), '') = '' and new.stage_status is distinct from old.stage_status)
    execute function krai_core._tg_documents_repair();
create or replace trigger documents_150_note
    after update on krai_core.documents for each row
    when (coalesce(current_setting('krai_core.writer', true), '') = '' and new.stage_status is distinct from old.stage_status)
    execute function krai_core._tg_documents_note();
create or replace trigger zzz_documents_keep_rest
    before update on krai_core.documents for each row
    when (current_setting('krai_core.writer', true) = 'migration')
    execute function krai_core._tg_documents_keep_rest();
create or replace trigger documents_200_inserted
    after insert on krai_core.documents referencing new table as after_rows
    for each statement execute function krai_core._tg_documents_inserted();
create or replace trigger documents_200_edited
    after update on krai_core.documents for each statement
    when (coalesce(current_setting('krai_core.writer', true), '') = '')
    execute function krai_core._tg_documents_edited();
create or replace trigger documents_400_delete_runs
    after delete on krai_core.documents referencing old table as before_rows
    for each statement execute function krai_core._tg_documents_delete_runs();
create or replace trigger documents_400_truncate_runs
    after truncate on krai_core.documents
    for each statement execute function krai_core._tg_documents_delete_runs();

notify pgrst, 'reload schema';

commit;
