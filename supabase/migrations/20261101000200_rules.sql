-- Per-stage document tracking: the rules that all other files lean on. Private helpers, by their leading
-- underscore.
--
--   _raise            every error of ours: SQLSTATE, a word for machines in DETAIL, a remedy in HINT
--   _iso              timestamps as text in the column
--   _checked_metadata, _checked_limit, _stage_named, _stages_named     arguments, checked
--   _hold, _write     locks the document and returns its stage_status; writes it
-- What an odd value means is the next file's matter.
--
-- Errors. PT404 (HTTP 404) unknown document; PT409 (409) conflict or lost lease; 22023 (400) bad argument. Never 40001:
-- PostgREST before 16 repeats such a call without end; never P0002, which becomes HTTP 500.
-- DETAIL is JSON: {"error": "<word>", ...}; the words are unknown_document, unknown_stage, stage_disabled, conflict,
-- lease_lost, claim_in_progress, invalid_document_id, invalid_stage, invalid_progress, invalid_metadata, invalid_lease,
-- invalid_limit, invalid_runs, invalid_outcomes, invalid_cursor, invalid_status, invalid_fingerprint, invalid_age.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
-- Nothing is made where the file of the tables stopped: psql goes on after an error unless it is told otherwise.
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;

-- Not immutable: the planner would evaluate a call with constant arguments, and raise, where it is only being planned.
create or replace function krai_core._raise(p_code text, p_error text, p_message text, p_detail jsonb, p_hint text)
returns void
language plpgsql stable
set search_path = ''
as $$
begin
    raise exception using
        errcode = p_code,
        message = p_message,
        detail = (jsonb_build_object('error', p_error) || p_detail)::text,
        hint = p_hint;
end;
$$;
comment on function krai_core._raise(text, text, text, jsonb, text) is
'Raises an error of the tracker: SQLSTATE, the machine word for DETAIL, message, further keys of DETAIL, remedy.';

