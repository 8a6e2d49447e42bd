"""Over a state of before 0.1.1, whose helpers stand in krai_core and are called no longer."""

from collections.abc import Callable
from typing import Any

import pytest

Fresh = Callable[..., Any]

pytestmark = pytest.mark.parametrize("server", ["16"], indirect=True)

LEFTOVERS = "select cardinality(krai_private.leftovers())"


@pytest.fixture
def earlier(fresh: Fresh) -> Any:
    """A database in the layout of before, to be migrated; anon sees nothing, so that no other warning comes."""
    database = fresh("v1_rows")
    database.run("revoke select on krai_core.documents from anon")
    database.migrate()
    database.move_helpers_back()
    return database


def test_it_ends_as_a_first_migration_does(earlier: Any, fresh: Fresh) -> None:
    """Helpers of before are gone without a word, and catalog and rows are those of a database that never had them."""
    before = earlier.contents()
    earlier.migrate()
    assert earlier.warnings == []
    assert earlier.contents() == before
    undisturbed = fresh("v1_rows")
    undisturbed.run("revoke select on krai_core.documents from anon")
    undisturbed.migrate()
    assert earlier.catalog() == undisturbed.catalog()


def test_a_helper_that_something_of_the_users_uses_stays(earlier: Any) -> None:
    """The migration goes through and names the helper; once the user's view is gone, the next run drops it."""
    name = earlier.value(
        "select p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'krai_core'::regnamespace"
        " and p.proname like '\\_%' and p.prorettype = 'boolean'::regtype and p.pronargs = 1 limit 1"
    )
    argument = name.partition("(")[2].rstrip(")")
    earlier.run(f"create view public.mine as select {name.partition('(')[0]}(null::{argument}) as answer")
    earlier.migrate()
    [warning] = earlier.warnings
    assert (
        f"something of yours uses helpers of the earlier version, which are no longer called: function {name}"
        in warning
    )
    assert earlier.value(LEFTOVERS) == 1
    earlier.run("drop view public.mine")
    earlier.migrate()
    assert earlier.value(LEFTOVERS) == 0


def test_while_a_transaction_from_before_goes_on_they_stay(earlier: Any) -> None:
    """Whoever began before may be at work in an old body, so nothing is dropped under it; the next run does that."""
    before = earlier.connect()
    before.execute("begin; select count(*) from krai_core.documents")
    earlier.migrate()
    [warning] = earlier.warnings
    assert "a transaction from before may be using them" in warning
    assert earlier.value(LEFTOVERS) > 100
    before.execute("commit")
    earlier.migrate()
    assert earlier.value(LEFTOVERS) == 0
