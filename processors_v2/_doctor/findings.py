"""What an examination finds."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from processors_v2._errors import StageTrackerError

Level = Literal["ok", "note", "problem"]
"""``note``: it works, and is worth knowing."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: What was looked at, in one word: url, key, connection, schema, migrations, cache, version, objects,
            grants, rls, readers, max_rows, clock, database, folder.
        level: Whether it is as it should be.
        message: What was found.
        remedy: What to do about it; None where there is nothing to do.
    """

    check: str
    level: Level
    message: str
    remedy: str | None = None


def ok(check: str, message: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(check, "ok", message)


def problem(check: str, message: str, remedy: str | None) -> Finding:
    """Return that something is not."""
    return Finding(check, "problem", message, remedy)


def problem_of(check: str, error: StageTrackerError) -> Finding:
    """Return that something is not, in the words of an error."""
    return problem(check, error.message, error.hint)


def passed(findings: Iterable[Finding]) -> set[str]:
    """Return the checks that were passed."""
    return {finding.check for finding in findings if finding.level == "ok"}


def is_green(findings: Iterable[Finding]) -> bool:
    """Whether there is no problem."""
    return all(finding.level != "problem" for finding in findings)
