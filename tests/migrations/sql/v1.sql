-- What an earlier tracker left behind, on top of field.sql: column, index, eight functions, two views; executable by
-- everybody, no search_path pinned.

alter table krai_core.documents add column stage_status jsonb default '{
    "upload": {"status": "pending", "started_at": null, "completed_at": null, "duration_seconds": null, "progress": 0, "error": null, "metadata": {}},
    "text_extraction": {"status": "pending", "started_at": null, "completed_at": null, "duration_seconds": null, "progress": 0, "error": null, "metadata": {}},
    "image_processing": {"status": "pending", "started_at": null, "completed_at": null, "duration_seconds": null, "progress": 0, "error": null, "metadata": {}},
    "classification": {"status": "pending", "started_at": null, "completed_at": null, "duration_seconds": null, "progress": 0, "error": null, "metadata": {}},
    "metadata_extraction": {"status": "pending", "started_at": null, "completed_at": null, "duration_seconds": null, "progress": 0, "error": null, "metadata": {}},
    "storage": {"status": "pending", "started_at": null, "completed_at": null, "duration_seconds": null, "progress": 0, "error": null, "metadata": {}},
    "embedding": {"status": "pending", "started_at": null, "completed_at": null, "duration_seconds": null, "progress": 0, "error": null, "metadata": {}},
    "search_indexing": {"status": "pending", "started_at": null, "completed_at": null, "duration_seconds": null, "progress": 0, "error": null, "metadata": {}}
}'::jsonb;
create index idx_documents_stage_status on krai_core.documents using gin (stage_status);

create function krai_core.start_stage(p_document_id uuid, p_stage_name text) returns void language plpgsql as $$
begin
    update krai_core.documents
    set stage_status = jsonb_set(jsonb_set(stage_status, array[p_stage_name, 'status'], '"processing"'),
                                 array[p_stage_name, 'started_at'], to_jsonb(now()::text))
    where id = p_document_id;
end;
$$;
create function krai_core.update_stage_progress(p_document_id uuid, p_stage_name text, p_progress numeric, p_metadata jsonb default '{}')
returns void language plpgsql as $$
begin
    update krai_core.documents
    set stage_status = jsonb_set(jsonb_set(stage_status, array[p_stage_name, 'progress'], to_jsonb(p_progress)),
                                 array[p_stage_name, 'metadata'], p_metadata)
    where id = p_document_id;
end;
$$;
create function krai_core.complete_stage(p_document_id uuid, p_stage_name text, p_metadata jsonb default '{}')
returns void language plpgsql as $$
begin
    update krai_core.documents
    set stage_status = jsonb_set(jsonb_set(stage_status, array[p_stage_name, 'status'], '"completed"'),
                                 array[p_stage_name, 'metadata'], p_metadata)
    where id = p_document_id;
end;
$$;
create function krai_core.fail_stage(p_document_id uuid, p_stage_name text, p_error text, p_metadata jsonb default '{}')
returns void language plpgsql as $$
begin
    update krai_core.documents
    set stage_status = jsonb_set(jsonb_set(stage_status, array[p_stage_name, 'status'], '"failed"'),
                                 array[p_stage_name, 'error'], to_jsonb(p_error)),
        processing_status = 'failed'
    where id = p_document_id;
end;
$$;
create function krai_core.skip_stage(p_document_id uuid, p_stage_name text, p_reason text default 'Not applicable')
returns void language plpgsql as $$
begin
    update krai_core.documents
    set stage_status = jsonb_set(stage_status, array[p_stage_name, 'status'], '"skipped"')
    where id = p_document_id;
end;
$$;
create function krai_core.get_document_progress(p_document_id uuid) returns numeric language plpgsql as $$
begin
    return (select count(*) * 100.0 / 8 from krai_core.documents d, jsonb_each(d.stage_status) s
            where d.id = p_document_id and s.value ->> 'status' = 'completed');
end;
$$;
create function krai_core.get_current_stage(p_document_id uuid) returns text language plpgsql as $$
declare
    v_stage text;
begin
    foreach v_stage in array array['upload', 'text_extraction', 'image_processing', 'classification',
                                   'metadata_extraction', 'storage', 'embedding', 'search_indexing'] loop
        if exists (select from krai_core.documents where id = p_document_id
                   and stage_status -> v_stage ->> 'status' in ('pending', 'processing', 'failed')) then
            return v_stage;
        end if;
    end loop;
    return 'completed';
end;
$$;
create function krai_core.can_start_stage(p_document_id uuid, p_stage_name text) returns boolean language plpgsql as $$
begin
    return true;
end;
$$;

create view krai_core.vw_documents_by_stage as
select
    id,
    filename,
    processing_status,
    krai_core.get_current_stage(id) as current_stage,
    krai_core.get_document_progress(id) as progress_percentage,
    stage_status ->> 'upload' as upload_status,
    stage_status ->> 'text_extraction' as text_extraction_status,
    stage_status ->> 'image_processing' as image_processing_status,
    stage_status ->> 'classification' as classification_status,
    stage_status ->> 'metadata_extraction' as metadata_extraction_status,
    stage_status ->> 'storage' as storage_status,
    stage_status ->> 'embedding' as embedding_status,
    stage_status ->> 'search_indexing' as search_indexing_status,
    created_at,
    updated_at
from krai_core.documents;

create view krai_core.vw_stage_statistics as
select
    s.key as stage_name,
    count(*) filter (where s.value ->> 'status' = 'pending') as pending_count,
    count(*) filter (where s.value ->> 'status' = 'processing') as processing_count,
    count(*) filter (where s.value ->> 'status' = 'completed') as completed_count,
    count(*) filter (where s.value ->> 'status' = 'failed') as failed_count,
    count(*) filter (where s.value ->> 'status' = 'skipped') as skipped_count,
    avg((s.value ->> 'duration_seconds')::numeric) filter (where s.value ->> 'status' = 'completed') as avg_duration_seconds
from krai_core.documents, jsonb_each(stage_status) s
group by s.key;
