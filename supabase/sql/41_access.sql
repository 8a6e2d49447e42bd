-- Access: the one list of what the tracker consists of, and who may do what with it.
--
--   access_list     the list: each object of the API, and what is not for service_role alone in krai_private
--   apply_access    grants and revokes what it says, for all objects or for one
--
-- Rules
--   * A function, view or table of krai_core that is not in the list is not ours. A helper in krai_private needs no entry: what
--     is not in the list there is for service_role alone, and a function of a trigger for nobody.
--   * Doctor, the tests and docs/rollback.sql take their names from here. Nowhere else are they written down.
--   * documents is yours: rights are added to it where they are missing, and none are taken away.

create or replace function krai_private.access_list()
returns table (name text, kind text, anon text, authenticated text, service_role text)
language sql stable
set search_path = ''
as $$
    values
    -- Tables. A column list means: these columns alone.
    ('krai_core.documents', 'adopted table', '', '', 'select, update (stage_status)'),
    ('krai_core.stages', 'table', '',
        'select (name, position, description, weight, lease_seconds, timeout_seconds, max_attempts, backoff_seconds,
            backoff_max_seconds, paused, enabled, changed_at, waits_for, fill_after)',
        'select, update (paused, changed_at, changed_by)'),
    ('krai_core.stage_prerequisites', 'table', '', 'select', 'select'),
    ('krai_core.stage_runs', 'table', '',
        'select (id, document_id, stage_name, open_stage, status, attempt, priority, available_at, lease_expires_at,
            heartbeat_at, started_at, finished_at, error, progress, metadata, retry_at, reset_at, is_current)',
        'select, insert, update, delete'),
    ('krai_core.document_priorities', 'table', '', '', 'select, insert, update, delete'),
    ('krai_core.edited_documents', 'table', '', '', 'select'),
    ('krai_core.stage_deltas', 'table', '', '', 'select, insert, update, delete'),
    ('krai_core.stage_counters', 'table', '', '', 'select, insert, update'),
    ('krai_core.stage_flow', 'table', '', '', 'select, insert, update'),
    ('krai_core.stage_fold', 'table', '', '', 'select, insert, update'),
    ('krai_core.stage_runs_id_seq', 'sequence', '', '', ''),
    ('krai_core.stage_deltas_id_seq', 'sequence', '', '', 'select'),
    -- Triggers on documents and the index of the seed: nobody's rights, but doctor looks for them.
    ('documents_100_repair_insert', 'trigger', '', '', ''),
    ('documents_150_note', 'trigger', '', '', ''),
    ('documents_200_edited', 'trigger', '', '', ''),
    ('documents_200_inserted', 'trigger', '', '', ''),
    ('documents_400_delete_runs', 'trigger', '', '', ''),
    ('documents_400_truncate_runs', 'trigger', '', '', ''),
    ('zzy_documents_repair_update', 'trigger', '', '', ''),
    ('zzz_documents_keep_rest', 'trigger', '', '', ''),
    ('krai_core.idx_documents_stage_status', 'index', '', '', ''),
    -- pipeline
    ('krai_core.register_stage', 'writer', '', '', 'execute'),
    ('krai_core.disable_stage', 'writer', '', '', 'execute'),
    -- runs
    ('krai_core.start_stage', 'writer', '', '', 'execute'),
    ('krai_core.update_stage_progress', 'writer', '', '', 'execute'),
    ('krai_core.complete_stage', 'writer', '', '', 'execute'),
    ('krai_core.fail_stage', 'writer', '', '', 'execute'),
    ('krai_core.skip_stage', 'writer', '', '', 'execute'),
    -- queue
    ('krai_core.claim_stages', 'writer', '', '', 'execute'),
    ('krai_core.get_next_document', 'writer', '', '', 'execute'),
    ('krai_core.heartbeat', 'writer', '', '', 'execute'),
    ('krai_core.release_stages', 'writer', '', '', 'execute'),
    ('krai_core.finish_stages', 'writer', '', '', 'execute'),
    -- operations
    ('krai_core.retry_stage', 'writer', '', '', 'execute'),
    ('krai_core.retry_failed', 'writer', '', '', 'execute'),
    ('krai_core.reset_stage', 'writer', '', '', 'execute'),
    ('krai_core.cancel_document', 'writer', '', '', 'execute'),
    ('krai_core.set_priority', 'writer', '', '', 'execute'),
    ('krai_core.pause_stage', 'writer', '', '', 'execute'),
    ('krai_core.resume_stage', 'writer', '', '', 'execute'),
    -- questions
    ('krai_core.vw_document_stages', 'view', '', 'select', 'select'),
    ('krai_core.vw_documents_by_stage', 'view', '', 'select', 'select'),
    ('krai_core.vw_stage_statistics', 'view', '', '', 'select'),
    ('krai_core.vw_stage_flow', 'view', '', '', 'select'),
    ('krai_core.vw_running_stages', 'view', '', '', 'select'),
    ('krai_core.get_document_progress', 'reader', '', 'execute', 'execute'),
    ('krai_core.get_current_stage', 'reader', '', 'execute', 'execute'),
    ('krai_core.can_start_stage', 'reader', '', 'execute', 'execute'),
    ('krai_core.get_document_status', 'reader', '', 'execute', 'execute'),
    ('krai_core.get_weighted_progress', 'reader', '', 'execute', 'execute'),
    ('krai_core.get_document_timeline', 'reader', '', 'execute', 'execute'),
    ('krai_core.explain_stage', 'reader', '', '', 'execute'),
    ('krai_core.list_documents', 'reader', '', '', 'execute'),
    ('krai_core.get_documents_ready_for', 'reader', '', '', 'execute'),
    ('krai_core.get_failures', 'reader', '', '', 'execute'),
    ('krai_core.get_stuck_stages', 'reader', '', '', 'execute'),
    ('krai_core.get_workers', 'reader', '', '', 'execute'),
    ('krai_core.get_stage_statistics', 'reader', '', '', 'execute'),
    ('krai_core.get_document_eta', 'reader', '', '', 'execute'),
    ('krai_core.get_forecast', 'reader', '', '', 'execute'),
    -- events
    ('krai_core.get_document_events', 'reader', '', 'execute', 'execute'),
    -- upkeep
    ('krai_core.reap', 'writer', '', '', 'execute'),
    ('krai_core.fill_ready_runs', 'writer', '', '', 'execute'),
    ('krai_core.rebuild_ready_runs', 'writer', '', '', 'execute'),
    ('krai_core.rebuild_statistics', 'writer', '', '', 'execute'),
    ('krai_core.prune_runs', 'writer', '', '', 'execute'),
    ('krai_core.schedule_maintenance', 'writer', '', '', 'execute'),
    ('krai_core.get_installation', 'reader', '', '', 'execute'),
    ('krai_core.schema_version', 'reader', '', 'execute', 'execute'),
    -- What the questions of signed-in users are made of. Nothing here takes an SQLSTATE, a name of a table, or SQL.
    ('krai_private.raise_error', 'helper', '', 'execute', 'execute'),
    ('krai_private.raise_unknown_document', 'helper', '', 'execute', 'execute'),
    ('krai_private.check_stage', 'helper', '', 'execute', 'execute'),
    ('krai_private.iso_time', 'helper', '', 'execute', 'execute'),
    ('krai_private.time_or_null', 'helper', '', 'execute', 'execute'),
    ('krai_private.pending_stage', 'helper', '', 'execute', 'execute'),
    ('krai_private.stage_state', 'helper', '', 'execute', 'execute'),
    ('krai_private.progress_of', 'helper', '', 'execute', 'execute'),
    ('krai_private.repaired_stage', 'helper', '', 'execute', 'execute'),
    ('krai_private.repaired_stages', 'helper', '', 'execute', 'execute'),
    ('krai_private.is_sound', 'helper', '', 'execute', 'execute'),
    ('krai_private.installed_version', 'helper', '', 'execute', 'execute'),
    ('krai_private.event_cursor', 'helper', '', 'execute', 'execute'),
    ('krai_private.events_after', 'helper', '', 'execute', 'execute')
