"""Errors of the tracker as HTTP answers, all in one shape; never a 500."""

import logging
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from processors_v2._api.shapes import Problem
from processors_v2._errors import (
    AccessDenied,
    DatabaseUnavailable,
    InvalidArgument,
    StageTrackerError,
    UnknownDocument,
)

_logger = logging.getLogger("processors_v2")

_RETRY_AFTER_SECONDS = 2

# What Postgres itself finds invalid came with the token, since arguments are checked before they are sent: a role that
# there is not, a claim that a policy casts.
_INVALID_CLAIMS = {"22023", "22P02"}
# It has the same code as a right that a role lacks. In a database of another language this stays 403.
_NO_ROLE_OF_CALLERS = "permission denied to set role"
_SIGN_IN = "Send the token of a signed-in user of this project"


class Route(APIRoute):
    """A route whose errors are answered in one shape, whatever the application around it does with others."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler of FastAPI, and around it what its errors become."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except StageTrackerError as error:
                return answer_of(error)

        return handled


def answer_of(error: StageTrackerError) -> Response:
    """Return what a caller is told about an error."""
    status = _status_of(error)
    hint = _SIGN_IN if _is_about_the_token(error) else error.hint
    told = Problem(detail=error.message, hint=hint, error=error.error)
    headers = {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers = {"WWW-Authenticate": "Bearer"}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        # Words about the inside, such as a host or an old schema, are for those who run the server.
        _logger.log(logging.WARNING if isinstance(error, DatabaseUnavailable) else logging.ERROR, "HTTP 503: %s", error)
        told = Problem(detail="the database cannot be asked now", hint="Try again later", error="unavailable")
        headers = {"Retry-After": str(_RETRY_AFTER_SECONDS)}
    return JSONResponse(told.model_dump(), status, headers)


def _status_of(error: StageTrackerError) -> HTTPStatus:
    if isinstance(error, UnknownDocument):
        return HTTPStatus.NOT_FOUND
    if _is_about_the_token(error):
        return HTTPStatus.UNAUTHORIZED
    if isinstance(error, InvalidArgument):
        return HTTPStatus.UNPROCESSABLE_ENTITY
    if isinstance(error, AccessDenied):
        # PostgREST tells whether there was nobody signed in, or somebody who may not.
        is_unknown = error.http_status == HTTPStatus.UNAUTHORIZED
        return HTTPStatus.UNAUTHORIZED if is_unknown else HTTPStatus.FORBIDDEN
    return HTTPStatus.SERVICE_UNAVAILABLE


def _is_about_the_token(error: StageTrackerError) -> bool:
    """Whether PostgREST took a token that the database can do nothing with."""
    if isinstance(error, AccessDenied):
        return error.message.startswith(_NO_ROLE_OF_CALLERS)
    return error.http_status == HTTPStatus.BAD_REQUEST and error.error is None and error.code in _INVALID_CLAIMS
