-- The running stages have begun just now, some of them longer ago than is usual; a few workers give no sign of life.
update krai_core.stage_runs r
set started_at = x.began, heartbeat_at = clock_timestamp() - interval '5 s' * random(),
    worker = 'worker-' || lpad((x.place %% %(workers)s)::text, 2, '0'), available_at = least(r.available_at, x.began),
    lease_expires_at = clock_timestamp() + case when x.place <= %(stalled)s then interval '-1 minute' else interval '1 day' end
from (
    select o.id, row_number() over (order by o.id) as place, clock_timestamp() - make_interval(
        secs => (%(seconds)s::jsonb ->> o.stage_name)::double precision * 3.5 * random()) as began
    from krai_core.stage_runs o where o.status = 'running'
) x
where r.id = x.id