$$;
comment on function krai_private.access_list() is
'What the tracker consists of and who may do what with it: name, kind, and the rights of anon, authenticated and service_role as
a GRANT names them, empty for none. Kinds: adopted table, table, sequence, view, reader (a STABLE function), writer (a VOLATILE
function), helper (a function of krai_private that signed-in users need), trigger (on documents), index.';

create or replace function krai_private.wanted_rights()
returns table (class regclass, oid oid, object text, is_adopted boolean, role text, rights text)
language sql stable
set search_path = ''
as $$
    with found as (
        select 'pg_catalog.pg_proc'::regclass as class, p.oid, format('%s.%s', n.nspname, p.proname) as name,
            format('function %s', p.oid::regprocedure) as object, n.nspname = 'krai_private' as is_private,
            case when p.prorettype <> 'trigger'::regtype then 'execute' else '' end as usual
        from pg_catalog.pg_proc p
        join pg_catalog.pg_namespace n on n.oid = p.pronamespace and n.nspname in ('krai_core', 'krai_private')
        union all
        select 'pg_catalog.pg_class'::regclass, c.oid, format('%s.%s', n.nspname, c.relname),
            format('%s %s', case c.relkind when 'S' then 'sequence' else 'table' end, c.oid::regclass),
            n.nspname = 'krai_private', 'select'
        from pg_catalog.pg_class c
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace and n.nspname in ('krai_core', 'krai_private')
        where c.relkind in ('r', 'v', 'S')
    )
    select f.class, f.oid, f.object, coalesce(l.kind = 'adopted table', false), r.role, coalesce(r.rights, '')
    from found f
    left join krai_private.access_list() l on l.name = f.name
    cross join lateral (values
        ('anon', l.anon), ('authenticated', l.authenticated),
        ('service_role', case when l.name is null then f.usual else l.service_role end)) as r (role, rights)
    where l.name is not null or f.is_private
    union all
    select 'pg_catalog.pg_namespace'::regclass, n.oid, format('schema %I', n.nspname), n.nspname = 'krai_core', r.role, r.rights
    from pg_catalog.pg_namespace n
    cross join (values ('anon', ''), ('authenticated', 'usage'), ('service_role', 'usage')) as r (role, rights)
    where n.nspname in ('krai_core', 'krai_private')
