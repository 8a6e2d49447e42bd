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
        select * into v_batch from krai_core._repair_batch(v_last, 200);
        exit when v_batch.o_last is null;
        v_last := v_batch.o_last;
        v_held := v_held || v_batch.o_held;
        v_total := v_total + v_batch.o_repaired;
        commit;
    end loop;
    while cardinality(v_held) > 0 loop
        select * into v_batch from krai_core._repair_held(v_held, 200);
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
