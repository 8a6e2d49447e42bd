-- Per-stage document tracking: the repair of documents that were there before.
--
--   repair_documents(batch)    goes through krai_core.documents in id order, in bounded batches with a commit each
--   _repair_batch              one batch: locks what needs it, brings it to the seven keys, commits nothing itself
--
-- Rules: nothing is lost (_repaired keeps what has no place); a document that an earlier tracker calls completed while its
-- stages are untouched becomes completed in every stage; legacy columns are not written; a document that is sound is not
-- touched; to run it again, or to stop it half-way, does no harm.
-- Lock order: documents rows in id order.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;

create or replace function krai_core._repair_batch(p_after uuid, p_limit integer, out o_last uuid, out o_repaired integer)
language plpgsql volatile
set search_path = ''
as $$
declare
    v_completed text := case when exists (
        select from pg_catalog.pg_attribute a
        where a.attrelid = 'krai_core.documents'::regclass and a.attname = 'processing_status' and not a.attisdropped
    ) then $q$coalesce(d.processing_status::text = 'completed', false)$q$ else 'false' end;
    v_ids uuid[];
begin
    -- What needs repair is found without locks and asked again on the locked row.
    execute format($q$
        select (array_agg(b.id order by b.id desc))[1], array_agg(b.id) filter (where not krai_core._is_sound(b.stage_status)
            or (b.is_completed and not exists (
                select from krai_core.stages s where krai_core._stage_state(b.stage_status -> s.name) <> 'pending')))
        from (
            select d.id, d.stage_status, %s as is_completed from krai_core.documents d
            where $1 is null or d.id > $1
            order by d.id limit $2
        ) b$q$, v_completed)
    into o_last, v_ids using p_after, p_limit;
    perform set_config('krai_core.writer', 'migration', true);
    execute format($q$
        update krai_core.documents target
        set stage_status = better.stage_status
        from (
            select locked.id, case when locked.is_completed and not exists (
                    select from krai_core.stages s where krai_core._stage_state(locked.repaired -> s.name) <> 'pending')
                then krai_core._completed_before(locked.repaired) else locked.repaired end as stage_status
            from (
                select d.id, krai_core._repaired(d.stage_status) as repaired, %s as is_completed
                from krai_core.documents d
                where d.id = any ($1)
                order by d.id
                for no key update
            ) locked
        ) better
        where target.id = better.id and target.stage_status is distinct from better.stage_status$q$, v_completed)
    using v_ids;
    get diagnostics o_repaired = row_count;
    perform set_config('krai_core.writer', '', true);
end;
$$;
comment on function krai_core._repair_batch(uuid, integer) is
'Repairs the next p_limit documents after id p_after (null: from the start). Returns the last id seen (null: there was none) and how many rows were changed.';

-- No `set search_path` here: a procedure with a SET clause may not commit. Every name is qualified instead.
create or replace procedure krai_core.repair_documents(p_batch integer default 500)
language plpgsql
as $$
declare
    v_last uuid;
    v_count integer;
    v_total bigint := 0;
begin
    loop
        select b.o_last, b.o_repaired into v_last, v_count from krai_core._repair_batch(v_last, greatest(p_batch, 1)) b;
        v_total := v_total + v_count;
        exit when v_last is null;
        commit;
    end loop;
    raise notice '% documents repaired', v_total;
end;
$$;
comment on procedure krai_core.repair_documents(integer) is
'Brings stage_status of every document to the seven keys per stage, p_batch documents per commit. Safe to run again at any time.';

revoke execute on function krai_core._repair_batch(uuid, integer) from public, anon, authenticated;
revoke execute on procedure krai_core.repair_documents(integer) from public, anon, authenticated;

commit;
