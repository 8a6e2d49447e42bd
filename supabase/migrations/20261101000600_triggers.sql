-- Per-stage document tracking: the triggers on krai_core.documents. The truth may be written by anybody, by an old script
-- or by hand in Studio; what follows from it is made here.
--
--   documents_100_repair_insert, documents_100_repair_update   before, row: odd values are repaired; a row that an earlier
--       tracker calls completed starts as completed in every stage; stages that a worker holds keep their value against a
--       direct edit, with a WARNING
--   documents_200_inserted       after insert: opens the ready runs
--   documents_200_edited         after update: the runs follow a direct edit, in both directions
--   documents_300_legacy_status, documents_300_legacy_stage    after update: processing_status and processing_stage,
--       where the table has them as text, follow the stages
--   documents_400_delete_runs, documents_400_truncate_runs     after delete, truncate: the runs go with their documents
--   zzz_documents_keep_rest      before, row, last by its name: while the migration repairs stage_status, no other column
--       changes, whatever triggers of yours (updated_at = now()) wrote into the row
--
-- Rules
--   * Total: a missing or foreign status counts as pending, nothing is cast without a type test, nothing raises.
--   * Set by set: the after triggers are statement-level with transition tables.
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
        where r.document_id = new.id and r.status = 'running' and r.claim_id is not null and r.lease_expires_at > clock_timestamp()
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
begin
    if coalesce(current_setting('krai_core.writer', true), '') <> '' then
        return null;
    end if;
    v_ids := array(
        select x.id from (
            select a.id, a.stage_status from after_rows a
            except
            select b.id, b.stage_status from before_rows b
        ) x order by x.id);
    if v_ids <> '{}' then
        perform krai_core._follow_edit(v_ids);
    end if;
    return null;
end;
$$;
comment on function krai_core._tg_documents_edited() is 'Brings the runs after a direct edit of stage_status.';

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
    where r.document_id = any (p_document_ids) and d.id = r.document_id and r.status = 'running'
      and krai_core._stage_state(d.stage_status -> r.stage_name) <> 'processing';
    -- Set to pending by hand after a failure: that is a retry by a person.
    with retried as (
        update krai_core.stage_runs r
        set reset_at = clock_timestamp()
        from krai_core.documents d
        where r.document_id = any (p_document_ids) and d.id = r.document_id and r.status = 'failed' and r.reset_at is null
          and krai_core._stage_state(d.stage_status -> r.stage_name) = 'pending'
        returning r.document_id, r.stage_name
    )
    delete from krai_core.stage_runs r using retried t
    where r.document_id = t.document_id and r.stage_name = t.stage_name and r.status = 'ready';
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
begin
    -- Nearly all begin with nothing done: what is ready of those is the same for each, and they have no history.
    insert into krai_core.stage_runs (document_id, stage_name, status, available_at)
    select a.id, first.name, 'ready', v_now
    from after_rows a
    cross join (
        select s.name from krai_core.stages s where s.enabled and s.waits_for = '{}'
    ) first
    where a.stage_status = v_default;
    v_others := array(select a.id from after_rows a where a.stage_status is distinct from v_default order by a.id);
    if v_others <> '{}' then
        perform krai_core._adopt_runs(v_others);
        perform krai_core._derive_ready_runs(v_others);
    end if;
    return null;
end;
$$;
comment on function krai_core._tg_documents_inserted() is 'Opens the ready runs of new documents.';

-- Two functions of one shape, because each names its column; attached only where the column exists. A generic plan, because
-- one for the very array of ids would be made anew at each call and cost as much as all the rest.
do $make$
declare
    v_legacy record;
