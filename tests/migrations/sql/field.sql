-- A database of the field before the tracker: krai_core.documents with all its columns, what refers to it, its trigger,
-- policies, grants and views.

create schema krai_core;
create schema krai_content;
create schema krai_intelligence;
create schema krai_system;

-- Everything that is made here later is also anon's, unless it is revoked by name.
grant usage on schema krai_core to anon, authenticated, service_role;
alter default privileges in schema krai_core grant all on tables to service_role;
alter default privileges in schema krai_core grant select on tables to anon, authenticated;
alter default privileges in schema krai_core grant all on functions to anon, authenticated, service_role;
alter default privileges in schema krai_core grant all on sequences to anon, authenticated, service_role;

create table krai_core.manufacturers (
    id uuid primary key default gen_random_uuid(),
    name varchar(100) not null unique
);

create table krai_core.documents (
    id uuid primary key default gen_random_uuid(),
    manufacturer_id uuid references krai_core.manufacturers (id),
    product_id uuid,
    filename varchar(255) not null,
    original_filename varchar(255),
    file_size bigint,
    file_hash varchar(64),
    storage_path text,
    storage_url text,
    document_type varchar(100),
    language varchar(10) default 'en',
    version varchar(50),
    publish_date date,
    page_count integer,
    word_count integer,
    character_count integer,
    content_text text,
    content_summary text,
    extracted_metadata jsonb default '{}',
    processing_status varchar(50) default 'pending',
    confidence_score numeric(3, 2),
    manual_review_required boolean default false,
    manual_review_completed boolean default false,
    manual_review_notes text,
    ocr_confidence numeric(3, 2),
    manufacturer varchar(100),
    series varchar(100),
    models text[],
    created_at timestamptz default now(),
    updated_at timestamptz default now(),
    processing_results jsonb,
    processing_error text
);
create index documents_file_hash on krai_core.documents (file_hash);

create table krai_core.document_relationships (
    id uuid primary key default gen_random_uuid(),
    primary_document_id uuid references krai_core.documents (id) on delete cascade,
    secondary_document_id uuid references krai_core.documents (id) on delete cascade
);
create table krai_content.chunks (
    id uuid primary key default gen_random_uuid(),
    document_id uuid not null references krai_core.documents (id) on delete cascade,
    text_chunk text not null
);
create table krai_intelligence.error_codes (
    id uuid primary key default gen_random_uuid(),
    document_id uuid references krai_core.documents (id) on delete cascade,
    error_code varchar(20)
);
create table krai_content.instructional_videos (
    id uuid primary key default gen_random_uuid(),
    source_document_id uuid references krai_core.documents (id) on delete set null
);
create table krai_system.processing_queue (
    id uuid primary key default gen_random_uuid(),
    document_id uuid references krai_core.documents (id),
    task_type varchar(50) not null,
    priority integer default 5,
    status varchar(20) default 'pending'
);

create function krai_core.update_updated_at_column() returns trigger language plpgsql as $$
begin
    new.updated_at = now();
    return new;
end;
$$;
create trigger update_documents_updated_at before update on krai_core.documents
    for each row execute function krai_core.update_updated_at_column();

alter table krai_core.documents enable row level security;
create policy service_role_documents_all on krai_core.documents for all using (true);
alter table krai_core.manufacturers enable row level security;
create policy service_role_manufacturers_all on krai_core.manufacturers for all using (true);

create view public.vw_documents as select * from krai_core.documents;
create view public.vw_processing_queue as
select q.*, d.filename from krai_system.processing_queue q left join krai_core.documents d on d.id = q.document_id;
grant select on public.vw_documents to anon, authenticated, service_role;

insert into krai_core.manufacturers (id, name) values ('00000000-0000-4000-8000-0000000000aa', 'Konica Minolta');
insert into krai_core.documents (id, manufacturer_id, filename, original_filename, file_size, file_hash, content_text,
    page_count, extracted_metadata, processing_status, models, created_at, updated_at, processing_results, processing_error)
select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, '00000000-0000-4000-8000-0000000000aa',
    'manual ' || n || '.pdf', 'Manual ' || n || ' (ä).pdf', n * 1000, md5(n::text), repeat('page text ', n * 50), n * 10,
    jsonb_build_object('n', n), status, array['C' || n, 'C' || n + 1], '2021-03-04 05:06:07+00', '2022-03-04 05:06:07+00',
    case when status = 'completed' then '{"chunks": 12}'::jsonb end, case when status = 'failed' then 'OCR engine timeout' end
from (values ('pending', 1), ('uploaded', 2), ('processing', 3), ('reprocessing', 4), ('completed', 5), ('failed', 6), (null, 7))
    as each (status, n);
insert into krai_content.chunks (document_id, text_chunk) select id, filename from krai_core.documents;
insert into krai_core.document_relationships (primary_document_id, secondary_document_id)
select '00000000-0000-4000-8000-000000000001', '00000000-0000-4000-8000-000000000002';
insert into krai_system.processing_queue (document_id, task_type) select id, 'search' from krai_core.documents;
