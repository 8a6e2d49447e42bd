-- Events: what changed since the caller last looked, for live displays.
--
--   get_document_events    for many documents in one call: where each stands now, and every stage change since then
--   event_cursor           what the caller has seen once it has the answer
--   events_after           the changes of one document since a cursor
--
-- Rules
--   * The answer holds only documents written to since then, so polling hundreds costs one index lookup each.
--   * Changes come from stage_runs, which misses nothing between two calls: if a stage started and ended in between,
--     both are reported, each once.
--   * A cursor is neither a number nor a time. It names the document's last run, the runs that were open then, and its
--     last reset. Runs of one document are opened and reset under the lock of its row, so whatever commits later comes
--     after the cursor; pruning does not shift it.
-- Read only, no locks.

create or replace function krai_private.event_cursor(p_document_id uuid) returns text
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
begin
    -- `id + 0`: see 10_history.
    return (
        select concat(coalesce(max(r.id), 0),
            string_agg(case r.status when 'ready' then '.r' || r.id when 'running' then '.s' || r.id end, ''
                order by r.id + 0),
            '@' || (extract(epoch from max(r.reset_at)) * 1000000)::bigint)
        from krai_core.stage_runs r where r.document_id = p_document_id);
end;
$$;
comment on function krai_private.event_cursor(uuid) is
'What there is to see of the runs of a document now, as the cursor of get_document_events.
Its form: <last run>[.r<ready run>|.s<running run>]...[@<last reset, microseconds of the epoch>].';

create or replace function krai_private.events_after(p_document_id uuid, p_mark text) returns jsonb
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_last bigint := substring(p_mark from '^\d+')::bigint;
    v_ready bigint[] := array(select m[1]::bigint from regexp_matches(p_mark, '\.r(\d+)', 'g') m);
    v_running bigint[] := array(select m[1]::bigint from regexp_matches(p_mark, '\.s(\d+)', 'g') m);
    v_reset bigint := coalesce(substring(p_mark from '@(\d+)$'), '0')::bigint;
begin
    return coalesce((
        select jsonb_agg(jsonb_build_object(
            'stage_name', r.stage_name, 'change', e.change, 'at', krai_private.iso_time(e.at),
            'attempt', r.attempt, 'error', left(e.error, 4000)) order by e.at, r.id, e.step)
        from krai_core.stage_runs r
        cross join lateral (values
            (1, 'started', r.started_at, null, r.id > v_last or r.id = any (v_ready)),
            -- Taking a ready run back changes no stage.
            (2, r.status, r.finished_at, r.error,
                (r.id > v_last or r.id = any (v_ready) or r.id = any (v_running))
                and (r.status <> 'cancelled' or r.started_at is not null)),
            (3, 'reset', r.reset_at, null, (extract(epoch from r.reset_at) * 1000000)::bigint > v_reset)
        ) as e (step, change, at, error, is_new)
        where r.document_id = p_document_id and e.at is not null and e.is_new), '[]');
end;
$$;
comment on function krai_private.events_after(uuid, text) is
'The changes of a document since cursor p_mark, as get_document_events returns them.';

create or replace function krai_core.get_document_events(p_documents jsonb) returns jsonb
language plpgsql stable
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_odd text;
    -- A change of the pipeline may change progress and current stage without a write to the document.
    v_pipeline text := (
        select coalesce((extract(epoch from max(s.changed_at)) * 1000000)::bigint::text, '') from krai_core.stages s);
begin
    if jsonb_typeof(p_documents) is distinct from 'object' then
        v_odd := format('documents are given as %s', coalesce(jsonb_typeof(p_documents), 'null'));
    elsif (select count(*) from jsonb_object_keys(p_documents)) > 1000 then
        v_odd := format('%s documents are too many', (select count(*) from jsonb_object_keys(p_documents)));
    else
        select format('%s: %s', quote_literal(left(k.key, 100)), left(k.value::text, 200)) into v_odd
        from jsonb_each(p_documents) k
        where k.key !~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'
           or k.value <> 'null' and (jsonb_typeof(k.value) <> 'object'
               or coalesce(k.value ->> 'seen', '') !~ '^\d{1,18}(\.[rs]\d{1,18})*(@\d{1,18})?$'
               or jsonb_typeof(k.value -> 'version') not in ('string', 'null'))
        limit 1;
    end if;
    if v_odd is not null then
        perform krai_private.raise_error('invalid_documents', format('events cannot be read: %s', v_odd), '{}',
            'Pass at most 1000 as {"<document id>": null, or {"seen": "<as last given>", '
            '"version": "<as last given>"}}.');
    end if;
    return coalesce((
        select jsonb_object_agg(k.key, jsonb_build_object(
            'version', d.version,
            'seen', case when d.version is not null then krai_private.event_cursor(k.id) end,
            'state', case when d.version is not null then krai_core.get_document_status(k.id) end,
            'changes', case
                when d.version is not null and k.seen is not null then krai_private.events_after(k.id, k.seen)
                else '[]' end,
            'is_open', exists (
                select from krai_core.stage_runs r where r.document_id = k.id and r.open_stage is not null)))
        from (
            select a.key, a.key::uuid as id, a.value ->> 'seen' as seen, a.value ->> 'version' as version
            from jsonb_each(p_documents) a
        ) k
        -- Every write to the row, one to its stages included, makes a new version of it.
        left join lateral (
            select x.xmin::text || '.' || v_pipeline as version from krai_core.documents x where x.id = k.id offset 0
        ) d on true
        where k.version is null or d.version is distinct from k.version), '{}');
end;
$$;
comment on function krai_core.get_document_events(jsonb) is
'Returns those of many documents that changed since the caller last looked, with their changes.
p_documents: at most 1000, as {"<document id>": null} the first time, then {"<document id>": {"seen", "version"}},
both as last returned; leave version out, or null, to get an answer in any case. Returns {"<document id>": {version,
seen, state, changes: [{stage_name, change, at, attempt, error}], is_open}}, without the documents that were not
written to since. state: as get_document_status returns it; null, like version and seen, if there is no such document
or the caller may not see it. changes: those after "seen", oldest first, none the first time: started, completed,
failed, skipped, released (given back), lost (its lease or its time was over), cancelled, and reset (retried or reset
by a person). at: ISO 8601, UTC. error: of the attempt that failed. is_open: false if nothing of it runs or may run
until a person steps in. Raises 22023 invalid_documents.';
