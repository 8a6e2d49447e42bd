"""The method ``track`` of a context; _async/tracking.py is the twin."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from processors_v2._tracking import length_of, progress_of

T = TypeVar("T")


class Tracking:
    """The method ``track`` of a context."""

    def update_progress(self, progress: float | None, metadata: Any = None) -> None:
        """Report progress."""
        raise NotImplementedError

    def track(self, iterable: Iterable[T], total: int | None = None, *, unit: str | None = None) -> Iterator[T]:
        """Iterate and report the progress of it.

        Args:
            iterable: What to go through.
            total: Number of items; None: its len().
            unit: Plural name of an item, such as "pages": then metadata has pages_processed and total_pages.

        Yields:
            The items.

        Raises:
            InvalidArgument: No total, and the iterable has no len().
            StageLost: This run is over: stop the work.
        """
        return self._track(iterable, length_of(iterable) if total is None else total, unit)

    def _track(self, iterable: Iterable[T], total: int, unit: str | None) -> Iterator[T]:
        for done, item in enumerate(iterable, 1):
            yield item
            self.update_progress(*progress_of(done, total, unit))
