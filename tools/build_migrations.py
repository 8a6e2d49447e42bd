"""Builds supabase/migrations from supabase/sql, the source.

    python tools/build_migrations.py                      make the files of the release at work
    python tools/build_migrations.py --check              tell whether they are as the source says
    python tools/build_migrations.py --release 20270115000000    begin the files of the next release

A release has at most three files: *objects* (the whole source but the two below), *repair* and *index*. These two come
again only when their text has changed. Released files never change: what is built is the newest set.
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "supabase" / "sql"
MADE = ROOT / "supabase" / "migrations"
OBJECTS, REPAIR, INDEX = "stage_tracker", "stage_tracker_repair", "stage_tracker_index"
# Sources that become a file of their own; all others are objects.
_OWN_FILE = {"60_repair": REPAIR, "70_index": INDEX}
_SETTINGS = "set local lock_timeout = '900ms';\nset local client_min_messages = warning;\n"
# psql goes on after an error unless it is told otherwise: behind a preflight that failed, no block does anything.
_GUARD = "do $$ begin perform r.claim_id from krai_core.stage_runs r limit 0; end $$;\n"
_SECTION = "-- ======== {name} ========\n"
_SECTION_NAME = re.compile(r"^-- ======== (\S+) ========$", re.MULTILINE)
_BEGIN = re.compile(r"^begin;$", re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """A file of supabase/sql.

    Attributes:
        name: Its name without the ending.
        text: What is in it.
    """

    name: str
    text: str

    @property
    def has_blocks(self) -> bool:
        """Whether it has transactions of its own, because it locks what others use."""
        return bool(_BEGIN.search(self.text))


def sources() -> list[Source]:
    """Read the source, in its order."""
    return [Source(path.stem, path.read_text(encoding="utf-8")) for path in sorted(SOURCE.glob("*.sql"))]


def objects(parts: list[Source], previous: str | None) -> str:
    """Put the file of the objects together.

    Consecutive sources without transactions of their own share one, so that functions and grants change at once.
    """
    blocks: list[str] = []
    shared: list[str] = []

    def close() -> None:
        if shared:
            guard = _GUARD if blocks else ""
            blocks.append("begin;\n" + _SETTINGS + guard + "\n" + "\n".join(shared) + "\ncommit;\n")
            shared.clear()

    for part in parts:
        text = _SECTION.format(name=part.name) + part.text
        if part.has_blocks:
            close()
            blocks.append(text.replace(_SETTINGS, _SETTINGS + _GUARD))
        else:
            shared.append(text)
    close()
    return _header(parts, previous) + "\n".join(blocks)


def _header(parts: list[Source], previous: str | None) -> str:
    lines = [
        "-- Stage tracker: all its objects, made from supabase/sql by tools/build_migrations.py. Do not edit it.",
        "-- Safe to run again, over any older state. Blocks are short where they lock what others use.",
    ]
    if previous is not None:
        before = sections(previous)
        changed = [part.name for part in parts if before.get(part.name) != part.text.strip()]
        lines.append("-- Changed since the release before: " + (", ".join(changed) or "nothing") + ".")
    return "\n".join(lines) + "\n\n"


def sections(made: str) -> dict[str, str]:
    """Take a made file apart again: the text of each source in it."""
    pieces = _SECTION_NAME.split(made)[1:]
    found = {}
    for name, text in zip(pieces[::2], pieces[1::2], strict=True):
        plain = text.replace(_SETTINGS + _GUARD, _SETTINGS)
        # What closes a shared block, and opens the next, belongs to no source.
        if not _BEGIN.search(plain.split("\ncommit;\n")[0]):
            plain = plain.split("\ncommit;\n")[0]
        found[name] = re.sub(r"\nbegin;\n" + re.escape(_SETTINGS) + r"\s*$", "", plain).strip()
    return found


def build(time: str) -> dict[str, str]:
    """Make the files of a release: name and text of each.

    Args:
        time: When the release began, YYYYMMDDHHMMSS.
    """
    parts = sources()
    older = sorted(path for path in MADE.glob("*.sql") if path.name[:14] < time)
    newest = {re.sub(r"^\d+_|\.sql$", "", path.name): path.read_text(encoding="utf-8") for path in older}
    made = {OBJECTS: objects([part for part in parts if part.name not in _OWN_FILE], newest.get(OBJECTS))}
    for part in parts:
        if part.name in _OWN_FILE and newest.get(_OWN_FILE[part.name]) != part.text:
            made[_OWN_FILE[part.name]] = part.text
    return {f"{int(time) + number}_{topic}.sql": text for number, (topic, text) in enumerate(made.items())}


def main() -> int:
    """Build, check, or begin a release."""
    parser = argparse.ArgumentParser(description="Build supabase/migrations from supabase/sql.")
    parser.add_argument("--check", action="store_true", help="change nothing, exit with 1 when something would change")
    parser.add_argument("--release", metavar="YYYYMMDDHHMMSS", help="begin the files of the next release at this time")
    options = parser.parse_args()
    time = options.release or max(path.name[:14] for path in MADE.glob(f"*_{OBJECTS}.sql"))
    made = build(time)
    stale = {path.name for path in MADE.glob("*.sql") if path.name[:14] >= time} - made.keys()
    wrong = {name for name, text in made.items() if not _is_as(MADE / name, text)} | stale
    if options.check:
        for name in sorted(wrong):
            print(f"supabase/migrations/{name} is not what supabase/sql says: run python tools/build_migrations.py")
        return bool(wrong)
    for name in stale:
        (MADE / name).unlink()
    for name, text in made.items():
        (MADE / name).write_text(text, encoding="utf-8")
    return 0


def _is_as(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
