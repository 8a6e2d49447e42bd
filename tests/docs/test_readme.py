"""The README does what it says. Its programs are run by test_code_blocks.py."""

import os
import re
import subprocess
import sys

import pytest
from blocks import ROOT, blocks_of, text_of

README = text_of("README.md")


def test_the_demo_ends_with_what_the_readme_shows() -> None:
    """Every line of the shown end of `./dev demo` is printed, in that order; durations may differ."""
    shown = next(block.text for block in blocks_of("README.md") if block.text.startswith("document  "))
    done = subprocess.run(
        [sys.executable, "examples/quickstart.py"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = [without_duration(line) for line in done.stdout.splitlines()]
    position = printed.index(without_duration(shown.splitlines()[0]))
    expected = [without_duration(line) for line in shown.splitlines()]
    assert printed[position : position + len(expected)] == expected


def without_duration(line: str) -> str:
    """Return a line of a table without the seconds at its end."""
    return re.sub(r"\s+\d+\.\d\d$", "", line.rstrip())


@pytest.mark.parametrize("path", re.findall(r"^([\w./]+/)\s{2,}", README, re.MULTILINE))
def test_every_folder_that_the_readme_names_is_there(path: str) -> None:
    """The list of folders is that of the project."""
    assert (ROOT / path).is_dir()


def test_every_method_in_the_table_exists() -> None:
    """What the table of calls names is a method of StageTracker or StageContext, a function or a view."""
    table = README.split("## What there is", 1)[1].split("\n\n", 3)[1]
    named = set(re.findall(r"`(?:ctx\.)?([a-z_]+)(?:\(|`)", table))
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "processors_v2").rglob("*.py"))
    source += "".join(path.read_text(encoding="utf-8") for path in (ROOT / "supabase/migrations").glob("*.sql"))
    missing = {
        name for name in named if not re.search(rf"(def |krai_core\.|if not exists krai_core\.){name}\b", source)
    }
    assert not missing
