-- Upkeep: which version of the tracker a database has, and whether the installation is whole.
--
--   schema_version     the version; clients ask at first use
--   get_installation   version, objects and rights that are missing or too many, row level security, readers of documents
--
-- Rules
--   * Behind all that a database needs to be used, so that one that was migrated half-way has no version yet, or an older one.
--   * What should be there is named by the access list, and not found by a pattern: krai_core is yours too, and what you add
--     to it is nothing that could be missing.
--   * Of missing rights only those of service_role count, which workers have; of excess ones those of anon, authenticated and
--     PUBLIC.
--   * Whatever is wrong comes as the statement that mends it, where one statement does.
-- Read only, no locks.

begin;
set local lock_timeout = '900ms';
set local client_min_messages = warning;

create or replace function krai_private.installed_version() returns text
language plpgsql stable
set search_path = ''
as $$
begin
    return '0.1.1';
end;
$$;
comment on function krai_private.installed_version() is 'The version that schema_version tells.';

create or replace function krai_core.schema_version() returns text
language plpgsql stable
set search_path = ''
as $$
begin
    return krai_private.installed_version();
end;
$$;
comment on function krai_core.schema_version() is
'Version of these functions, <major>.<minor>, with a third number before its release: clients of the same version know all of
them.
For signed-in users and service_role: others get 42501.';

create or replace function krai_private.missing_grants() returns text[]
language plpgsql stable
set search_path = ''
as $$
begin
    return array(
        select format('grant %s on %s to %I', m.privilege, m.object, m.role) from krai_private.missing_rights() m
        where m.role = 'service_role' order by m.object, m.privilege);
end;
$$;
comment on function krai_private.missing_grants() is 'The rights that service_role lacks, as the statements that give them back.';

create or replace function krai_private.excess_grants() returns text[]
language plpgsql stable
set search_path = ''
as $$
begin
    return array(
        -- To revoke a right on the whole table takes those on its columns along.
        select format('revoke %s on %s from %s', e.privileges, e.object, e.role)
            || case when e.rights = '' then '' else format('; grant %s on %s to %s',
                regexp_replace(e.rights, '\s+', ' ', 'g'), e.object, e.role) end
        from krai_private.excess_rights() e order by e.object, e.role);
end;
$$;
comment on function krai_private.excess_grants() is
'The rights that anon, authenticated and PUBLIC have beyond the access list, as the statements that take them away.';

create or replace function krai_private.missing_objects() returns text[]
language plpgsql stable
set search_path = ''
as $$
begin
    return array(
        select format('%s %s', case when l.kind in ('reader', 'writer', 'helper') then 'function'
            when l.kind in ('trigger', 'index') then l.kind else 'relation' end, regexp_replace(l.name, '^krai_core\.', ''))
        from krai_private.access_list() l
        where case
            when l.kind in ('reader', 'writer', 'helper') then not exists (
                select from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
                where format('%s.%s', n.nspname, p.proname) = l.name)
            when l.kind = 'trigger' then not exists (
                select from pg_catalog.pg_trigger t
                where t.tgrelid = 'krai_core.documents'::regclass and t.tgname = l.name and t.tgenabled in ('O', 'A'))
            when l.kind = 'index' then not exists (
                select from pg_catalog.pg_index i where i.indexrelid = to_regclass(l.name) and i.indisvalid)
            else to_regclass(l.name) is null end);
end;
$$;
comment on function krai_private.missing_objects() is
'What the migrations make and what is not there: functions, relations, triggers that are gone or disabled, and the index when it
is gone or invalid.';

create or replace function krai_private.readers_of_documents() returns jsonb
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
comment on function krai_private.readers_of_documents() is
'Which of anon and authenticated may select stage_status, with the policies that admit rows to them; ["*"] where row level security is off and all rows are admitted.';

create or replace function krai_core.get_installation() returns jsonb
language plpgsql stable
set search_path = ''
as $$
begin
    return jsonb_build_object(
        'version', krai_core.schema_version(),
        'time', krai_private.iso_time(clock_timestamp()),
        'missing_objects', to_jsonb(krai_private.missing_objects()),
        'missing_grants', to_jsonb(krai_private.missing_grants()),
        'excess_grants', to_jsonb(krai_private.excess_grants()),
        'tables_without_rls', coalesce((
            select jsonb_agg(c.relname order by c.relname) from krai_private.access_list() l
            join pg_catalog.pg_class c on c.oid = to_regclass(l.name) and c.relkind = 'r'
            where not c.relrowsecurity), '[]'),
        'leftovers', to_jsonb(krai_private.leftovers()),
        'readers_of_documents', krai_private.readers_of_documents());
end;
$$;
comment on function krai_core.get_installation() is
'Whether the installation is whole: {version, time, missing_objects, missing_grants, excess_grants, tables_without_rls, leftovers,
readers_of_documents}.
version: as schema_version says. time: that of the database, ISO 8601, UTC. missing_objects: [<kind and name>], triggers that are disabled and an index that is invalid among them. missing_grants: [statements that give service_role what it lacks]. excess_grants: [statements that take from anon, authenticated and
PUBLIC what is too much]. leftovers: [functions and views of an earlier version that are to be dropped]. tables_without_rls: [names], of the tables of the tracker and documents. readers_of_documents: {"anon": [policies that admit rows], "authenticated": [...]}, those who may select stage_status only; ["*"] without row level security. Raises 42501 for all but service_role.';

do $$ begin perform krai_private.apply_access(); end $$;

notify pgrst, 'reload schema';

commit;
