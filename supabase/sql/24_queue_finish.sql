-- Queue: outcomes. Many of them reported in one call.
--
--   finish_stages      reports completed, failed, skipped or progress of many runs, each answered individually
--   checked_outcomes   its first step: refuses what is no array of outcomes
--   finish_batch       its second: writes the ordinary outcomes together; batch_outcomes picks them, reported_stage
--                      says what a stage becomes
--   finish_one         its third: writes each of the others as the single call would
--
-- Rules
--   * An outcome has the effect and the answer of the single call with the same claim id. One that is refused changes
--     nothing and does not affect the others.
--   * Ordinary outcomes, each for a running run of its own whose stage has the seven keys, are written together: one
--     update of documents, with one patch per document however many of its stages are reported, and one of the runs.
--     The others, such as repeats and late ones, go through the single calls.
-- Lock order: documents in id order, then stage_runs. The runs are read in a later statement than the one that waits
-- for the locks, so that it sees what was committed meanwhile.

create or replace function krai_private.reported_stage(
    p_stage jsonb,
    p_outcome text,
    p_error text,
    p_reason text,
    p_progress numeric,
    p_metadata jsonb,
    p_started_at timestamptz,
    p_now timestamptz)
returns jsonb
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    if p_outcome = 'progress' then
        return p_stage || jsonb_build_object(
            'progress', coalesce(to_jsonb(trim_scale(p_progress)), p_stage -> 'progress'),
            'metadata', p_stage -> 'metadata' || p_metadata);
    end if;
    return krai_private.closed_stage(p_stage, p_outcome, p_error,
        case p_outcome when 'skipped' then krai_private.skip_metadata(p_reason) else p_metadata end,
        p_started_at, p_now);
end;
$$;
comment on function krai_private.reported_stage(jsonb, text, text, text, numeric, jsonb, timestamptz, timestamptz) is
'What a running stage, in the shape of the seven keys, becomes by an outcome.';

create or replace function krai_private.batch_outcomes(p_outcomes jsonb, p_now timestamptz)
returns table (
    place bigint, document_id uuid, stage_name text, outcome text,
    error text, reason text, progress numeric, metadata jsonb,
    retry_at timestamptz, run_id bigint, started_at timestamptz, lease_seconds numeric, stage jsonb)
language plpgsql volatile
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
begin
    return query
    with asked as (
        select a.place, a.document_id, a.stage_name, a.outcome, a.error, a.reason, a.progress,
            coalesce(nullif(a.metadata, 'null'), '{}') as metadata,
            case when a.outcome = 'failed' and a.retry
                then krai_private.retry_at(a.stage_name, r.attempt, p_now) end as retry_at,
            r.id as run_id, r.started_at, r.lease_seconds, d.stage
        from rows from (jsonb_to_recordset(p_outcomes) as (
                document_id uuid, stage_name text, claim_id uuid, outcome text,
                metadata jsonb, error text, retry boolean, reason text, progress numeric)) with ordinality
            as a (document_id, stage_name, claim_id, outcome, metadata, error, retry, reason, progress, place)
        -- Open and with a claim id means running. Given the status, the planner might read every running run.
        cross join lateral (
            select h.id, h.attempt, h.started_at, h.lease_seconds from krai_core.stage_runs h
            where h.document_id = a.document_id and h.open_stage = a.stage_name and (h.claim_id = a.claim_id) is true
            offset 0) r
        -- Where the stage is found, stage_status is an object.
        cross join lateral (
            select d.stage_status -> a.stage_name as stage from krai_core.documents d
            where d.id = a.document_id offset 0) d
        where coalesce(jsonb_typeof(a.metadata), 'null') in ('object', 'null')
          and (a.progress between 0 and 100 or a.progress is null)
          -- Progress that goes down is left to the single call, which notes on the run how far it had come.
          and (a.outcome <> 'progress' or to_jsonb(a.progress) >= d.stage -> 'progress') is not false
          and d.stage ->> 'status' = 'processing' and jsonb_typeof(d.stage -> 'metadata') = 'object'
          and jsonb_typeof(d.stage -> 'started_at') = 'string' and jsonb_typeof(d.stage -> 'progress') = 'number'
          and d.stage -> 'progress' between '0' and '100'
    )
    select a.* from asked a
    where a.run_id <> all (array(select twin.run_id from asked twin group by twin.run_id having count(*) > 1));
