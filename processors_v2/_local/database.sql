-- What each database of a Supabase project has before the first migration: rights for postgres, the schema extensions
-- with pgvector, and auth.uid(), auth.role(), auth.jwt(), which row level security policies call. What exists is left
-- as it is.

do $$
begin
    -- On a server that was there before, postgres may own neither the database nor the schema public.
    if not has_database_privilege('postgres', current_database(), 'create') then
        execute format('grant create, temporary on database %I to postgres', current_database());
    end if;
    if not has_schema_privilege('postgres', 'public', 'create') then
        grant usage, create on schema public to postgres;
    end if;

    if not exists (select from pg_catalog.pg_namespace where nspname = 'extensions') then
        create schema extensions;
        grant usage on schema extensions to public;
        grant all on schema extensions to postgres;
    end if;

    if exists (select from pg_catalog.pg_available_extensions where name = 'vector')
        and not exists (select from pg_catalog.pg_extension where extname = 'vector')
        and (select rolsuper from pg_catalog.pg_roles where rolname = current_user)
    then
        create extension vector with schema extensions;
    end if;

    if not exists (select from pg_catalog.pg_namespace where nspname = 'auth') then
        create schema auth;
        grant usage on schema auth to postgres, anon, authenticated, service_role;

        create function auth.jwt () returns jsonb
        language sql stable set search_path = ''
        as 'select nullif(current_setting(''request.jwt.claims'', true), '''')::jsonb';

        create function auth.uid () returns uuid
        language sql stable set search_path = ''
        as 'select (auth.jwt() ->> ''sub'')::uuid';

        create function auth.role () returns text
        language sql stable set search_path = ''
        as 'select auth.jwt() ->> ''role''';
    end if;
end;
$$;
