-- Per-stage document tracking: the runs of a stage, as the writers see them. Private helpers.
--
--   _held_run         the run that a call may act on, by its claim id or without one
--   _keep_last_run    before a stage begins anew: what the column knows of the last run goes into the history
--   _open_run         makes the one open run of a stage a running one
--   _next_attempt, _retry_at     how attempts count, and when a failed one is tried again
--   _shown_error, _kept_error    an error, as the column and the history hold it
--   _folded_error, _error_fingerprint    what errors of one kind have in common
--
-- Rules
--   * A claim id opens a given stage of a document once, and acts on that run alone. Closed by its own holder, it answers
--     as the first time; closed by anybody else, it is lease_lost, after a pause of any length.
--   * Attempts count up from 1 over failed and lost runs, and begin again after a success, a skip, a cancelled run, a retry
--     and a reset. A run that was given back (released) does not count.
--   * A stage that is completed, failed or skipped stands on one closed run, which is_current marks.
--   * stage_runs holds what the column forgets: error, times, progress, metadata, and keys beside the seven.
-- `order by r.id + 0 desc limit 1` for the last run of a stage, here and later: by the bare id, a planner that believes the
-- table small would walk down its primary key.
-- Lock order: the callers have the document, these lock rows of stage_runs.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;

create or replace function krai_core._held_run(p_call text, p_document_id uuid, p_stage_name text, p_claim_id uuid)
returns krai_core.stage_runs
language plpgsql stable
set search_path = ''
as $$
declare
    v_run krai_core.stage_runs;
begin
    if p_claim_id is null then
        select * into v_run from krai_core.stage_runs r
        where r.document_id = p_document_id and r.open_stage = p_stage_name and r.status = 'running';
        return v_run;
    end if;
    -- `is true`, here and later: not looked up by the claim id, which a whole batch shares.
    select * into v_run from krai_core.stage_runs r
    where r.document_id = p_document_id and r.stage_name = p_stage_name and (r.claim_id = p_claim_id) is true;
    if v_run.id is null or (v_run.status <> 'running' and not v_run.closed_by_holder) then
        perform krai_core._raise('PT409', 'lease_lost',
            format('%s: this run of stage %s of document %s is over: %s', p_call, p_stage_name, p_document_id, case
                when v_run.id is null then 'no run carries its claim id'
                when v_run.status = 'lost' then 'its lease ended and another took the stage over'
                else 'it was closed by somebody else as ' || v_run.status end),
            jsonb_build_object('document_id', p_document_id, 'stage', p_stage_name, 'run', v_run.status),
            'Stop this work and write nothing more for it; claim or start the stage again if it is still to be done.');
    end if;
    return v_run;
end;
$$;
comment on function krai_core._held_run(text, uuid, text, uuid) is
'The run that a call acts on. Without claim id: the running one, or a row of nulls. With it: the run that carries it, running or closed by its own holder; anything else raises PT409 lease_lost.';

create or replace function krai_core._next_attempt(p_status text, p_attempt integer, p_reset_at timestamptz) returns integer
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return case
        when p_status is null or p_reset_at is not null or p_status in ('completed', 'skipped', 'cancelled') then 1
        when p_status = 'released' then p_attempt
        else p_attempt + 1
    end;
end;
$$;
comment on function krai_core._next_attempt(text, integer, timestamptz) is
'Number of the attempt after a closed run of that status, attempt and reset_at; null: there was none.';

-- Between half and all of the wait, so that what failed together does not come back together.
create or replace function krai_core._retry_at(p_stage_name text, p_attempt integer, p_now timestamptz) returns timestamptz
language plpgsql volatile
set search_path = ''
as $$
declare
    v_stage krai_core.stages := krai_core._stage_named(p_stage_name);
begin
    if p_attempt >= v_stage.max_attempts then
        return null;
    end if;
    return p_now + make_interval(secs => (0.5 + random() / 2)
        * least(v_stage.backoff_seconds * 2.0 ^ least(p_attempt - 1, 30), v_stage.backoff_max_seconds));
end;
$$;
comment on function krai_core._retry_at(text, integer, timestamptz) is
'When a stage that failed in this attempt is tried again: after backoff_seconds doubled for each attempt, at most backoff_max_seconds, with jitter; null when no attempt is left.';

create or replace function krai_core._shown_error(p_error text) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return case
        when p_error !~ '\S' or p_error is null then 'failed without a message'
        when length(p_error) > 4000 then left(p_error, 3980) || ' ... [cut at 4000]'
        else p_error end;
end;
$$;
comment on function krai_core._shown_error(text) is 'The error as the column holds it: never blank, at most 4000 characters.';

create or replace function krai_core._kept_error(p_error text) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return case when p_error ~ '\S' then left(p_error, 65536) else 'failed without a message' end;
end;
$$;
comment on function krai_core._kept_error(text) is 'The error as the history holds it: never blank, at most 65536 characters.';

create or replace function krai_core._folded_error(p_error text) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
declare
    v_error text := left(coalesce(p_error, ''), 2000);
