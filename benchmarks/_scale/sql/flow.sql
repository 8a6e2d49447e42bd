-- A year of hours, the last two days as the runs say.
insert into krai_core.stage_flow (stage_name, hour, arrived, started, retried, completed, failed, skipped, waited, wait_us, work_us)
select s.name, h, 1000, 1000, 20, 960, 20, 20, 1000, 20000000000, 20000000000
from (select name from krai_core.stages union all select '') s
cross join generate_series(date_trunc('hour', now(), 'UTC') - interval '365 days', date_trunc('hour', now(), 'UTC') - interval '49 hours', '1 hour') h
union all
select r.stage_name, date_trunc('hour', coalesce(r.started_at, r.available_at), 'UTC'), count(*) filter (where r.attempt = 1 and r.status <> 'released'),
    count(r.started_at), count(r.started_at) filter (where r.attempt > 1), count(*) filter (where r.status = 'completed'),
    count(*) filter (where r.status = 'failed'), count(*) filter (where r.status = 'skipped'), count(r.started_at),
    coalesce(round(sum(extract(epoch from greatest(r.started_at - r.available_at, '0')) * 1e6) filter (where r.started_at is not null)), 0),
    coalesce(round(sum(extract(epoch from r.finished_at - r.started_at) * 1e6) filter (where r.status in ('completed', 'failed'))), 0)
from krai_core.stage_runs r
where coalesce(r.started_at, r.available_at) between date_trunc('hour', now(), 'UTC') - interval '48 hours' and now()
group by 1, 2
union all
select '', date_trunc('hour', d.created_at, 'UTC'), count(*), 0, 0, 0, 0, 0, 0, 0, 0
from krai_core.documents d where d.created_at >= date_trunc('hour', now(), 'UTC') - interval '48 hours'
group by 2