$$;
comment on function krai_private.wanted_rights() is
'Each object of the tracker that is there, as GRANT names it, with the rights that each role is to have; empty for none.
is_adopted: it is yours, and rights beyond these are not taken away.';

create or replace function krai_private.missing_rights()
returns table (oid oid, object text, role text, privilege text)
language plpgsql stable
set search_path = ''
as $$
begin
    return query
    select w.oid, w.object, w.role, p.privilege || coalesce(' (' || quote_ident(k.column_name) || ')', '')
    from krai_private.wanted_rights() w
    cross join lateral regexp_matches(w.rights, '(\w+)(?: \(([^)]*)\))?', 'g') as m (part)
    cross join lateral (select m.part[1] as privilege) p
    left join lateral regexp_split_to_table(m.part[2], ',\s*') as k (column_name) on true
    where not case
        when w.class = 'pg_catalog.pg_proc'::regclass then has_function_privilege(w.role, w.oid, p.privilege)
        when w.class = 'pg_catalog.pg_namespace'::regclass then has_schema_privilege(w.role, w.oid, p.privilege)
        when w.object like 'sequence %' then has_sequence_privilege(w.role, w.oid, p.privilege)
        when k.column_name is not null then has_column_privilege(w.role, w.oid, k.column_name, p.privilege)
        else has_table_privilege(w.role, w.oid, p.privilege) end;
end;
$$;
comment on function krai_private.missing_rights() is
'What a role lacks of the access list: the object as GRANT names it, the role, and one privilege of the whole or of one column.';

create or replace function krai_private.excess_rights()
returns table (object text, role text, privileges text, rights text)
language plpgsql stable
set search_path = ''
as $$
begin
    return query
    with given as (
        select 'pg_catalog.pg_proc'::regclass as class, p.oid, null::name as column_name,
            coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner)) as acl
        from pg_catalog.pg_proc p
        union all
        select 'pg_catalog.pg_class'::regclass, c.oid, null, c.relacl from pg_catalog.pg_class c
        union all
        select 'pg_catalog.pg_class'::regclass, a.attrelid, a.attname, a.attacl from pg_catalog.pg_attribute a
        where a.attacl is not null
        union all
        select 'pg_catalog.pg_namespace'::regclass, n.oid, null, n.nspacl from pg_catalog.pg_namespace n
    ),
    held as (
        select w.object, w.rights, w.role, lower(x.privilege_type) as privilege, g.column_name, x.grantee = 0 as is_public
        from krai_private.wanted_rights() w
        join given g on g.class = w.class and g.oid = w.oid
        cross join lateral pg_catalog.aclexplode(g.acl) x
        where w.role in ('anon', 'authenticated') and not w.is_adopted
          and (x.grantee = to_regrole(w.role)::oid or x.grantee = 0 and w.role = 'anon')
    )
    select h.object, case when h.is_public then 'public' else h.role end,
        string_agg(h.privilege || coalesce(' (' || quote_ident(h.column_name) || ')', ''), ', ' order by h.privilege, h.column_name),
        case when h.is_public then '' else h.rights end
    from held h
    where h.is_public or not exists (
        select from regexp_matches(h.rights, '(\w+)(?: \(([^)]*)\))?', 'g') as m (part)
        where m.part[1] = h.privilege
          and (m.part[2] is null or h.column_name::text = any (regexp_split_to_array(m.part[2], ',\s*'))))
    group by h.object, h.role, h.is_public, h.rights;
