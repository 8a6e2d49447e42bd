"""Folders ``processors_v2`` of a project's own, which Python finds before this package.

Nothing of them is imported or run: they are read.
"""

import ast
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from processors_v2._doctor.findings import Finding, ok, problem

NAME = "processors_v2"
LINE = '__path__ = __import__("pkgutil").extend_path(__path__, __name__)'

_HERE = Path(__file__).parent.parent
# A copy or a clone of this package has it.
_OURS = "_errors.py"
# Deep enough for backend/src/processors_v2.
_DEPTH = 3
_SKIPPED = {"node_modules", "site-packages", "__pycache__"}


def folder_findings(start: Path) -> Iterator[Finding]:
    """Judge the folders of that name below a folder, and those that Python finds.

    Args:
        start: Folder of the project.

    Yields:
        One for each folder; one that says that there is none.
    """
    # One without any module, as an editable install leaves it, hides nothing and is nobody's.
    found = [
        folder
        for folder in dict.fromkeys(_folders(start))
        if any(folder.glob("*.py")) and not (folder / _OURS).exists()
    ]
    if not found:
        yield ok("folder", f"no folder {NAME} of your own is in the way")
    for folder in found:
        yield _judge(folder)


def _folders(start: Path) -> Iterator[Path]:
    yield from _below(start.resolve(), _DEPTH)
    for entry in (os.environ.get("PYTHONPATH") or "").split(os.pathsep) + sys.path:
        folder = Path(entry, NAME).resolve()
        if folder.is_dir():
            yield folder


def _below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:
        # What may not be read is not on anybody's path.
        return
    for path in inner:
        if path.name == NAME:
            yield path
        elif depth and not path.name.startswith(".") and path.name not in _SKIPPED:
            yield from _below(path, depth - 1)


def _judge(folder: Path) -> Finding:
    if (folder / "stage_tracker.py").exists():
        return problem(
            "folder",
            f"{folder / 'stage_tracker.py'} of your own is found before the one of this package",
            "Delete it or rename it, so that `from processors_v2.stage_tracker import StageTracker` gives ours",
        )
    init = folder / "__init__.py"
    if init.exists() and not _extends_path(init):
        return problem(
            "folder",
            f"{init} hides this package: Python looks for all of {NAME} beside it",
            f"Put this line into it, or delete the file if it is empty: {LINE}",
        )
    return _beside(folder)


def _extends_path(init: Path) -> bool:
    try:
        tree = ast.parse(init.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return False
    return any(
        isinstance(target, ast.Name) and target.id == "__path__"
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    )


def _beside(folder: Path) -> Finding:
    public = {path.name for path in _HERE.glob("*.py") if not path.name.startswith("_")}
    shared = sorted(public & {path.name for path in folder.glob("*.py")})
    if shared:
        names = ", ".join(name.removesuffix(".py") for name in shared)
        return Finding(
            "folder",
            "note",
            f"{folder} is found beside this package, and its modules {names} are the ones that are imported",
            "Ours of that name go on working among themselves; give yours another name to import ours",
        )
    return ok("folder", f"{folder} is found beside this package")
