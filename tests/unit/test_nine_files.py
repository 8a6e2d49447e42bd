"""A public function is in each of the files that CONTRIBUTING.md lists under "A new question touches nine files".

The list of public functions is that of supabase/sql/41_access.sql, where a comment begins each room.
"""

import ast
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {"events", "operations", "pipeline", "questions", "queue", "runs", "upkeep"}
# Not a method of the tracker, because:
NO_METHOD = {"get_installation": "doctor sends it, whatever the versions of client and database are"}
# Not named in tests/sql, because:
NO_SQL_TEST = {"schema_version": "get_installation returns it, and its tests are there"}
_ENTRY = re.compile(r"^    (?:-- (?P<room>\w+)$|\('krai_core\.(?P<name>\w+)', '(?:reader|writer)',)", re.MULTILINE)


def public_functions() -> list[tuple[str, str]]:
    """Room and name of each function in the access list."""
    found, room = [], ""
    for match in _ENTRY.finditer(text_of(ROOT / "supabase/sql/41_access.sql")):
        room = match["room"] or room
        if match["name"]:
            found.append((room, match["name"]))
    return found


@cache
def text_of(path: Path) -> str:
    """The text of a file."""
    return path.read_text(encoding="utf-8")


def is_named(name: str, paths: Iterable[Path]) -> bool:
    """Whether one of the files has the name as a word."""
    return any(re.search(rf"\b{name}\b", text_of(path)) for path in paths)


def functions_in(path: str) -> Iterable[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods of a module."""
    for node in ast.walk(ast.parse(text_of(ROOT / path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def method_of(room: str, name: str) -> str | None:
    """The method of the tracker that sends a call of its room."""
    for method in functions_in(f"processors_v2/_async/{room}.py"):
        if any(ast.unparse(node) == f"{room}.{name}" for node in ast.walk(method) if isinstance(node, ast.Attribute)):
            return method.name
    return None


each_function = pytest.mark.parametrize(("room", "name"), public_functions())


def test_each_room_is_in_the_access_list() -> None:
    """The list is read to its end, with the rooms that the package has."""
    assert {room for room, _ in public_functions()} == ROOMS


@each_function
def test_the_sql_of_a_function_is_in_its_room(room: str, name: str) -> None:
    """One file of the source creates it, and has the room in its name."""
    begin, files = f"create or replace function krai_core.{name}(", (ROOT / "supabase/sql").glob("*.sql")
    rooms = {file.stem.split("_")[1] for file in files if begin in text_of(file)}
    assert rooms == {room}, f"{name} is under {room} in 41_access.sql: create it in supabase/sql/*_{room}*.sql"


@each_function
def test_python_knows_how_to_call_a_function(room: str, name: str) -> None:
    """The room has a call of the same name, which names the function as PostgREST does."""
    path = f"processors_v2/_calls/{room}.py"
    [call] = [one for one in functions_in(path) if one.name == name] or [None]
    assert call, f"Add a function {name} to {path} that says how it is called and how its answer is read"
    sent = {node.value for node in ast.walk(call) if isinstance(node, ast.Constant)}
    assert sent & {name, f"rpc/{name}"}, f"{name} in {path} calls another function of the database"


@each_function
def test_the_tracker_has_a_method_for_a_function(room: str, name: str) -> None:
    """A method in the room's part of the tracker sends the call."""
    method, path = method_of(room, name), f"processors_v2/_async/{room}.py"
    if name in NO_METHOD:
        assert method is None, f"{method} in {path} sends {name}: take it out of NO_METHOD"
    else:
        assert method, f"Add a method to {path} that sends _calls.{room}.{name}, then run: python tools/unasync.py"


@each_function
def test_the_rules_of_a_function_are_tested(room: str, name: str) -> None:
    """Tests of the SQL name the function, tests of the SDK the method that sends it."""
    if name not in NO_SQL_TEST:
        files = (ROOT / "tests/sql").rglob("test_*.py")
        assert is_named(name, files), f"Test the rules of {name} in tests/sql/{room}/test_*.py"
    if name not in NO_METHOD:
        method, files = method_of(room, name) or name, (ROOT / "tests/python").rglob("test_*.py")
        assert is_named(method, files), f"Test StageTracker.{method} in tests/python/{room}/test_*.py"


@each_function
def test_a_page_tells_of_a_function(room: str, name: str) -> None:
    """README or a page of docs written by hand names it; the reference is made, and does not count."""
    pages = [page for page in (ROOT / "docs").glob("*.md") if not page.name.startswith("reference_")]
    found = is_named(name, [ROOT / "README.md", *pages])
    assert found, f"Say what {name} ({room}) is for in README.md or a page of docs/, such as docs/monitoring.md"
