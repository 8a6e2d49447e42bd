-- Per-stage document tracking: what is asked.
--
--   vw_document_stages     one row per document and enabled stage, with its state; the other answers are made from it
--   vw_documents_by_stage  one row per document: current stage, progress, one JSON column per stage
--   get_document_progress, get_current_stage, can_start_stage     one question about one document
--   get_document_status                                           the payload of the HTTP API, as jsonb
-- Statistics follow in the next file.
--
-- Rules
--   * Finished = completed or skipped. A disabled stage is satisfied and in no total.
--   * State of a document: failed if any stage is failed; pending if all are pending; completed if all are finished; else
--     processing.
--   * Odd rows (null, {}, arrays, plain strings, foreign values) are read like _repaired would repair them, and break nothing.
--   * Views run with the rights of the caller (security_invoker): whoever may select documents sees their stages.
-- Nothing here locks or writes; the functions are stable, so that GET /rest/v1/rpc/<name> serves them.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;

-- Views of an earlier tracker have other columns, which `create or replace` refuses; and so has ours where the table got or
-- lost one of the columns that it shows since. They go, unless something of the user's hangs on them: that stops the
-- migration here, with its name.
do $$
declare
    v_view record;
    v_shown text[] := array(
        select a.attname from unnest(array['processing_status', 'created_at', 'updated_at']) with ordinality as wanted (name, place)
        join pg_catalog.pg_attribute a
            on a.attrelid = 'krai_core.documents'::regclass and a.attname = wanted.name and not a.attisdropped
        order by wanted.place);
begin
    for v_view in
        select c.oid, c.relname from pg_catalog.pg_class c
        where c.relnamespace = 'krai_core'::regnamespace and c.relkind = 'v'
          and c.relname in ('vw_documents_by_stage', 'vw_stage_statistics')
          and (not exists (
                  select from pg_catalog.pg_attribute a
                  where a.attrelid = c.oid and a.attname in ('stage_status', 'duration_seconds') and not a.attisdropped)
              or (select array_agg(a.attname order by a.attnum) <> (v_shown::name[])[1:count(*)] from pg_catalog.pg_attribute a
                  join pg_catalog.pg_attribute before on before.attrelid = c.oid and before.attname = 'document_status'
                  where a.attrelid = c.oid and a.attnum > before.attnum))
    loop
        execute format('drop view krai_core.%I', v_view.relname);
    end loop;
exception when dependent_objects_still_exist then
    raise exception 'view krai_core.% cannot be replaced because of: %', v_view.relname, (
        select string_agg(distinct d.refobjid::regclass::text || ' <- ' || r.ev_class::regclass::text, ', ')
        from pg_catalog.pg_depend d
        join pg_catalog.pg_rewrite r on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
        where d.refobjid = v_view.oid and r.ev_class <> v_view.oid)
        using errcode = '2BP01',
              hint = 'Drop the views named on the right, run the migration again, then create them anew over the new columns.';
end $$;

do $$
declare
    -- The columns after stage_status are those that an earlier tracker showed, where the table has them; more stages than
    -- the first eight are found in stage_status.
    v_columns text := (
        select string_agg(format(', d.%I', wanted.name), '' order by wanted.place)
        from unnest(array['processing_status', 'created_at', 'updated_at']) with ordinality as wanted (name, place)
        join pg_catalog.pg_attribute a
            on a.attrelid = 'krai_core.documents'::regclass and a.attname = wanted.name and not a.attisdropped);
    v_stages text := (
        select string_agg(format(
            $q$case
        when w.whole -> %1$L ->> 'status' in ('pending', 'processing', 'completed', 'failed', 'skipped')
            then w.whole -> %1$L
        else krai_core._repaired_stage(w.whole -> %1$L)
    end as %2$I$q$, name, name || '_status'), E',\n    ' order by place)
        from unnest(array['upload', 'text_extraction', 'image_processing', 'classification',
                          'metadata_extraction', 'storage', 'embedding', 'search_indexing']) with ordinality as eight (name, place));
