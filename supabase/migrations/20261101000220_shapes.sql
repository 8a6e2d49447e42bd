-- Per-stage document tracking: what a stored value means, however odd it is. Private helpers.
--
--   _time_or_null     the time that a text means
--   _stage_state      which of the five states a stored stage means
--   _repaired_stage, _repaired     odd values turned into the seven keys, nothing lost
--   _is_sound         whether there is anything to repair
--
-- Rules
--   * A missing key is pending. The plain string "completed" is completed; any other string, and any status that is none of
--     the five, is pending: nobody owns such a run.
--   * A sound value comes back as it is. What finds no place in the seven keys is kept in metadata.v1 of its stage; keys
--     beside the seven, and keys of stages that are not known, stay where they are.
--   * Total: nothing here raises, and nothing depends on the session (time zone, order of day and month).
-- Nothing here locks or writes.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
-- Nothing is made where the file of the tables stopped: psql goes on after an error unless it is told otherwise.
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;

-- A text that is no time must not break a view or a write, hence the exception block; callers keep it off hot paths.
create or replace function krai_core._time_or_null(p_text text) returns timestamptz
language plpgsql stable
set search_path = ''
set timezone = 'UTC'
set datestyle = 'ISO, MDY'
as $$
declare
    v_time timestamptz;
begin
    -- Words such as now and epoch are times to Postgres, but never what somebody noted.
    if p_text !~ '^\s*\d' then
        return null;
    end if;
    v_time := p_text::timestamptz;
    -- Years that have four digits: what _iso can write.
    return case when v_time >= '0001-01-01 00:00:00+00' and v_time < '10000-01-01 00:00:00+00' then v_time end;
exception when data_exception then
    return null;
end;
$$;
comment on function krai_core._time_or_null(text) is
'The time that a text means, in the years 1 to 9999, UTC where it names no zone, month before day where that is open; null where it means none.';

-- _sql_stage_state says the same as an expression; a test compares the two on every odd value.
create or replace function krai_core._stage_state(p_stage jsonb) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return case
        when p_stage ->> 'status' in ('pending', 'processing', 'completed', 'failed', 'skipped') then p_stage ->> 'status'
        when p_stage = '"completed"' then 'completed'
        else 'pending'
    end;
end;
$$;
comment on function krai_core._stage_state(jsonb) is
'The state that a stored stage means: its status if that is one of the five; the plain string "completed" means completed; all else, and a missing key, means pending.';

create or replace function krai_core._progress_of(p_stage jsonb) returns numeric
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return case when jsonb_typeof(p_stage -> 'progress') = 'number' and p_stage -> 'progress' between '0' and '100' then (p_stage ->> 'progress')::numeric end;
end;
$$;
comment on function krai_core._progress_of(jsonb) is 'Progress of a stored stage in percent, 0 to 100; null where it holds none.';

-- As text, for what has to be made of one piece: as functions, neither would be inlined, and each cost more than all the
-- rest of a view over all documents, or of a trigger on a batch.
create or replace function krai_core._sql_stage_state(p_stage text) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    -- The simple form of case looks the status up once.
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
comment on function krai_core._sql_stage_state(text) is 'SQL expression for what _stage_state says; p_stage: SQL expression of a stored stage.';

create or replace function krai_core._sql_document_state(p_stage_status text) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    -- The stages as a string with one letter for each, in order: the second of its state, which no other state has (pEnding,
    -- pRocessing, cOmpleted, fAiled, sKipped). To look at strings takes a third of the time of sums over rows. What is the same
    -- for all documents is a subquery of its own, worked out once; `offset 0` keeps the string from being made for each column.
    return format($q$select
        case when ltrim(stands.letters, 'ok') = '' then 'completed' else (
            select array_agg(s.name order by s.position) from krai_core.stages s where s.enabled
        )[length(stands.letters) - length(ltrim(stands.letters, 'ok')) + 1] end as current_stage,
        coalesce(100.0 * (length(stands.letters) - length(translate(stands.letters, 'ok', ''))) / nullif(length(stands.letters), 0), 100)::numeric(5, 2)
            as progress_percentage,
        case
            when ltrim(stands.letters, 'ok') = '' then 'completed'
            when strpos(stands.letters, 'a') > 0 then 'failed'
            when ltrim(stands.letters, 'e') = '' then 'pending'
            else 'processing'
        end as document_status
    from (
        select coalesce(string_agg(substr(%1$s, 2, 1), ''), '') as letters
        from unnest((select array_agg(s.name order by s.position) from krai_core.stages s where s.enabled)) as enabled (name)
        offset 0
    ) stands$q$, krai_core._sql_stage_state(p_stage_status || ' -> enabled.name'));
end;
$$;
comment on function krai_core._sql_document_state(text) is
'SQL query for where a document stands: one row of current_stage, progress_percentage, document_status; p_stage_status: SQL expression of its stage_status.';

