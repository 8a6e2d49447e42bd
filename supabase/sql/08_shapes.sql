-- Shapes: what a stored value means, however malformed it is, and the values that writers store.
--
--   iso_time, time_or_null                 a time as text, and the time that a text means
--   stage_state, sql_stage_state           which of the five states a stored stage means: as a function, as SQL text
--   progress_of                            progress of a stored stage
--   short_error, full_error                an error as the column and as the history store it
--   error_pattern, error_fingerprint       what errors of one kind have in common
--   repaired_stage, repaired_stages        turn malformed values into the seven keys, losing nothing
--   is_sound                               whether there is anything to repair
--   started_stage, closed_stage            a stage as a run starts and as it ends
--   skip_metadata                          metadata of a skipped stage
--   archived_stages                        stage_status of a document that finished before stages were tracked
--
-- Rules
--   * A missing key is pending. The plain string "completed" is completed; any other string, and any status other than
--     the five, is pending: nobody owns such a run.
--   * A sound value is returned unchanged. What does not fit the seven keys is kept in metadata.v1 of its stage;
--     additional keys of a stage, and keys of unknown stages, stay where they are.
--   * Total functions: nothing here raises, and nothing depends on the session (time zone, DateStyle).
-- Nothing here locks or writes.

-- In plpgsql, like everything that writers call: plans are cached for the session. An SQL function with a pinned
-- search_path is not inlined, and is planned again in every transaction.
create or replace function krai_private.iso_time(p_time timestamptz) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return to_char(p_time at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
end;
$$;
comment on function krai_private.iso_time(timestamptz) is 'The time as ISO 8601 in UTC, with microseconds and Z.';

-- A text that is not a time must not break a view or a write, hence the exception block; hot paths avoid this function.
create or replace function krai_private.time_or_null(p_text text) returns timestamptz
language plpgsql stable
set search_path = ''
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
declare
    v_time timestamptz;
begin
    -- Postgres takes words such as now and epoch for times, but nobody records a time that way.
    if p_text !~ '^\s*\d' then
        return null;
    end if;
    v_time := p_text::timestamptz;
    -- Only years of four digits, which iso_time can write.
    return case when v_time >= '0001-01-01 00:00:00+00' and v_time < '10000-01-01 00:00:00+00' then v_time end;
exception when data_exception then
    return null;
end;
$$;
comment on function krai_private.time_or_null(text) is
'The time that a text means, in the years 1 to 9999; null if it means none.
UTC if the text names no zone; month before day if the order is ambiguous.';

-- sql_stage_state is the same as an SQL expression; a test compares the two on every malformed value.
create or replace function krai_private.stage_state(p_stage jsonb) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return case
        when p_stage ->> 'status' in ('pending', 'processing', 'completed', 'failed', 'skipped')
            then p_stage ->> 'status'
        when p_stage = '"completed"' then 'completed'
        else 'pending'
    end;
end;
$$;
comment on function krai_private.stage_state(jsonb) is
'The state that a stored stage means: its status, if that is one of the five.
The plain string "completed" means completed; anything else, and a missing key, means pending.';

create or replace function krai_private.progress_of(p_stage jsonb) returns numeric
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return case
        when jsonb_typeof(p_stage -> 'progress') = 'number' and p_stage -> 'progress' between '0' and '100'
            then (p_stage ->> 'progress')::numeric
        end;
end;
$$;
comment on function krai_private.progress_of(jsonb) is
'Progress of a stored stage in percent, 0 to 100; null if it has no valid one.';

-- SQL text, pasted into views and triggers: a function would not be inlined, and cost more than the rest of a view over
-- all documents, or of a trigger on a batch.
create or replace function krai_private.sql_stage_state(p_stage text) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    -- The simple form of CASE extracts the status once.
    return format($q$case %1$s ->> 'status'
            when 'pending' then 'pending'
            when 'completed' then 'completed'
            when 'processing' then 'processing'
            when 'failed' then 'failed'
            when 'skipped' then 'skipped'
            else case when %1$s = '"completed"' then 'completed' else 'pending' end
        end$q$, p_stage);
end;
$$;
comment on function krai_private.sql_stage_state(text) is
'SQL expression equivalent to stage_state. p_stage: SQL expression of a stored stage.';

create or replace function krai_private.short_error(p_error text) returns text
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
comment on function krai_private.short_error(text) is
'The error as the column stores it: never blank, at most 4000 characters.';

create or replace function krai_private.full_error(p_error text) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return case when p_error ~ '\S' then left(p_error, 65536) else 'failed without a message' end;
end;
$$;
comment on function krai_private.full_error(text) is
'The error as the history stores it: never blank, at most 65536 characters.';

create or replace function krai_private.error_pattern(p_error text) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
declare
    v_error text := left(coalesce(p_error, ''), 2000);
begin
    -- Each replacement only if it can match: replacing costs many times as much as searching.
    if strpos(v_error, '://') > 0 then
        v_error := regexp_replace(v_error, '[a-zA-Z][a-zA-Z0-9+.-]*://[^\s"''<>]+', '<url>', 'g');
    end if;
    if v_error ~ '[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-' then
        v_error := regexp_replace(v_error,
            '[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}', '<id>', 'g');
    end if;
    if strpos(v_error, '/') > 0 or strpos(v_error, '\') > 0 then
        -- At least two separators, or one at the start of a word: and/or is not a path.
        v_error := regexp_replace(v_error,
            '(?:[a-zA-Z]:[\\/]|\.{0,2}/)[^\s"''<>:,;()]*[\\/][^\s"''<>:,;()]*'
            '|(?<=[\s"''(=]|^)/[^\s"''<>:,;()/]+', '<path>', 'g');
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
comment on function krai_private.error_pattern(text) is
'An error without the parts that vary between failures of one kind; at most 500 characters.
URLs, ids, paths and numbers become <url>, <id>, <path> and <n>.';

create or replace function krai_private.error_fingerprint(p_error text) returns bigint
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return hashtextextended(krai_private.error_pattern(p_error), 0);
end;
$$;
comment on function krai_private.error_fingerprint(text) is
'A number that is the same for all errors of one kind: a hash of error_pattern.';

create or replace function krai_private.repaired_stage(p_stage jsonb) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
    v_state text := krai_private.stage_state(p_stage);
    v_stage jsonb := krai_private.pending_stage();
    v_odd boolean := false;
    v_key text;
    v_value jsonb;
    v_time timestamptz;
begin
    if v_state = 'completed' then
        v_stage := v_stage || '{"status": "completed", "progress": 100}';
    end if;
    if p_stage is null or p_stage = 'null' then
        return v_stage;
    elsif jsonb_typeof(p_stage) <> 'object' then
        return v_stage || jsonb_build_object('metadata', jsonb_build_object('v1', p_stage));
    elsif p_stage ->> 'status' is distinct from v_state and p_stage -> 'status' <> 'null' then
        -- The status of another system: nobody owns such a run, and its times belong to a run that we know nothing of.
        v_odd := true;
        v_stage := v_stage || (p_stage - array[
            'status', 'started_at', 'completed_at', 'duration_seconds', 'progress', 'error', 'metadata']);
    else
        v_stage := v_stage || p_stage || jsonb_build_object('status', v_state);
        foreach v_key in array array['started_at', 'completed_at'] loop
            v_value := v_stage -> v_key;
            v_time := case when jsonb_typeof(v_value) = 'string' then krai_private.time_or_null(v_value #>> '{}') end;
            v_odd := v_odd or (v_time is null and v_value <> 'null');
            v_stage := v_stage || jsonb_build_object(v_key, krai_private.iso_time(v_time));
        end loop;
        v_value := v_stage -> 'duration_seconds';
        if v_value <> 'null' and not (jsonb_typeof(v_value) = 'number' and v_value >= '0') then
            v_odd := true;
            v_stage := v_stage || '{"duration_seconds": null}';
        end if;
        v_value := v_stage -> 'progress';
        if not (jsonb_typeof(v_value) = 'number' and v_value >= '0' and v_value <= '100') then
            v_odd := v_odd or v_value <> 'null';
            v_stage := v_stage || jsonb_build_object('progress', case v_state when 'completed' then 100 else 0 end);
        end if;
        if jsonb_typeof(v_stage -> 'error') not in ('string', 'null') then
            v_stage := v_stage || jsonb_build_object('error', v_stage ->> 'error');
        end if;
    end if;
    v_value := p_stage -> 'metadata';
    if jsonb_typeof(v_value) = 'object' then
        v_stage := v_stage || jsonb_build_object('metadata', v_value);
    else
        v_odd := v_odd or v_value <> 'null';
        v_stage := v_stage || '{"metadata": {}}';
    end if;
    if v_odd then
        -- If an original is kept already, the new one is merged into it key by key: repeated malformed edits lose
        -- nothing and do not pile up.
        v_value := v_stage #> '{metadata,v1}';
        v_stage := jsonb_set(v_stage, '{metadata,v1}', case
            when v_value is null then p_stage
            when jsonb_typeof(v_value) = 'object' then v_value || (p_stage - 'metadata')
            else (p_stage - 'metadata') || jsonb_build_object('v1', v_value) end);
    end if;
    return v_stage;
end;
$$;
comment on function krai_private.repaired_stage(jsonb) is
'A stored stage in the shape of the seven keys.
A sound value is returned unchanged; if something did not fit, the original is kept in metadata.v1.';

create or replace function krai_private.repaired_stages(p_stage_status jsonb) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
    v_root jsonb := case when jsonb_typeof(p_stage_status) = 'object' then p_stage_status else '{}' end;
    v_stages jsonb;
    v_first text;
begin
    select coalesce(jsonb_object_agg(s.name, krai_private.repaired_stage(v_root -> s.name)), '{}'),
           (array_agg(s.name order by s.position))[1]
    into v_stages, v_first
    from krai_core.stages s
    where s.enabled or v_root ? s.name;
    if jsonb_typeof(p_stage_status) not in ('object', 'null') and v_first is not null then
        v_stages := jsonb_set(v_stages, array[v_first, 'metadata', 'v1'], p_stage_status);
    end if;
    return v_root || v_stages;
end;
$$;
comment on function krai_private.repaired_stages(jsonb) is
'stage_status with every enabled stage in the shape of the seven keys.
Unknown keys stay; a root that is not an object is kept in metadata.v1 of the first stage.';

-- Several times cheaper than repairing and comparing; a test checks it against repaired_stages on generated values. The
-- type of each value is tested first, because lax jsonpath unwraps arrays.
create or replace function krai_private.is_sound(p_stage_status jsonb) returns boolean
language plpgsql stable
set search_path = ''
as $$
begin
    return coalesce(jsonb_typeof(p_stage_status) = 'object' and not exists (
        select from krai_core.stages s
        cross join lateral (select p_stage_status -> s.name as stage offset 0) x
        where (s.enabled or p_stage_status ? s.name)
          -- The cheapest test first: it settles most stages of most documents.
          and x.stage is distinct from krai_private.pending_stage()
          and not coalesce(x.stage @@ '
            $.type() == "object"
            && $.status.type() == "string" && ($.status == "pending" || $.status == "processing"
                || $.status == "completed" || $.status == "failed" || $.status == "skipped")
            && $.metadata.type() == "object"
            && $.progress.type() == "number" && $.progress >= 0 && $.progress <= 100
            && ($.duration_seconds.type() == "null"
                || ($.duration_seconds.type() == "number" && $.duration_seconds >= 0))
            && ($.error.type() == "null" || $.error.type() == "string")
            && ($.started_at.type() == "null"
                || ($.started_at.type() == "string" && !($.started_at starts with "0000")
                    && exists($.started_at.datetime("YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\""))))
            && ($.completed_at.type() == "null"
                || ($.completed_at.type() == "string" && !($.completed_at starts with "0000")
                    && exists($.completed_at.datetime("YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\""))))'
            -- datetime() checks that the date exists; this checks that each part has all its digits.
            and coalesce(
                translate(x.stage ->> 'started_at', '012345678', '999999999') = '9999-99-99T99:99:99.999999Z', true)
            and coalesce(
                translate(x.stage ->> 'completed_at', '012345678', '999999999') = '9999-99-99T99:99:99.999999Z', true),
            false)
    ), false);
end;
$$;
comment on function krai_private.is_sound(jsonb) is
'True if every enabled stage is present and every stage has the seven keys with the right types.
repaired_stages then has nothing to do.';

create or replace function krai_private.started_stage(p_stage jsonb, p_now timestamptz) returns jsonb
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    -- The contents of a pending stage belong to no run: they were put there by hand or by the repair, and stay.
    return case when p_stage ->> 'status' = 'pending' then p_stage else krai_private.pending_stage() end
        || jsonb_build_object('status', 'processing', 'started_at', krai_private.iso_time(p_now),
            'completed_at', null, 'duration_seconds', null, 'progress', 0, 'error', null);
end;
$$;
comment on function krai_private.started_stage(jsonb, timestamptz) is
'A stage, in the shape of the seven keys, as a new run starts.';

create or replace function krai_private.closed_stage(
    p_stage jsonb,
    p_to text,
    p_error text,
    p_metadata jsonb,
    p_started_at timestamptz,
    p_now timestamptz
)
returns jsonb
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return p_stage || jsonb_build_object(
        'status', p_to,
        'started_at', krai_private.iso_time(p_started_at),
        'completed_at', krai_private.iso_time(p_now),
        -- No negative duration if the clock was set back.
        'duration_seconds', case when p_to <> 'skipped' and p_started_at is not null
            then trim_scale(round(greatest(extract(epoch from p_now - p_started_at), 0), 6)) end,
        'progress', case p_to when 'completed' then to_jsonb(100) else p_stage -> 'progress' end,
        'error', case when p_to = 'failed' then krai_private.short_error(p_error) end,
        'metadata', p_stage -> 'metadata' || p_metadata);
end;
$$;
comment on function krai_private.closed_stage(jsonb, text, text, jsonb, timestamptz, timestamptz) is
'A stage, in the shape of the seven keys, as a run ends: completed, failed or skipped.';

create or replace function krai_private.skip_metadata(p_reason text) returns jsonb
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return jsonb_build_object('reason',
        case when p_reason ~ '\S' then left(p_reason, 4000) else 'Not applicable' end);
end;
$$;
comment on function krai_private.skip_metadata(text) is
'Metadata of a skipped stage: {"reason": text}; "Not applicable" for null or blank; at most 4000 characters.';

create or replace function krai_private.archived_stages(p_stage_status jsonb) returns jsonb
language sql stable
set search_path = ''
as $$
    select p_stage_status || coalesce(jsonb_object_agg(s.name,
        p_stage_status -> s.name || krai_private.pending_stage() || jsonb_build_object(
            'status', 'completed',
            'progress', 100,
            'metadata', jsonb_build_object('v1',
                case p_stage_status -> s.name when krai_private.pending_stage() then '"completed"'
                    else p_stage_status -> s.name end)
                || (p_stage_status -> s.name -> 'metadata'))), '{}')
    from krai_core.stages s
    where krai_private.stage_state(p_stage_status -> s.name) = 'pending' and p_stage_status ? s.name
$$;
comment on function krai_private.archived_stages(jsonb) is
'A sound stage_status with every pending stage completed, times and duration null.
For documents that finished before stages were tracked. The contents of such a stage, or the string "completed" if it
had none, are kept in metadata.v1.';
