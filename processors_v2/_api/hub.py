"""Live events: one reader of the database for all who follow documents through the same tracker.

Every listener has a mark of its own, up to which it was told. A look asks once for all listeners with the same mark, so
that nobody is told anything twice, and a listener that comes late, back or slowly is told what lies behind its mark.
"""

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from fastapi.concurrency import run_in_threadpool
from sse_starlette import ServerSentEvent

from processors_v2._api.listeners import Listener, Mark
from processors_v2._async.tracker import AsyncStageTracker
from processors_v2._calls import events
from processors_v2._calls.call import Call
from processors_v2._errors import DatabaseUnavailable, StageTrackerError, UnknownDocument
from processors_v2._sync.tracker import StageTracker

T = TypeVar("T")

AnyTracker = StageTracker | AsyncStageTracker

_logger = logging.getLogger("processors_v2")

# Of get_document_events.
_MOST_DOCUMENTS = 1000


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


async def send(tracker: AnyTracker, call: Call[T], **options: Any) -> T:
    """Send a call while the event loop goes on.

    Args:
        tracker: A synchronous one waits in a thread.
        call: The request.
        **options: Of the transport.
    """
    if isinstance(tracker, AsyncStageTracker):
        return await tracker._transport.send(call, **options)  # noqa: SLF001 - what its methods do
    return await run_in_threadpool(partial(tracker._transport.send, call, **options))  # noqa: SLF001 - as above


def to_json(value: object) -> str:
    """Return a value as JSON on one line."""
    try:
        return _dump(value)
    except ValueError:
        # A number in somebody's metadata that no float holds was read as infinity, for which JSON has no word.
        return _dump(json.loads(json.dumps(value), parse_constant=lambda _: None))


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
