-- Runs: the five calls a processor makes to run one stage of one document.
--
--   start_stage, update_stage_progress, complete_stage, fail_stage, skip_stage
--   close_stage           what the last three share
--   lock_document         locks a document and returns its stage_status; the first thing every writer does
--   write_stage_status    writes stage_status back, and updates what depends on it
--
-- What each call does in each state, without a claim id (the functions hold the rule, the tests hold every cell):
--
--   call \ state  pending      processing                        completed           failed           skipped
--   start         processing   false while another run lives,    processing          processing       processing
--                              taken over when its lease is over
--   progress      conflict     stored                            conflict            conflict         conflict
--   complete      completed    completed                         metadata merged     completed        conflict
--                 (start and duration null: it ran outside)
--   fail          failed       failed                            false, no change    new error        false, no change
--   skip          skipped      skipped                           false, no change    skipped          true, no change
--   retry         true         conflict                          conflict            pending          conflict
--   reset         true         conflict unless forced            pending             pending          pending
--
-- Rules
--   * The claim id is the credential: a uuid that the client makes for each run. With it, a call acts only on the run
--     that carries it, and a repeated call returns what the first one did; once anybody else has closed that run, the
--     call raises PT409 lease_lost. Without it, a call acts on whatever run is open, and start grants a lease of at
--     least an hour, because processors that know nothing of claim ids send no heartbeats.
--   * Every writer locks the document first (lock_document; progress by its own update) and reads stage_runs in a later
--     statement. The statement that waits for the lock would test the claim id against a snapshot from before the wait.
--   * Metadata is merged, never replaced; a null argument never erases anything.
-- Lock order: documents rows in id order, then stage_runs rows.

-- An older signature next to ours would make calls ambiguous, so the transaction that creates the eight functions also
-- drops whatever else has their names.
do $$
declare
    v_old regprocedure;
    v_detail text;
begin
    for v_old in
        select p.oid
        from pg_catalog.pg_proc p
        left join (values
            ('start_stage', 'uuid, text, uuid, text, numeric', 'boolean'),
            ('update_stage_progress', 'uuid, text, numeric, jsonb, uuid', 'boolean'),
            ('complete_stage', 'uuid, text, jsonb, uuid', 'boolean'),
            ('fail_stage', 'uuid, text, text, jsonb, uuid, boolean', 'boolean'),
            ('skip_stage', 'uuid, text, text, uuid', 'boolean'),
            ('get_document_progress', 'uuid', 'numeric'),
            ('get_current_stage', 'uuid', 'text'),
            ('can_start_stage', 'uuid, text', 'boolean')
        ) as ours (name, arguments, result)
            on ours.name = p.proname
            and ours.arguments = pg_catalog.oidvectortypes(p.proargtypes)
            and ours.result = pg_catalog.format_type(p.prorettype, null)
        where p.pronamespace = 'krai_core'::regnamespace
          and p.proname in ('start_stage', 'update_stage_progress', 'complete_stage', 'fail_stage', 'skip_stage',
                            'get_document_progress', 'get_current_stage', 'can_start_stage')
          and ours.name is null
    loop
        execute format('drop routine %s', v_old);
    end loop;
exception when dependent_objects_still_exist then
    -- Only the detail names the dependent object.
    get stacked diagnostics v_detail = pg_exception_detail;
    raise exception 'the old function % cannot be replaced: %', v_old, v_detail
        using errcode = '2BP01',
              hint = 'Something of yours uses it. Drop that, run the migration again, then create it anew.';
end $$;

-- Every writer calls this first: the row lock serialises all writers of a document. `no key update`, because
-- `for update` would collide with every open insert of a child row. Read stage_runs in a later statement: only that one
-- sees what was committed while this one waited.
create or replace function krai_private.lock_document(p_document_id uuid, p_stage_name text) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_stage_status jsonb;
begin
    if not exists (select from krai_core.stages s where s.name = p_stage_name) then
        perform krai_private.check_stage(p_stage_name);
    end if;
    select d.stage_status into v_stage_status
    from krai_core.documents d
    where d.id = p_document_id
    for no key update;
    if not found then
        perform krai_private.raise_unknown_document(p_document_id);
    end if;
    if krai_private.is_sound(v_stage_status) and v_stage_status ? p_stage_name then
        return v_stage_status;
    end if;
    return jsonb_build_object(p_stage_name, krai_private.pending_stage())
        || krai_private.repaired_stages(v_stage_status);
end;
$$;
comment on function krai_private.lock_document(uuid, text) is
'Locks the document and returns its stage_status, repaired.
The given stage is always in it, even if it is disabled. Raises 22023 unknown_stage, PT404 unknown_document.';

