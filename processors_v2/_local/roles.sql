-- The roles of a Supabase project, as a hosted one has them. Run as a superuser (or, where all roles exist already, as
-- anyone who may create a login role). What exists is left as it is: this also runs on servers that are not ours.
--
-- postgres is no superuser here either. Migrations that need one would fail on a hosted project, so they fail here.

do $$
declare
    v_role text;
begin
    foreach v_role in array array['anon', 'authenticated', 'service_role'] loop
        if not exists (select from pg_catalog.pg_roles where rolname = v_role) then
            execute format('create role %I nologin noinherit', v_role);
            case v_role
                when 'anon' then
                    alter role anon set statement_timeout = '3s';
                when 'authenticated' then
                    alter role authenticated set statement_timeout = '8s';
                else
                    alter role service_role bypassrls;
            end case;
        end if;
    end loop;

    if not exists (select from pg_catalog.pg_roles where rolname = 'authenticator') then
        create role authenticator login noinherit in role anon, authenticated, service_role;
        alter role authenticator set statement_timeout = '8s';
        alter role authenticator set lock_timeout = '8s';
    end if;

    if not exists (select from pg_catalog.pg_roles where rolname = 'postgres') then
        create role postgres login createdb createrole bypassrls replication;
        alter role postgres set search_path = "$user", public, extensions;
        grant anon, authenticated, service_role, authenticator to postgres with admin option;
        grant pg_monitor, pg_read_all_data, pg_signal_backend to postgres;
    end if;
end;
$$;