begin
    for v_legacy in
        select * from (values
            ('status', 'processing_status', 'document_status', 'pending, processing, completed or failed'),
            ('stage', 'processing_stage', 'current_stage', 'the current stage, or completed')
        ) as legacy (place, name, source, remark)
    loop
        execute format($f$
create or replace function krai_core._tg_documents_legacy_%1$s() returns trigger
language plpgsql security definer
set search_path = ''
set plan_cache_mode = force_generic_plan
as $$
declare
    v_writer text := coalesce(current_setting('krai_core.writer', true), '');
    v_ids uuid[];
    v_values text[];
begin
    if v_writer in ('migration', 'progress') then
        return null;
    elsif v_writer <> '' then
        -- One of ours: each row is a change.
        select array_agg(a.id), array_agg(o.%3$s) into v_ids, v_values
        from after_rows a
        cross join lateral (%4$s) o
        where a.%2$I is distinct from o.%3$s;
    else
        -- except hashes both sides. A join of the two transition tables would be planned for the single row of the first
        -- call, as a nested loop, and take minutes over some thousand rows.
        v_ids := array(
            select x.id from (
                select a.id, jsonb_path_query_array(a.stage_status, '$.*.status') from after_rows a
                except
                select b.id, jsonb_path_query_array(b.stage_status, '$.*.status') from before_rows b
            ) x);
        select array_agg(d.id), array_agg(o.%3$s) into v_ids, v_values
        from krai_core.documents d
        cross join lateral (%5$s) o
        where d.id = any (v_ids) and d.%2$I is distinct from o.%3$s;
    end if;
    if v_ids is not null then
        -- As for progress: no status changes by this, so that no trigger of ours has anything to do.
        perform set_config('krai_core.writer', 'progress', true);
        update krai_core.documents d
        set %2$I = x.value
        from unnest(v_ids, v_values) as x (id, value)
        where d.id = x.id;
        perform set_config('krai_core.writer', v_writer, true);
    end if;
    return null;
exception when integrity_constraint_violation or data_exception or undefined_column or raise_exception then
    raise warning 'krai_core.documents.%2$s was left as it is: %%', sqlerrm;
    return null;
end;
$$;
comment on function krai_core._tg_documents_legacy_%1$s() is 'Brings %2$s after the stages: %6$s.'$f$,
            v_legacy.place, v_legacy.name, v_legacy.source,
            krai_core._sql_document_state('a.stage_status'), krai_core._sql_document_state('d.stage_status'), v_legacy.remark);
    end loop;
end $make$;

create or replace function krai_core._tg_documents_delete_runs() returns trigger
language plpgsql security definer
set search_path = ''
as $$
begin
    if tg_op = 'TRUNCATE' then
        truncate krai_core.stage_runs, krai_core.document_priorities;
    else
        delete from krai_core.stage_runs r using before_rows b where r.document_id = b.id;
        delete from krai_core.document_priorities p using before_rows b where p.document_id = b.id;
    end if;
    return null;
end;
$$;
comment on function krai_core._tg_documents_delete_runs() is 'Deletes the runs of deleted documents.';

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
    krai_core._tg_documents_keep_rest(), krai_core._tg_documents_repair(), krai_core._tg_documents_inserted(), krai_core._tg_documents_edited(),
    krai_core._follow_edit(uuid[]), krai_core._tg_documents_legacy_status(),
    krai_core._tg_documents_legacy_stage(), krai_core._tg_documents_delete_runs(), krai_core._completed_before(jsonb)
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

do $$
declare
    v_legacy record;
begin
    perform krai_core._attach_repair_insert();
    for v_legacy in
        select wanted.name, wanted.place, t.typcategory = 'S' and t.typtype = 'b' and a.attgenerated = '' as is_text
        from (values ('status', 'processing_status'), ('stage', 'processing_stage')) as wanted (place, name)
        left join pg_catalog.pg_attribute a
            on a.attrelid = 'krai_core.documents'::regclass and a.attname = wanted.name and not a.attisdropped
        left join pg_catalog.pg_type t on t.oid = a.atttypid
    loop
        if v_legacy.is_text then
            execute format(
                'create or replace trigger documents_300_legacy_%1$s after update on krai_core.documents
                 referencing old table as before_rows new table as after_rows
                 for each statement execute function krai_core._tg_documents_legacy_%1$s()', v_legacy.place);
        else
            execute format('drop trigger if exists documents_300_legacy_%s on krai_core.documents', v_legacy.place);
        end if;
    end loop;
end $$;

create or replace trigger documents_100_repair_update
    before update on krai_core.documents for each row
    when (coalesce(current_setting('krai_core.writer', true), '') = '' and new.stage_status is distinct from old.stage_status)
    execute function krai_core._tg_documents_repair();
create or replace trigger zzz_documents_keep_rest
    before update on krai_core.documents for each row
    when (current_setting('krai_core.writer', true) = 'migration')
    execute function krai_core._tg_documents_keep_rest();
create or replace trigger documents_200_inserted
    after insert on krai_core.documents referencing new table as after_rows
    for each statement execute function krai_core._tg_documents_inserted();
create or replace trigger documents_200_edited
    after update on krai_core.documents referencing old table as before_rows new table as after_rows
    for each statement execute function krai_core._tg_documents_edited();
create or replace trigger documents_400_delete_runs
    after delete on krai_core.documents referencing old table as before_rows
    for each statement execute function krai_core._tg_documents_delete_runs();
create or replace trigger documents_400_truncate_runs
    after truncate on krai_core.documents
    for each statement execute function krai_core._tg_documents_delete_runs();

notify pgrst, 'reload schema';

commit;
