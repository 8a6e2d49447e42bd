"""Exit codes, and which error gives which. They are stable: scripts rely on them."""

from enum import IntEnum

from processors_v2 import _errors


class Exit(IntEnum):
    """What the exit code says."""

    OK = 0
    NO = 1
    """The answer is no, or something failed that none of the others tells."""
    USAGE = 2
    """The command line is wrong."""
    NOT_FOUND = 3
    """There is no such document or stage."""
    CONFLICT = 4
    """It does not fit the state of the stage; nothing was changed."""
    SETUP = 5
    """Key, rights, schema or environment."""
    AWAY = 6
    """The database did not answer."""
    INTERRUPTED = 130


_BY_CLASS: tuple[tuple[type[Exception], Exit], ...] = (
    (_errors.UnknownDocument, Exit.NOT_FOUND),
    (_errors.UnknownStage, Exit.NOT_FOUND),
    (_errors.InvalidArgument, Exit.USAGE),
    (_errors.StageConflict, Exit.CONFLICT),
    (_errors.DatabaseUnavailable, Exit.AWAY),
    (_errors.AccessDenied, Exit.SETUP),
    (_errors.SchemaNotExposed, Exit.SETUP),
    (_errors.MigrationMissing, Exit.SETUP),
    (_errors.VersionMismatch, Exit.SETUP),
    (_errors.ConfigurationError, Exit.SETUP),
)


def code_of(error: _errors.StageTrackerError) -> Exit:
    """Return the exit code for an error."""
    return next((code for kind, code in _BY_CLASS if isinstance(error, kind)), Exit.NO)
