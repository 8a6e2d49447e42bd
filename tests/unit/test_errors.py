"""The exception classes, and the words of the database that they stand for."""

import re
from pathlib import Path

from processors_v2 import _errors, errors
from processors_v2.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    InvalidArgument,
    StageTrackerError,
    UnknownDocument,
    UnknownStage,
)

MIGRATIONS = Path(__file__).resolve().parents[2] / "supabase" / "migrations"


def test_the_table_of_words_is_that_of_the_sql_files() -> None:
    """Every word that the migrations raise has a class, and there is no word beside them."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(MIGRATIONS.glob("*.sql")))
    raised = set(re.findall(r"raise_error\(\s*'(\w+)'", text))
    assert len(raised) > 5
    assert set(_errors._BY_WORD) == raised


def test_every_error_is_a_stage_tracker_error() -> None:
    """One except clause catches them all, and the built-in classes that they stand for catch them too."""
    classes = [getattr(errors, name) for name in errors.__all__ if name != "PermanentError"]
    assert all(issubclass(kind, StageTrackerError) for kind in classes)
    assert {kind.__module__ for kind in classes} == {"processors_v2.errors"}
    for kind, builtin in (
        (InvalidArgument, ValueError),
        (UnknownStage, ValueError),
        (UnknownDocument, LookupError),
        (DatabaseUnavailable, ConnectionError),
        (ConfigurationError, ValueError),
    ):
        assert issubclass(kind, builtin)
