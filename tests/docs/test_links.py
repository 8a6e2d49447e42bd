"""Links between the pages lead somewhere."""

import re
from pathlib import PurePosixPath

import pytest
from blocks import PAGES, ROOT, text_of

ALL = [*PAGES, "CONTRIBUTING.md", "GLOSSARY.md", "CHANGELOG.md"]
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def prose(page: str) -> str:
    """A page without its code, in which a link is none."""
    return re.sub(r"^ *```.*?^ *```$|`[^`\n]*`", "", text_of(page), flags=re.DOTALL | re.MULTILINE)


def anchors(page: str) -> set[str]:
    """The anchors of a page: its headings as GitHub makes them, numbered where they come again."""
    text = re.sub(r"^ *```.*?^ *```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        numbered = (f"{anchor}-{number}" if number else anchor for number in range(len(found) + 1))
        found.add(next(one for one in numbered if one not in found))
    return found


LINKS = [(page, target) for page in ALL for target in _LINK.findall(prose(page))]


@pytest.mark.parametrize(("page", "target"), [link for link in LINKS if "://" not in link[1]])
def test_a_link_leads_to_a_file_and_a_heading(page: str, target: str) -> None:
    """The file is there, and so is the heading that the part after # names."""
    path, _, anchor = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    assert file.exists()
    assert not anchor or anchor in anchors(file.resolve().relative_to(ROOT.resolve()).as_posix())


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/") and page != "docs/README.md"])
def test_every_page_is_in_the_index(page: str) -> None:
    """docs/README.md has a line for each page of docs."""
    assert f"]({PurePosixPath(page).name})" in text_of("docs/README.md")


def test_anchors_are_made_as_github_makes_them() -> None:
    """Letters, digits, _ and - stay, blanks become -, all else goes; a second one of the same name is numbered."""
    assert {"two-commands", "in-your-own-project", "what-it-costs"} <= anchors("README.md")
