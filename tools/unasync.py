"""Make processors_v2/_sync from processors_v2/_async, by replacing words; with --check: only compare.

What no word can tell apart is in _TWINS, written by hand in both folders. Needs ruff, which the extra `dev` installs.
"""

import argparse
import difflib
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "processors_v2"
SOURCE, TARGET = PACKAGE / "_async", PACKAGE / "_sync"
_TWINS = {"__init__.py", "callbacks.py", "cancellation.py", "pool.py", "threads.py", "tracking.py"}

HEADER = "# Made from _async/{} by tools/unasync.py: change that one.\n"

# Applied in this order to the whole text, docstrings included.
RULES = [
    (r"\bacreate_client\b", "create_client"),
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\b_async\b", "_sync"),
    (r"\b[aA]n (Async[A-Z])", r"a \1"),
    (r"\b(_?)Async([A-Z])", r"\1\2"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\.aclose\b", ".close"),
    (r"^import asyncio$", "import time"),
    (r"\basyncio\.sleep\b", "time.sleep"),
]


def synchronous(sources: Iterable[Path], used: Counter[str]) -> dict[str, str]:
    """Return the synchronous text of files by their names, formatted."""
    with tempfile.TemporaryDirectory() as folder:
        made = {source.name: Path(folder, source.name) for source in sources}
        for name, path in made.items():
            path.write_text(replaced((SOURCE / name).read_text(encoding="utf-8"), used), encoding="utf-8")
        # Both look at pyproject.toml, and find out from the working directory which imports are of this project.
        for command in (["check", "--select=I,F811", "--fix"], ["format"]):
            ruff = [sys.executable, "-m", "ruff", *command, "--quiet", "--config=pyproject.toml", folder]
            subprocess.run(ruff, cwd=PACKAGE.parent, check=True)
        return {name: HEADER.format(name) + path.read_text(encoding="utf-8") for name, path in made.items()}


def replaced(text: str, used: Counter[str]) -> str:
    """Return a text with its words replaced, and count which rule was of use."""
    for pattern, replacement in RULES:
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        used[pattern] += count
    return text


def differences(wanted: dict[str, str]) -> list[str]:
    """Return what is not in the target folder as it should be."""
    found: list[str] = []
    for name, text in wanted.items():
        path = TARGET / name
        there = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = difflib.unified_diff(there.splitlines(), text.splitlines(), f"_sync/{name}", "wanted", lineterm="")
        found.extend(lines)
    extra = {path.name for path in TARGET.glob("*.py")} - set(wanted) - _TWINS
    return found + [f"_sync/{name} has no source in _async" for name in sorted(extra)]


def main() -> int:
    """Write or compare; 1 where a comparison found something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when something differs")
    check = parser.parse_args().check
    used: Counter[str] = Counter()
    wanted = synchronous((path for path in sorted(SOURCE.glob("*.py")) if path.name not in _TWINS), used)
    unused = [pattern for pattern, _ in RULES if not used[pattern]]
    if unused:
        sys.exit(f"rules that nothing needs: {unused}")
    if check:
        found = differences(wanted)
        print("\n".join([*found, "Run tools/unasync.py."]) if found else f"{len(wanted)} files are as they should be.")
        return 1 if found else 0
    for name, text in wanted.items():
        (TARGET / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
