"""The access list, as it says it, and the rights that the catalog has: object -> role -> privileges."""

import re
from typing import Any

ROLES = ("anon", "authenticated", "service_role")
Rights = dict[str, dict[str, set[str]]]

_HELD = """
with held as (
    select n.nspname || '.' || c.relname as name, null::name as column_name, x.*
    from pg_class c join pg_namespace n on n.oid = c.relnamespace, aclexplode(c.relacl) x
    where n.nspname in ('krai_core', 'krai_private') and c.relkind in ('r', 'v', 'S')
    union all
    select n.nspname || '.' || c.relname, a.attname, x.*
    from pg_class c join pg_namespace n on n.oid = c.relnamespace join pg_attribute a on a.attrelid = c.oid,
        aclexplode(a.attacl) x
    where n.nspname in ('krai_core', 'krai_private')
    union all
    select n.nspname || '.' || p.proname, null, x.*
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace,
        aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) x
    where n.nspname in ('krai_core', 'krai_private')
)
select h.name, case when h.grantee = 0 then 'public' else h.grantee::regrole::text end,
       lower(h.privilege_type) || coalesce(' ' || h.column_name, '')
from held h where h.grantee <> h.grantor
"""
_OBJECTS = """
select n.nspname || '.' || c.relname, c.relkind::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname in ('krai_core', 'krai_private') and c.relkind in ('r', 'v', 'S')
union all
select n.nspname || '.' || p.proname, case when p.prorettype = 'trigger'::regtype then 'trigger'
    when p.provolatile = 'v' then 'writer' else 'reader' end
from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname in ('krai_core', 'krai_private')
"""


def listed(session: Any) -> dict[str, tuple[str, dict[str, set[str]]]]:
    """Kind and rights of each object of the list; a right on a column ends with its name."""
    return {
        name: (kind, {role: _split(text) for role, text in zip(ROLES, rights, strict=True)})
        for name, kind, *rights in session.rows("select * from krai_private.access_list()")
    }


def _split(text: str) -> set[str]:
    found = set()
    for privilege, columns in re.findall(r"(\w+)(?: \(([^)]*)\))?", text):
        found |= {f"{privilege} {column}" for column in re.split(r",\s*", columns)} if columns else {privilege}
    return found


def objects(session: Any) -> dict[str, str]:
    """What there is in both schemas: name and kind (r table, v view, S sequence, reader, writer, trigger)."""
    return dict(session.rows(_OBJECTS))


def held(session: Any) -> Rights:
    """The rights of each object, by the role that has them; PUBLIC is called public."""
    found: Rights = {}
    for name, role, right in session.rows(_HELD):
        found.setdefault(name, {}).setdefault(role, set()).add(right)
    return found