-- In plpgsql, as all that writers call: its plans live as long as the session. An SQL function with a pinned search_path is
-- not inlined, and planned anew in every transaction.
create or replace function krai_core._iso(p_time timestamptz) returns text
language plpgsql immutable parallel safe
set search_path = ''
as $$
begin
    return to_char(p_time at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
end;
$$;
comment on function krai_core._iso(timestamptz) is 'ISO 8601 in UTC with microseconds and Z.';

create or replace function krai_core._checked_metadata(p_metadata jsonb) returns jsonb
language plpgsql stable
set search_path = ''
as $$
begin
    if jsonb_typeof(p_metadata) not in ('object', 'null') then
        perform krai_core._raise('22023', 'invalid_metadata',
            format('metadata must be a JSON object, not %s: %s', jsonb_typeof(p_metadata), left(p_metadata::text, 200)),
            jsonb_build_object('type', jsonb_typeof(p_metadata)), 'Pass an object such as {"pages_processed": 2000}.');
    end if;
    return case when jsonb_typeof(p_metadata) = 'object' then p_metadata else '{}' end;
end;
$$;
comment on function krai_core._checked_metadata(jsonb) is
'The metadata to merge; null means none. Raises 22023 invalid_metadata for anything that is no JSON object.';

create or replace function krai_core._stage_named(p_stage_name text) returns krai_core.stages
language plpgsql stable
set search_path = ''
as $$
declare
    v_stage krai_core.stages;
begin
    select * into v_stage from krai_core.stages s where s.name = p_stage_name;
    if not found then
        perform krai_core._raise('22023', 'unknown_stage', format('unknown stage %s', coalesce(quote_literal(p_stage_name), 'null')),
            jsonb_build_object('stage', p_stage_name),
            'Stages are: ' || (select string_agg(s.name, ', ' order by s.position) from krai_core.stages s) || '.');
    end if;
    return v_stage;
end;
$$;
comment on function krai_core._stage_named(text) is 'The row of krai_core.stages; raises 22023 unknown_stage.';

create or replace function krai_core._stages_named(p_stage_name text) returns setof krai_core.stages
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
        select s.* from unnest(v_names) with ordinality as given (name, n) join krai_core.stages s on s.name = given.name order by given.n;
    get diagnostics v_found = row_count;
    if v_found < cardinality(v_names) then
        perform krai_core._stage_named(given.name) from unnest(v_names) as given (name);
    end if;
end;
$$;
comment on function krai_core._stages_named(text) is
'The rows of krai_core.stages of one name, or of an array of names given as text (["a", "b"] or {a,b}), in its order. Raises 22023 unknown_stage.';

create or replace function krai_core._checked_limit(p_limit integer, p_most integer) returns integer
language plpgsql stable
set search_path = ''
as $$
begin
    if p_limit between 1 and p_most then
        return p_limit;
    end if;
    perform krai_core._raise('22023', 'invalid_limit', format('a limit of %s is out of range', coalesce(p_limit::text, 'null')),
        jsonb_build_object('limit', p_limit), format('Pass 1 to %s.', p_most));
    return null;
end;
$$;
comment on function krai_core._checked_limit(integer, integer) is 'The limit; raises 22023 invalid_limit unless it is 1 to p_most.';

create or replace function krai_core._raise_unknown_document(p_document_id uuid) returns void
language plpgsql stable
set search_path = ''
as $$
begin
    if p_document_id is null then
        perform krai_core._raise('22023', 'invalid_document_id', 'the document id is null', '{}', 'Pass the id of a row of krai_core.documents.');
    end if;
    perform krai_core._raise('PT404', 'unknown_document', format('there is no document %s', p_document_id),
        jsonb_build_object('document_id', p_document_id),
        'Insert the row into krai_core.documents first; as a signed-in user, check that its policies let you see it.');
end;
$$;
comment on function krai_core._raise_unknown_document(uuid) is 'Raises PT404 unknown_document, or 22023 invalid_document_id for null.';

create or replace function krai_core._raise_conflict(p_call text, p_document_id uuid, p_stage_name text, p_status text, p_hint text, p_remark text default '')
returns void
language plpgsql stable
set search_path = ''
as $$
begin
    perform krai_core._raise('PT409', 'conflict',
        format('%s: stage %s of document %s is %s%s', p_call, p_stage_name, p_document_id, p_status, p_remark),
        jsonb_build_object('document_id', p_document_id, 'stage', p_stage_name, 'status', p_status), p_hint);
end;
$$;
comment on function krai_core._raise_conflict(text, uuid, text, text, text, text) is
'Raises PT409 conflict: the call does not fit the state of the stage. p_remark: follows the state in the message.';

-- The first thing every writer does. The row lock is what serialises all writers of a document; `no key update` because
-- `for update` would collide with every open insert of a child row. What stage_runs says must be asked in a later
-- statement: only that one sees what happened while this one waited.
create or replace function krai_core._hold(p_document_id uuid, p_stage_name text) returns jsonb
language plpgsql volatile
set search_path = ''
as $$
declare
    v_stage_status jsonb;
begin
    if not exists (select from krai_core.stages s where s.name = p_stage_name) then
        perform krai_core._stage_named(p_stage_name);
    end if;
    select d.stage_status into v_stage_status
    from krai_core.documents d
    where d.id = p_document_id
    for no key update;
    if not found then
        perform krai_core._raise_unknown_document(p_document_id);
    end if;
    if krai_core._is_sound(v_stage_status) and v_stage_status ? p_stage_name then
        return v_stage_status;
    end if;
    return jsonb_build_object(p_stage_name, krai_core._pending_stage()) || krai_core._repaired(v_stage_status);
end;
$$;
comment on function krai_core._hold(uuid, text) is
'Locks the document and returns its stage_status, repaired, in which the given stage is found even if it is disabled. Raises 22023 unknown_stage, PT404 unknown_document.';

-- The one place from which single calls write the truth, but for the usual case of update_stage_progress. The setting tells
-- the triggers that this is no direct edit; it is taken back at once, because the transaction may go on with edits of its
-- own. The runs have to be as they shall be before: what is ready is derived from both.
create or replace function krai_core._write(p_document_id uuid, p_stage_status jsonb, p_changed text[] default null, p_writer text default 'tracker') returns void
language plpgsql volatile
set search_path = ''
as $$
begin
    perform set_config('krai_core.writer', p_writer, true);
    update krai_core.documents d set stage_status = p_stage_status where d.id = p_document_id;
    perform set_config('krai_core.writer', '', true);
    if p_writer <> 'progress' then
        perform krai_core._follow_legacy(array[p_document_id]);
    end if;
    if p_changed is not null then
        perform krai_core._derive_ready_runs(array[p_document_id], krai_core._touched_by(p_changed));
    end if;
end;
$$;
comment on function krai_core._write(uuid, jsonb, text[], text) is
'Writes stage_status of a document that the caller has locked. p_changed: the stages whose change may make others ready or unready, null for none. p_writer: tracker, or progress where no status changes.';

do $$
declare
    v_function regprocedure;
begin
    -- Functions are executable by everybody unless revoked one by one.
    for v_function in
        select p.oid from pg_catalog.pg_proc p
        where p.pronamespace = 'krai_core'::regnamespace and p.proname = any (array[
            '_raise', '_iso', '_checked_metadata', '_checked_limit', '_stage_named', '_stages_named', '_raise_unknown_document', '_raise_conflict',
            '_hold', '_write'])
    loop
        execute format('revoke execute on function %s from public, anon, authenticated', v_function);
        execute format('grant execute on function %s to service_role', v_function);
    end loop;
    -- What the readers need that signed-in users may call.
    for v_function in
        select p.oid from pg_catalog.pg_proc p
        where p.pronamespace = 'krai_core'::regnamespace and p.proname = any (array[
            '_raise', '_raise_unknown_document', '_stage_named', '_iso', '_pending_stage'])
    loop
        execute format('grant execute on function %s to authenticated', v_function);
    end loop;
end $$;

commit;