begin
    execute format($q$
create or replace view krai_core.vw_document_stages with (security_invoker = true) as
select
    d.id as document_id,
    s.name as stage_name,
    s.position,
    %s as status,
    d.stage_status -> s.name as stage
from krai_core.documents d
cross join krai_core.stages s
where s.enabled$q$, krai_core._sql_stage_state('d.stage_status -> s.name'));

    execute format($q$
create or replace view krai_core.vw_documents_by_stage with (security_invoker = true) as
select
    d.id,
    d.filename,
    o.current_stage,
    o.progress_percentage,
    %s,
    d.stage_status,
    o.document_status%s
from krai_core.documents d
-- Unpacked once: a stored value that is large is compressed, and would be unpacked for each of its stages. (What is no object
-- becomes an array by this, in which no stage is found either.)
cross join lateral (select d.stage_status || '{}' as whole offset 0) w
cross join lateral (
    %s
) o$q$, v_stages, v_columns, krai_core._sql_document_state('w.whole'));
end $$;
comment on view krai_core.vw_document_stages is 'One row per document and enabled stage.';
comment on column krai_core.vw_document_stages.document_id is 'The document.';
comment on column krai_core.vw_document_stages.stage_name is 'The stage.';
comment on column krai_core.vw_document_stages.position is 'Order of the stage in the pipeline.';
comment on column krai_core.vw_document_stages.status is 'pending, processing, completed, failed or skipped; a missing or foreign value is pending.';
comment on column krai_core.vw_document_stages.stage is 'The stored value, as it is; null where the key is missing.';

comment on view krai_core.vw_documents_by_stage is 'One row per document: where it stands in the pipeline.';
do $$
declare
    v_column record;
begin
    for v_column in
        select a.attname as name, coalesce(known.text, case when a.attname like '%\_status' and a.atttypid = 'jsonb'::regtype
            then 'The stage ' || replace(a.attname, '_status', '') || ' as JSON: status, started_at, completed_at, duration_seconds, progress, error, metadata.'
            else 'As in krai_core.documents.' end) as text
        from pg_catalog.pg_attribute a
        left join (values
            ('id', 'Document id.'),
            ('filename', 'Document name.'),
            ('current_stage', 'First enabled stage in order that is not finished, or completed.'),
            ('progress_percentage', 'Finished stages in percent of the enabled ones, 0 to 100.'),
            ('stage_status', 'The whole stored value, further stages included.'),
            ('document_status', 'State of the document by its stages: pending, processing, completed or failed.')
        ) as known (name, text) on known.name = a.attname
        where a.attrelid = 'krai_core.vw_documents_by_stage'::regclass and a.attnum > 0 and not a.attisdropped
    loop
        execute format('comment on column krai_core.vw_documents_by_stage.%I is %L', v_column.name, v_column.text);
    end loop;
end $$;

create or replace function krai_core.get_document_progress(p_document_id uuid) returns numeric
language plpgsql stable
set search_path = ''
as $$
declare
    v_progress numeric(5, 2);
begin
    select v.progress_percentage into v_progress from krai_core.vw_documents_by_stage v where v.id = p_document_id;
    if not found then
        perform krai_core._raise_unknown_document(p_document_id);
    end if;
    return v_progress;
end;
$$;
comment on function krai_core.get_document_progress(uuid) is
'Finished stages (completed or skipped) in percent of the enabled ones: 3 of 8 is 37.50.
Raises PT404 unknown_document.';

create or replace function krai_core.get_current_stage(p_document_id uuid) returns text
language plpgsql stable
set search_path = ''
as $$
declare
    v_stage text;
begin
    select v.current_stage into v_stage from krai_core.vw_documents_by_stage v where v.id = p_document_id;
    if not found then
        perform krai_core._raise_unknown_document(p_document_id);
    end if;
    return v_stage;
