-- The index on stage_status, for queries such as stage_status @> '{"embedding": {"status": "failed"}}'. Built concurrently,
-- so that nobody waits for it: this file must not run inside a transaction. An interrupted build leaves an invalid index
-- under the name, which would be taken for the real one: it goes first.
do $$
begin
    if exists (
        select from pg_catalog.pg_index i
        where i.indexrelid = to_regclass('krai_core.idx_documents_stage_status') and not i.indisvalid
    ) then
        drop index krai_core.idx_documents_stage_status;
    end if;
end $$;

create index concurrently if not exists idx_documents_stage_status on krai_core.documents using gin (stage_status);
