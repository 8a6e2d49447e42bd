-- Everything that a migration could have made or changed, one line each, privileges in the order of their text.

with ours as (select oid, nspname from pg_namespace where nspname in ('krai_core', 'krai_private', 'public')),
relations as (select c.*, ours.nspname from pg_class c join ours on ours.oid = c.relnamespace)
select format('schema %s %s', n.nspname, (select array_agg(x::text order by x::text) from unnest(n.nspacl) x)) as line from pg_namespace n where n.nspname !~ '^pg_|information_schema'
union all
select format('relation %s.%s %s %s rls %s options %s owner %s acl %s: %s', nspname, relname, relkind, relpersistence, relrowsecurity,
    reloptions, relowner::regrole, (select array_agg(x::text order by x::text)
    from unnest(coalesce(relacl, acldefault((case relkind when 'S' then 's' else 'r' end)::"char", relowner))) x), obj_description(oid, 'pg_class'))
from relations where relkind <> 'i'
union all
select format('column %s.%s.%s %s %s not null %s default %s generated %s identity %s acl %s: %s', r.nspname, r.relname, a.attname, a.attnum,
    format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attgenerated, a.attidentity,
    (select array_agg(x::text order by x::text) from unnest(a.attacl) x), col_description(a.attrelid, a.attnum))
from relations r
join pg_attribute a on a.attrelid = r.oid and a.attnum > 0
left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
where r.relkind in ('r', 'v', 'm', 'p')
union all
select format('view %s.%s %s', nspname, relname, pg_get_viewdef(oid)) from relations where relkind = 'v'
union all
select format('constraint %s.%s %s %s %s', r.nspname, r.relname, c.conname, pg_get_constraintdef(c.oid), c.convalidated)
from relations r join pg_constraint c on c.conrelid = r.oid
union all
select format('index %s.%s %s valid %s ready %s', r.nspname, r.relname, pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisready)
from relations r join pg_index i on i.indrelid = r.oid
union all
select format('trigger %s.%s %s %s %s', r.nspname, r.relname, t.tgname, t.tgenabled, pg_get_triggerdef(t.oid))
from relations r join pg_trigger t on t.tgrelid = r.oid where not t.tgisinternal
union all
select format('policy %s.%s %s %s %s %s %s %s', r.nspname, r.relname, p.polname, p.polcmd, p.polpermissive,
    (select array_agg(case role when 0 then 'public' else role::regrole::text end) from unnest(p.polroles) role),
    pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
from relations r join pg_policy p on p.polrelid = r.oid
union all
select format('routine %s owner %s acl %s: %s %s', p.oid::regprocedure, p.proowner::regrole, (select array_agg(x::text order by x::text) from unnest(p.proacl) x),
    obj_description(p.oid, 'pg_proc'), pg_get_functiondef(p.oid))
from pg_proc p join ours on ours.oid = p.pronamespace where p.prokind in ('f', 'p')
union all
select format('default privileges %s %s %s', defaclnamespace::regnamespace, defaclobjtype, (select array_agg(x::text order by x::text) from unnest(defaclacl) x)) from pg_default_acl
order by 1
