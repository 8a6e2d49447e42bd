"""The endpoints, for an application of FastAPI."""

import hashlib
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Path, Request, Response
from sse_starlette import EventSourceResponse

from processors_v2._api import documented
from processors_v2._api.hub import AnyTracker, Hubs, arrive, send, to_json
from processors_v2._api.listeners import Listener
from processors_v2._api.problems import Route
from processors_v2._calls import arguments, questions
from processors_v2._errors import ConfigurationError

# A proxy may keep nothing that one user may see and another may not.
_HEADERS = {"Cache-Control": "private, no-cache", "Vary": "Authorization"}
# For a stream to end when the server is to stop.
_GRACE_SECONDS = 1.0

_DocumentId = Annotated[
    str,
    Path(
        description="Id of a row of krai_core.documents.",
        json_schema_extra={"format": "uuid"},
        examples=[documented.DOCUMENT_ID],
    ),
]


def create_router(tracker: AnyTracker | Callable[..., Any], *, look_every: float = 0.5) -> APIRouter:
    """Return GET /status/{document_id}, /status/{document_id}/events and /stages/statistics.

    Args:
        tracker: A StageTracker or AsyncStageTracker, with whose rights all callers are answered; or a dependency of
            FastAPI that returns one for a request. Event streams of the same tracker share one reader, so a dependency
            should return the same one to the same user.
        look_every: Seconds between two looks of the event streams at the database, more than 0.

    Raises:
        ConfigurationError: ``tracker`` is none of these.
        InvalidArgument: ``look_every`` is no such number.
    """
    given = Annotated[AnyTracker, Depends(_dependency(tracker))]
    hubs = Hubs(arguments.seconds_of("look_every", look_every))
    router = APIRouter(route_class=Route, tags=["stages"])
    answers: dict[str, Any] = {"response_class": Response, "openapi_extra": documented.IF_NONE_MATCH}

    @router.get("/status/{document_id}", responses=documented.STATUS, **answers)
    async def get_document_status(document_id: _DocumentId, tracker: given, request: Request) -> Response:
        """Everything about one document: its state, current stage, progress in percent, times and stages."""
        call = questions.get_document_status(arguments.document_id(document_id), tracker.STAGES)
        document = await send(tracker, call)
        return _answer(document, request)

    @router.get(
        "/status/{document_id}/events",
        responses=documented.EVENTS,
        response_class=EventSourceResponse,
        openapi_extra=documented.LAST_EVENT_ID,
    )
    async def get_document_events(document_id: _DocumentId, tracker: given, request: Request) -> EventSourceResponse:
        """Server-sent events: where the document stands, then each time that something about it has changed.

        Events are of type `status`. Their data has `changes`: what began and ended since the event before, oldest
        first, each once; `status`: what /status/{document_id} answers; `is_open`: false while nothing runs or may run
        until a person does something. The stream ends after an event of type `gone`: the document was deleted.
        """
        after = request.headers.get("last-event-id") or None
        listener = await arrive(tracker, arguments.document_id(document_id), after)
        return _stream(hubs, tracker, listener)

    @router.get("/stages/statistics", responses=documented.STATISTICS, **answers)
    async def get_statistics(tracker: given, request: Request) -> Response:
        """How many documents are in which state of each stage, and how long these take, in seconds."""
        statistics = await send(tracker, questions.get_stage_statistics(tracker.STAGES))
        return _answer(statistics, request)

    return router


def _answer(value: object, request: Request) -> Response:
    """Return the answer for a value: 304 without a body where the caller has it already.

    Args:
        value: What JSON can carry.
        request: May name what the caller has, in If-None-Match.
    """
    if_none_match = request.headers.get("if-none-match", "")
    body = to_json(value).encode()
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag}
    if _names(if_none_match, tag):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


def _names(header: str, tag: str) -> bool:
    """Whether If-None-Match names the tag, compared weakly as RFC 9110 has it: a proxy that compresses weakens tags."""
    given = [part.strip().removeprefix("W/") for part in header.split(",")]
    return tag in given or given == ["*"]


def _stream(hubs: Hubs, tracker: AnyTracker, listener: Listener) -> EventSourceResponse:
    stops = anyio.Event()

    async def end_with_the_server() -> None:
        await stops.wait()
        listener.end()

    return EventSourceResponse(
        _events(hubs, tracker, listener),
        shutdown_event=stops,
        shutdown_grace_period=_GRACE_SECONDS,
        # Runs beside the stream, and ends with it.
        data_sender_callable=end_with_the_server,
    )


async def _events(hubs: Hubs, tracker: AnyTracker, listener: Listener) -> AsyncIterator[bytes]:
    # Begins with the stream and not before, so that it ends with it.
    with hubs.listening(tracker, listener):
        while (event := await listener.take()) is not None:
            yield event


def _dependency(tracker: Any) -> Callable[..., Any]:
    if isinstance(tracker, AnyTracker):

        async def fixed() -> AnyTracker:
            return tracker

        return fixed
    if not callable(tracker):
        raise _no_tracker("create_router was given", tracker)

    async def checked(found: Annotated[Any, Depends(tracker)]) -> AnyTracker:
        if not isinstance(found, AnyTracker):
            raise _no_tracker("the dependency of create_router returned", found)
        return found

    return checked


def _no_tracker(where: str, found: object) -> ConfigurationError:
    return ConfigurationError(
        f"{where} a {type(found).__name__}, not a tracker",
        hint="Pass a StageTracker, an AsyncStageTracker, or a dependency of FastAPI that returns one",
    )
