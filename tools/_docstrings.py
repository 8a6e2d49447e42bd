"""Docstrings in Google's style as Markdown."""

import ast
import re
import subprocess
import sys
import textwrap

_SECTIONS = {"Args": "", "Attributes": "", "Returns": "Returns: ", "Yields": "Yields: ", "Raises": "Raises "}
_LISTS = {"Args": "Arguments", "Attributes": "Attributes"}
_NO_PROGRAM = "<!-- not run: part of a docstring, and no whole program -->"


def markdown(docstring: str) -> str:
    """A docstring in Google's style as Markdown: its sections become lists."""
    lines: list[str] = []
    is_both = "\n\nAttributes:\n" in docstring and "\n\nArgs:\n" in docstring
    for part in re.split(r"\n\n(?=(?:Args|Attributes|Returns|Yields|Raises):\n)", docstring):
        head, _, body = part.partition(":\n")
        if head in _SECTIONS:
            lines += ["", f"{_LISTS[head]}:", ""] if is_both and head in _LISTS else []
            lines += _section(head, textwrap.dedent(body))
        else:
            lines += [*_prose(part), ""]
    return "\n".join([*lines, ""])


def _section(head: str, body: str) -> list[str]:
    if head in {"Returns", "Yields"}:
        return [f"- {_SECTIONS[head]}{flowing(body)}"]
    entries = re.split(r"\n(?=\S)", body.strip("\n"))
    pairs = (entry.partition(": ") for entry in entries)
    return [f"- {_SECTIONS[head]}{_named(name)}: {flowing(text)}" for name, _, text in pairs]


def _named(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))


def _prose(text: str) -> list[str]:
    """Paragraphs; what is indented is code, and so is what follows ``::``."""
    lines: list[str] = []
    for paragraph in re.split(r"\n\n(?!    )", text):
        before, _, code = paragraph.partition("\n\n    ")
        code = textwrap.dedent(f"    {code}") if code else ""
        if before.startswith("    "):
            before, code = "", textwrap.dedent(before)
        before = flowing(re.sub(r"::$", ":", before)) if before != "::" else ""
        lines += [before, ""] if before else []
        lines += [*_code(code), ""] if code else []
    return lines[:-1]


def _code(text: str) -> list[str]:
    try:
        ast.parse(text)
    except SyntaxError:
        # A command, or a drawing.
        return ["```text", text.rstrip("\n"), "```"]
    return [_NO_PROGRAM, "```python", _formatted(text), "```"]


def _formatted(code: str) -> str:
    """As ruff wants it, which looks at the code in pages, too."""
    command = [sys.executable, "-m", "ruff", "format", "-"]
    return subprocess.run(command, input=code, capture_output=True, text=True, check=True).stdout.rstrip("\n")


def flowing(text: str) -> str:
    words = " ".join(line.strip() for line in text.strip().splitlines())
    return re.sub(r"``(.*?)``", r"`\1`", words)
