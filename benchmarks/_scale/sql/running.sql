-- The running stages have begun just now, some of them longer ago than is usual; a few workers give no sign of life.
with touched as (
    update krai_core.stage_runs r
    set started_at = x.began, heartbeat_at = clock_timestamp() - interval '5 s' * scale.chance(r.id, 21),
        worker = 'worker-' || lpad((x.place %% %(workers)s)::text, 2, '0'), available_at = least(r.available_at, x.began),
        lease_expires_at = clock_timestamp() + case when x.place <= %(stalled)s then interval '-1 minute' else interval '1 day' end
    from (
        select o.id, row_number() over (order by o.id) as place, clock_timestamp() - make_interval(
            secs => (%(seconds)s::jsonb ->> o.stage_name)::double precision * 2.5 * scale.chance(o.id, 20)) as began
        from krai_core.stage_runs o where o.status = 'running'
    ) x
    where r.id = x.id
    returning r.document_id, r.stage_name, r.started_at
)
update krai_core.documents d
set stage_status = jsonb_set(jsonb_set(d.stage_status, array[t.stage_name, 'started_at'], to_jsonb(krai_core._iso(t.started_at))),
    array[t.stage_name, 'progress'], to_jsonb((hashint8(extract(epoch from t.started_at)::bigint) & 63)))
from touched t where d.id = t.document_id
