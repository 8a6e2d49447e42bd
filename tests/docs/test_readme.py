"""The README does what it says. Its programs are run by test_code_blocks.py, its demo by tests/examples."""

import re

import pytest
from blocks import ROOT, text_of

README = text_of("README.md")


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
