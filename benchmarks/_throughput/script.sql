-- One turn of a worker, for pgbench: claim so many runs, report all of them as completed.
-- What a worker would have to look at twice goes into a table, so that nobody takes an empty claim for speed.
with own as materialized (select pg_catalog.set_config('request.path', '/rpc/claim_stages', true)),
claimed as materialized (
    select krai_core.claim_stages(:stages, 'worker ' || :client_id::text, :batch::int, null, gen_random_uuid()) as runs from own
)
select jsonb_array_length(runs) as got, (
    select coalesce(jsonb_agg(jsonb_build_object(
        'document_id', run -> 'document_id', 'stage_name', run -> 'stage_name', 'claim_id', run -> 'claim_id',
        'outcome', 'completed')), '[]')
    from jsonb_array_elements(runs) run) as outcomes
from claimed \gset
\if :got < :batch
insert into public.short_claims (got) values (:got);
\endif
\if :got > 0
select count(*) as refused from jsonb_array_elements(krai_core.finish_stages(:outcomes)) answer where answer -> 'ok' <> 'true' \gset
\if :refused > 0
insert into public.refusals (runs) values (:refused);
\endif
\endif