create or replace function krai_core._repaired_stage(p_stage jsonb) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
    v_state text := krai_core._stage_state(p_stage);
    v_stage jsonb := krai_core._pending_stage();
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
        -- A status of another system: nobody owns such a run, and its times belong to a run that we do not know.
        v_odd := true;
        v_stage := v_stage || (p_stage - array['status', 'started_at', 'completed_at', 'duration_seconds', 'progress', 'error', 'metadata']);
    else
        v_stage := v_stage || p_stage || jsonb_build_object('status', v_state);
        foreach v_key in array array['started_at', 'completed_at'] loop
            v_value := v_stage -> v_key;
            v_time := case when jsonb_typeof(v_value) = 'string' then krai_core._time_or_null(v_value #>> '{}') end;
            v_odd := v_odd or (v_time is null and v_value <> 'null');
            v_stage := v_stage || jsonb_build_object(v_key, krai_core._iso(v_time));
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
        -- An original that is there already takes the further one in, key by key: repeated odd edits lose nothing and do
        -- not pile up.
        v_value := v_stage #> '{metadata,v1}';
        v_stage := jsonb_set(v_stage, '{metadata,v1}', case
            when v_value is null then p_stage
            when jsonb_typeof(v_value) = 'object' then v_value || (p_stage - 'metadata')
            else (p_stage - 'metadata') || jsonb_build_object('v1', v_value) end);
    end if;
    return v_stage;
end;
$$;
comment on function krai_core._repaired_stage(jsonb) is
'A stored stage in the shape of the seven keys. Sound values come back as they are; where something had no place in the shape, the original is kept in metadata.v1.';

create or replace function krai_core._repaired(p_stage_status jsonb) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
    v_root jsonb := case when jsonb_typeof(p_stage_status) = 'object' then p_stage_status else '{}' end;
    v_stages jsonb;
    v_first text;
begin
    select coalesce(jsonb_object_agg(s.name, krai_core._repaired_stage(v_root -> s.name)), '{}'),
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
comment on function krai_core._repaired(jsonb) is
'stage_status with every enabled stage in the shape of the seven keys; unknown keys stay; a root that is no object is kept in metadata.v1 of the first stage.';

-- Several times cheaper than to repair and compare; a test holds it against _repaired on generated values. Every value is
-- asked for its type first, because a jsonpath in lax mode takes an array for its elements.
create or replace function krai_core._is_sound(p_stage_status jsonb) returns boolean
language plpgsql stable
set search_path = ''
as $$
begin
    return coalesce(jsonb_typeof(p_stage_status) = 'object' and not exists (
        select from krai_core.stages s
        cross join lateral (select p_stage_status -> s.name as stage offset 0) x
        where (s.enabled or p_stage_status ? s.name)
          -- Most stages of most documents, and the cheapest question.
          and x.stage is distinct from krai_core._pending_stage()
          and not coalesce(x.stage @@ '
            $.type() == "object"
            && $.status.type() == "string" && ($.status == "pending" || $.status == "processing"
                || $.status == "completed" || $.status == "failed" || $.status == "skipped")
            && $.metadata.type() == "object"
            && $.progress.type() == "number" && $.progress >= 0 && $.progress <= 100
            && ($.duration_seconds.type() == "null" || ($.duration_seconds.type() == "number" && $.duration_seconds >= 0))
            && ($.error.type() == "null" || $.error.type() == "string")
            && ($.started_at.type() == "null" || ($.started_at.type() == "string" && !($.started_at starts with "0000")
                && exists($.started_at.datetime("YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\""))))
            && ($.completed_at.type() == "null" || ($.completed_at.type() == "string" && !($.completed_at starts with "0000")
                && exists($.completed_at.datetime("YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\""))))'
            -- datetime() sees that there is such a day; that each part has all its digits is seen here.
            and coalesce(translate(x.stage ->> 'started_at', '012345678', '999999999') = '9999-99-99T99:99:99.999999Z', true)
            and coalesce(translate(x.stage ->> 'completed_at', '012345678', '999999999') = '9999-99-99T99:99:99.999999Z', true), false)
    ), false);
end;
$$;
comment on function krai_core._is_sound(jsonb) is
'True when every enabled stage is there and every stage has the seven keys in their types: then _repaired has nothing to do.';

do $$
declare
    v_function regprocedure;
begin
    for v_function in
        select p.oid from pg_catalog.pg_proc p
        where p.pronamespace = 'krai_core'::regnamespace and p.proname = any (array[
            '_time_or_null', '_stage_state', '_progress_of', '_sql_stage_state', '_sql_document_state', '_repaired_stage', '_repaired', '_is_sound'])
    loop
        execute format('revoke execute on function %s from public, anon, authenticated', v_function);
        execute format('grant execute on function %s to service_role', v_function);
    end loop;
    -- What the readers need that signed-in users may call.
    for v_function in
        select p.oid from pg_catalog.pg_proc p
        where p.pronamespace = 'krai_core'::regnamespace and p.proname = any (array[
            '_time_or_null', '_stage_state', '_progress_of', '_repaired_stage', '_repaired', '_is_sound'])
    loop
        execute format('grant execute on function %s to authenticated', v_function);
    end loop;
end $$;

commit;
