-- What a stage of a document went through. The eight follow one upon the other; how long each waits and takes is spread as
-- in the field: waits around 20 seconds, work log-normal around what half of the runs take.
insert into scale.planned
with documents as materialized (
    select n as number, md5('document ' || n)::uuid as document_id, %(now)s - interval '30 days' * ((%(of)s - n) / %(of)s::double precision) - interval '10 minutes' as created_at,
        case when n > %(of)s * (1 - %(backlog)s) and (%(of)s - n) %% %(step)s = 0 and (%(of)s - n) / %(step)s < %(running)s then 'running'
             when n > %(of)s * (1 - %(backlog)s) then 'new' else 'old' end as zone
    from generate_series(%(first)s::bigint, %(last)s::bigint) n
),
stages as (
    select d.number, d.document_id, d.created_at, s.*, d.number * 8 + s.position as stage_number,
        case when s.state in ('c', 'f') then case
            when scale.chance(d.number * 8 + s.position, 3) < 0.020 then 'failed'
            when scale.chance(d.number * 8 + s.position, 3) < 0.026 then 'lost'
            when scale.chance(d.number * 8 + s.position, 3) < 0.036 then 'released' end end as before
    from documents d
    join scale.patterns p on p.zone = d.zone and scale.chance(d.number, 4) >= p.low and scale.chance(d.number, 4) < p.high
    join scale.steps s on s.states = p.states
),
spans as (
    select s.*,
        case when s.state in ('c', 'f', 's') then -20 * ln(1 - scale.chance(s.stage_number, 5)) + case when s.before is null then 0 else 90 end else 0 end as wait,
        case when s.state in ('c', 'f') then s.seconds * exp(1.4 * (scale.chance(s.stage_number, 6) + scale.chance(s.stage_number, 7) + scale.chance(s.stage_number, 8) - 1.5))
             when s.state = 's' then 0.4 else 0 end as work
    from stages s
),
times as (
    select s.*, s.created_at + make_interval(secs => sum(s.wait + s.work) over w - s.wait - s.work) as ready_at,
        s.created_at + make_interval(secs => sum(s.wait + s.work) over w - s.work) as started_at,
        s.created_at + make_interval(secs => sum(s.wait + s.work) over w) as finished_at
    from spans s window w as (partition by s.number order by s.position)
)
select t.number, t.document_id, t.created_at, t.position, t.stage_name, t.state, t.is_ready, t.before, t.ready_at, t.started_at,
    t.finished_at, round(extract(epoch from t.finished_at - t.started_at), 6),
    case when t.state = 'f' and scale.chance(t.stage_number, 9) < 0.4 then 5 when t.before in ('failed', 'lost') then 2 else 1 end,
    -- One failure in four is tried again, later today.
    case when t.state = 'f' and scale.chance(t.stage_number, 9) > 0.75 then %(now)s + interval '6 hours' * scale.chance(t.stage_number, 10) + interval '2 hours' end,
    case when t.state = 'f' or t.before = 'failed' then scale.text_of((%(errors)s * scale.chance(t.stage_number, 11) ^ 2)::integer %% %(errors)s, t.stage_number) end,
    case when t.state = 's' then '{"reason": "No images found in PDF"}'
         when t.stage_name = 'text_extraction' and t.state in ('c', 'r') then jsonb_build_object('pages_processed', t.number %% 400 + 1, 'total_pages', t.number %% 400 + 1)
         when t.stage_name = 'embedding' and t.state = 'c' then jsonb_build_object('chunks', t.number %% 4000) else '{}' end,
    md5(t.stage_name || ' ' || t.number / 10)::uuid, 'worker-' || lpad((t.number / 10 %% %(workers)s)::text, 2, '0')
from times t