end;
$$;
comment on function krai_core.get_current_stage(uuid) is
'The first enabled stage in pipeline order that is not finished, or ''completed''.
Raises PT404 unknown_document.';

create or replace function krai_core.can_start_stage(p_document_id uuid, p_stage_name text) returns boolean
language plpgsql stable
set search_path = ''
as $$
declare
    v_can boolean;
begin
    perform krai_core._stage_named(p_stage_name);
    select coalesce(bool_or(ds.stage_name = p_stage_name and ds.status in ('pending', 'failed')), false)
       and not coalesce(bool_or(ds.status not in ('completed', 'skipped') and ds.stage_name in (
               select p.requires from krai_core.stage_prerequisites p where p.stage_name = p_stage_name)), false)
    into v_can
    from krai_core.vw_document_stages ds
    where ds.document_id = p_document_id
    group by ds.document_id;
    if v_can is null then
        if not exists (select from krai_core.documents d where d.id = p_document_id) then
            perform krai_core._raise_unknown_document(p_document_id);
        end if;
        return false;
    end if;
    return v_can;
end;
$$;
comment on function krai_core.can_start_stage(uuid, text) is
'True when the stage is enabled, pending or failed, and every stage that it requires is completed, skipped or disabled. A pause or a backoff does not count.
Raises PT404 unknown_document, 22023 unknown_stage.';

create or replace function krai_core.get_document_status(p_document_id uuid) returns jsonb
language plpgsql stable
set search_path = ''
as $$
declare
    v_document record;
    v_stage_status jsonb;
    v_times record;
begin
    select v.document_status, v.current_stage, v.progress_percentage, v.stage_status into v_document
    from krai_core.vw_documents_by_stage v where v.id = p_document_id;
    if not found then
        perform krai_core._raise_unknown_document(p_document_id);
    end if;
    v_stage_status := v_document.stage_status;
    if not krai_core._is_sound(v_stage_status) then
        v_stage_status := krai_core._repaired(v_stage_status);
    end if;
    -- All times are in the one form that _iso writes, or were brought to it, so that they sort as text.
    select min(v_stage_status -> s.name ->> 'started_at' collate "C") as started_at,
           max(v_stage_status -> s.name ->> 'completed_at' collate "C") as completed_at,
           (array_agg(v_stage_status -> s.name ->> 'error' order by s.position)
               filter (where v_stage_status -> s.name ->> 'status' = 'failed'))[1] as error
    into v_times
    from krai_core.stages s
    where s.enabled;
    return jsonb_build_object(
        'document_id', p_document_id,
        'status', v_document.document_status,
        'current_stage', v_document.current_stage,
        'progress', trim_scale(v_document.progress_percentage),
        'started_at', v_times.started_at,
        'completed_at', case when v_document.current_stage = 'completed' then v_times.completed_at end,
        'error', v_times.error,
        'stage_status', v_stage_status);
end;
$$;
comment on function krai_core.get_document_status(uuid) is
'Everything about one document as one JSON object: {document_id, status, current_stage, progress, started_at, completed_at, error, stage_status}.
status: pending, processing, completed or failed, from the stages. progress: percent, 0 to 100. started_at: earliest start of a stage or null. completed_at: latest end once every stage is finished, else null. error: that of the first failed stage in pipeline order, or null. Times: ISO 8601, UTC. Raises PT404 unknown_document.';

revoke all on krai_core.vw_document_stages, krai_core.vw_documents_by_stage from public, anon, authenticated;
grant select on krai_core.vw_document_stages, krai_core.vw_documents_by_stage to authenticated, service_role;
revoke execute on function
    krai_core.get_document_progress(uuid), krai_core.get_current_stage(uuid), krai_core.can_start_stage(uuid, text),
    krai_core.get_document_status(uuid)
    from public, anon, authenticated;
grant execute on function
    krai_core.get_document_progress(uuid), krai_core.get_current_stage(uuid), krai_core.can_start_stage(uuid, text),
    krai_core.get_document_status(uuid)
    to authenticated, service_role;

commit;
