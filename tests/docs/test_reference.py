"""docs/reference_sql.md and docs/reference_python.md say what comments and docstrings say."""

import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from blocks import ROOT, text_of

sys.path.insert(0, str(ROOT / "tools"))

import reference
from _docstrings import markdown

Connect = Callable[..., "psycopg.Connection[tuple[Any, ...]]"]

DOCSTRING = """Do a thing.

More of it, with ``code``::

    thing("a",
          "b")

Args:
    name: What it is called; this
        goes on.
    count: How many.

Returns:
    The thing.

Raises:
    ValueError, KeyError: It is none.
"""


def headings(page: str) -> set[str]:
    """What has a heading of its own."""
    return {line.lstrip("# ") for line in text_of(page).splitlines() if line.startswith("#")}


@pytest.fixture
def made(connect: Connect) -> Callable[[], dict[str, str]]:
    """Makes the pages anew, from a database that a statement may have changed before."""
    connection = connect("postgres")

    def make(*statements: str) -> dict[str, str]:
        with connection.transaction(force_rollback=True):
            for statement in statements:
                connection.execute(statement.encode())
            return {f"docs/{path.name}": text for path, text in reference.pages(connection).items()}

    return make


def test_the_pages_are_those_of_the_comments_and_docstrings(made: Callable[[], dict[str, str]]) -> None:
    """Made anew they are as they stand; whoever changes a comment runs tools/reference.py."""
    for page, text in made().items():
        assert text_of(page) == text


def test_a_comment_that_was_changed_is_seen(made: Callable[..., dict[str, str]]) -> None:
    """The page has what the database says, and a function without a place in the README comes last."""
    page = made(
        "comment on function krai_core.get_workers() is 'Says who is there.\nRaises nothing.'",
        "create function krai_core.zzz() returns integer language sql as 'select 1'",
        "comment on function krai_core.zzz() is 'Is new.'",
    )["docs/reference_sql.md"]
    assert "Says who is there.\n\n- Raises nothing.\n" in page
    assert page.index("## Further") < page.index("### zzz")


def test_every_function_view_and_table_is_told(connect: Connect) -> None:
    """Whatever has no _ before its name has a heading."""
    found = connect().execute(
        "select proname from pg_proc where pronamespace = 'krai_core'::regnamespace and proname !~ '^_'"
        " union select relname from pg_class where relnamespace = 'krai_core'::regnamespace and relkind in ('r', 'v')"
        " and relname !~ '^_'"
    )
    assert {name for (name,) in found} - headings("docs/reference_sql.md") == set()


@pytest.mark.parametrize("name", ["errors", "models", "worker"])
def test_every_public_class_is_told(name: str) -> None:
    """What the modules export has a heading."""
    module = importlib.import_module(f"processors_v2.{name}")
    assert set(module.__all__) - headings("docs/reference_python.md") == set()


def test_every_method_of_the_tracker_is_told() -> None:
    """What StageTracker can do has a heading each."""
    tracker = importlib.import_module("processors_v2.stage_tracker").StageTracker
    methods = {name for name, _ in inspect.getmembers(tracker, callable) if not name.startswith("_")}
    assert methods - headings("docs/reference_python.md") == set()


def test_docstrings_become_markdown() -> None:
    """Sections become lists, code after two colons a block, and lines that belong together one paragraph."""
    assert markdown(DOCSTRING).strip().splitlines() == [
        "Do a thing.",
        "",
        "More of it, with `code`:",
        "",
        "<!-- not run: part of a docstring, and no whole program -->",
        "```python",
        'thing("a", "b")',
        "```",
        "",
        "- `name`: What it is called; this goes on.",
        "- `count`: How many.",
        "- Returns: The thing.",
        "- Raises `ValueError`, `KeyError`: It is none.",
    ]
