-- The index on stage_status, for queries such as stage_status @> '{"embedding": {"status": "failed"}}'. Built concurrently,
-- so that nobody waits for it: this file must not run inside a transaction, and where an editor sends all of a file at once,
-- its statements are run one at a time. A large table takes minutes, hence no statement timeout.
--
-- An interrupted build leaves an invalid index under the name, which would be taken for the real one: it goes first. So it
-- is while another session builds it, which holds a lock then: this stops within a second and can be run again.
do $$
declare
    v_index record;
begin
    -- Behind a file that stopped this one does nothing.
    perform r.claim_id from krai_core.stage_runs r limit 0;
    select i.indrelid::regclass as owner, i.indrelid = 'krai_core.documents'::regclass as is_ours, i.indisvalid into v_index
    from pg_catalog.pg_index i
    where i.indexrelid = to_regclass('krai_core.idx_documents_stage_status');
    if not v_index.is_ours then
        raise exception 'the name idx_documents_stage_status is taken by an index of %. Run alter index krai_core.idx_documents_stage_status rename to <another name>; then run the migration again', v_index.owner
            using errcode = '42P07';
    elsif not v_index.indisvalid then
        perform set_config('lock_timeout', '900ms', true);
        drop index krai_core.idx_documents_stage_status;
    end if;
end $$;

set statement_timeout = 0;
create index concurrently if not exists idx_documents_stage_status on krai_core.documents using gin (stage_status);
reset statement_timeout;
