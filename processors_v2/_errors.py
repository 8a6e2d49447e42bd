"""The exception classes, and which answer of the database becomes which. People import ``processors_v2.errors``.

The SQL functions raise with a machine word in DETAIL; ``_BY_WORD`` is the one table from word to class. Message texts
are never matched.
"""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class StageTrackerError(Exception):
    """Base of all errors of the stage tracker.

    Attributes:
        message: What happened, with the ids and values concerned.
        hint: What to do about it, or None.
        code: SQLSTATE (``PT409``, ``22023``, ...), PostgREST code (``PGRST106``) or None.
        error: Machine word of the SQL functions (``lease_lost``, ``unknown_stage``, ...) or None.
        details: Further values of the error, such as ``document_id``, ``stage`` and ``status``.
        http_status: Status of PostgREST's answer, or None where it did not come as one.
    """

    http_status: int | None = None

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        code: str | None = None,
        error: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
        self.error = error
        self.details: dict[str, Any] = dict(details or {})

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message

    @property
    def document_id(self) -> str | None:
        """Id of the document concerned, or None."""
        return self.details.get("document_id")

    @property
    def stage(self) -> str | None:
        """Name of the stage concerned, or None."""
        return self.details.get("stage")


class InvalidArgument(StageTrackerError, ValueError):
    """A value that the database refuses, or that JSON cannot carry; nothing was changed."""


class UnknownStage(InvalidArgument):
    """There is no such stage in krai_core.stages; nothing was changed."""


class UnknownDocument(StageTrackerError, LookupError):
    """There is no such row in krai_core.documents, or none that this key may see."""


class StageConflict(StageTrackerError):
    """The call does not fit the state of the stage; nothing was changed."""


class StageBusy(StageConflict):
    """Another run holds the stage."""


class StageLost(StageConflict):
    """This run is over: it was taken over, closed or cancelled by somebody else. Stop the work, write nothing more."""


class StageCancelled(StageLost):
    """Somebody took this run away on purpose: the document was cancelled or the stage reset. Stop the work."""


class PermanentError(Exception):
    """Raised by a handler: this stage of this document will never succeed, so that it is not tried again."""


class AccessDenied(StageTrackerError):
    """The key may not do this."""


class SchemaNotExposed(StageTrackerError):
    """PostgREST does not serve the schema krai_core."""


class MigrationMissing(StageTrackerError):
    """The schema is served, but not the function or view that was called."""


class VersionMismatch(StageTrackerError):
    """The database has another version of the stage tracker than this client."""


class DatabaseUnavailable(StageTrackerError, ConnectionError):
    """No answer within the time bound. Whether a call that was sent took effect is not known."""


class ConfigurationError(StageTrackerError, ValueError):
    """The client, the key or the environment cannot be used."""


_BY_WORD: Mapping[str, type[StageTrackerError]] = MappingProxyType(
    {
        "unknown_document": UnknownDocument,
        "unknown_stage": UnknownStage,
        "stage_disabled": StageConflict,
        "conflict": StageConflict,
        "lease_lost": StageLost,
        "invalid_document_id": InvalidArgument,
        "invalid_progress": InvalidArgument,
        "invalid_metadata": InvalidArgument,
        "invalid_lease": InvalidArgument,
        "invalid_runs": InvalidArgument,
        "claim_in_progress": StageConflict,
        "invalid_documents": InvalidArgument,
        "invalid_limit": InvalidArgument,
        "invalid_outcomes": InvalidArgument,
        "invalid_cursor": InvalidArgument,
        "invalid_stage": InvalidArgument,
        "invalid_status": InvalidArgument,
        "invalid_age": InvalidArgument,
        "invalid_fingerprint": InvalidArgument,
    }
)

_NOT_EXPOSED = (
    'Local: add "krai_core" to schemas under [api] in supabase/config.toml, then supabase stop and supabase start. '
    "Hosted: Project Settings > Data API > Exposed schemas. Self-hosted: PGRST_DB_SCHEMAS"
)
_NOT_MIGRATED = (
    "Apply the migrations of the stage tracker (supabase db push, --remote for a linked project); if they are "
    "applied, the schema cache is stale: run notify pgrst, 'reload schema' in the SQL editor"
)
_DENIED = (
    "Workers need the secret key (or the service_role key) of the project; signed-in users may read what the policies "
    "of krai_core.documents let them see"
)

# What PostgREST and Postgres say of themselves, by code or the beginning of it: class and remedy.
_BY_CODE: tuple[tuple[str, type[StageTrackerError], str], ...] = (
    ("PGRST106", SchemaNotExposed, _NOT_EXPOSED),
    ("PGRST20", MigrationMissing, _NOT_MIGRATED),
    ("42883", MigrationMissing, _NOT_MIGRATED),
    ("42P01", MigrationMissing, _NOT_MIGRATED),
    ("3F000", MigrationMissing, _NOT_MIGRATED),
    ("42501", AccessDenied, _DENIED),
    ("PGRST30", AccessDenied, _DENIED),
    ("22", InvalidArgument, ""),
)


def from_answer(status: int, body: object) -> StageTrackerError:
    """Return the exception for an answer of PostgREST that is an error.

    Args:
        status: HTTP status.
        body: The decoded JSON body, or the text where it is no JSON.
    """
    error = _from_body(status, body if isinstance(body, dict) else {})
    error.http_status = status
    return error


def _from_body(status: int, answer: Mapping[str, Any]) -> StageTrackerError:
    code = str(answer.get("code") or status)
    message = str(answer.get("message") or f"PostgREST answered HTTP {status}").rstrip(".")
    hint = answer.get("hint")
    details = _as_mapping(answer.get("details"))
    word = details.pop("error", None)
    if isinstance(word, str) and word in _BY_WORD:
        return from_word({**details, "message": message, "hint": hint, "error": word}, code)
    for prefix, kind, remedy in _BY_CODE:
        if code.startswith(prefix):
            return kind(message, hint=remedy or hint, code=code, details=details)
    if status in {401, 403}:
        return AccessDenied(message, hint=_DENIED, code=code, details=details)
    return StageTrackerError(message, hint=hint, code=code, details=details)


def from_word(answer: Mapping[str, Any], code: str | None = None) -> StageTrackerError:
    """Return the exception for an error that has a machine word, such as one in the answer of finish_stages.

    Args:
        answer: error (the word), message, hint and further values.
        code: SQLSTATE, where it is known.
    """
    word = answer.get("error")
    details = {name: value for name, value in answer.items() if name not in {"ok", "error", "message", "hint"}}
    kind = _BY_WORD.get(str(word), StageTrackerError)
    if kind is StageLost and details.get("run") == "cancelled":
        kind = StageCancelled
    return kind(str(answer.get("message")), hint=answer.get("hint"), code=code, error=word, details=details)


def _as_mapping(details: object) -> dict[str, Any]:
    if not isinstance(details, str):
        return {}
    try:
        decoded = json.loads(details)
    except ValueError:
        return {"details": details}
    return decoded if isinstance(decoded, dict) else {"details": details}


for _public in list(globals().values()):
    # Tracebacks and pickles name the module that people import from.
    if isinstance(_public, type) and issubclass(_public, StageTrackerError | PermanentError):
        _public.__module__ = "processors_v2.errors"
