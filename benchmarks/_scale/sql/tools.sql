-- For a session that fills a database: room to sort, and what the other statements need.
set maintenance_work_mem = '1GB';
set work_mem = '256MB';
set jit = off;
create schema scale;
create table scale.errors (number integer primary key, text text);
-- 0 to 1, the same for the same two numbers.
create function scale.chance(p_number bigint, p_kind bigint) returns double precision language sql immutable parallel safe as
    'select (hashint8extended(p_number, p_kind) & 4294967295) / 4294967296.0::double precision';
create function scale.text_of(p_error integer, p_number bigint) returns text language sql immutable parallel safe as $$
    select replace(replace(replace(replace(replace((select e.text from scale.errors e where e.number = p_error),
        '{n}', (hashint8extended(p_number, 1) & 511)::text), '{m}', (hashint8extended(p_number, 2) & 65535)::text),
        '{id}', md5(p_number::text)::uuid::text), '{hex}', left(md5(p_number::text), 12)),
        '{path}', '/data/inbox/' || (p_number & 1023) || '/' || md5(p_number::text) || '.pdf')
$$;
create table scale.patterns (zone text, low double precision, high double precision, states text);
create table scale.steps (states text, position integer, stage_name text, state "char", is_ready boolean, seconds double precision);
-- Texts of 2 kB that do not compress away.
create table scale.bodies (number integer primary key, body text);
insert into scale.bodies
select n, (select left(string_agg(translate(encode(sha512(convert_to(n || ' ' || k, 'UTF8')), 'base64'), E'\n', ''), ''), 2000) from generate_series(1, 23) k)
from generate_series(0, 1999) n;
alter table krai_core.documents add column if not exists body text, add column if not exists attributes jsonb;
create unlogged table scale.planned (
    number bigint, document_id uuid, created_at timestamptz, position integer, stage_name text, state "char", is_ready boolean,
    before text, ready_at timestamptz, started_at timestamptz, finished_at timestamptz, seconds double precision,
    attempt integer, retry_at timestamptz, error text, metadata jsonb, claim_id uuid, worker text);
-- Vacuumed once, at the end.
alter table krai_core.documents set (autovacuum_enabled = off, toast.autovacuum_enabled = off);
alter table krai_core.stage_runs set (autovacuum_enabled = off);
