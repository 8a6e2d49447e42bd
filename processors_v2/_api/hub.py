"""Live events: one reader of the database for all who follow documents through the same tracker.

Every listener has a mark of its own, up to which it was told. A look asks once for all listeners with the same mark, so
that nobody is told anything twice, and a listener that comes late, back or slowly is told what lies behind its mark.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sse_starlette import ServerSentEvent

from processors_v2._api.answers import to_json
from processors_v2._api.trackers import AnyTracker, send
from processors_v2._calls import events
from processors_v2._errors import DatabaseUnavailable, StageTrackerError, UnknownDocument

_logger = logging.getLogger("processors_v2")

# Of get_document_events.
_MOST_DOCUMENTS = 1000


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


class Hub:
    """The reader of one tracker in one event loop, which works while there are listeners.

    Args:
        tracker: What it asks through.
        every: Seconds between two looks.
    """

    def __init__(self, tracker: AnyTracker, every: float) -> None:
        self._tracker = tracker
        self._every = every
        self._listeners: set[Listener] = set()
        self._task: asyncio.Task[None] | None = None
        self._is_away = False

    def add(self, listener: Listener) -> None:
        """Look for it from now on."""
        self._listeners.add(listener)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    def remove(self, listener: Listener) -> bool:
        """Look for it no longer; return whether it was the last one."""
        self._listeners.discard(listener)
        return not self._listeners

    async def _run(self) -> None:
        try:
            while self._listeners:
                await asyncio.sleep(self._every)
                await self._try_to_look()
        except StageTrackerError as error:
            # A token that has expired, for one. Whoever comes back is told by the status of its answer.
            _logger.warning("%d event streams end: %s", len(self._listeners), error)
        except Exception:
            _logger.exception("%d event streams end", len(self._listeners))
        for listener in self._listeners:
            listener.end()

    async def _try_to_look(self) -> None:
        try:
            await self._look()
        except DatabaseUnavailable as error:
            if not self._is_away:
                _logger.warning("event streams wait for the database: %s", error)
            self._is_away = True
            # A crash takes back what was not on disk yet, so the same version may mean another row after it.
            for listener in self._listeners:
                listener.mark = listener.mark._replace(version=None)
            return
        if self._is_away:
            _logger.warning("event streams go on: the database answers again")
        self._is_away = False

    async def _look(self) -> None:
        groups: dict[Mark, list[Listener]] = defaultdict(list)
        for listener in self._listeners:
            if listener.has_room:
                groups[listener.mark].append(listener)
        while groups:
            # A document is asked for once in a call; marks that differ are rare, and the same after the next change.
            asked: dict[str, Mark] = {}
            for mark in groups:
                if len(asked) < _MOST_DOCUMENTS:
                    asked.setdefault(mark.document, mark)
            answers = await ask(self._tracker, asked, retry=False)
            for document, mark in asked.items():
                listeners = groups.pop(mark)
                if document in answers:
                    _tell(listeners, document, answers[document])


class Hubs:
    """The hubs that are at work.

    Args:
        every: Seconds between two looks.
    """

    def __init__(self, every: float) -> None:
        self._every = every
        self._hubs: dict[tuple[asyncio.AbstractEventLoop, AnyTracker], Hub] = {}

    @contextmanager
    def listening(self, tracker: AnyTracker, listener: Listener) -> Iterator[None]:
        """Have a listener told what changes, within the block."""
        key = asyncio.get_running_loop(), tracker
        hub = self._hubs.setdefault(key, Hub(tracker, self._every))
        hub.add(listener)
        try:
            yield
        finally:
            if hub.remove(listener):
                self._hubs.pop(key, None)


async def arrive(tracker: AnyTracker, document: str, after: str | None) -> Listener:
    """Return a listener with its first event: where the document stands, and what has changed since.

    Args:
        tracker: What to ask through.
        document: Its id.
        after: Id of the last event that it was told; None: changes before now are not told.

    Raises:
        UnknownDocument: There is no such document, or it may not be seen.
        InvalidArgument: ``after`` is no id of an event.
    """
    answers = await ask(tracker, {document: None if after is None else Mark(document, after, None)})
    return Listener(*_event_of(document, answers[document]))


async def ask(tracker: AnyTracker, marks: dict[str, Mark | None] | dict[str, Mark], **options: Any) -> dict[str, Any]:
    """Return what get_document_events answers for documents and what was told of them."""
    documents = {
        document: None if mark is None else {"seen": mark.seen, "version": mark.version}
        for document, mark in marks.items()
    }
    return await send(tracker, events.get_document_events(documents, tracker.STAGES), **options)


def _tell(listeners: list[Listener], document: str, answer: dict[str, Any]) -> None:
    try:
        mark, event = _event_of(document, answer)
    except UnknownDocument as error:
        gone = ServerSentEvent(to_json({"document_id": document, "detail": error.message}), event="gone").encode()
        for listener in listeners:
            listener.end(gone)
        return
    for listener in listeners:
        listener.tell(mark, event)


def _event_of(document: str, answer: dict[str, Any]) -> tuple[Mark, bytes]:
    event, known = events.event_of(document, answer)
    data = {"changes": event["changes"], "status": event["status"], "is_open": event["is_open"]}
    sent = ServerSentEvent(to_json(data), event="status", id=event["id"])
    return Mark(document, known["seen"], known["version"]), sent.encode()
