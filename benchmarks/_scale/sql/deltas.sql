-- Changes that are not folded yet and add up to nothing.
insert into krai_core.stage_deltas (stage_name, processing)
select s.name, case when n %% 2 = 0 then 1 else -1 end
from krai_core.stages s cross join generate_series(1, 2 * (%s / 16)) n
