-- The documents that were planned.
insert into krai_core.documents (id, filename, processing_status, created_at, updated_at, body, attributes, stage_status)
select p.document_id, 'manual-' || p.number || '.pdf',
    case when bool_or(p.state = 'f') then 'failed' when bool_and(p.state = 'p') then 'pending'
         when bool_and(p.state in ('c', 's')) then 'completed' else 'processing' end,
    p.created_at, p.created_at, min(b.body), jsonb_build_object('language', 'de', 'pages', p.number % 400 + 1, 'source', md5(p.number::text), 'tags', '["service", "manual"]'::jsonb),
    jsonb_object_agg(p.stage_name, case p.state when 'p' then krai_private.pending_stage() else jsonb_build_object(
        'status', case p.state when 'r' then 'processing' when 'c' then 'completed' when 'f' then 'failed' else 'skipped' end,
        'started_at', krai_private.iso_time(p.started_at), 'completed_at', case when p.state <> 'r' then krai_private.iso_time(p.finished_at) end,
        'duration_seconds', case when p.state in ('c', 'f') then trim_scale(p.seconds::numeric) end,
        'progress', case p.state when 'c' then 100 when 'f' then p.number % 100 else 0 end,
        'error', case when p.state = 'f' then krai_private.short_error(p.error) end, 'metadata', p.metadata) end)
from scale.planned p join scale.bodies b on b.number = p.number % 2000
group by p.number, p.document_id, p.created_at
order by p.number
