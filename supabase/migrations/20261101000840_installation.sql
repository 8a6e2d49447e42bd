-- Per-stage document tracking: whether an installation is whole, for `stage-tracker doctor`.
--
--   get_installation   version, objects and rights that are missing, row level security, and who may read documents
--
-- Rules
--   * What should be there is named one by one, and not found by a pattern: the schema is yours too, and what you add to it
--     is nothing that could be missing.
--   * Of rights only those of service_role count, which workers have: what signed-in users may do is for you to decide.
--   * Whatever is missing comes as the statement that mends it, where one statement does.
-- Read only, no locks.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;
-- Nothing is made where the file of the tables stopped: psql goes on after an error unless it is told otherwise.
do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;

create or replace function krai_core._wanted_functions() returns text[]
language sql immutable parallel safe
set search_path = ''
as $$
    select array[
        'start_stage', 'update_stage_progress', 'complete_stage', 'fail_stage', 'skip_stage', 'retry_stage', 'reset_stage', 'retry_failed', 'cancel_document',
        'claim_stages', 'heartbeat', 'finish_stages', 'release_stages', 'reap', 'get_next_document', 'get_documents_ready_for', 'set_priority',
        'register_stage', 'disable_stage', 'pause_stage', 'resume_stage', 'fill_ready_runs', 'rebuild_ready_runs', 'rebuild_statistics', 'prune_runs', 'schedule_maintenance',
        'get_document_progress', 'get_current_stage', 'can_start_stage', 'get_document_status', 'get_document_events', 'get_document_timeline', 'get_document_eta',
        'get_weighted_progress', 'explain_stage', 'list_documents', 'get_failures', 'get_stuck_stages', 'get_workers', 'get_forecast', 'get_stage_statistics',
        'get_installation', 'schema_version']
$$;
comment on function krai_core._wanted_functions() is 'The functions that clients call: each must be there, and service_role must be allowed to execute it.';

create or replace function krai_core._wanted_relations() returns table (name text, privileges text[], columns text[])
language sql immutable parallel safe
set search_path = ''
as $$
    select w.name, string_to_array(w.privileges, ' '), string_to_array(w.columns, ' ')
    from (values
        -- Of your own table the functions need no more than this.
        ('documents', 'select', null), ('documents', 'update', 'stage_status'), ('edited_documents', 'select', null),
        ('stages', 'select', null), ('stages', 'update', 'paused changed_at changed_by'), ('stage_prerequisites', 'select', null),
        ('stage_runs', 'select insert update delete', null), ('document_priorities', 'select insert update delete', null),
        ('stage_deltas', 'select insert update delete', null), ('stage_deltas_id_seq', 'select', null),
        ('stage_counters', 'select insert update', null), ('stage_flow', 'select insert update', null), ('stage_fold', 'select insert update', null),
        ('vw_documents_by_stage', 'select', null), ('vw_document_stages', 'select', null), ('vw_stage_statistics', 'select', null),
        ('vw_running_stages', 'select', null), ('vw_stage_flow', 'select', null),
        ('_ready_stages', 'select', null), ('_current_stages', 'select', null), ('_stage_sums', 'select', null)
    ) as w (name, privileges, columns)
$$;
comment on function krai_core._wanted_relations() is
'The tables, views and sequences that must be there, and what service_role must be allowed to do with them: with the whole, or (columns not null) with each of these columns.';

create or replace function krai_core._missing_grants() returns text[]
language plpgsql stable
set search_path = ''
as $$
begin
    return array(
        select 'grant usage on schema krai_core to service_role'
        where not has_schema_privilege('service_role', 'krai_core', 'usage')
        union all
        select format('grant %s%s on %s krai_core.%I to service_role', g.privilege, ' (' || g.column_name || ')', case c.relkind when 'S' then 'sequence' else 'table' end, g.name)
        from (
            select w.name, p.privilege, k.column_name from krai_core._wanted_relations() w
            cross join unnest(w.privileges) as p (privilege)
            left join unnest(w.columns) as k (column_name) on true
        ) g
        join pg_catalog.pg_class c on c.relnamespace = 'krai_core'::regnamespace and c.relname = g.name
        where not case
            when c.relkind = 'S' then has_sequence_privilege('service_role', c.oid, g.privilege)
            when g.column_name is not null then exists (select from pg_catalog.pg_attribute a
                where a.attrelid = c.oid and a.attname = g.column_name and has_column_privilege('service_role', c.oid, a.attnum, g.privilege))
            else has_table_privilege('service_role', c.oid, g.privilege) end
        union all
        select format('grant execute on function %s to service_role', p.oid::regprocedure)
        from pg_catalog.pg_proc p
        where p.pronamespace = 'krai_core'::regnamespace and p.proname = any (krai_core._wanted_functions())
          and not has_function_privilege('service_role', p.oid, 'execute'));
