-- Leftovers are dropped: see 42_leftovers.

do $$
declare
    -- Every transaction holds its own virtual transaction id, which all roles may see.
    v_before text[] := array(
        select l.virtualxid from pg_catalog.pg_locks l
        where l.locktype = 'virtualxid' and l.granted and l.pid <> pg_backend_pid());
    v_kept text[];
begin
    if krai_private.leftovers() = '{}' then
        return;
    end if;
    for i in 1..50 loop
        exit when not exists (
            select from pg_catalog.pg_locks l where l.locktype = 'virtualxid' and l.virtualxid = any (v_before));
        perform pg_sleep(0.1);
    end loop;
    if exists (select from pg_catalog.pg_locks l where l.locktype = 'virtualxid' and l.virtualxid = any (v_before)) then
        raise warning 'helpers of the earlier version are still there: a transaction from before may be using them'
            using hint = 'They do no harm. Once it is over: select krai_private.drop_leftovers();';
        return;
    end if;
    v_kept := krai_private.drop_leftovers();
    if v_kept <> '{}' then
        raise warning 'something of yours uses helpers of the earlier version, which are no longer called: %',
            array_to_string(v_kept, ', ') using hint = 'Drop it, then: select krai_private.drop_leftovers();';
    end if;
end $$;
