"""The parts of the benchmark fences: what is taken away, and that the answers stay the same."""

from collections.abc import Iterator

import psycopg
import pytest

from benchmarks._fences.data import fill
from benchmarks._fences.measure import Pair
from benchmarks._fences.variants import SETTINGS, Catalog, Variant, variants
from processors_v2.local import LocalSupabase

PARTS = frozenset({"settings", "each", "fences"})
# Ids and times that a call makes are others in each.
STABLE = ("get_weighted_progress", "get_document_timeline", "documents_json", "merged_runs", "failure_kinds")


@pytest.fixture(scope="module")
def local() -> Iterator[LocalSupabase]:
    """A stack of its own, without autovacuum."""
    with LocalSupabase(settings={"autovacuum": "off"}) as stack:
        yield stack


@pytest.fixture(scope="module")
def changes(local: LocalSupabase) -> list[Variant]:
    """All variants, with their objects."""
    with psycopg.connect(local.admin_url, autocommit=True) as connection:
        found = variants(Catalog(connection), PARTS)
        for variant in found:
            for text in variant.objects:
                connection.execute(text)
        connection.execute("grant all on all functions in schema krai_core, krai_private to postgres")
        connection.execute("grant select on all tables in schema krai_core, krai_private to postgres")
    return found


@pytest.fixture(scope="module")
def words(local: LocalSupabase, changes: list[Variant]) -> dict[str, str]:
    """What there is to ask about among a few documents."""
    assert changes
    with psycopg.connect(local.admin_url, autocommit=True) as connection:
        return fill(connection, 1, 60)


def test_every_function_with_settings_is_measured_without(local: LocalSupabase, changes: list[Variant]) -> None:
    """The functions that have a variant without settings are those that have any, and the copies have none."""
    bare = [variant for variant in changes if variant.lacks == SETTINGS]
    with psycopg.connect(local.admin_url) as connection:
        (told,) = connection.execute(
            "select array_agg(distinct p.proname::text) from pg_proc p"
            " where 'plan_cache_mode=force_generic_plan' = any (p.proconfig) and p.proname !~ '^lacking_'"
            " and p.pronamespace in ('krai_core'::regnamespace, 'krai_private'::regnamespace)"
        ).fetchall()[0]
    assert {variant.name.split(" (")[0] for variant in bare} == set(told)
    assert [variant.name for variant in bare if "plan_cache_mode" in variant.objects[0]] == []


def test_less_is_told_and_the_answer_is_the_same(
    local: LocalSupabase, changes: list[Variant], words: dict[str, str]
) -> None:
    """A setting or a fence changes how an answer is found, not what it is."""
    with psycopg.connect(local.database_url, autocommit=True) as connection:
        for variant in changes:
            if not any(f".{name}(" in variant.original for name in STABLE):
                continue
            answers = [
                sorted(map(repr, connection.execute(question.format(**words)).fetchall()))
                for question in (variant.original, variant.changed)
            ]
            assert answers[0] == answers[1], f"{variant.name}, {variant.lacks}"


def test_a_pair_tells_pages_and_time_of_both(
    local: LocalSupabase, changes: list[Variant], words: dict[str, str]
) -> None:
    """Both costs are measured, in the same situation."""
    variant = next(one for one in changes if one.name == "get_weighted_progress")
    pair = Pair(local.database_url, variant)
    pair.prepare(words)
    costs = pair.compare(words, 2)
    pair.close()
    assert all(cost.pages > 0 and cost.milliseconds > 0 for cost in costs)
