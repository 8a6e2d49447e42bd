-- Each pattern, stage by stage.
insert into scale.steps
select p.states, s.position, s.name, substr(p.states, s.position, 1)::"char",
    substr(p.states, s.position, 1) = 'p' and not exists (
        select from unnest(s.waits_for) w join krai_core.stages required on required.name = w
        where substr(p.states, required.position, 1) not in ('c', 's')),
    (%(seconds)s::jsonb ->> s.name)::double precision
from (select distinct states from scale.patterns) p cross join krai_core.stages s
