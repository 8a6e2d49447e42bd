"""Make docs/reference_sql.md and docs/reference_python.md from comments and docstrings; with --check: only compare.

What is told together is what the table "What there is" of the README names together. Needs the extras ``local`` and
``api``.
"""

import argparse
import difflib
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import psycopg

# The clone, and not whatever is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import _reference_python
import _reference_sql
from _reference_sql import Group

from processors_v2.local import LocalSupabase

ROOT = Path(__file__).resolve().parents[1]


def groups(readme: str) -> list[Group]:
    """Return the rows of the table: what one wants to do, and the names for it."""
    table = readme.split("## What there is\n\n", 1)[1].split("\n\n", 1)[0]
    found = []
    for row in table.splitlines()[2:]:
        title, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        names = re.findall(r"`([a-z_]+)(?:\(|`)", " ".join(cells))
        found.append(Group(title[0].upper() + title[1:], set(names)))
    return found


def pages(connection: "psycopg.Connection[Any]") -> dict[Path, str]:
    """Return the text that each page should have.

    Args:
        connection: To a migrated database.
    """
    told_together = groups((ROOT / "README.md").read_text(encoding="utf-8"))
    found = {
        "reference_sql.md": _reference_sql.page(connection, told_together),
        "reference_python.md": _reference_python.page(told_together),
    }
    return {ROOT / "docs" / name: laid_out(text) for name, text in found.items()}


def laid_out(text: str) -> str:
    """Return the text of a page with its prose wrapped, and one empty line between paragraphs."""
    parts = re.split(r"(^```.*?^```$|^[|#<][^\n]*$)", text, flags=re.DOTALL | re.MULTILINE)
    for place in range(0, len(parts), 2):
        wrapped = "\n".join(_wrapped(line) for line in parts[place].split("\n"))
        parts[place] = re.sub(r"\n{3,}", "\n\n", wrapped)
    return "".join(parts).strip() + "\n"


def _wrapped(line: str) -> str:
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(line, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def main() -> int:
    """Write or compare; 1 where a comparison found something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when something differs")
    check = parser.parse_args().check
    found: list[str] = []
    with LocalSupabase() as local, psycopg.connect(local.database_url) as connection:
        wanted = pages(connection)
    for path, text in wanted.items():
        there = path.read_text(encoding="utf-8") if path.exists() else ""
        found += difflib.unified_diff(there.splitlines(), text.splitlines(), f"docs/{path.name}", "wanted", lineterm="")
        if not check:
            path.write_text(text, encoding="utf-8")
    if check:
        print(
            "\n".join([*found, "Run tools/reference.py."] if found else [f"{len(wanted)} pages are as they should be."])
        )
    return 1 if check and found else 0


if __name__ == "__main__":
    sys.exit(main())
