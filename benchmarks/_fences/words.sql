-- What the calls are about, as literals. First some runs go, as triggers that were switched off would leave it: those of
-- five documents that are finished, and of five that are new.
with bare as (
    select id from (select d.id from krai_core.documents d
        where d.stage_status -> 'search_indexing' ->> 'status' = 'completed' order by d.id limit 5) done
    union all
    select id from (select r.document_id as id from krai_core.stage_runs r
        where r.stage_name = 'upload' and r.status = 'ready' order by r.id desc limit 5) waiting
),
failed as (
    select r.document_id, d.stage_status -> 'text_extraction' as stage from krai_core.stage_runs r
    join krai_core.documents d on d.id = r.document_id
    where r.status = 'failed' order by r.id limit 4
),
running as (
    select r.*, jsonb_build_object('document_id', r.document_id, 'stage_name', r.stage_name, 'claim_id', r.claim_id) as key
    from krai_core.stage_runs r where r.status = 'running'
      and r.claim_id = (select s.claim_id from krai_core.stage_runs s where s.status = 'running' order by s.started_at desc limit 1)
),
ready as (
    select r.id, r.document_id, d.stage_status -> 'upload' as stage from krai_core.stage_runs r
    join krai_core.documents d on d.id = r.document_id
    where r.stage_name = 'upload' and r.status = 'ready' order by r.id limit 10
),
completed as (
    select r.id from krai_core.stage_runs r
    where r.stage_name = 'upload' and r.status = 'completed' order by r.finished_at desc limit 50
),
deleted as (
    delete from krai_core.stage_runs r using bare b where r.document_id = b.id
)
select jsonb_build_object(
    'bare', (select quote_literal(array_agg(id)) || '::uuid[]' from bare),
    'failed', (select quote_literal(array_agg(document_id)) || '::uuid[]' from failed),
    'failed_stages', (select quote_literal(array_agg(stage)) || '::jsonb[]' from failed),
    'runs', (select quote_literal(array_agg(id)) || '::bigint[]' from ready),
    'documents', (select quote_literal(array_agg(document_id)) || '::uuid[]' from ready),
    'stages', (select quote_literal(array_agg(stage)) || '::jsonb[]' from ready),
    'listed', (select quote_literal(array_agg(id)) || '::bigint[]' from completed),
    'claim', (select quote_literal(min(claim_id::text)) || '::uuid' from running),
    'document', (select quote_literal(document_id) || '::uuid' from running order by id limit 1),
    'stage', (select quote_literal(stage_name) from running order by id limit 1),
    'finished', (select quote_literal(id) || '::uuid' from krai_core.documents
        where stage_status -> 'search_indexing' ->> 'status' = 'completed' and id not in (select id from bare) limit 1),
    'keys', (select quote_literal(jsonb_agg(key)) || '::jsonb' from running),
    'outcomes', (select quote_literal(jsonb_agg(key || '{"outcome": "completed"}')) || '::jsonb' from running),
    'key', (select quote_literal(key) || '::jsonb' from running order by id limit 1),
    'watched', (select quote_literal(jsonb_object_agg(document_id, '{"seen": "0"}'::jsonb)) || '::jsonb' from running),
    'fingerprint', (select error_fingerprint::text from krai_core.stage_runs where status = 'failed' limit 1));