end;
$$;
comment on function krai_private.batch_outcomes(jsonb, timestamptz) is
'The outcomes that can be written together.
Each belongs to a running run of its own, and to a stage in the shape of the seven keys. place: in the array, from 1.
retry_at: when a failed stage is retried automatically; null: never.';

create or replace function krai_private.finish_batch(p_outcomes jsonb, out o_done bigint[], out o_retries jsonb)
language plpgsql volatile
set search_path = ''
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_memoize = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_now timestamptz := clock_timestamp();
    -- The stage that most documents finish last; null where a disabled one may be finished without counting.
    v_last text := (
        select s.name from krai_core.stages s where not exists (select from krai_core.stages off where not off.enabled)
        order by s.position desc limit 1);
    -- What closed_stage says alike of every completed stage: calling it for each one takes a tenth of the whole time.
    v_completed jsonb := krai_private.closed_stage(
            '{"metadata": {}}'::jsonb, 'completed', null, '{}'::jsonb, null, v_now)
        - array['started_at', 'duration_seconds', 'metadata'];
    v_may_be_ready text[];
    v_all record;
begin
    perform set_config('krai_core.writer', 'tracker', true);
    with batch as (
        select b.*, greatest(extract(epoch from v_now - b.started_at), 0) as seconds
        from krai_private.batch_outcomes(p_outcomes, v_now) b
    ),
    written as (
        update krai_core.documents d
        set stage_status = d.stage_status || patch.stages
        from (
            select b.document_id, jsonb_object_agg(b.stage_name, case b.outcome
                when 'completed' then b.stage || v_completed || jsonb_build_object(
                    'duration_seconds', trim_scale(round(b.seconds, 6)),
                    'metadata', b.stage -> 'metadata' || b.metadata)
                else krai_private.reported_stage(
                    b.stage, b.outcome, b.error, b.reason, b.progress, b.metadata, b.started_at, v_now) end) as stages,
                bool_or(b.outcome <> 'progress') as has_ended
            from batch b group by b.document_id
        ) patch
        where d.id = any (array[patch.document_id])
        returning patch.document_id, patch.has_ended,
            d.stage_status -> v_last ->> 'status' in ('pending', 'processing')
                and not d.stage_status @? '$.* ? (@.status == "failed")' as is_processing
    ),
    closed as (
        update krai_core.stage_runs r
        set status = b.outcome, finished_at = v_now, closed_by_holder = true, is_current = true, retry_at = b.retry_at,
            lease_seconds = null, lease_expires_at = null, heartbeat_at = null,
            error = case when b.outcome = 'failed' then krai_private.full_error(b.error) end,
            error_fingerprint = case when b.outcome = 'failed' then
                krai_private.error_fingerprint(krai_private.full_error(b.error)) end
        from batch b
        where r.id = any (array[b.run_id]) and b.outcome <> 'progress'
    ),
    renewed as (
        update krai_core.stage_runs r
        set heartbeat_at = v_now, lease_expires_at = v_now + make_interval(secs => b.lease_seconds::double precision)
        from batch b
        where r.id = any (array[b.run_id]) and b.outcome = 'progress'
    )
    select array_agg(b.place) as done,
        array(select w.document_id from written w where w.has_ended and w.is_processing is not true) as ended,
        array(select w.document_id from written w where w.has_ended and w.is_processing) as processing,
        jsonb_object_agg(b.place, krai_private.iso_time(b.retry_at)) filter (where b.retry_at is not null) as retries,
        array_agg(b.document_id)
            filter (where b.outcome in ('completed', 'skipped') or b.retry_at is not null) as touched,
        (select array_agg(f.stage_name) from (
            select b.stage_name from batch b where b.outcome in ('completed', 'skipped') group by 1) f) as finished,
        (select array_agg(f.stage_name) from (
            select b.stage_name from batch b where b.retry_at is not null group by 1) f) as failed,
        array_agg(b.stage_name) filter (where b.outcome <> 'progress') as stages,
        array_agg(b.outcome) filter (where b.outcome <> 'progress') as outcomes,
        array_agg(round(b.seconds * 1e6)::bigint) filter (where b.outcome <> 'progress') as us
    into v_all
    from batch b;
    perform set_config('krai_core.writer', '', true);
    perform krai_private.count_outcomes(v_all.stages, v_all.outcomes, v_all.us) where v_all.stages is not null;
    v_may_be_ready := array(select s.name from krai_core.stages s where s.waits_for && v_all.finished) || v_all.failed;
    perform krai_private.derive_ready_runs(v_all.touched, v_may_be_ready, true) where v_may_be_ready <> '{}';
    -- A document that is still processing was so before: its column need not be looked at.
    perform krai_private.follow_legacy_columns(v_all.ended, p_unchanged => v_all.processing);
    o_done := v_all.done;
    o_retries := v_all.retries;
