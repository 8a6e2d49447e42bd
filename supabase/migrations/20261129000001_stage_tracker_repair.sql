-- Per-stage document tracking: the repair of documents that were there before. What is here repairs a bounded number of them
-- and commits nothing; the next file goes through all documents with it.
--
--   repair_batch              one batch: finds what needs repair; rows that somebody holds are put off
--   repair_held               waits for the first of those, and takes what is free by then
--   repair_rows, repair_willing    lock rows and bring them to the seven keys; the latter gets by with rows that refuse
--
-- Rules
--   * Nothing is lost (repaired_stages keeps what has no place), and nothing but stage_status changes: neither updated_at nor the
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

create or replace function krai_private.repair_rows(p_ids uuid[], p_wait boolean, out o_seen uuid[], out o_repaired integer)
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
                then krai_private.archived_stages(krai_private.repaired_stages(d.stage_status))
                else krai_private.repaired_stages(d.stage_status) end as stage_status
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
comment on function krai_private.repair_rows(uuid[], boolean) is
'Locks documents, all or (p_wait false) those that are free, and repairs them. Returns the ids that it had and how many rows were changed.';

create or replace function krai_private.repair_willing(p_ids uuid[], p_wait boolean, out o_seen uuid[], out o_repaired integer)
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
        select * into o_seen, o_repaired from krai_private.repair_rows(p_ids, p_wait);
        return;
    exception when integrity_constraint_violation or data_exception or raise_exception then
        -- Which of them it was, and that it is told, comes out below.
        o_seen := '{}';
        o_repaired := 0;
    end;
    foreach v_id in array p_ids loop
        begin
            select * into v_one from krai_private.repair_rows(array[v_id], p_wait);
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
comment on function krai_private.repair_willing(uuid[], boolean) is
'As repair_rows, but rows that a constraint or a trigger refuses are left as they are, with a WARNING; they count among the ids that it had.';

create or replace function krai_private.repair_batch(p_after uuid, p_limit integer, out o_last uuid, out o_repaired integer, out o_held uuid[])
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
        select (array_agg(b.id order by b.id desc))[1], array_agg(b.id order by b.id) filter (where not krai_private.is_sound(b.stage_status)
            or (b.is_completed
                and exists (select from krai_core.stages s where krai_private.stage_state(b.stage_status -> s.name) = 'pending' and s.enabled)
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
        select * into v_seen, o_repaired from krai_private.repair_willing(v_ids, false);
        o_held := array(select unnest(v_ids) except select unnest(v_seen));
    end if;
end;
$$;
comment on function krai_private.repair_batch(uuid, integer) is
'Repairs the next p_limit documents after id p_after (null: from the start). Returns the last id looked at (null: there was none), how many rows were changed, and the ids that others held.';

create or replace function krai_private.repair_held(p_ids uuid[], p_limit integer, out o_held uuid[], out o_repaired integer)
language plpgsql volatile
set search_path = ''
set lock_timeout = '10s'
as $$
declare
    v_first record;
    v_rest record;
begin
    select * into v_first from krai_private.repair_willing(p_ids[1:1], true);
    select * into v_rest from krai_private.repair_willing(p_ids[2:p_limit], false);
    o_held := array(select unnest(p_ids[2:]) except select unnest(v_rest.o_seen));
    o_repaired := v_first.o_repaired + v_rest.o_repaired;
exception when lock_not_available then
    o_held := '{}';
    o_repaired := 0;
    raise warning '% documents were not repaired, because another transaction holds them; the first is %', cardinality(p_ids), p_ids[1]
        using hint = 'They are read rightly as they are. Look for it in pg_stat_activity, and run the file repair_existing.sql of the migrations again.';
end;
$$;
comment on function krai_private.repair_held(uuid[], integer) is
'Repairs documents that others held before: waits up to 10 s for the first and takes the next p_limit that are free. Returns the ids that are still held (none after a wait in vain, with a WARNING) and how many rows were changed.';

do $$ begin perform krai_private.apply_access(); end $$;

commit;

-- Per-stage document tracking: repairs the documents that are there already, in id order, in batches with a commit each; then
-- their stages that are ready become ready runs, so that workers find them.
-- Interrupted, it goes on where it was when it is run again; it may be run at any time, and while others work.
--
-- It must not run inside a transaction, and where an editor sends all of a file at once, its statements are run one at a
-- time. It is no procedure, because one that commits cannot pin its search_path, and no call of a function, because that
-- could not commit. Many documents take minutes, hence no statement timeout; it is lifted in a transaction of its own,
-- because a file with transactions is what `supabase db push` sends statement by statement, and only then can be committed.
begin;

set statement_timeout = 0;

commit;

do $$
declare
    v_batch record;
    v_last uuid;
    v_held uuid[] := '{}';
    v_total bigint := 0;
begin
    loop
        select * into v_batch from krai_private.repair_batch(v_last, 200);
        exit when v_batch.o_last is null;
        v_last := v_batch.o_last;
        v_held := v_held || v_batch.o_held;
        v_total := v_total + v_batch.o_repaired;
        commit;
    end loop;
    while cardinality(v_held) > 0 loop
        select * into v_batch from krai_private.repair_held(v_held, 200);
        v_held := v_batch.o_held;
        v_total := v_total + v_batch.o_repaired;
        commit;
    end loop;
    if v_total > 0 then
        -- What is ready may be other than before.
        update krai_core.stages s set fill_after = '00000000-0000-0000-0000-000000000000';
    end if;
    raise notice '% documents repaired', v_total;
end $$;

do $$
declare
    v_total bigint := 0;
    v_filled integer;
    v_analyzed bigint := 100;
    v_waits integer := 0;
begin
    loop
        begin
            v_filled := krai_core.fill_ready_runs(250);
            v_waits := 0;
        exception when lock_not_available then
            -- Somebody holds a document for long. The workers go on with it, if it is not over in a few seconds.
            v_waits := v_waits + 1;
            v_filled := 0;
        end;
        v_total := v_total + v_filled;
        commit;
        if v_total >= v_analyzed * 10 then
            -- The plans of the first batches were made for an empty table.
            analyze krai_core.stage_runs;
            v_analyzed := v_total;
            commit;
        end if;
        exit when v_filled = 0 and v_waits not between 1 and 9;
    end loop;
    raise notice '% documents looked at for ready runs', v_total;
end $$;

-- What was there before is counted; the triggers count all that changes since they are there.
do $$
begin
    perform krai_core.rebuild_statistics();
end $$;

reset statement_timeout;
