"""The endpoints on a real uvicorn server over real PostgREST, and a reader of event streams."""

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from processors_v2._local.process import wait_until
from processors_v2.api import app, create_router
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import AsyncStageTracker, StageTracker
from tests.python.conftest import Database, Proxy, connected

LOOK_EVERY = 0.02


@contextmanager
def served(application: FastAPI) -> Iterator[httpx.Client]:
    """Serve an application on a port of its own; gives a client of it."""
    server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert wait_until(lambda: server.started or not thread.is_alive(), 30)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def app_of(tracker: Any) -> FastAPI:
    """An application with the endpoints of a tracker, which looks often."""
    application = FastAPI()
    application.include_router(create_router(tracker, look_every=LOOK_EVERY))
    return application


@asynccontextmanager
async def following(
    client: httpx.AsyncClient, document: str, **headers: str
) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """Open an event stream; gives its events: id, event and data, and comments as they come."""
    async with client.stream("GET", f"/status/{document}/events", headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield events_of(response)


async def events_of(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Give the events of a stream."""
    event: dict[str, Any] = {}
    async for line in response.aiter_lines():
        if not line:
            yield event
            event = {}
            continue
        name, _, value = line.partition(": ")
        event[name or "comment"] = json.loads(value) if name == "data" else value


def in_loop(served_by: httpx.Client, work: Callable[[httpx.AsyncClient], Any]) -> Any:
    """Run a coroutine function with a client for many streams at once."""

    async def main() -> Any:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=served_by.base_url, trust_env=False, timeout=60, limits=limits) as client:
            return await asyncio.wait_for(work(client), 60)

    return asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what streams bring about, in a thread so that they go on."""
    assert await asyncio.to_thread(wait_until, condition, 40)


@pytest.fixture(scope="session")
def db(local: LocalSupabase) -> Iterator[Database]:
    """The database of the session's stack."""
    with connected(local) as database:
        yield database


@pytest.fixture
def document(db: Database) -> str:
    """Id of a new document, all of its stages pending."""
    return db.document()


@pytest.fixture(scope="session")
def tracker(local: LocalSupabase) -> StageTracker:
    """Changes what the endpoints tell."""
    return StageTracker(local.client())


@pytest.fixture(scope="session")
def api(local: LocalSupabase) -> Iterator[httpx.Client]:
    """The endpoints of an asynchronous tracker with all rights."""
    tracker = AsyncStageTracker(asyncio.run(local.async_client()))
    with served(app_of(tracker)) as client:
        yield client


def forget_project(patch: pytest.MonkeyPatch) -> None:
    """Take the variables of a Supabase project out of the environment."""
    for name in [name for name in os.environ if name.startswith("SUPABASE_")]:
        patch.delenv(name)


@pytest.fixture(scope="session")
def gateway(local: LocalSupabase) -> Iterator[Proxy]:
    """What knows /rest/v1 in a project of Supabase."""
    proxy = Proxy(local.url)
    yield proxy
    proxy.reset()
    proxy.down()
    proxy.pool.close()


@pytest.fixture(scope="session")
def anon_key(local: LocalSupabase) -> str:
    """What everybody may know."""
    return local.key("anon")


@pytest.fixture(scope="session")
def alone(anon_key: str, gateway: Proxy) -> Iterator[httpx.Client]:
    """The application of its own, set up by the environment."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            forget_project(patch)
            patch.setenv("SUPABASE_URL", gateway.url)
            patch.setenv("SUPABASE_ANON_KEY", anon_key)
            client = stack.enter_context(served(app))
        yield client
