-- Documents first to last: finished, failed, half done and new ones, every third of the finished ones with a lot of
-- metadata.
insert into krai_core.documents (filename, stage_status)
select 'manual ' || n || '.pdf', krai_private.default_stage_status() || case
    when n %% 10 < 6 then (
        select jsonb_object_agg(s.name, krai_private.pending_stage() || jsonb_build_object(
            'status', case when s.name = 'image_processing' and n %% 20 = 1 then 'skipped' else 'completed' end,
            'started_at', krai_private.iso_time(t.at + (s.position - 1) * interval '1 s'),
            'completed_at', krai_private.iso_time(t.at + s.position * interval '1 s'),
            'duration_seconds', s.position + n %% 7,
            'progress', 100,
            'metadata', case when s.name = 'upload' and n %% 3 = 1 then large.metadata else '{"pages": 12}' end))
        from krai_core.stages s)
    when n %% 10 < 8 then jsonb_build_object('upload', done.stage, 'text_extraction', case n %% 10
        when 6 then krai_private.pending_stage() || jsonb_build_object(
            'status', 'failed', 'completed_at', krai_private.iso_time(t.at),
            'error', format('page %%s of a %%s is empty', n, (array['manual', 'catalogue', 'leaflet'])[n %% 3 + 1]))
        else krai_private.pending_stage() end)
    else '{}' end
from generate_series(%(first)s::integer, %(last)s::integer) n
cross join lateral (select '2025-10-04T08:00:00Z'::timestamptz + n * interval '1 min' as at) t
cross join lateral (
    select krai_private.pending_stage()
        || jsonb_build_object('status', 'completed', 'completed_at', krai_private.iso_time(t.at)) as stage
) done
cross join lateral (
    select jsonb_object_agg('chapter_' || i, md5(n || ' ' || i)) as metadata from generate_series(1, 80) i
) large;
