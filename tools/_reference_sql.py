"""The page about SQL: what the catalog of a migrated database says of functions, views and tables."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.rows import dict_row

WIDTH = 100
ROLES = ("authenticated", "service_role")

INTRODUCTION = """\
# Reference: SQL

Made by `tools/reference.py` from the comments in the database; change those.

Everything is in schema `krai_core`. A function is called with `select krai_core.name(...)`, or through PostgREST with
`POST /rest/v1/rpc/name`, its parameters as a JSON object and the header `Content-Profile: krai_core`; one that only
reads also with `GET` and `Accept-Profile: krai_core`. A view or table is read with `GET /rest/v1/name`.

An error has the SQLSTATE that is named here, a message that says what and which ids, a hint that says what to do, and
as its detail a JSON object whose `error` is the word that stands behind the SQLSTATE here. Over HTTP, `PT404` is status
404, `PT409` is 409, `22023` is 400, `42501` is 403, and 401 without a key. Nothing is changed then.
"""

_FUNCTIONS = """
select p.proname as name, pg_get_function_arguments(p.oid) as arguments, pg_get_function_result(p.oid) as result,
       p.provolatile <> 'v' as only_reads, obj_description(p.oid, 'pg_proc') as comment,
       array(select role from unnest(%s::text[]) role where has_function_privilege(role, p.oid, 'execute')) as roles
from pg_proc p
where p.pronamespace = 'krai_core'::regnamespace and p.proname !~ '^_' and p.prokind = 'f'
order by p.proname
"""
_RELATIONS = """
select c.relname as name, case c.relkind when 'v' then 'view' else 'table' end as kind,
       obj_description(c.oid, 'pg_class') as comment,
       array(select role from unnest(%s::text[]) role where has_any_column_privilege(role, c.oid, 'select')) as roles,
       (select jsonb_agg(jsonb_build_array(
                a.attname, format_type(a.atttypid, a.atttypmod), col_description(c.oid, a.attnum))
            order by a.attnum)
        from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns
from pg_class c
where c.relnamespace = 'krai_core'::regnamespace and c.relkind in ('r', 'v') and c.relname !~ '^_'
order by c.relname
"""
# Where the parts of a comment begin: a parameter, or several that are told together; what comes back; what is raised.
_PART = re.compile(r"(?<=[.;]) (?=p_\w+(?:, p_\w+)*(?: \([^)]*\))?: |Returns |Raises |Safe to repeat)")


@dataclass
class Group:
    """What is told under one heading."""

    title: str
    names: set[str] = field(default_factory=set)


def page(connection: "psycopg.Connection[Any]", groups: Iterable[Group]) -> str:
    """Return the text of the page.

    Args:
        connection: To a migrated database.
        groups: What is told together; what is in none of them comes last.
    """
    with connection.cursor(row_factory=dict_row) as cursor:
        functions = cursor.execute(_FUNCTIONS, [list(ROLES)]).fetchall()
        relations = cursor.execute(_RELATIONS, [list(ROLES)]).fetchall()
    parts = [INTRODUCTION]
    told: set[str] = set()
    everything = {one["name"] for one in [*functions, *relations]}
    for group in [*groups, Group("Further", everything)]:
        names = group.names - told
        found = [_function(one) for one in functions if one["name"] in names]
        found += [_relation(one) for one in relations if one["name"] in names]
        told |= names
        if found:
            parts += [f"## {group.title}\n", *found]
    return "\n".join(parts)


def _function(one: Mapping[str, Any]) -> str:
    first, *rest = re.split(r"\n|" + _PART.pattern, one["comment"], maxsplit=1)
    lines = [f"### {one['name']}", "", "```text", _signature(one), "```", "", _quoted(first), ""]
    lines += _told(*rest)
    lines += [f"For {_those(one['roles'])}{'; only reads' if one['only_reads'] else ''}.", ""]
    return "\n".join(lines)


def _signature(one: Mapping[str, Any]) -> str:
    arguments = [_plain(argument) for argument in re.split(r", (?=\w+ )", one["arguments"]) if argument]
    result = _plain(one["result"])
    line = f"{one['name']}({', '.join(arguments)}) returns {result}"
    if len(line) <= WIDTH:
        return line
    return f"{one['name']}(\n    " + ",\n    ".join(arguments) + f"\n) returns {result}"


def _plain(text: str) -> str:
    text = re.sub(r" DEFAULT (NULL|'[^']*'|[\w.-]+)(::[\w ]+)?", lambda found: f" default {found[1]}", text)
    return text.replace("default NULL", "default null").replace("timestamp with time zone", "timestamptz")


def _told(text: str = "") -> list[str]:
    """The parts of a comment: what is said of the whole, then the list of the parameters, the answer and the errors."""
    if not text:
        return []
    parts = _PART.split(text.replace("\n", " "))
    said = [] if re.match(r"p_\w+|Returns |Raises ", parts[0]) else [parts.pop(0), ""]
    return [*map(_quoted, said), *(f"- {_item(one)}" for one in parts), ""]


def _item(text: str) -> str:
    parameters, colon, rest = text.partition(": ")
    if colon and re.fullmatch(r"p_\w+(?:, p_\w+)*(?: \([^)]*\))?", parameters):
        return f"{re.sub(r'p_[a-z_]+', lambda name: f'`{name[0]}`', parameters)}: {_quoted(rest)}"
    return _quoted(text)


def _quoted(text: str) -> str:
    """With the objects of JSON set as code, in which Markdown would see HTML and emphasis."""
    return "".join(f"`{part}`" if part.startswith("{") else part.replace("<", "\\<") for part in _split(text))


def _split(text: str) -> Iterator[str]:
    """The objects in a text, each from its first to its last brace, and what is between them."""
    depth = since = 0
    for place, letter in enumerate(text):
        if letter == "{" and depth == 0:
            yield text[since:place]
            since = place
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "}" and depth == 0:
            yield text[since : place + 1]
            since = place + 1
    yield text[since:]


def _relation(one: Mapping[str, Any]) -> str:
    lines = [f"### {one['name']}", "", f"A {one['kind']}. {_quoted(one['comment'])}", ""]
    lines += ["| column | type | what |", "|---|---|---|"]
    for name, kind, comment in one["columns"]:
        told = _quoted(comment or "").replace("|", "\\|")
        lines.append(f"| `{name}` | {_plain(kind)} | {told} |")
    return "\n".join([*lines, "", f"Read by {_those(one['roles'])}.", ""])


def _those(roles: list[str]) -> str:
    return " and ".join(f"`{role}`" for role in roles) or "nobody but the owner"
