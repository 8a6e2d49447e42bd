"""docs/http.md does what it says."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs/http.md").read_text(encoding="utf-8")


def test_the_programs_print_what_stands_under_them() -> None:
    """One after the other they run as they stand, and print the blocks that follow them."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    programs = [text for language, text in blocks if language == "python"]
    shown = [after for (before, _), (kind, after) in pairwise(blocks) if (before, kind) == ("python", "")]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(programs)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(shown)
