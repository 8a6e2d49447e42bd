-- Per-stage document tracking: the repair of documents that were there before. What is here repairs a bounded number of them
-- and commits nothing; the next file goes through all documents with it.
--
--   _repair_batch              one batch: finds what needs repair; rows that somebody holds are put off
--   _repair_held               waits for the first of those, and takes what is free by then
--   _repair_rows, _repair_willing    lock rows and bring them to the seven keys; the latter gets by with rows that refuse
--
-- Rules
--   * Nothing is lost (_repaired keeps what has no place), and nothing but stage_status changes: neither updated_at nor the
--     legacy columns.
--   * Where the migration role may set session_replication_role (hosted Supabase allows it), your triggers do not fire:
--     a repair of the form is no event for an audit trail or a webhook. Elsewhere they fire, and what they write into the
--     row itself is taken back.
--   * A document that an earlier tracker calls completed, and that this one never worked on, is an archive: its pending
--     stages become completed, so that nobody processes it again by accident.
--   * A row that a constraint or a trigger of yours refuses to have updated is left as it is, with a WARNING: views and
--     functions read odd rows rightly, and the next write to it repairs it.
--   * Nobody waits long: a batch takes only rows that are free, and the others are waited for one at a time.
--   * A sound document is not touched; to run it again, or to stop it half-way, does no harm.
-- Lock order: documents rows in id order, those that are locked passed over.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
-- Nothing is made where the file of the tables stopped: psql goes on after an error unless it is told otherwise.
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;

create or replace function krai_core._repair_rows(p_ids uuid[], p_wait boolean, out o_seen uuid[], out o_repaired integer)
language plpgsql volatile
set search_path = ''
as $$
declare
    v_completed text := case when exists (
        select from pg_catalog.pg_attribute a
        where a.attrelid = 'krai_core.documents'::regclass and a.attname = 'processing_status' and not a.attisdropped
    ) then $q$coalesce(d.processing_status::text = 'completed', false)$q$ else 'false' end;
    v_role text := current_setting('session_replication_role');
begin
    execute format('select array_agg(held.id) from (select d.id from krai_core.documents d
        where d.id = any ($1) order by d.id for no key update %s) held', case when p_wait then '' else 'skip locked' end)
    into o_seen using p_ids;
    -- By `set`, not by set_config(): hosted Supabase allows only that to somebody who is no superuser.
    begin
        set local session_replication_role = replica;
    exception when insufficient_privilege then
        v_role := null;
    end;
    perform set_config('krai_core.writer', 'migration', true);
    execute format($q$
        update krai_core.documents target
        set stage_status = better.stage_status
        from (
            select d.id, case when %s and not exists (select from krai_core.stage_runs r where r.document_id = d.id and r.status <> 'ready')
                then krai_core._completed_before(krai_core._repaired(d.stage_status))
                else krai_core._repaired(d.stage_status) end as stage_status
            from krai_core.documents d
            where d.id = any ($1)
            offset 0
        ) better
        where target.id = better.id and target.stage_status is distinct from better.stage_status$q$, v_completed)
    using o_seen;
    get diagnostics o_repaired = row_count;
    perform set_config('krai_core.writer', '', true);
    if v_role is not null then
        execute format('set local session_replication_role = %I', v_role);
    end if;
end;
$$;
comment on function krai_core._repair_rows(uuid[], boolean) is
'Locks documents, all or (p_wait false) those that are free, and repairs them. Returns the ids that it had and how many rows were changed.';

create or replace function krai_core._repair_willing(p_ids uuid[], p_wait boolean, out o_seen uuid[], out o_repaired integer)
language plpgsql volatile
set search_path = ''
as $$
declare
    v_id uuid;
    v_one record;
    v_refused integer := 0;
    v_first text;