-- All calls for one document write stage_status here, except the fast path of update_stage_progress. The setting tells
-- the triggers that this is no direct edit; it is cleared at once, because direct edits may follow in the transaction.
-- Update stage_runs before you call this: ready runs are derived from both.
create or replace function krai_private.write_stage_status(
    p_document_id uuid,
    p_stage_status jsonb,
    p_changed text[] default null,
    p_writer text default 'tracker'
) returns void
language plpgsql volatile
set search_path = ''
as $$
begin
    perform set_config('krai_core.writer', p_writer, true);
    update krai_core.documents d set stage_status = p_stage_status where d.id = p_document_id;
    perform set_config('krai_core.writer', '', true);
    if p_writer <> 'progress' then
        perform krai_private.follow_legacy_columns(array[p_document_id]);
    end if;
    if p_changed is not null then
        perform krai_private.derive_ready_runs(array[p_document_id], krai_private.affected_stages(p_changed));
    end if;
end;
$$;
comment on function krai_private.write_stage_status(uuid, jsonb, text[], text) is
'Writes stage_status of a document that the caller has locked.
p_changed: the stages whose change may make others ready or unready, null for none. p_writer: tracker, or progress if
no status changes.';

create or replace function krai_core.start_stage(
    p_document_id uuid,
    p_stage_name text,
    p_claim_id uuid default null,
    p_worker text default null,
    p_lease_seconds numeric default null
) returns boolean
language plpgsql volatile
set search_path = ''
as $$
declare
    v_settings krai_core.stages := krai_private.stage_named(p_stage_name);
    v_stage_status jsonb := krai_private.lock_document(p_document_id, p_stage_name);
    v_stage jsonb := v_stage_status -> p_stage_name;
    v_run krai_core.stage_runs;
    v_attempt integer;
    v_ready_at timestamptz;
    v_before jsonb := krai_private.pending_stage();
    v_started jsonb;
    v_now timestamptz;
begin
    perform krai_private.checked_lease(p_lease_seconds);
    if p_claim_id is not null then
        perform from krai_core.stage_runs r
        where r.document_id = p_document_id and r.stage_name = p_stage_name and (r.claim_id = p_claim_id) is true;
        if found then
            -- A repeated call: true again, or lease_lost.
            perform krai_private.held_run('start', p_document_id, p_stage_name, p_claim_id);
            return true;
        end if;
    end if;
    if not v_settings.enabled then
        perform krai_private.raise_error('stage_disabled', format('start: stage %s is disabled', p_stage_name),
            jsonb_build_object('document_id', p_document_id, 'stage', p_stage_name),
            'Leave the stage out, or enable it in krai_core.stages.');
    end if;
    v_now := clock_timestamp();
    v_run := krai_private.held_run('start', p_document_id, p_stage_name, null);
    if v_stage ->> 'status' <> 'processing' then
        -- stage_status is the truth: it knows nothing of this run after, say, a restore without triggers.
        update krai_core.stage_runs r
        set status = 'cancelled', finished_at = v_now, error = 'stage_status was written without its triggers'
        where r.id = v_run.id;
    elsif v_run.lease_expires_at > v_now
        and (
            v_settings.timeout_seconds is null
            or v_run.started_at + make_interval(secs => v_settings.timeout_seconds) > v_now)
    then
        return false;
    else
        update krai_core.stage_runs r
        set status = 'lost', finished_at = v_now, error = 'the lease ended and another took the stage over'
        where r.id = v_run.id;
    end if;
    if v_stage ->> 'status' = 'processing' then
        -- Counted as two transitions: the lost run goes back to pending, then the new one starts.
        perform krai_private.count_transition(p_stage_name, v_stage, v_before);
    else
        v_before := v_stage;
    end if;
    v_attempt := krai_private.archive_last_run(p_document_id, p_stage_name, v_stage);
    v_ready_at := krai_private.begin_run(
        p_document_id, p_stage_name, v_attempt, p_claim_id, left(p_worker, 200),
        coalesce(p_lease_seconds, case
            when p_claim_id is null then greatest(v_settings.lease_seconds, 3600)
            else v_settings.lease_seconds end),
        v_now);
    v_started := krai_private.started_stage(v_stage, v_now);
    perform krai_private.count_transition(p_stage_name, v_before, v_started, v_ready_at, v_attempt);
    perform krai_private.write_stage_status(
        p_document_id, v_stage_status || jsonb_build_object(p_stage_name, v_started),
        -- Nothing can be ready on the strength of a stage that was not finished.
        case when v_stage ->> 'status' in ('completed', 'skipped') then array[p_stage_name] end);
    return true;
