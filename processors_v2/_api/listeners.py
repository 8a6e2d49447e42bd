"""Who follows a document, and up to where it was told."""

import asyncio
from typing import NamedTuple


class Mark(NamedTuple):
    """What a listener was told of its document.

    Attributes:
        document: Its id.
        seen: The changes up to here.
        version: The row as it was told; None: tell it in any case.
    """

    document: str
    seen: str
    version: str | None


class Listener:
    """Somebody who follows a document.

    It holds one event at most. While that is not taken it is left out of the looks: memory does not grow, nobody else
    waits, and what happens meanwhile is in the event after.

    Args:
        mark: What it was told with the first event.
        first: That event.
    """

    def __init__(self, mark: Mark, first: bytes) -> None:
        self.mark = mark
        self._next: bytes | None = first
        self._is_over = False
        self._changed = asyncio.Event()

    @property
    def has_room(self) -> bool:
        """Whether it can be told something."""
        return self._next is None and not self._is_over

    def tell(self, mark: Mark, event: bytes) -> None:
        """Give it the next event."""
        self.mark, self._next = mark, event
        self._changed.set()

    def end(self, last: bytes | None = None) -> None:
        """Let it end, after a last event."""
        self._next, self._is_over = self._next or last, True
        self._changed.set()

    async def take(self) -> bytes | None:
        """Return the next event when there is one; None: there will be no more."""
        while self.has_room:
            self._changed.clear()
            await self._changed.wait()
        event, self._next = self._next, None
        return event
