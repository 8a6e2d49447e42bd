-- The quickstart's own tables: what its processors find out about a document.
--
-- They live beside krai_core, never in it: the tracker knows how far a document is, these tables know what is in it.
-- Every row hangs on a row of krai_core.documents and goes with it. The schema is not in the API's list of schemas
-- and nothing is granted: the processors write over a direct connection as the owner. The file may be applied twice.

create extension if not exists vector;

create schema if not exists manuals;

create table if not exists manuals.files (
    document_id uuid primary key references krai_core.documents (id) on delete cascade,
    path text not null,
    sha256 text not null,
    size_bytes bigint not null,
    page_count integer,
    manufacturer text,
    product text,
    document_type text,
    language text
);
comment on column manuals.files.page_count is 'null while nobody could open the file (password missing)';
comment on column manuals.files.language is 'ISO 639-1 code, null when not recognised';

create table if not exists manuals.pages (
    document_id uuid not null references manuals.files (document_id) on delete cascade,
    page integer not null,
    body text not null,
    primary key (document_id, page)
);

create table if not exists manuals.chunks (
    id bigint generated always as identity primary key,
    document_id uuid not null references manuals.files (document_id) on delete cascade,
    page integer not null,
    body text not null,
    embedding vector(256),
    search tsvector
);
comment on column manuals.chunks.embedding is 'unit length, so that cosine distance and inner product agree; null for text without letters';
create index if not exists chunks_document_id_idx on manuals.chunks (document_id);
create index if not exists chunks_search_idx on manuals.chunks using gin (search);
-- A few thousand vectors are compared one by one in milliseconds. For many more:
--   create index on manuals.chunks using hnsw (embedding vector_cosine_ops);

create table if not exists manuals.images (
    document_id uuid not null references manuals.files (document_id) on delete cascade,
    sha256 text not null,
    page integer not null,
    width integer not null,
    height integer not null,
    path text not null,
    thumbnail_path text not null,
    primary key (document_id, sha256)
);
comment on column manuals.images.page is 'first page that shows the image';

create table if not exists manuals.facts (
    document_id uuid not null references manuals.files (document_id) on delete cascade,
    kind text not null check (kind in ('error_code', 'version')),
    value text not null,
    page integer not null,
    primary key (document_id, kind, value)
);
comment on column manuals.facts.page is 'first page that names the value';

create table if not exists manuals.objects (
    document_id uuid not null references manuals.files (document_id) on delete cascade,
    object_key text not null,
    name text not null,
    size_bytes bigint not null,
    primary key (document_id, object_key)
);
comment on column manuals.objects.object_key is 'content address: the sha256 of the bytes';
