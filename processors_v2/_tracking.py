"""How far a loop is. No I/O."""

from collections.abc import Sized

from processors_v2._errors import InvalidArgument


def length_of(iterable: object) -> int:
    """Return the number of items.

    Raises:
        InvalidArgument: The iterable does not know it.
    """
    if not isinstance(iterable, Sized):
        raise InvalidArgument(
            f"track() of a {type(iterable).__name__} needs a total", hint="Pass total=<number of items>"
        )
    return len(iterable)


def progress_of(done: int, total: int, unit: str | None) -> tuple[float, dict[str, int] | None]:
    """Return percent and metadata after so many items; a total that was too small grows with them."""
    known = max(total, done)
    return 100 * done / known, {f"{unit}_processed": done, f"total_{unit}": known} if unit else None