end;
$$;
comment on function krai_core.start_stage(uuid, text, uuid, text, numeric) is
'Starts a stage of a document: a new run, status processing.
Does not check prerequisites (see can_start_stage). Returns true if the caller holds the stage, false while another
run of it lives. From pending, completed, failed and skipped a new run begins and clears what the last one left
(stage_runs keeps it; the metadata of a pending stage stays); a run whose lease is over is taken over. p_claim_id:
credential of the run, made by the client; a repeated start with it returns true again, or raises PT409 lease_lost
once somebody else has closed that run. p_lease_seconds: more than 0, at most 604800; null: that of the stage, and at
least an hour without a claim id. Raises PT404 unknown_document, 22023 unknown_stage or invalid_lease, PT409
stage_disabled.';

create or replace function krai_core.update_stage_progress(
    p_document_id uuid,
    p_stage_name text,
    p_progress numeric,
    p_metadata jsonb default '{}',
    p_claim_id uuid default null
) returns boolean
language plpgsql volatile
set search_path = ''
as $$
declare
    v_metadata jsonb := case
        when jsonb_typeof(p_metadata) = 'object' then p_metadata
        else krai_private.checked_metadata(p_metadata) end;
    v_stage_status jsonb;
    v_run krai_core.stage_runs;
    v_run_id bigint;
    v_is_due boolean;
    v_now timestamptz;
begin
    -- NaN sorts above every number, so it fails here too.
    if p_progress < 0 or p_progress > 100 then
        perform krai_private.raise_error('invalid_progress',
            format('progress %s is outside of 0 to 100 percent', p_progress),
            jsonb_build_object('progress', p_progress::text),
            'Pass percent: 45.5 means 45.5 %; fractions are not rescaled, 0.5 means half a percent.');
    end if;
    -- Losing the last half second of progress costs nothing. Only if this call is the whole transaction, as PostgREST
    -- tells by request.path: never for the commit of anybody else's work.
    if current_setting('request.path', true) = '/rpc/update_stage_progress' then
        perform set_config('synchronous_commit', 'off', true);
    end if;
    -- Fast path: one statement, which locks the document as it writes. The check that the caller still holds the run
    -- comes afterwards, as always, and its error rolls this back.
    perform set_config('krai_core.writer', 'progress', true);
    update krai_core.documents d
    set stage_status = d.stage_status || jsonb_build_object(
        p_stage_name, d.stage_status -> p_stage_name || jsonb_build_object(
            'progress', coalesce(trim_scale(p_progress), (d.stage_status -> p_stage_name ->> 'progress')::numeric),
            'metadata', d.stage_status -> p_stage_name -> 'metadata' || v_metadata))
    where d.id = p_document_id and jsonb_typeof(d.stage_status) = 'object'
      and d.stage_status -> p_stage_name @@ '$.status == "processing" && $.progress.type() == "number"
          && $.progress >= 0 && $.progress <= 100 && $.metadata.type() == "object"'
      and (to_jsonb(p_progress) >= d.stage_status -> p_stage_name -> 'progress') is not false;
    if not found then
        v_stage_status := krai_private.lock_document(p_document_id, p_stage_name);
        v_run := krai_private.held_run('progress', p_document_id, p_stage_name, p_claim_id);
        if v_stage_status -> p_stage_name ->> 'status' <> 'processing' or v_run.status <> 'running' then
            perform krai_private.raise_conflict('progress', p_document_id, p_stage_name,
                coalesce(nullif(v_run.status, 'running'), v_stage_status -> p_stage_name ->> 'status'),
                'Start the stage before reporting progress.',
                case when v_run.status <> 'running' then ' by this run already' else '' end);
        end if;
        -- The row was malformed and is sound now, or progress went down: then the run keeps the highest value.
        update krai_core.stage_runs r
        set progress = greatest(r.progress, (v_stage_status -> p_stage_name ->> 'progress')::numeric)
        where r.id = v_run.id and p_progress < (v_stage_status -> p_stage_name ->> 'progress')::numeric;
        perform krai_private.write_stage_status(p_document_id, jsonb_set(v_stage_status, array[p_stage_name],
            v_stage_status -> p_stage_name || jsonb_build_object(
                'progress', coalesce(to_jsonb(trim_scale(p_progress)), v_stage_status -> p_stage_name -> 'progress'),
                'metadata', v_stage_status -> p_stage_name -> 'metadata' || v_metadata)), null, 'progress');
    end if;
    perform set_config('krai_core.writer', '', true);
    v_now := clock_timestamp();
    select r.id, r.lease_expires_at < v_now + make_interval(secs => r.lease_seconds::double precision * 0.95)
    into v_run_id, v_is_due
    from krai_core.stage_runs r
    where r.document_id = p_document_id and r.open_stage = p_stage_name and r.status = 'running'
      and (p_claim_id is null or r.claim_id = p_claim_id);
    if v_run_id is null and p_claim_id is not null then
        v_run := krai_private.held_run('progress', p_document_id, p_stage_name, p_claim_id);
        perform krai_private.raise_conflict('progress', p_document_id, p_stage_name, v_run.status,
            'Start the stage before reporting progress.', ' by this run already');
    elsif v_is_due then
        -- Progress is a sign of life. Skipping leases renewed a moment ago halves the writes of a busy loop.
        update krai_core.stage_runs r
        set heartbeat_at = v_now, lease_expires_at = v_now + make_interval(secs => r.lease_seconds::double precision)
        where r.id = v_run_id;
    end if;
    return true;
