-- What a reader of the first description of this system would write: the functions look into one document, and the views and
-- lists look into all of them.
create schema naive;

create function naive.get_document_progress(p_document_id uuid) returns numeric language sql stable as $$
    select round(100.0 * count(*) filter (where s.value ->> 'status' in ('completed', 'skipped')) / count(*), 2)
    from krai_core.documents d, jsonb_each(d.stage_status) s
    where d.id = p_document_id
$$;

create function naive.get_current_stage(p_document_id uuid) returns text language sql stable as $$
    select coalesce((
        select s.name
        from krai_core.documents d, unnest(array['upload', 'text_extraction', 'image_processing', 'classification',
            'metadata_extraction', 'storage', 'embedding', 'search_indexing']) with ordinality as s (name, place)
        where d.id = p_document_id and d.stage_status -> s.name ->> 'status' not in ('completed', 'skipped')
        order by s.place limit 1), 'completed')
$$;

create function naive.can_start_stage(p_document_id uuid, p_stage_name text) returns boolean language sql stable as $$
    select coalesce(bool_and(d.stage_status -> required.name ->> 'status' in ('completed', 'skipped')), true)
    from krai_core.documents d, unnest(case p_stage_name
        when 'upload' then '{}'
        when 'text_extraction' then '{upload}'
        when 'image_processing' then '{upload}'
        when 'storage' then '{image_processing}'
        when 'search_indexing' then '{embedding,metadata_extraction,classification}'
        else '{text_extraction}' end::text[]) as required (name)
    where d.id = p_document_id
$$;

create view naive.vw_documents_by_stage as
select d.id, d.filename, d.created_at, naive.get_current_stage(d.id) as current_stage,
    naive.get_document_progress(d.id) as progress_percentage,
    d.stage_status -> 'upload' as upload_status, d.stage_status -> 'text_extraction' as text_extraction_status,
    d.stage_status -> 'image_processing' as image_processing_status, d.stage_status -> 'classification' as classification_status,
    d.stage_status -> 'metadata_extraction' as metadata_extraction_status, d.stage_status -> 'storage' as storage_status,
    d.stage_status -> 'embedding' as embedding_status, d.stage_status -> 'search_indexing' as search_indexing_status
from krai_core.documents d;

create view naive.vw_stage_statistics as
select s.key as stage_name,
    count(*) filter (where s.value ->> 'status' = 'pending') as pending_count,
    count(*) filter (where s.value ->> 'status' = 'processing') as processing_count,
    count(*) filter (where s.value ->> 'status' = 'completed') as completed_count,
    count(*) filter (where s.value ->> 'status' = 'failed') as failed_count,
    count(*) filter (where s.value ->> 'status' = 'skipped') as skipped_count,
    avg((s.value ->> 'duration_seconds')::numeric) as avg_duration_seconds
from krai_core.documents d, jsonb_each(d.stage_status) s
group by s.key;

grant usage on schema naive to service_role;
grant select on all tables in schema naive to service_role;
