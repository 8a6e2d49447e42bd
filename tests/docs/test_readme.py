"""The README does what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language, in their order; "" for those that name none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for named, text in fenced if named == language]


@pytest.mark.parametrize(("number", "first"), [(0, "upload "), (1, "text_extraction "), (2, "44 wait")])
def test_the_programs_of_the_readme_print_what_it_shows(number: int, first: str) -> None:
    """Each program runs as it stands, and its output is the block that follows it."""
    program = blocks("python")[number]
    shown = next(block for block in blocks("") if block.startswith(first))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    # How long ago it became ready depends on the machine.
    printed = re.sub(r"since \d+ s;", "since 0 s;", done.stdout)
    assert [line.rstrip() for line in printed.splitlines()] == [line.rstrip() for line in shown.splitlines()]


def test_the_demo_ends_with_what_the_readme_shows() -> None:
    """Every line of the shown end of `./dev demo` is printed, in that order; durations may differ."""
    shown = next(block for block in blocks("") if block.startswith("document  "))
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


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_every_link_of_the_readme_leads_to_a_file(target: str) -> None:
    """A link to a file of this project finds it."""
    assert (ROOT / target).exists()


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
