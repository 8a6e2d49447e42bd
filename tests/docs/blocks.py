"""The pages that people read, the blocks of code in them, and what becomes of each block."""

import re
import textwrap
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]

# Pages whose blocks are run by a test of their own, which knows what they need.
RUN_ELSEWHERE = {
    "docs/cli.md": "tests/cli/test_docs.py",
    "docs/edge_functions.md": "tests/edge/test_page.py",
    "docs/http.md": "tests/docs/test_http.py",
    "docs/install.md": "tests/stack/test_installed.py",
}
# Pages whose programs each stand alone; those of the others are run one after the other, as one program.
EACH_ALONE = {"README.md"}

RUN = {"python", "sql", "bash", "sh"}
READ = {"json", "toml"}
# What is drawn or quoted, and is no program: tests of its page look at it where there is something to look at.
SHOWN = {"", "text", "mermaid", "http"}

# Those of a list are indented.
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
_NOTE = re.compile(r"<!-- (?P<word>[a-z ]+)(?:: (?P<text>[^\n]*?))? -->\n\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Right above it may stand a note, which readers do not see: ``<!-- word: text -->``.

    - ``not run: <why>``
    - ``as: <role>``: who runs this SQL; service_role unless told.
    - ``run by: <test file>``: another test does.
    - ``figures vary``: of what a program prints, numbers with a decimal point differ from machine to machine.
    """

    page: str
    line: int
    language: str
    text: str
    note: str
    remark: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether the tests of all pages run it."""
        return self.language in RUN and self.note not in {"not run", "run by"} and self.page not in RUN_ELSEWHERE


def text_of(page: str) -> str:
    """The text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str, text: str | None = None) -> list[Block]:
    """The blocks of a page in their order."""
    whole = text_of(page) if text is None else text
    found = []
    for fence in _FENCE.finditer(whole):
        note = _NOTE.search(whole, 0, fence.start())
        found.append(
            Block(
                page,
                whole.count("\n", 0, fence.start()) + 1,
                fence["language"],
                textwrap.dedent(fence["text"]),
                note["word"] if note else "",
                (note["text"] or "") if note else "",
            )
        )
    return found


def programs_of(page: str, *languages: str) -> list[tuple[Block, Block | None]]:
    """The blocks of some languages that are run, each with the block that shows what it prints, if one follows."""
    found = blocks_of(page)
    return [
        (block, after if after is not None and after.language == "" else None)
        for block, after in pairwise([*found, None])
        if block is not None and block.language in languages and block.is_run
    ]


def means(printed: str, shown: Block | None) -> bool:
    """Whether a program printed what the page shows, blanks aside; nothing, where it shows nothing."""
    found, wanted = _words(printed), _words(shown.text if shown else "")
    if shown is None or shown.note != "figures vary":
        return found == wanted
    return len(found) == len(wanted) and all(map(_nearly, found, wanted))


def _words(text: str) -> list[str]:
    # How long ago something became ready depends on the machine.
    return re.findall(r"\d+\.\d+|\w+|\S", re.sub(r"for \d+ s;", "for 0 s;", text))


def _nearly(one: str, other: str) -> bool:
    if "." in one[1:] and "." in other[1:]:
        return abs(float(one) - float(other)) <= 0.3 * abs(float(other))
    return one == other
