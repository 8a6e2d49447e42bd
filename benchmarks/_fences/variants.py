"""Copies of functions that lack one of the things that the planner is told."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import psycopg

from benchmarks._fences.cases import CASES, ELSEWHERE, VIEWS

Connection: TypeAlias = psycopg.Connection[Any]

SETTINGS = "without its settings"
BY_INDEX = "planned by index"
ORDER_SETTINGS = ("enable_bitmapscan", "enable_sort")
PROFILE = (
    "plan_cache_mode",
    "enable_seqscan",
    "enable_hashjoin",
    "enable_memoize",
    "enable_mergejoin",
    "jit",
    *ORDER_SETTINGS,
)

# How a fence is written, and what is left without it.
FENCES = {
    "offset 0": (re.compile(r"\s+offset 0\b", re.IGNORECASE), ""),
    "= any (array[x])": (re.compile(r"= any \(array\[([\w.]+(?:\[\d\])?)\]\)", re.IGNORECASE), r"= \1"),
    "as materialized": (re.compile(r"\bas materialized\b"), "as"),
    "(claim_id = x) is true": (re.compile(r"\((\w+\.claim_id = [\w.]+)\) is true"), r"\1"),
    "id + 0": (re.compile(r"\bid \+ 0\b"), "id"),
    "id > 0": (re.compile(r"\b\w+\.id > 0 and | and \w+\.id > 0\b"), ""),
    "stage_name > ''": (re.compile(r" and \w+\.stage_name > ''"), ""),
    "|| '{}'": (re.compile(r"\(?(\w+\.stage_status) \|\| '\{\}'(?:::jsonb\))?"), r"\1"),
}
COMMENT = re.compile(r"--.*$", re.MULTILINE)
SETTING = re.compile(r"^ SET \"?(\w+)\"? TO .*\n", re.MULTILINE)


@dataclass
class Variant:
    """A question, and how it is answered with and without something.

    Attributes:
        name: the function or view.
        lacks: what it lacks.
        original, changed: SQL with words in braces.
        objects: creates what `changed` calls.
    """

    name: str
    lacks: str
    original: str
    changed: str
    objects: list[str] = field(default_factory=list)


class Catalog:
    """Definitions of the functions and views of a database."""

    def __init__(self, connection: Connection) -> None:
        self.functions: dict[str, str] = dict(
            connection.execute(
                """
                select p.pronamespace::regnamespace || '.' || p.proname, pg_get_functiondef(p.oid) from pg_proc p
                where p.pronamespace in ('krai_core'::regnamespace, 'krai_private'::regnamespace)
                """
            ).fetchall()
        )
        self.views: dict[str, str] = dict(
            connection.execute(
                """
                select c.relnamespace::regnamespace || '.' || c.relname,
                    format(E'create view %s.%I with (security_invoker = true) as\n%s', c.relnamespace::regnamespace,
                        c.relname, pg_get_viewdef(c.oid))
                from pg_class c
                where c.relkind = 'v' and c.relnamespace in ('krai_core'::regnamespace, 'krai_private'::regnamespace)
                """
            ).fetchall()
        )


def variants(catalog: Catalog, parts: frozenset[str]) -> list[Variant]:
    """All that can be taken away: whole profiles, single settings, fences."""
    found = [
        *(told_less(catalog) if "settings" in parts else ()),
        *(told_one_less(catalog) if "each" in parts else ()),
        *(unfenced(catalog) if "fences" in parts else ()),
    ]
    for number, variant in enumerate(found):
        variant.changed = variant.changed.replace("§", str(number))
        variant.objects = [text.replace("§", str(number)) for text in variant.objects]
    return found


def told_less(catalog: Catalog) -> Iterator[Variant]:
    """Each function without its profile; those in order planned by index, too."""
    for name, definition in told(catalog):
        yield from lacking(catalog, name, SETTINGS, without(definition, PROFILE))
        if "enable_sort" in definition:
            yield from lacking(catalog, name, BY_INDEX, without(definition, ORDER_SETTINGS))


def told_one_less(catalog: Catalog) -> Iterator[Variant]:
    """Each function without one setting of its profile."""
    for name, definition in told(catalog):
        for setting in PROFILE:
            if re.search(rf"^ SET {setting} ", definition, re.MULTILINE):
                yield from lacking(catalog, name, f"without {setting}", without(definition, (setting,)))


def unfenced(catalog: Catalog) -> Iterator[Variant]:
    """Each function and view without one of its fences."""
    for name, definition in (*catalog.functions.items(), *catalog.views.items()):
        comments = [match.span() for match in COMMENT.finditer(definition)]
        for fence, (pattern, rest) in FENCES.items():
            places = [
                match
                for match in pattern.finditer(definition)
                if not any(begin <= match.start() < end for begin, end in comments)
            ]
            for number, place in enumerate(places, 1):
                changed = definition[: place.start()] + place.expand(rest) + definition[place.end() :]
                lacks = f"without {fence}" + (f", number {number}" if len(places) > 1 else "")
                yield from lacking(catalog, name, lacks, changed)


def told(catalog: Catalog) -> Iterator[tuple[str, str]]:
    """Functions with a profile."""
    return ((name, text) for name, text in catalog.functions.items() if "SET plan_cache_mode" in text)


def without(definition: str, settings: tuple[str, ...]) -> str:
    """Take away some settings."""
    return SETTING.sub(lambda line: "" if line[1] in settings else line[0], definition)


def lacking(catalog: Catalog, name: str, lacks: str, definition: str) -> Iterator[Variant]:
    """Make variants of all cases that a changed function or view answers, directly or within another function.

    Raises:
        LookupError: no case calls it.
    """
    copy = renamed(name)
    objects = [definition.replace(name, copy, 1)]
    found = False
    for function, arguments in CASES:
        original = f"select {function}({arguments})"
        if function == name:
            changed, further = f"select {copy}({arguments})", []
        elif mentions(catalog.functions[function], name) and name not in dict(CASES):
            caller = renamed(function)
            outer = catalog.functions[function]
            changed = f"select {caller}({arguments})"
            further = [re.sub(rf"{re.escape(name)}\b", copy, outer).replace(function, caller, 1)]
        else:
            continue
        found = True
        yield Variant(shown(name, function, arguments), lacks, original, changed, objects + further)
    for view, query in VIEWS:
        if view == name:
            found = True
            yield Variant(
                shown(name, name, query), lacks, query.replace("{view}", name), query.replace("{view}", copy), objects
            )
    if not found and name not in ELSEWHERE:
        raise LookupError(f"No case of benchmarks/_fences/cases.py calls {name}.")


def mentions(text: str, name: str) -> bool:
    """Whether a function names another function or a view."""
    return re.search(rf"{re.escape(name)}\b", text) is not None


def renamed(name: str) -> str:
    """Name of a copy; its number comes later."""
    schema, _, plain = name.partition(".")
    return f"{schema}.lacking_§_{plain}"[:62]


def shown(name: str, function: str, arguments: str) -> str:
    """Name a variant for people."""
    own = name.partition(".")[2]
    inside = "" if function == name else f" in {function.partition('.')[2]}"
    several = sum(case[0] == function for case in (*CASES, *VIEWS)) > 1
    return own + inside + (f" ({arguments[:60]})" if several else "")
