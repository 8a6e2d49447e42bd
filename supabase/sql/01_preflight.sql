-- Preflight: what the database must look like. Nothing here writes.
--
--   roles                  anon, authenticated and service_role exist
--   names                  nothing else has taken krai_core.stages, stage_prerequisites or stage_runs
--   dependent objects      no view or function of yours depends on one of an earlier tracker that will be replaced
--   documents              an ordinary table that the migration role owns
--   columns of documents   id is a unique, non-null uuid; filename exists; stage_status, if present, is plain jsonb
--   stage_runs             if present, made by a released version of the tracker
--
-- Rules
--   * A database in which the tracker could not work stays exactly as it was.
--   * The message itself states both the problem and the remedy, because `supabase db push` shows no HINT.
--   * Each kind of check is a statement of its own, because the CLI prints the statement that failed.

do $$
declare
    v_names text := (
        select string_agg(wanted.name, ', ')
        from unnest(array['anon', 'authenticated', 'service_role']) as wanted (name)
        where to_regrole(wanted.name) is null);
begin
    if v_names is not null then
        raise exception
            'the roles of a Supabase database are missing: %. Run this in a Supabase project, or create them and run '
            'it again: create role anon nologin; create role authenticated nologin; create role service_role nologin '
            'bypassrls;', v_names
            using errcode = '42704';
    end if;
end $$;

do $$
declare
    v_names text := (
        select string_agg(taken.name, ', ')
        from (values
            ('stages', 'lease_seconds'),
            ('stage_prerequisites', 'requires'),
            ('stage_runs', 'claim_id')) as taken (name, sign)
        where to_regclass('krai_core.' || taken.name) is not null and not exists (
            select from pg_catalog.pg_attribute a
            join pg_catalog.pg_class c on c.oid = a.attrelid and c.relkind = 'r'
            where a.attrelid = to_regclass('krai_core.' || taken.name)
              and a.attname = taken.sign and not a.attisdropped));
begin
    if v_names is not null then
        raise exception
            'something else in schema krai_core has a name that the tracker needs: %. Give it another name, and run '
            'the migration again', v_names
            using errcode = '42P07';
    end if;
end $$;

-- Later files drop what an earlier tracker left; objects that depend on it would have to be dropped too.
do $$
declare
    v_uses text := (
        with old as (
            select 'pg_catalog.pg_class'::regclass as classid, c.oid as objid, 'krai_core.' || c.relname as name
            from pg_catalog.pg_class c
            where c.relnamespace = to_regnamespace('krai_core') and c.relkind = 'v'
              and c.relname in ('vw_documents_by_stage', 'vw_stage_statistics')
              and not exists (
                  select from pg_catalog.pg_attribute a
                  where a.attrelid = c.oid and a.attname in ('stage_status', 'duration_seconds') and not a.attisdropped)
            union all
            select 'pg_catalog.pg_proc'::regclass, p.oid, 'krai_core.' || p.proname || '()'
            from pg_catalog.pg_proc p
            where p.pronamespace = to_regnamespace('krai_core')
              and p.proname in ('start_stage', 'update_stage_progress', 'complete_stage', 'fail_stage', 'skip_stage')
              and p.prorettype <> 'boolean'::regtype
        )
        select string_agg(distinct coalesce(
                   pg_catalog.pg_describe_object('pg_catalog.pg_class'::regclass, r.ev_class, 0),
                   pg_catalog.pg_describe_object(d.classid, d.objid, 0)) || ' uses ' || old.name, '; ')
        from old
        join pg_catalog.pg_depend d on d.refclassid = old.classid and d.refobjid = old.objid and d.deptype = 'n'
        left join pg_catalog.pg_rewrite r on d.classid = 'pg_catalog.pg_rewrite'::regclass and r.oid = d.objid
        where coalesce(r.ev_class, d.objid) not in (select o.objid from old o));
begin
    if v_uses is not null then
        raise exception
            'views and functions of an earlier tracker must be replaced, but %. Save the definition of yours '
            '(pg_get_viewdef, pg_get_functiondef), drop it, run the migration again, and recreate it on top of the new '
            'objects', v_uses
            using errcode = '2BP01';
    end if;
end $$;

do $$
declare
    v_table record;
