"""Imports run downwards, and the rooms have the same names on every floor."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "processors_v2"
# Each may import what stands above it here, and itself; the public modules, at the top of the house, come last.
FLOORS = (
    {"_errors"},
    {"_shapes"},
    {"_calls"},
    {"_transport"},
    {"_claims", "_display", "_heart", "_pulse", "_tracking"},
    {"_async", "_sync"},
    {"_local", "_worker"},
    {"_doctor", "_install"},
    {"_api", "_cli"},
    {"__main__", "api", "cli", "doctor", "errors", "local", "models", "pytest_plugin", "stage_tracker", "worker"},
)
ROOMS = {"events", "operations", "pipeline", "questions", "queue", "runs", "upkeep"}


def name_of(path: Path) -> str:
    """The name of a module below the package, such as _calls.queue."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE / "migrations"}


def imports(name: str) -> Iterator[str]:
    """The modules of this package that one imports, at its top or later; not those for annotations alone."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in skipped and (node.module or "").startswith("processors_v2"):
            source = str(node.module).removeprefix("processors_v2").removeprefix(".")
            for alias in node.names:
                full = f"{source}.{alias.name}".removeprefix(".")
                yield full if full in MODULES else source


def floor_of(name: str) -> int:
    """On which floor a module is."""
    [floor] = [number for number, names in enumerate(FLOORS) if name.partition(".")[0] in names]
    return floor


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"__init__"}))
def test_imports_run_downwards(name: str) -> None:
    """A module imports nothing that stands above it: faces, then trackers, then calls, shapes and transport."""
    assert [found for found in imports(name) if floor_of(found) > floor_of(name)] == []


def test_no_import_leads_back() -> None:
    """There is no circle of modules."""
    assert list(TopologicalSorter({name: set(imports(name)) for name in MODULES}).static_order())


def test_calls_and_shapes_do_nothing() -> None:
    """What says how to ask, and what comes back, knows no way to a server."""
    for name, path in MODULES.items():
        if name.partition(".")[0] in {"_calls", "_shapes"}:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            known = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            known |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            assert not {one.partition(".")[0] for one in known} & {"httpx", "psycopg", "supabase", "socket"}, name


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_the_tracker_has_the_rooms_of_the_calls(room: str) -> None:
    """Methods that send a room's calls stand in the module of that name, and send those of no other room."""
    asked = {found.removeprefix("_calls.") for found in imports(f"_async.{room}") if found.startswith("_calls.")}
    assert asked & ROOMS == {room}