end;
$$;
comment on function krai_private.finish_batch(jsonb) is
'Writes the outcomes that batch_outcomes picks.
Returns their places in the array, from 1, and {"<place>": time of the automatic retry}; each null when there are none.
The caller has locked the documents.';

create or replace function krai_private.finish_one(p_outcome jsonb) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_document_id uuid := (p_outcome ->> 'document_id')::uuid;
    v_claim_id uuid := (p_outcome ->> 'claim_id')::uuid;
    v_stage_name text := p_outcome ->> 'stage_name';
    v_to text := p_outcome ->> 'outcome';
    v_retry_at timestamptz;
    v_done boolean;
    v_state text;
    v_message text;
    v_detail text;
    v_hint text;
begin
    if v_to = 'progress' then
        v_done := krai_core.update_stage_progress(v_document_id, v_stage_name, (p_outcome ->> 'progress')::numeric,
            p_outcome -> 'metadata', v_claim_id);
    else
        v_done := krai_private.close_stage(v_document_id, v_stage_name, v_to, p_outcome ->> 'error',
            case v_to when 'skipped' then krai_private.skip_metadata(p_outcome ->> 'reason')
                else p_outcome -> 'metadata' end,
            v_claim_id, coalesce((p_outcome ->> 'retry')::boolean, false));
        select r.retry_at into v_retry_at from krai_core.stage_runs r
        where r.document_id = v_document_id and r.stage_name = v_stage_name and (r.claim_id = v_claim_id) is true;
    end if;
    if not v_done then
        return jsonb_build_object('ok', false, 'error', 'conflict',
            'message', format('stage %s of document %s was finished by somebody else', v_stage_name, v_document_id),
            'hint', 'Nothing was changed.');
    end if;
    return jsonb_build_object('ok', true) || case when v_retry_at is null then '{}'
        else jsonb_build_object('next_retry_at', krai_private.iso_time(v_retry_at)) end;
exception when sqlstate 'PT404' or sqlstate 'PT409' or sqlstate '22023' then
    get stacked diagnostics v_state = returned_sqlstate, v_message = message_text, v_detail = pg_exception_detail,
        v_hint = pg_exception_hint;
    if v_detail not like '{%' then
        raise;
    end if;
    return v_detail::jsonb || jsonb_build_object('ok', false, 'code', v_state, 'message', v_message, 'hint', v_hint);
end;
$$;
comment on function krai_private.finish_one(jsonb) is
'Writes one outcome as the single call would, and returns its error instead of raising it.';

create or replace function krai_private.checked_outcomes(p_outcomes jsonb) returns uuid[]
language plpgsql stable
set search_path = ''
as $$
declare
    v_place bigint;
    v_outcome text;
    v_told text;
    v_ids uuid[];
    v_are_whole boolean;
