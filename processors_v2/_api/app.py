"""The endpoints as an application of their own, where callers have the rights of the tokens that they bring."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import lru_cache
from importlib.metadata import version
from typing import Annotated

import httpx
import supabase
from fastapi import Depends, FastAPI, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from processors_v2._api.router import create_router
from processors_v2._async.pool import new_http_client
from processors_v2._async.tracker import AsyncStageTracker
from processors_v2._errors import AccessDenied
from processors_v2._transport import environment

# Seconds. A caller should hear that the database is away before it gives up itself.
_TIMEOUT = 5.0
_RETRY_FOR = 3.0
# Trackers that are kept, so that the event streams of one token share a reader.
_MOST_TOKENS = 1000
# RFC 6750; anything else could not be sent on.
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")

_bearer = HTTPBearer(
    auto_error=False, bearerFormat="JWT", description="Token of a signed-in user. What it may see, the policies decide."
)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    url, key = environment.publishable_project_from_env()
    # The one pool of connections under all trackers.
    async with new_http_client() as http:
        app.state.tracker_of = _trackers(url, key, http)
        yield


def _trackers(url: str, key: str, http: httpx.AsyncClient) -> Callable[[str], AsyncStageTracker]:
    @lru_cache(_MOST_TOKENS)
    def tracker_of(token: str) -> AsyncStageTracker:
        options = supabase.AsyncClientOptions(
            headers={"Authorization": f"Bearer {token}"}, httpx_client=http, auto_refresh_token=False
        )
        return AsyncStageTracker(supabase.AsyncClient(url, key, options), timeout=_TIMEOUT, retry_for=_RETRY_FOR)

    # Without a token the publishable key is what the caller has: it is anon.
    return lambda token: tracker_of(token or key)


async def _tracker_of_caller(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> AsyncStageTracker:
    token = "" if credentials is None else credentials.credentials
    if token and not _TOKEN.fullmatch(token):
        error = AccessDenied("the token is malformed", hint="Send Authorization: Bearer <JWT>")
        error.http_status = 401
        raise error
    tracker: AsyncStageTracker = request.app.state.tracker_of(token)
    return tracker


app = FastAPI(
    title="Stage tracker",
    version=version("stage-tracker"),
    description="Where every document stands, stage by stage.",
    lifespan=_lifespan,
)
app.include_router(create_router(_tracker_of_caller))
