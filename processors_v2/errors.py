"""What can go wrong, as exception classes.

::

    StageTrackerError                  base of all; what PostgREST or Postgres said is in its attributes
    ├── InvalidArgument (ValueError)   a value that the database refuses, or that JSON cannot carry
    │   └── UnknownStage               no such stage in krai_core.stages
    ├── UnknownDocument (LookupError)  no such row in krai_core.documents, or none that this key may see
    ├── StageConflict                  the call does not fit the state of the stage
    │   ├── StageBusy                  another run holds the stage
    │   └── StageLost                  this run is over: taken over, closed or cancelled by somebody else
    │       └── StageCancelled         on purpose: the document was cancelled or the stage reset
    ├── AccessDenied                   the key may not do this
    ├── SchemaNotExposed               PostgREST does not serve the schema krai_core
    ├── MigrationMissing               the schema is served, but not the function: migrations or schema cache
    ├── VersionMismatch                the database is older or newer than this client
    ├── DatabaseUnavailable (ConnectionError)   no answer within the time bound
    └── ConfigurationError (ValueError)         wrong client, key or environment

    PermanentError                     raised by your own code: this will never succeed, so that it is not tried again
"""

from processors_v2._errors import (
    AccessDenied,
    ConfigurationError,
    DatabaseUnavailable,
    InvalidArgument,
    MigrationMissing,
    PermanentError,
    SchemaNotExposed,
    StageBusy,
    StageCancelled,
    StageConflict,
    StageLost,
    StageTrackerError,
    UnknownDocument,
    UnknownStage,
    VersionMismatch,
)

__all__ = [
    "AccessDenied",
    "ConfigurationError",
    "DatabaseUnavailable",
    "InvalidArgument",
    "MigrationMissing",
    "PermanentError",
    "SchemaNotExposed",
    "StageBusy",
    "StageCancelled",
    "StageConflict",
    "StageLost",
    "StageTrackerError",
    "UnknownDocument",
    "UnknownStage",
    "VersionMismatch",
]
