-- Errors: how they are raised, and the argument checks that raise them.
--
--   raise_error                             raises every error of the tracker, with an error word in DETAIL and a HINT
--   raise_unknown_document, raise_conflict  the two that many calls raise
--   check_stage, stage_named, stages_named  look up stages by name
--   checked_metadata, checked_limit, checked_lease, checked_age   return a valid argument or raise
--
-- Rules
--   * SQLSTATE PT404 (HTTP 404): unknown document. PT409 (409): conflict or lost lease. 22023 (400): bad argument.
--   * Never 40001: PostgREST before 16 retries such a call forever. Never P0002, which becomes HTTP 500.
--   * Callers never choose an SQLSTATE: raise_error derives it from the error word.

-- Not immutable: the planner would evaluate a call with constant arguments, and raise while only planning.
create or replace function krai_private.raise_error(p_word text, p_message text, p_detail jsonb, p_hint text)
returns void
language plpgsql stable
set search_path = ''
as $$
begin
    raise exception using
        errcode = case
            when p_word = 'unknown_document' then 'PT404'
            when p_word in ('conflict', 'lease_lost', 'claim_in_progress', 'stage_disabled') then 'PT409'
            else '22023' end,
        message = p_message,
        detail = (jsonb_build_object('error', p_word) || p_detail)::text,
        hint = p_hint;
end;
$$;
comment on function krai_private.raise_error(text, text, jsonb, text) is
'Raises an error of the tracker: machine-readable word, message, further keys of DETAIL, remedy.
The SQLSTATE follows from the word: PT404 unknown_document; PT409 conflict, lease_lost, claim_in_progress and
stage_disabled; 22023 any other.';

create or replace function krai_private.raise_unknown_document(p_document_id uuid) returns void
language plpgsql stable
set search_path = ''
as $$
begin
    if p_document_id is null then
        perform krai_private.raise_error('invalid_document_id', 'the document id is null', '{}',
            'Pass the id of a row of krai_core.documents.');
    end if;
    perform krai_private.raise_error('unknown_document', format('there is no document %s', p_document_id),
        jsonb_build_object('document_id', p_document_id),
        'Insert the row into krai_core.documents first; as a signed-in user, check that its policies let you see it.');
end;
$$;
comment on function krai_private.raise_unknown_document(uuid) is
'Raises PT404 unknown_document, or 22023 invalid_document_id for null.';

create or replace function krai_private.raise_conflict(
    p_call text,
    p_document_id uuid,
    p_stage_name text,
    p_status text,
    p_hint text,
    p_remark text default ''
)
returns void
language plpgsql stable
set search_path = ''
as $$
begin
    perform krai_private.raise_error('conflict',
        format('%s: stage %s of document %s is %s%s', p_call, p_stage_name, p_document_id, p_status, p_remark),
        jsonb_build_object('document_id', p_document_id, 'stage', p_stage_name, 'status', p_status), p_hint);
end;
$$;
comment on function krai_private.raise_conflict(text, uuid, text, text, text, text) is
'Raises PT409 conflict: the stage is in a state that does not allow the call.
p_remark: appended to the state in the message.';

create or replace function krai_private.require_service_role() returns void
language plpgsql stable
set search_path = ''
as $$
begin
    -- The right to execute this is the check: Postgres raises 42501 for everybody else.
end;
$$;
comment on function krai_private.require_service_role() is
'Raises 42501 unless the caller is service_role or the owner. For public functions that call nothing else of the kind.';

create or replace function krai_private.check_stage(p_stage_name text) returns void
language plpgsql stable
set search_path = ''
as $$
begin
    if not exists (select from krai_core.stages s where s.name = p_stage_name) then
        perform krai_private.raise_error('unknown_stage',
            format('unknown stage %s', coalesce(quote_literal(p_stage_name), 'null')),
            jsonb_build_object('stage', p_stage_name),
            coalesce(
                'Stages are: ' || (select string_agg(s.name, ', ' order by s.position) from krai_core.stages s) || '.',
                'There are no stages that you may see: register one, or ask for the right to read krai_core.stages.'));
    end if;
end;
$$;
comment on function krai_private.check_stage(text) is 'Raises 22023 unknown_stage unless the stage exists.';

create or replace function krai_private.stage_named(p_stage_name text) returns krai_core.stages
language plpgsql stable
set search_path = ''
as $$
declare
    v_stage krai_core.stages;