begin
    -- Each only where it can find something: to replace costs many times as much as to look.
    if strpos(v_error, '://') > 0 then
        v_error := regexp_replace(v_error, '[a-zA-Z][a-zA-Z0-9+.-]*://[^\s"''<>]+', '<url>', 'g');
    end if;
    if v_error ~ '[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-' then
        v_error := regexp_replace(v_error, '[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}', '<id>', 'g');
    end if;
    if strpos(v_error, '/') > 0 or strpos(v_error, '\') > 0 then
        -- Two parts at least: and/or is no path.
        v_error := regexp_replace(v_error,
            '(?:[a-zA-Z]:[\\/]|\.{0,2}/)[^\s"''<>:,;()]*[\\/][^\s"''<>:,;()]*|(?<=[\s"''(=]|^)/[^\s"''<>:,;()/]+', '<path>', 'g');
    end if;
    if v_error ~ '0x|[0-9a-fA-F]{8}' then
        v_error := regexp_replace(v_error, '\m(?:0x[0-9a-fA-F]+|(?=[a-fA-F]*[0-9])[0-9a-fA-F]{8,})\M', '<id>', 'g');
    end if;
    if v_error ~ '\d' then
        v_error := regexp_replace(v_error, '\d+(?:[.,]\d+)*', '<n>', 'g');
    end if;
    if v_error ~ '\s\s|[^\S ]' then
        v_error := regexp_replace(v_error, '\s+', ' ', 'g');
    end if;
    return btrim(left(v_error, 500));
end;
$$;
comment on function krai_core._folded_error(text) is
'An error without what differs from one failure to the next: urls, ids, paths and digits become <url>, <id>, <path> and <n>; at most 500 characters.';

create or replace function krai_core._error_fingerprint(p_error text) returns bigint
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return hashtextextended(krai_core._folded_error(p_error), 0);
end;
$$;
comment on function krai_core._error_fingerprint(text) is 'The same number for errors of one kind: a hash of _folded_error.';

create or replace function krai_core._keep_last_run(p_document_id uuid, p_stage_name text, p_stage jsonb, p_actor text default null, p_reset boolean default false)
returns integer
language plpgsql volatile
set search_path = ''
as $$
declare
    v_last krai_core.stage_runs;
    v_status text := p_stage ->> 'status';
    v_started_at timestamptz;
    v_further jsonb := p_stage - array['status', 'started_at', 'completed_at', 'duration_seconds', 'progress', 'error', 'metadata'];
begin
    select * into v_last from krai_core.stage_runs r
    where r.document_id = p_document_id and r.stage_name = p_stage_name and r.status <> 'ready'
    order by r.id + 0 desc limit 1;
    if v_last.id is null and v_status <> 'pending' then
        -- A run from before there was a history: what the column still knows of it becomes its row.
        v_started_at := krai_core._time_or_null(p_stage ->> 'started_at');
        insert into krai_core.stage_runs (document_id, stage_name, status, started_at, finished_at, error, error_fingerprint)
        values (p_document_id, p_stage_name, case v_status when 'processing' then 'lost' else v_status end, v_started_at,
                coalesce(krai_core._time_or_null(p_stage ->> 'completed_at'), v_started_at, clock_timestamp()), p_stage ->> 'error',
                case when v_status = 'failed' then krai_core._error_fingerprint(p_stage ->> 'error') end)
        returning * into v_last;
    end if;
    if v_last.id is null then
        return 1;
    end if;
    if v_status <> 'pending' or p_reset then
        update krai_core.stage_runs r
        set progress = case when v_status = 'pending' then r.progress else greatest(r.progress, (p_stage ->> 'progress')::numeric) end,
            metadata = case when v_status = 'pending' then r.metadata else v_further || (p_stage -> 'metadata') end,
            is_current = false,
            reset_at = case when p_reset then clock_timestamp() else r.reset_at end,
            actor = case when p_reset then p_actor else r.actor end
        where r.id = v_last.id;
    end if;
    return case when p_reset then 1 else krai_core._next_attempt(v_last.status, v_last.attempt, v_last.reset_at) end;
end;
$$;
comment on function krai_core._keep_last_run(uuid, text, jsonb, text, boolean) is
'Before a stage is started anew, retried or reset: keeps progress and metadata of what is in the column with the last run, and returns the number of the next attempt.';

create or replace function krai_core._open_run(p_document_id uuid, p_stage_name text, p_attempt integer, p_claim_id uuid, p_worker text, p_lease_seconds numeric, p_now timestamptz)
returns timestamptz
language plpgsql volatile
set search_path = ''
as $$
declare
    v_ready_at timestamptz;
begin
    -- A ready run becomes the running one, so that its priority and its wait stay with it.
    update krai_core.stage_runs r
    set status = 'running', attempt = p_attempt, retry_at = null, claim_id = p_claim_id, opens_claim = p_claim_id is not null, worker = p_worker, started_at = p_now, heartbeat_at = p_now,
        lease_seconds = p_lease_seconds, lease_expires_at = p_now + make_interval(secs => p_lease_seconds::double precision)
    where r.document_id = p_document_id and r.open_stage = p_stage_name and r.status = 'ready'
    returning r.available_at into v_ready_at;
    if not found then
        insert into krai_core.stage_runs
            (document_id, stage_name, status, attempt, claim_id, opens_claim, worker, started_at, heartbeat_at, lease_seconds, lease_expires_at)
        values (p_document_id, p_stage_name, 'running', p_attempt, p_claim_id, p_claim_id is not null, p_worker, p_now, p_now, p_lease_seconds,
                p_now + make_interval(secs => p_lease_seconds::double precision));
    end if;
    return v_ready_at;
end;
$$;
comment on function krai_core._open_run(uuid, text, integer, uuid, text, numeric, timestamptz) is 'Makes the one open run of a stage a running one. Returns since when it was due, null if it was not ready.';

do $$
declare
    v_function regprocedure;
begin
    for v_function in
        select p.oid from pg_catalog.pg_proc p
        where p.pronamespace = 'krai_core'::regnamespace and p.proname = any (array[
            '_held_run', '_next_attempt', '_retry_at', '_keep_last_run', '_open_run', '_shown_error', '_kept_error', '_folded_error',
            '_error_fingerprint'])
    loop
        execute format('revoke execute on function %s from public, anon, authenticated', v_function);
        execute format('grant execute on function %s to service_role', v_function);
    end loop;
end $$;

commit;
