-- A month of flow, and as many deltas as wait for a fold at most.
insert into krai_core.stage_flow
select s.name, date_trunc('hour', now(), 'UTC') - n * interval '1 hour', 9, 9, 1, 7, 1, 0, 9, 9e6, 9e7
from (select name from krai_core.stages union all select '') s
cross join generate_series(1, %(hours)s) n
on conflict do nothing;
insert into krai_core.stage_deltas (stage_name, bucket, arrived, started, runs_completed, waited, wait_us, work_us)
select s.name, -1, 1, 1, 1, 1, 1e6, 1e6
from krai_core.stages s
cross join generate_series(1, %(deltas)s) n;