end;
$$;
comment on function krai_core._missing_grants() is 'The rights that service_role lacks, as the statements that give them back.';

create or replace function krai_core._missing_objects() returns text[]
language plpgsql stable
set search_path = ''
as $$
begin
    return array(
        select 'function ' || w.name from unnest(krai_core._wanted_functions()) as w (name)
        where not exists (select from pg_catalog.pg_proc p where p.pronamespace = 'krai_core'::regnamespace and p.proname = w.name)
        union all
        select distinct 'relation ' || w.name from krai_core._wanted_relations() w where to_regclass('krai_core.' || w.name) is null
        union all
        select 'trigger ' || w.name
        from unnest(array['documents_100_repair_insert', 'documents_150_note', 'documents_200_edited', 'documents_200_inserted',
            'documents_400_delete_runs', 'documents_400_truncate_runs', 'zzy_documents_repair_update', 'zzz_documents_keep_rest']) as w (name)
        where not exists (select from pg_catalog.pg_trigger t
            where t.tgrelid = 'krai_core.documents'::regclass and t.tgname = w.name and t.tgenabled in ('O', 'A'))
        union all
        select 'index idx_documents_stage_status'
        where not exists (select from pg_catalog.pg_index i
            where i.indexrelid = to_regclass('krai_core.idx_documents_stage_status') and i.indisvalid));
end;
$$;
comment on function krai_core._missing_objects() is 'What the migrations make and what is not there: functions, relations, triggers that are gone or disabled, and the index when it is gone or invalid.';

create or replace function krai_core._readers_of_documents() returns jsonb
language plpgsql stable
set search_path = ''
as $$
begin
    return (
        select coalesce(jsonb_object_agg(w.role, case
            when not c.relrowsecurity then '["*"]'
            else coalesce((
                select jsonb_agg(p.polname order by p.polname) from pg_catalog.pg_policy p
                where p.polrelid = c.oid and p.polpermissive and p.polcmd in ('r', '*') and p.polroles && array[0::oid, to_regrole(w.role)]
                  and coalesce(pg_catalog.pg_get_expr(p.polqual, p.polrelid), '') <> 'false'), '[]') end), '{}')
        from pg_catalog.pg_class c
        cross join unnest(array['anon', 'authenticated']) as w (role)
        where c.oid = 'krai_core.documents'::regclass
          and has_schema_privilege(w.role, 'krai_core', 'usage') and has_column_privilege(w.role, c.oid, 'stage_status', 'select'));
end;
$$;
comment on function krai_core._readers_of_documents() is
'Which of anon and authenticated may select stage_status, with the policies that admit rows to them; ["*"] where row level security is off and all rows are admitted.';

create or replace function krai_core.get_installation() returns jsonb
language plpgsql stable
set search_path = ''
as $$
begin
    return jsonb_build_object(
        'version', krai_core.schema_version(),
        'time', krai_core._iso(clock_timestamp()),
        'missing_objects', to_jsonb(krai_core._missing_objects()),
        'missing_grants', to_jsonb(krai_core._missing_grants()),
        'tables_without_rls', coalesce((
            select jsonb_agg(c.relname order by c.relname) from pg_catalog.pg_class c
            where c.relnamespace = 'krai_core'::regnamespace and c.relkind = 'r' and not c.relrowsecurity
              and c.relname in (select w.name from krai_core._wanted_relations() w)), '[]'),
        'readers_of_documents', krai_core._readers_of_documents());
end;
$$;
comment on function krai_core.get_installation() is
'Whether the installation is whole: {version, time, missing_objects, missing_grants, tables_without_rls, readers_of_documents}.
version: as schema_version says. time: that of the database, ISO 8601, UTC. missing_objects: [<kind and name>], triggers that are disabled and an index that is invalid among them. missing_grants: [statements that give service_role what it lacks]. tables_without_rls: [names], of the tables of the tracker and documents. readers_of_documents: {"anon": [policies that admit rows], "authenticated": [...]}, those who may select stage_status only; ["*"] without row level security. Raises 42501 for all but service_role.';

do $$
declare
    v_function regprocedure;
begin
    for v_function in
        select p.oid from pg_catalog.pg_proc p
        where p.pronamespace = 'krai_core'::regnamespace
          and p.proname in ('_wanted_functions', '_wanted_relations', '_missing_grants', '_missing_objects', '_readers_of_documents', 'get_installation')
    loop
        execute format('revoke execute on function %s from public, anon, authenticated', v_function);
        execute format('grant execute on function %s to service_role', v_function);
    end loop;
end $$;

notify pgrst, 'reload schema';

commit;
