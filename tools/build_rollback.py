"""Writes the names of the tracker into docs/rollback.sql, for databases that have no list of their own.

    python tools/build_rollback.py            write them
    python tools/build_rollback.py --check    tell whether they are as the source says

The names come from the access list (supabase/sql/41_access.sql) and from the leftovers (42_leftovers.sql): no function
name is kept by hand in a second place.
"""

import argparse
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "supabase" / "sql"
SCRIPT = ROOT / "docs" / "rollback.sql"
# Of other kinds nothing is dropped: documents is the user's, a sequence goes with its table, the index stays.
_KINDS = ("trigger", "view", "reader", "writer", "table")
_PART = re.compile(r"\('(?:krai_core\.)?(\w+)', '(\w+)',")
_LEFTOVERS = re.compile(r"v_names text\[\] := array\[(.*?)\];", re.DOTALL)
_REGION = re.compile(r"( *)(-- names begin:[^\n]*\n)(.*?)( *-- names end)", re.DOTALL)
_WIDTH = 120


def names() -> dict[str, list[str]]:
    """Read the names that a state of the tracker may have in krai_core, by kind."""
    parts = _PART.findall((SOURCE / "41_access.sql").read_text(encoding="utf-8"))
    found = {kind: [name for name, its in parts if its == kind] for kind in _KINDS}
    [leftovers] = _LEFTOVERS.findall((SOURCE / "42_leftovers.sql").read_text(encoding="utf-8"))
    found["leftover"] = re.findall(r"'(\w+)'", leftovers)
    assert all(found.values()), "a kind without names: the source is written in another way than this reads"
    return found


def filled(script: str) -> str:
    """Return the script with the names in their place."""

    def rows(match: re.Match[str]) -> str:
        indent, begin, _, end = match.groups()
        lists = [_row(kind, found, indent) for kind, found in names().items()]
        return indent + begin + ",\n".join(lists) + "\n" + end

    return _REGION.sub(rows, script)


def _row(kind: str, found: list[str], indent: str) -> str:
    text = ", ".join(f"'{name}'" for name in found)
    inner = indent + "    "
    lines = textwrap.fill(text, _WIDTH, initial_indent=inner, subsequent_indent=inner)
    return f"{indent}('{kind}', array[\n{lines}])"


def main() -> int:
    """Write, or compare; 1 where a comparison found something."""
    parser = argparse.ArgumentParser(description="Write the names of the tracker into docs/rollback.sql.")
    parser.add_argument("--check", action="store_true", help="change nothing, exit with 1 when something would change")
    check = parser.parse_args().check
    script = SCRIPT.read_text(encoding="utf-8")
    wanted = filled(script)
    if check and script != wanted:
        print("docs/rollback.sql has other names than supabase/sql: run python tools/build_rollback.py")
        return 1
    if not check:
        SCRIPT.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