begin
    if jsonb_typeof(p_outcomes) = 'array' then
        begin
            -- Whether all can be read is seen in one pass; which one cannot is looked for only then.
            select coalesce(array_agg(a.document_id), '{}'),
                coalesce(bool_and(num_nulls(a.document_id, a.stage_name, a.claim_id) = 0
                    and coalesce(a.outcome, '') in ('completed', 'failed', 'skipped', 'progress')), true)
            into v_ids, v_are_whole
            from jsonb_to_recordset(p_outcomes)
                as a (document_id uuid, stage_name text, claim_id uuid, outcome text, retry boolean, progress numeric);
            if v_are_whole then
                return v_ids;
            end if;
        exception when data_exception then
            v_told := sqlerrm;
        end;
        select o.n, o.outcome::text into v_place, v_outcome
        from jsonb_array_elements(p_outcomes) with ordinality o (outcome, n)
        where jsonb_typeof(o.outcome) <> 'object'
           or o.outcome ->> 'stage_name' is null
           or o.outcome ->> 'claim_id' is null
           or o.outcome ->> 'document_id' is null
           or coalesce(o.outcome ->> 'outcome', '') not in ('completed', 'failed', 'skipped', 'progress')
        limit 1;
    end if;
    perform krai_private.raise_error('invalid_outcomes',
        case when jsonb_typeof(p_outcomes) is distinct from 'array' then 'outcomes are not a JSON array'
             else format('outcome %s cannot be read: %s', coalesce(v_place::text, ''),
                 left(coalesce(v_outcome, v_told), 200)) end,
        jsonb_build_object('place', v_place),
        'Pass [{"document_id": "<uuid>", "stage_name": "<stage>", "claim_id": "<uuid>", '
        '"outcome": "completed", "failed", "skipped" or "progress", ...}, ...].');
    return null;
end;
$$;
comment on function krai_private.checked_outcomes(jsonb) is
'The document ids of outcomes, in their order; raises 22023 invalid_outcomes for anything else.';

create or replace function krai_core.finish_stages(p_outcomes jsonb) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_ids uuid[] := krai_private.checked_outcomes(p_outcomes);
    v_usual record;
    v_answers jsonb[];
    v_place integer;
begin
    if v_ids = '{}' then
        return '[]'::jsonb;
    end if;
    perform from krai_core.documents d where d.id = any (v_ids) order by d.id for no key update;
    v_usual := krai_private.finish_batch(p_outcomes);
    v_answers := array_fill('{"ok": true}'::jsonb, array[cardinality(v_ids)]);
    for v_place in select (jsonb_object_keys(v_usual.o_retries))::integer loop
        v_answers[v_place] := jsonb_build_object('ok', true, 'next_retry_at', v_usual.o_retries -> v_place::text);
    end loop;
    if cardinality(v_usual.o_done) is distinct from cardinality(v_ids) then
        for v_place in
            select generate_series(1, cardinality(v_ids)) except select unnest(v_usual.o_done) order by 1
        loop
            v_answers[v_place] := krai_private.finish_one(p_outcomes -> (v_place - 1));
        end loop;
    end if;
    perform krai_private.fold_deltas_if_due();
    return to_jsonb(v_answers);
end;
$$;
comment on function krai_core.finish_stages(jsonb) is
'Reports the outcomes of many runs in one call, and answers each as the single call with its claim id would.
p_outcomes: array of {document_id, stage_name, claim_id, outcome, metadata?, error?, retry?, reason?, progress?}.
outcome: completed, failed, skipped or progress. metadata: object, merged. error, retry: of failed, as in fail_stage.
reason: of skipped. progress: percent, 0 to 100.
Returns an array in the same order: {"ok": true}, with next_retry_at where a failed stage is retried automatically, or
{"ok": false, "error": word, "message", "hint", ...} with the words of the single calls (lease_lost, conflict,
unknown_document, unknown_stage, invalid_metadata, invalid_progress); an outcome so refused changes nothing.
Safe to repeat. Raises 22023 invalid_outcomes, with no change at all, when an outcome lacks its document, stage or
claim id, or is none of the four.';