end;
$$;
comment on function krai_core.update_stage_progress(uuid, text, numeric, jsonb, uuid) is
'Stores the progress of a running stage and renews its lease.
p_progress: percent, 0 to 100, never rescaled; null keeps the stored one. p_metadata is merged into the stored
object. Returns true. Raises PT409 conflict unless the stage is processing, PT409 lease_lost if the run of p_claim_id
is over, PT404 unknown_document, 22023 unknown_stage, invalid_progress or invalid_metadata. Called as an rpc of its
own, its commit does not wait for the disk.';

create or replace function krai_private.close_stage(
    p_document_id uuid,
    p_stage_name text,
    p_to text,
    p_error text,
    p_metadata jsonb,
    p_claim_id uuid,
    p_retry boolean default false
) returns boolean
language plpgsql volatile
set search_path = ''
as $$
declare
    v_metadata jsonb := case
        when jsonb_typeof(p_metadata) = 'object' then p_metadata
        else krai_private.checked_metadata(p_metadata) end;
    v_stage_status jsonb := krai_private.lock_document(p_document_id, p_stage_name);
    v_stage jsonb := v_stage_status -> p_stage_name;
    v_from text := v_stage ->> 'status';
    v_call text := case p_to when 'completed' then 'complete' when 'failed' then 'fail' else 'skip' end;
    v_run krai_core.stage_runs := krai_private.held_run(v_call, p_document_id, p_stage_name, p_claim_id);
    v_now timestamptz := clock_timestamp();
    v_error text := case when p_to = 'failed' then krai_private.full_error(p_error) end;
    v_started_at timestamptz;
    v_retry_at timestamptz;
    v_attempt integer;
    v_closed jsonb;
begin
    if p_claim_id is not null and v_run.status <> 'running' then
        -- This holder closed the run itself: a repeat of that call returns true, any other call comes too late.
        if v_run.status <> p_to then
            perform krai_private.raise_conflict(v_call, p_document_id, p_stage_name, v_run.status,
                'A run ends once: start the stage again to change its outcome.', ' by this run already');
        end if;
        return true;
    elsif v_from = 'completed' and p_to <> 'completed' or v_from = 'skipped' and p_to = 'failed' then
        return false;
    elsif v_from = 'skipped' and p_to = 'completed' then
        perform krai_private.raise_conflict(v_call, p_document_id, p_stage_name, v_from,
            'Start the stage if it is to be run after all.');
    elsif v_from = 'skipped' then
        return true;
    elsif v_from = p_to then
        update krai_core.stage_runs r
        set error = v_error, error_fingerprint = krai_private.error_fingerprint(v_error)
        where p_to = 'failed' and r.document_id = p_document_id and r.stage_name = p_stage_name and r.is_current;
        perform krai_private.write_stage_status(p_document_id, v_stage_status || jsonb_build_object(
            p_stage_name, v_stage || jsonb_build_object(
                'metadata', v_stage -> 'metadata' || v_metadata,
                'error', case when p_to = 'failed' then krai_private.short_error(p_error) end)));
        return true;
    end if;
    if v_from = 'processing' then
        v_started_at := coalesce(v_run.started_at, krai_private.time_or_null(v_stage ->> 'started_at'));
    end if;
    if v_run.id is null then
        -- Work done outside and only reported: a run without a beginning, in place of the ready one. A processing stage
        -- without a run is this very run, so there is no earlier one to archive.
        v_attempt := krai_private.archive_last_run(p_document_id, p_stage_name,
            case v_from when 'processing' then krai_private.pending_stage() else v_stage end);
        delete from krai_core.stage_runs r
        where r.document_id = p_document_id and r.open_stage = p_stage_name and r.status = 'ready';
        insert into krai_core.stage_runs (document_id, stage_name, status, attempt, started_at, finished_at, is_current,
            error, error_fingerprint, retry_at)
        values (p_document_id, p_stage_name, p_to, v_attempt, v_started_at, v_now, true, v_error,
                case when p_to = 'failed' then krai_private.error_fingerprint(v_error) end,
                case when p_retry and p_to = 'failed' then krai_private.retry_at(p_stage_name, v_attempt, v_now) end)
        returning retry_at into v_retry_at;
    else
        update krai_core.stage_runs r
        set status = p_to, finished_at = v_now, closed_by_holder = p_claim_id is not null, is_current = true,
            error = v_error,
            lease_seconds = null, lease_expires_at = null, heartbeat_at = null,
            error_fingerprint = case when p_to = 'failed' then krai_private.error_fingerprint(v_error) end,
            retry_at = case
                when p_retry and p_to = 'failed' then krai_private.retry_at(p_stage_name, r.attempt, v_now) end
        where r.id = v_run.id
        returning retry_at into v_retry_at;
    end if;
    v_closed := krai_private.closed_stage(v_stage, p_to, p_error, v_metadata, v_started_at, v_now);
    perform krai_private.count_transition(p_stage_name, v_stage, v_closed);
    perform krai_private.write_stage_status(p_document_id, v_stage_status || jsonb_build_object(p_stage_name, v_closed),
        case when p_to <> 'failed' or v_retry_at is not null then array[p_stage_name] end);
    return true;
