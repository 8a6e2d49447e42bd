"""What changes, as it changes."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any, ClassVar

from processors_v2._async.transport import AsyncTransport
from processors_v2._calls import arguments, events
from processors_v2._shapes.events import WatchEvent


class AsyncEvents:
    """Methods of AsyncStageTracker."""

    STAGES: ClassVar[list[str]]

    _transport: AsyncTransport

    async def watch(
        self, document_id: str | uuid.UUID, *, every: float = 1.0, after: str | None = None
    ) -> AsyncIterator[WatchEvent]:
        """Follow a document: first where it stands, then each time that something about it has changed.

        Every change of a stage is told once, also one that came and went between two looks. Ends when nothing of the
        document runs or may run any more, which is when it is completed, or waits for a person.

        Args:
            document_id: The document.
            every: Seconds between two looks, more than 0; each costs the database an index lookup while nothing
                changes.
            after: ``id`` of the last event that was seen: the first one then tells what has changed since; None: the
                changes before now are not told.

        Yields:
            What has changed since the event before, and the state as get_document_status gives it.

        Raises:
            UnknownDocument: There is none, it may not be seen, or it was deleted meanwhile.
            InvalidArgument: ``every`` or ``after`` cannot be used.
        """
        document = arguments.document_id(document_id)
        seconds = arguments.seconds_of("every", every)
        known: dict[str, Any] | None = None if after is None else {"seen": after}
        while True:
            answer = await self._transport.send(events.get_document_events({document: known}, self.STAGES))
            if document in answer:
                event, known = events.event_of(document, answer[document])
                yield event
                if not event["is_open"]:
                    return
            await asyncio.sleep(seconds)