begin
    begin
        select * into o_seen, o_repaired from krai_core._repair_rows(p_ids, p_wait);
        return;
    exception when integrity_constraint_violation or data_exception or raise_exception then
        -- Which of them it was, and that it is told, comes out below.
        o_seen := '{}';
        o_repaired := 0;
    end;
    foreach v_id in array p_ids loop
        begin
            select * into v_one from krai_core._repair_rows(array[v_id], p_wait);
            o_seen := o_seen || v_one.o_seen;
            o_repaired := o_repaired + v_one.o_repaired;
        exception when integrity_constraint_violation or data_exception or raise_exception then
            o_seen := o_seen || v_id;
            v_refused := v_refused + 1;
            v_first := coalesce(v_first, format('%s: %s', v_id, sqlerrm));
        end;
    end loop;
    if v_refused > 0 then
        raise warning '% documents were not repaired, because krai_core.documents refuses to have them updated; the first is %', v_refused, v_first
            using hint = 'They are read rightly as they are. To repair them, make them conform and run the file repair_existing.sql of the migrations again.';
    end if;
end;
$$;
comment on function krai_core._repair_willing(uuid[], boolean) is
'As _repair_rows, but rows that a constraint or a trigger refuses are left as they are, with a WARNING; they count among the ids that it had.';

create or replace function krai_core._repair_batch(p_after uuid, p_limit integer, out o_last uuid, out o_repaired integer, out o_held uuid[])
language plpgsql volatile
set search_path = ''
as $$
declare
    v_completed text := case when exists (
        select from pg_catalog.pg_attribute a
        where a.attrelid = 'krai_core.documents'::regclass and a.attname = 'processing_status' and not a.attisdropped
    ) then $q$coalesce(d.processing_status::text = 'completed', false)$q$ else 'false' end;
    v_ids uuid[];
    v_seen uuid[];
begin
    -- What needs repair is found without locks and decided on the locked row.
    execute format($q$
        select (array_agg(b.id order by b.id desc))[1], array_agg(b.id order by b.id) filter (where not krai_core._is_sound(b.stage_status)
            or (b.is_completed
                and exists (select from krai_core.stages s where krai_core._stage_state(b.stage_status -> s.name) = 'pending' and s.enabled)
                and not exists (select from krai_core.stage_runs r where r.document_id = b.id and r.status <> 'ready')))
        from (
            select d.id, d.stage_status, %s as is_completed from krai_core.documents d
            where $1 is null or d.id > $1
            order by d.id limit $2
        ) b$q$, v_completed)
    into o_last, v_ids using p_after, p_limit;
    o_repaired := 0;
    o_held := '{}';
    if v_ids is not null then
        select * into v_seen, o_repaired from krai_core._repair_willing(v_ids, false);
        o_held := array(select unnest(v_ids) except select unnest(v_seen));
    end if;
end;
$$;
comment on function krai_core._repair_batch(uuid, integer) is
'Repairs the next p_limit documents after id p_after (null: from the start). Returns the last id looked at (null: there was none), how many rows were changed, and the ids that others held.';

create or replace function krai_core._repair_held(p_ids uuid[], p_limit integer, out o_held uuid[], out o_repaired integer)
language plpgsql volatile
set search_path = ''
set lock_timeout = '10s'
as $$
declare
    v_first record;
    v_rest record;
begin
    select * into v_first from krai_core._repair_willing(p_ids[1:1], true);
    select * into v_rest from krai_core._repair_willing(p_ids[2:p_limit], false);
    o_held := array(select unnest(p_ids[2:]) except select unnest(v_rest.o_seen));
    o_repaired := v_first.o_repaired + v_rest.o_repaired;
exception when lock_not_available then
    o_held := '{}';
    o_repaired := 0;
    raise warning '% documents were not repaired, because another transaction holds them; the first is %', cardinality(p_ids), p_ids[1]
        using hint = 'They are read rightly as they are. Look for it in pg_stat_activity, and run the file repair_existing.sql of the migrations again.';
end;
$$;
comment on function krai_core._repair_held(uuid[], integer) is
'Repairs documents that others held before: waits up to 10 s for the first and takes the next p_limit that are free. Returns the ids that are still held (none after a wait in vain, with a WARNING) and how many rows were changed.';

do $$
declare
    v_function regprocedure;
begin
    for v_function in
        select p.oid from pg_catalog.pg_proc p
        where p.pronamespace = 'krai_core'::regnamespace
          and p.proname in ('_repair_rows', '_repair_willing', '_repair_batch', '_repair_held')
    loop
        execute format('revoke execute on function %s from public, anon, authenticated, service_role', v_function);
    end loop;
end $$;

commit;
