-- The runs of the documents that have none; each upload has been given back once, and every hundredth document is urgent.
with fresh as (
    select d.id, d.stage_status from krai_core.documents d
    where not exists (select from krai_core.stage_runs r where r.document_id = d.id)
),
urgent as (
    insert into krai_core.document_priorities (document_id, priority)
    select f.id, 5 from fresh f where hashtext(f.id::text) % 100 = 0
    on conflict do nothing
),
closed as (
    insert into krai_core.stage_runs (
        document_id, stage_name, status, started_at, finished_at, error, error_fingerprint, is_current)
    select f.id, s.key, case k.n when 1 then s.value ->> 'status' else 'released' end,
        (s.value ->> 'started_at')::timestamptz, (s.value ->> 'completed_at')::timestamptz, s.value ->> 'error',
        krai_private.error_fingerprint(s.value ->> 'error'), k.n = 1
    from fresh f
    cross join lateral jsonb_each(f.stage_status) s
    cross join generate_series(0, 1) k (n)
    where s.value ->> 'status' in ('completed', 'failed', 'skipped') and (k.n = 1 or s.key = 'upload')
    order by 5
)
insert into krai_core.stage_runs (document_id, stage_name, status, priority, available_at)
select t.document_id, t.stage_name, 'ready', case when hashtext(f.id::text) % 100 = 0 then 5 else 0 end,
    now() - interval '1 hour' + row_number() over () * interval '1 ms'
from krai_private.startable_stages t
join fresh f on f.id = t.document_id
where not t.is_failed;