begin
    select * into v_stage from krai_core.stages s where s.name = p_stage_name;
    if not found then
        perform krai_private.check_stage(p_stage_name);
    end if;
    return v_stage;
end;
$$;
comment on function krai_private.stage_named(text) is
'The row of krai_core.stages with that name; raises 22023 unknown_stage.
For callers that may read all of its columns (service_role).';

create or replace function krai_private.stages_named(p_stage_name text) returns setof krai_core.stages
language plpgsql stable
set search_path = ''
as $$
declare
    v_names text[] := array[p_stage_name];
    v_found integer;
begin
    if p_stage_name like '[%' then
        begin
            v_names := array(select jsonb_array_elements_text(p_stage_name::jsonb));
        exception when invalid_text_representation then
            null;
        end;
    elsif p_stage_name like '{%' then
        begin
            v_names := p_stage_name::text[];
        exception when invalid_text_representation then
            null;
        end;
    end if;
    return query
        select s.*
        from unnest(v_names) with ordinality as given (name, n)
        join krai_core.stages s on s.name = given.name
        order by given.n;
    get diagnostics v_found = row_count;
    if v_found < cardinality(v_names) then
        perform krai_private.check_stage(given.name) from unnest(v_names) as given (name);
    end if;
end;
$$;
comment on function krai_private.stages_named(text) is
'The rows of krai_core.stages for one name, or for an array of names, in the order of the array.
p_stage_name: a name, or an array as text (["a", "b"] or {a,b}). Raises 22023 unknown_stage.';

create or replace function krai_private.checked_metadata(p_metadata jsonb) returns jsonb
language plpgsql stable
set search_path = ''
as $$
begin
    if jsonb_typeof(p_metadata) not in ('object', 'null') then
        perform krai_private.raise_error('invalid_metadata',
            format('metadata must be a JSON object, not %s: %s', jsonb_typeof(p_metadata), left(p_metadata::text, 200)),
            jsonb_build_object('type', jsonb_typeof(p_metadata)),
            'Pass an object such as {"pages_processed": 2000}.');
    end if;
    return case when jsonb_typeof(p_metadata) = 'object' then p_metadata else '{}' end;
end;
$$;
comment on function krai_private.checked_metadata(jsonb) is
'The metadata to merge; {} for null. Raises 22023 invalid_metadata for anything else that is not a JSON object.';

create or replace function krai_private.checked_limit(p_limit integer, p_most integer) returns integer
language plpgsql stable
set search_path = ''
as $$
begin
    if p_limit between 1 and p_most then
        return p_limit;
    end if;
    perform krai_private.raise_error('invalid_limit',
        format('a limit of %s is out of range', coalesce(p_limit::text, 'null')),
        jsonb_build_object('limit', p_limit), format('Pass 1 to %s.', p_most));
    return null;
end;
$$;
comment on function krai_private.checked_limit(integer, integer) is
'The limit; raises 22023 invalid_limit unless it is 1 to p_most.';

create or replace function krai_private.checked_lease(p_lease_seconds numeric) returns numeric
language plpgsql stable
set search_path = ''
as $$
begin
    if p_lease_seconds <= 0 or p_lease_seconds > 604800 then
        perform krai_private.raise_error('invalid_lease',
            format('a lease of %s seconds is out of range', p_lease_seconds),
            jsonb_build_object('lease_seconds', p_lease_seconds::text),
            'Pass more than 0 and at most 604800 seconds (a week), or null for the stage''s own.');
    end if;
    return p_lease_seconds;
end;
$$;
comment on function krai_private.checked_lease(numeric) is
'The lease in seconds; raises 22023 invalid_lease unless it is null, or more than 0 and at most 604800.';

create or replace function krai_private.checked_age(p_older_than interval) returns interval
language plpgsql stable
set search_path = ''
as $$
begin
    if p_older_than between interval '0' and interval '1000 years' then
        return p_older_than;
    end if;
    perform krai_private.raise_error('invalid_age',
        format('%s is no age', coalesce(p_older_than::text, 'null')), '{}',
        'Pass an interval such as 30 days, at most 1000 years.');
    return null;
end;
$$;
comment on function krai_private.checked_age(interval) is
'The age; raises 22023 invalid_age unless it is 0 to 1000 years; null is invalid.';