end;
$$;
comment on function krai_private.excess_rights() is
'What anon, authenticated and PUBLIC were given beyond the access list: the object as REVOKE names it, the role, the privileges that
are too many, and the rights that the role is to have.';

create or replace function krai_private.apply_access(p_object oid default null) returns void
language plpgsql volatile
set search_path = ''
as $$
declare
    v_right record;
begin
    for v_right in
        select w.object, w.role, w.rights from krai_private.wanted_rights() w
        where not w.is_adopted and (p_object is null or w.oid = p_object)
    loop
        execute format('revoke all on %s from public, %I', v_right.object, v_right.role);
        if v_right.rights <> '' then
            execute format('grant %s on %s to %I', v_right.rights, v_right.object, v_right.role);
        end if;
    end loop;
    for v_right in
        select m.object, m.role, m.privilege from krai_private.missing_rights() m where p_object is null or m.oid = p_object
    loop
        execute format('grant %s on %s to %I', v_right.privilege, v_right.object, v_right.role);
    end loop;
end;
$$;
comment on function krai_private.apply_access(oid) is
'Grants what the access list says and revokes the rest, for all objects, or for one. For the owner.';

do $$ begin perform krai_private.apply_access(); end $$;

-- Wrappers in public that an earlier version of the tracker left executable by everybody, with the rights of their owner.
do $$
declare
    v_function record;
    v_wrappers text[] := '{}';
begin
    for v_function in
        select p.oid::regprocedure as signature,
               format('public.%s(%s)', p.proname, pg_catalog.oidvectortypes(p.proargtypes)) as name,
               pg_catalog.pg_has_role(current_user, p.proowner, 'usage') as is_ours
        from pg_catalog.pg_proc p
        where p.pronamespace = 'public'::regnamespace
          and p.proname in ('start_stage', 'update_stage_progress', 'complete_stage', 'fail_stage', 'skip_stage',
                            'get_document_progress', 'get_current_stage', 'can_start_stage')
          -- Not the namesakes of another system. The whole definition, for the schema may stand in the search_path only.
          and case p.prokind when 'f' then pg_catalog.pg_get_functiondef(p.oid) ~* '\m(krai_core|stage_status)\M' end
          and exists (
              select from pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) acl
              where acl.grantee in (0, 'anon'::regrole, 'authenticated'::regrole) and acl.privilege_type = 'EXECUTE')
    loop
        if v_function.is_ours then
            execute format('revoke execute on function %s from public, anon, authenticated', v_function.signature);
            execute format('grant execute on function %s to service_role', v_function.signature);
        end if;
        v_wrappers := v_wrappers || (v_function.name || case when v_function.is_ours then '' else ' (NOT OURS TO REVOKE)' end);
    end loop;
    if v_wrappers <> '{}' then
        raise warning 'execute on functions of an earlier tracker was revoked from public, anon and authenticated: %',
            array_to_string(v_wrappers, ', ')
            using hint = 'Call the functions of schema krai_core, or drop the wrappers. Signed-in users read through krai_core.get_document_status.';
    end if;
    if pg_catalog.has_schema_privilege('anon', 'krai_core', 'usage') and pg_catalog.has_column_privilege('anon', 'krai_core.documents', 'stage_status', 'select') then
        raise warning 'anon may select from krai_core.documents and so sees stage_status wherever its policies allow'
            using hint = 'revoke select on krai_core.documents from anon; unless that is what you want.';
    end if;
end $$;
