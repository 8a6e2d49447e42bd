"""The drop-in processor does what it prints, and prints what its readers need."""

import re
import subprocess
import sys
from pathlib import Path

import drop_in_processor as drop_in
import pytest

SCRIPT = Path(drop_in.__file__)


@pytest.fixture(scope="module")
def printed() -> str:
    """What the program prints, run as a user runs it."""
    done = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT], capture_output=True, text=True, timeout=90, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_exactly_three_lines_change() -> None:
    """The import, the line that starts the stage, and the loop; every other line of the class is the same."""
    assert list(drop_in.changed_lines()) == [
        drop_in.IMPORTS,
        (
            'self.stage_tracker.start_stage(str(document_id), "text_extraction")',
            'with StageContext(self.stage_tracker, document_id, "text_extraction") as ctx:',
        ),
        ("for page in reader.pages:", 'for page in ctx.track(reader.pages, unit="pages"):'),
    ]
    assert drop_in.IMPORTS[1] in SCRIPT.read_text(encoding="utf-8").splitlines()


def test_the_program_shows_the_three_lines(printed: str) -> None:
    """They stand at the beginning, before and after."""
    lines = re.findall(r"^  ([-+]) (.+)$", printed, re.MULTILINE)
    assert lines == [pair for before, after in drop_in.changed_lines() for pair in (("-", before), ("+", after))]


def part(printed: str, begin: str) -> list[str]:
    """Return the lines under a heading."""
    return re.findall(rf"^{begin}:\n((?:  .+\n)+)", printed, re.MULTILINE)[0].splitlines()


def test_the_existing_processor_runs_as_it_is(printed: str) -> None:
    """It completes and fails its stage; that a second worker does the same once more, nobody tells it."""
    assert part(printed, "Before, two workers at one document") == ["  read 223 pages"] * 2
    assert part(printed, "Before, a damaged file") == ["  failed: Stream has ended unexpectedly"]


def test_with_the_three_lines_the_work_is_done_once(printed: str) -> None:
    """The second worker is refused with a sentence, and a damaged file is recorded as before."""
    done, refused = part(printed, "After, two workers at one document")
    assert done == "  read 223 pages"
    assert refused == "  refused: stage text_extraction of document tarnwick-c450.pdf is held by another run"
    assert part(printed, "After, a damaged file") == part(printed, "Before, a damaged file")