begin
    select case c.relkind
               when 'v' then 'a view' when 'm' then 'a materialized view' when 'p' then 'a partitioned table'
               when 'f' then 'a foreign table' else 'of kind ' || c.relkind::text end as kind,
           c.relkind = 'r' as is_table, pg_catalog.pg_get_userbyid(c.relowner) as owner,
           pg_catalog.pg_has_role(current_user, c.relowner, 'usage') as is_ours
    into v_table
    from pg_catalog.pg_class c where c.oid = to_regclass('krai_core.documents');
    if not v_table.is_table then
        raise exception
            'krai_core.documents is %, and stages can be tracked in an ordinary table only. Rename it, give the name '
            'krai_core.documents to the table that holds the rows, then run the migration again', v_table.kind
            using errcode = '42809';
    elsif not v_table.is_ours then
        raise exception
            'krai_core.documents belongs to %, and % may not change it. As its owner: alter table krai_core.documents '
            'owner to %; then run the migration again', v_table.owner, current_user, quote_ident(current_user)
            using errcode = '42501';
    end if;
end $$;

do $$
declare
    v_column record;
begin
    for v_column in
        select wanted.name, pg_catalog.format_type(a.atttypid, null) as type, a.attgenerated <> '' as is_generated,
               a.attnotnull and exists (
                   select from pg_catalog.pg_index i
                   where i.indrelid = a.attrelid and i.indisunique and i.indisvalid and i.indpred is null
                     and i.indnkeyatts = 1 and i.indkey[0] = a.attnum) as is_key
        from unnest(array['id', 'filename', 'stage_status']) as wanted (name)
        left join pg_catalog.pg_attribute a
            on a.attrelid = to_regclass('krai_core.documents') and a.attname = wanted.name and not a.attisdropped
        where to_regclass('krai_core.documents') is not null
    loop
        if v_column.name = 'id' and v_column.type is distinct from 'uuid' then
            raise exception
                'krai_core.documents.id is %, and stages are tracked by uuid. Rename the old column if there is one, '
                'add `id uuid primary key default gen_random_uuid()`, and run the migration again',
                coalesce('of type ' || v_column.type, 'missing')
                using errcode = '42804';
        elsif v_column.name = 'id' and not v_column.is_key then
            raise exception
                'krai_core.documents.id is not a key: it must be unique and not null. Run alter table '
                'krai_core.documents add primary key (id); then run the migration again'
                using errcode = '42830';
        elsif v_column.name = 'filename' and v_column.type is null then
            raise exception
                'krai_core.documents has no column filename. Add it, for instance by alter table krai_core.documents '
                'add column filename text generated always as (<your column>) stored; then run the migration again'
                using errcode = '42703';
        elsif v_column.name = 'stage_status' and v_column.type <> 'jsonb' then
            raise exception
                'krai_core.documents.stage_status is of type %, not jsonb. Run alter table krai_core.documents alter '
                'column stage_status drop default, alter column stage_status type jsonb using stage_status::jsonb; '
                'then run the migration again', v_column.type
                using errcode = '42804';
        elsif v_column.name = 'stage_status' and v_column.is_generated then
            raise exception
                'krai_core.documents.stage_status is a generated column, which cannot be written. Run alter table '
                'krai_core.documents alter column stage_status drop expression; then run the migration again'
                using errcode = '428C9';
        end if;
    end loop;
end $$;

-- The list holds columns of the first released tracker: a table without one of them was made by an unreleased state.
do $$
declare
    v_missing text := (
        select string_agg(wanted.name, ', ' order by wanted.name)
        from unnest(array[
            'open_stage', 'opens_claim', 'is_current', 'error_fingerprint', 'reset_at', 'retry_at', 'progress',
            'metadata', 'actor', 'closed_by_holder']) as wanted (name)
        where to_regclass('krai_core.stage_runs') is not null and not exists (
            select from pg_catalog.pg_attribute a
            where a.attrelid = to_regclass('krai_core.stage_runs') and a.attname = wanted.name and not a.attisdropped));
begin
    if v_missing is not null then
        raise exception using errcode = '55000', message = format(
            'krai_core.stage_runs was made by an unreleased state of the tracker (it has no column %s) and cannot be '
            'upgraded in place. Run docs/rollback.sql of that state, which keeps the documents and their stage_status, '
            'then run the migration again: see "From an unreleased state" in docs/migrating.md', v_missing);
    end if;
end $$;
