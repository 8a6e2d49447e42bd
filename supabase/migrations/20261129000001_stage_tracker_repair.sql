-- Repair: makes the documents that were there before sound, then fills their ready runs, so that workers find them.
--
-- First functions, each of which repairs a bounded number of documents and commits nothing:
--   repair_batch      one batch: finds what needs repair, and puts locked rows off
--   repair_held       waits for the first of those rows, and takes along what is free by then
--   repair_willing    repair_rows, but survives rows that a constraint or a trigger refuses
--   repair_rows       locks rows and gives each stage its seven keys
-- Then three blocks, which go through all documents: the first two repair them in id order and fill ready runs, with a
-- commit after each batch; the third counts what was there before.
--
-- Rules
--   * Nothing is lost (repaired_stages keeps what has no place), and only stage_status changes: neither updated_at nor
--     the legacy columns.
--   * If the migration role may set session_replication_role (hosted Supabase allows it), your triggers do not fire: a
--     repair of the form is no event for an audit trail or a webhook. Otherwise they fire, and what they write into the
--     row itself is undone.
--   * A document that an earlier tracker called completed, and that this one never worked on, is an archive: its
--     pending stages become completed, so that nobody processes it again by accident.
--   * A row whose update one of your constraints or triggers refuses is left as it is, with a WARNING: views and
--     functions read malformed rows correctly, and the next write to it repairs it.
--   * Nobody waits long: a batch takes only free rows, then the locked ones are waited for one at a time.
--   * Sound documents are not touched. You may run this file again at any time, while others work; interrupted, it
--     continues where it stopped.
--   * It must not run inside a transaction. If your editor sends a whole file at once, run the statements one by one.
--     The blocks are neither a procedure, because one that commits cannot pin its search_path, nor a function, which
--     cannot commit.
-- Lock order: documents rows in id order, skipping locked ones.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;

create or replace function krai_private.repair_rows(
    p_ids uuid[],
    p_wait boolean,
    out o_seen uuid[],
    out o_repaired integer
)
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
    execute format('
        select array_agg(held.id) from (
            select d.id from krai_core.documents d
            where d.id = any ($1) order by d.id for no key update %s) held',
        case when p_wait then '' else 'skip locked' end)
    into o_seen using p_ids;
    -- With `set`, not set_config(): hosted Supabase allows only `set` to a role that is no superuser.
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
            select d.id, case
                when %s and not exists (
                    select from krai_core.stage_runs r where r.document_id = d.id and r.status <> 'ready')
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
'Locks documents, all or (p_wait false) those that are free, and repairs them.
Returns the ids it locked and how many rows it changed.';

create or replace function krai_private.repair_willing(
    p_ids uuid[],
    p_wait boolean,
    out o_seen uuid[],
    out o_repaired integer
)
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
        -- One by one below, to find out which rows refuse and to report them.
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
        raise warning '% documents were not repaired, because krai_core.documents refuses to have them updated; '
            'the first is %', v_refused, v_first
            using hint = 'They are read correctly as they are. To repair them, make them conform and run '
                '<time>_stage_tracker_repair.sql of the migrations again.';
    end if;
end;
$$;
comment on function krai_private.repair_willing(uuid[], boolean) is
'As repair_rows, but leaves rows that a constraint or a trigger refuses as they are, with a WARNING.
They count among the ids it locked.';

create or replace function krai_private.repair_batch(
    p_after uuid,
    p_limit integer,
    out o_last uuid,
    out o_repaired integer,
    out o_held uuid[]
)
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
    -- Finds without locks what needs repair; the decision falls on the locked row.
    execute format($q$
        select (array_agg(b.id order by b.id desc))[1],
            array_agg(b.id order by b.id) filter (where not krai_private.is_sound(b.stage_status)
                or (b.is_completed
                    and exists (
                        select from krai_core.stages s
                        where krai_private.stage_state(b.stage_status -> s.name) = 'pending' and s.enabled)
                    and not exists (
                        select from krai_core.stage_runs r where r.document_id = b.id and r.status <> 'ready')))
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
'Repairs the next p_limit documents after id p_after (null: from the start).
Returns the last id it looked at (null: there was none), how many rows it changed, and the ids that others hold.';

create or replace function krai_private.repair_held(
    p_ids uuid[],
    p_limit integer,
    out o_held uuid[],
    out o_repaired integer
)
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
    raise warning '% documents were not repaired, because another transaction holds them; the first is %',
        cardinality(p_ids), p_ids[1]
        using hint = 'They are read correctly as they are. Look for the transaction in pg_stat_activity, and run '
            '<time>_stage_tracker_repair.sql of the migrations again.';
end;
$$;
comment on function krai_private.repair_held(uuid[], integer) is
'Repairs documents that others held: waits up to 10 s for the first, and takes the next p_limit that are free.
Returns the ids that are still held (none after a wait in vain, with a WARNING) and how many rows it changed.';

do $$ begin perform krai_private.apply_access(); end $$;

commit;

-- Many documents take minutes, so there is no statement timeout. It is lifted in a transaction of its own, because
-- `supabase db push` sends a file with transactions statement by statement, and only then can the blocks commit.
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
        -- Repaired documents may have other ready runs than before.
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
            -- Somebody keeps a document locked. Unless that ends within seconds, leave the rest to the workers.
            v_waits := v_waits + 1;
            v_filled := 0;
        end;
        v_total := v_total + v_filled;
        commit;
        if v_total >= v_analyzed * 10 then
            -- Plans of the first batches were made for an empty table.
            analyze krai_core.stage_runs;
            v_analyzed := v_total;
            commit;
        end if;
        exit when v_filled = 0 and v_waits not between 1 and 9;
    end loop;
    raise notice '% documents looked at for ready runs', v_total;
end $$;

-- Counts what was there before; the triggers have counted every change since they were attached.
do $$
begin
    perform krai_core.rebuild_statistics();
end $$;

reset statement_timeout;
