"""Which version of the SQL this client is made for, and whether a database has it."""

from processors_v2._errors import StageTrackerError, VersionMismatch

# As in krai_core.schema_version(); a test compares the two.
SCHEMA_VERSION = "0.1.1"

# Asked once by each process and not once by each tracker, since a web application makes one for each request.
_checked: set[str] = set()


def is_known(place: str) -> bool:
    """Whether a database was found to have the right version."""
    return place in _checked


def check(found: str, host: str, place: str) -> None:
    """Remember a database if it has the version that this client is made for.

    Args:
        found: What its schema_version says.
        host: Where it is, for the message.
        place: Which database it is.

    Raises:
        VersionMismatch: It is older or newer.
    """
    if found == SCHEMA_VERSION:
        _checked.add(place)
        return
    try:
        is_older = _parts(found) < _parts(SCHEMA_VERSION)
    except ValueError:
        raise StageTrackerError(
            f"schema_version at {host} is {found!r}",
            hint="Expected numbers such as 0.1: is krai_core the stage tracker's?",
        ) from None
    raise VersionMismatch(
        f"krai_core at {host} has version {found}, and this client is made for {SCHEMA_VERSION}",
        hint="Apply the newer migrations: stage-tracker init --update, then supabase db push "
        "(--remote for a linked project)"
        if is_older
        else "Install the newer client: pip install --upgrade stage-tracker",
        details={"database": found, "client": SCHEMA_VERSION},
    )


def _parts(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
