"""The method ``track`` of a context; _sync/tracking.py is the twin."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any, TypeVar, overload

from processors_v2._tracking import length_of, progress_of

T = TypeVar("T")


class Tracking:
    """The method ``track`` of a context."""

    def update_progress(self, progress: float | None, metadata: Any = None) -> None:
        """Report progress."""
        raise NotImplementedError

    @overload
    def track(self, iterable: Iterable[T], total: int | None = None, *, unit: str | None = None) -> Iterator[T]: ...

    @overload
    def track(
        self, iterable: AsyncIterable[T], total: int | None = None, *, unit: str | None = None
    ) -> AsyncIterator[T]: ...

    def track(
        self, iterable: Iterable[T] | AsyncIterable[T], total: int | None = None, *, unit: str | None = None
    ) -> Iterator[T] | AsyncIterator[T]:
        """Iterate and report the progress of it; ``async for`` over what is asynchronous, ``for`` over the rest.

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
        total = length_of(iterable) if total is None else total
        if isinstance(iterable, AsyncIterable):
            return self._track_async(iterable, total, unit)
        return self._track(iterable, total, unit)

    def _track(self, iterable: Iterable[T], total: int, unit: str | None) -> Iterator[T]:
        for done, item in enumerate(iterable, 1):
            yield item
            self.update_progress(*progress_of(done, total, unit))

    async def _track_async(self, iterable: AsyncIterable[T], total: int, unit: str | None) -> AsyncIterator[T]:
        done = 0
        async for item in iterable:
            done += 1
            yield item
            self.update_progress(*progress_of(done, total, unit))
