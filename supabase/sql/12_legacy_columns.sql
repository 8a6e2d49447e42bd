-- Legacy columns: processing_status and processing_stage of documents follow the stages, where they exist as text.
--
--   follow_processing_status, follow_processing_stage   update one column each; no-ops where there is no such column
--   follow_legacy_columns                               updates both for some documents
--
-- Rules
--   * They are written only when a stage changes its status, and never by the migration.
--   * A value that the table refuses (check, trigger, length) is not written; a WARNING says so, and the stage goes on.
-- Lock order: documents, which the caller has locked.

-- Decided once, here: which of the two columns the table has. So each body is plain SQL.
do $$
begin
    if exists (
        select from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.oid = a.atttypid and t.typcategory = 'S' and t.typtype = 'b'
        where a.attrelid = 'krai_core.documents'::regclass and a.attname = 'processing_status'
          and not a.attisdropped and a.attgenerated = ''
    ) then
        create or replace function krai_private.follow_processing_status(p_document_ids uuid[], p_processing uuid[])
        returns void
        language plpgsql volatile
        set search_path = ''
        set plan_cache_mode = force_generic_plan
        set enable_seqscan = off
        set enable_hashjoin = off
        set enable_memoize = off
        set enable_mergejoin = off
        set jit = off
        as $body$
        begin
            if p_processing <> '{}' then
                -- Most of what workers report leaves a document processing; its stage_status is not even unpacked.
                update krai_core.documents d
                set processing_status = 'processing'
                where d.id = any (p_processing) and d.processing_status is distinct from 'processing';
            end if;
            if p_document_ids <> '{}' then
                update krai_core.documents d
                set processing_status = v.document_status
                from krai_core.vw_documents_by_stage v
                where v.id = any (p_document_ids) and d.id = any (array[v.id])
                  and d.processing_status is distinct from v.document_status;
            end if;
        exception when integrity_constraint_violation or data_exception or undefined_column or raise_exception then
            raise warning 'krai_core.documents.processing_status was left unchanged: %', sqlerrm;
        end;
        $body$;
    else
        create or replace function krai_private.follow_processing_status(p_document_ids uuid[], p_processing uuid[])
        returns void
        language sql volatile
        set search_path = ''
        as '';
    end if;
    if exists (
        select from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.oid = a.atttypid and t.typcategory = 'S' and t.typtype = 'b'
        where a.attrelid = 'krai_core.documents'::regclass and a.attname = 'processing_stage'
          and not a.attisdropped and a.attgenerated = ''
    ) then
        create or replace function krai_private.follow_processing_stage(p_document_ids uuid[]) returns void
        language plpgsql volatile
        set search_path = ''
        set plan_cache_mode = force_generic_plan
        set enable_seqscan = off
        set enable_hashjoin = off
        set enable_memoize = off
        set enable_mergejoin = off
        set jit = off
        as $body$
        begin
            update krai_core.documents d
            set processing_stage = v.current_stage
            from krai_core.vw_documents_by_stage v
            where v.id = any (p_document_ids) and d.id = any (array[v.id])
              and d.processing_stage is distinct from v.current_stage;
        exception when integrity_constraint_violation or data_exception or undefined_column or raise_exception then
            raise warning 'krai_core.documents.processing_stage was left unchanged: %', sqlerrm;
        end;
        $body$;
    else
        create or replace function krai_private.follow_processing_stage(p_document_ids uuid[]) returns void
        language sql volatile
        set search_path = ''
        as '';
    end if;
end $$;
comment on function krai_private.follow_processing_status(uuid[], uuid[]) is
'Sets processing_status (pending, processing, completed or failed) of documents.
Does nothing where the table has no such text column. p_processing: as in follow_legacy_columns.';
comment on function krai_private.follow_processing_stage(uuid[]) is
'Sets processing_stage (the current stage, or completed) of documents.
Does nothing where the table has no such text column.';

create or replace function krai_private.follow_legacy_columns(
    p_document_ids uuid[], p_processing uuid[] default '{}', p_unchanged uuid[] default '{}')
returns void
language plpgsql volatile security definer
set search_path = ''
as $$
declare
    v_writer text := coalesce(current_setting('krai_core.writer', true), '');
begin
    -- Written as progress is: no stage changes its status, so the triggers have nothing to do.
    perform set_config('krai_core.writer', 'progress', true);
    perform krai_private.follow_processing_status(p_document_ids, p_processing);
    perform krai_private.follow_processing_stage(p_document_ids || p_processing || p_unchanged);
    perform set_config('krai_core.writer', v_writer, true);
end;
$$;
comment on function krai_private.follow_legacy_columns(uuid[], uuid[], uuid[]) is
'Makes processing_status and processing_stage of documents match their stages.
p_processing: further ones, which the caller knows to be processing: a stage is at work or to come, and none has failed.
p_unchanged: further ones, whose document status has not changed, but whose current stage may have.
Security definer, because service_role may have no right to write these columns.';