end;
$$;
comment on function krai_private.close_stage(uuid, text, text, text, jsonb, uuid, boolean) is
'What complete_stage, fail_stage and skip_stage share: moves a stage to p_to and closes its run.
p_to: completed, failed or skipped. p_retry: a failed stage is retried automatically while attempts are left.';

create or replace function krai_core.complete_stage(
    p_document_id uuid,
    p_stage_name text,
    p_metadata jsonb default '{}',
    p_claim_id uuid default null
) returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
    return krai_private.close_stage(p_document_id, p_stage_name, 'completed', null, p_metadata, p_claim_id);
end;
$$;
comment on function krai_core.complete_stage(uuid, text, jsonb, uuid) is
'Marks a stage as completed: progress 100, error cleared, metadata merged.
Returns true. A stage that was never started becomes completed with started_at and duration_seconds null; a completed
stage stays completed, its metadata merged. With p_claim_id a repeated call returns true and changes nothing.
duration_seconds: seconds since started_at. Raises PT409 conflict on a skipped stage, PT409 lease_lost if the run of
p_claim_id is over, PT404 unknown_document, 22023 unknown_stage or invalid_metadata.';

create or replace function krai_core.fail_stage(
    p_document_id uuid,
    p_stage_name text,
    p_error text,
    p_metadata jsonb default '{}',
    p_claim_id uuid default null,
    p_retry boolean default false
) returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
    return krai_private.close_stage(
        p_document_id, p_stage_name, 'failed', p_error, p_metadata, p_claim_id, coalesce(p_retry, false));
end;
$$;
comment on function krai_core.fail_stage(uuid, text, text, jsonb, uuid, boolean) is
'Marks a stage as failed; completed_at is when it failed, progress and metadata stay.
p_error: null or blank is stored as "failed without a message"; over 4000 characters it is truncated with a mark
(stage_runs keeps 65536). p_retry: while attempts are left (stages.max_attempts), the stage is handed out again after
the backoff; a permanent error needs none. Returns true; false, changing nothing, on a completed or skipped stage
without p_claim_id. A failed stage takes the new error. Raises PT409 conflict or lease_lost if the run of p_claim_id
is over, PT404 unknown_document, 22023 unknown_stage or invalid_metadata.';

create or replace function krai_core.skip_stage(
    p_document_id uuid,
    p_stage_name text,
    p_reason text default 'Not applicable',
    p_claim_id uuid default null
) returns boolean
language plpgsql volatile
set search_path = ''
as $$
begin
    return krai_private.close_stage(
        p_document_id, p_stage_name, 'skipped', null, krai_private.skip_metadata(p_reason), p_claim_id);
end;
$$;
comment on function krai_core.skip_stage(uuid, text, text, uuid) is
'Marks a stage as not applicable to this document, which counts as finished.
The reason is stored in metadata.reason. Returns true; false, changing nothing, on a completed stage without
p_claim_id; a skipped stage stays as it is. Raises PT409 conflict or lease_lost if the run of p_claim_id is over,
PT404 unknown_document, 22023 unknown_stage.';
