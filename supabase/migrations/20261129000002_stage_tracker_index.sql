-- Index: the one on stage_status, for queries such as stage_status @> '{"embedding": {"status": "failed"}}'.
--
-- Built concurrently, so nobody waits for it. So this file must not run inside a transaction; if your editor sends a
-- whole file at once, run the statements one by one. A large table takes minutes, so there is no statement timeout.
--
-- An interrupted build leaves an invalid index of that name, which `if not exists` would take for the real one: it is
-- dropped first. An index that another session is still building is invalid, too, but that session holds a lock: this
-- stops within a second, and can be run again.
do $$
declare
    v_index record;
begin
    -- Fails if an earlier file failed: then there is no such table or column.
    perform r.claim_id from krai_core.stage_runs r limit 0;
    select i.indrelid::regclass as owner, i.indrelid = 'krai_core.documents'::regclass as is_ours, i.indisvalid
    into v_index
    from pg_catalog.pg_index i
    where i.indexrelid = to_regclass('krai_core.idx_documents_stage_status');
    if not v_index.is_ours then
        raise exception 'the name idx_documents_stage_status is taken by an index of %. Run alter index '
            'krai_core.idx_documents_stage_status rename to <another name>; then run the migration again', v_index.owner
            using errcode = '42P07';
    elsif not v_index.indisvalid then
        perform set_config('lock_timeout', '900ms', true);
        drop index krai_core.idx_documents_stage_status;
    end if;
end $$;

set statement_timeout = 0;
create index concurrently if not exists idx_documents_stage_status on krai_core.documents using gin (stage_status);
reset statement_timeout;
