"""GET /status/{document_id} and GET /stages/statistics in an application of one's own."""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from processors_v2.api import create_router
from processors_v2.errors import InvalidArgument
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import AsyncStageTracker, StageTracker
from tests.api.conftest import app_of, served

# What goes on by itself between two questions.
RESTLESS = {"oldest_waiting", "throughput_per_hour"}


@pytest.fixture
def rest(local: LocalSupabase) -> Callable[..., Any]:
    """Ask PostgREST itself."""

    def ask(function: str, role: str = "service_role", **parameters: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {local.key(role)}", "Accept-Profile": "krai_core"}
        return httpx.get(f"{local.url}/rpc/{function}", params=parameters, headers=headers, trust_env=False)

    return ask


@pytest.fixture(scope="module", params=["asynchronous", "synchronous", "postgres", "dependency"])
def any_api(request: pytest.FixtureRequest, local: LocalSupabase) -> Iterator[httpx.Client]:
    """The endpoints over each kind of tracker."""
    kinds: dict[str, Callable[[], Any]] = {
        "asynchronous": lambda: AsyncStageTracker(asyncio.run(local.async_client())),
        "synchronous": lambda: StageTracker(local.client()),
        "postgres": lambda: StageTracker.from_postgres(local.database_url),
        "dependency": lambda: lambda: StageTracker(local.client()),
    }
    with served(app_of(kinds[request.param]())) as client:
        yield client


def test_a_status_is_what_postgrest_answers(
    any_api: httpx.Client, rest: Callable[..., Any], tracker: StageTracker, document: str
) -> None:
    """The JSON of a document is that of get_document_status, through whatever tracker."""
    tracker.complete_stage(document, "upload", {"größe": 1.5, "pages": [1, None, True]})
    tracker.start_stage(document, "text_extraction")
    tracker.update_progress(document, "text_extraction", 45.5, {"pages_processed": 2000})
    answer = any_api.get(f"/status/{document}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == rest("get_document_status", p_document_id=document).json()
    assert answer.json()["progress"] == 12.5
    assert list(answer.json()["stage_status"]) == StageTracker.STAGES


def test_statistics_are_what_postgrest_answers(any_api: httpx.Client, rest: Callable[..., Any], document: str) -> None:
    """The JSON of the statistics is that of get_stage_statistics, the time included."""
    assert document
    found, expected = any_api.get("/stages/statistics").json(), rest("get_stage_statistics").json()
    assert set(found) == {"timestamp", "stages"}
    assert found["timestamp"] <= expected["timestamp"]
    for stages in (found["stages"], expected["stages"]):
        for counts in stages.values():
            assert set(counts) >= RESTLESS
            for name in RESTLESS:
                del counts[name]
    assert found["stages"] == expected["stages"]
    assert list(found["stages"])[:8] == StageTracker.STAGES


def test_an_unchanged_status_is_not_sent_again(api: httpx.Client, tracker: StageTracker, document: str) -> None:
    """If-None-Match with the ETag gets 304 without a body until something changes, also weakened and in a list."""
    first = api.get(f"/status/{document}")
    tag = first.headers["etag"]
    assert not tag.startswith("W/")
    for header in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = api.get(f"/status/{document}", headers={"If-None-Match": header})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert api.get(f"/status/{document}", headers={"If-None-Match": '"other"'}).json() == first.json()
    tracker.start_stage(document, "upload")
    changed = api.get(f"/status/{document}", headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag


def test_an_answer_is_for_its_caller_alone(api: httpx.Client, document: str) -> None:
    """Caches in between may not give it to somebody else, nor without asking again."""
    headers = api.get(f"/status/{document}").headers
    assert (headers["cache-control"], headers["vary"]) == ("private, no-cache", "Authorization")


@pytest.mark.parametrize("path", ["/status/{}", "/status/{}/events"])
def test_an_unknown_document_is_404(api: httpx.Client, path: str) -> None:
    """The answer says which document it is."""
    missing = str(uuid.uuid4())
    answer = api.get(path.format(missing))
    assert answer.status_code == 404
    assert set(answer.json()) == {"detail", "hint", "error"}
    assert missing in answer.json()["detail"]
    assert answer.json()["error"] == "unknown_document"


@pytest.mark.parametrize("path", ["/status/{}", "/status/{}/events"])
@pytest.mark.parametrize("malformed", ["manual.pdf", "1234", "%00", "%ff%fe", "' or 1=1"])
def test_a_malformed_id_is_422(api: httpx.Client, path: str, malformed: str) -> None:
    """The answer names the value and says what an id is, in the same shape as any other."""
    answer = api.get(path.format(malformed))
    assert answer.status_code == 422
    assert answer.json()["error"] == "invalid_document_id"
    assert "is not a UUID" in answer.json()["detail"]
    assert answer.json()["hint"] == "Pass the id of a row of krai_core.documents"


def test_a_number_that_no_float_holds_is_no_server_error(api: httpx.Client, db: Any, document: str) -> None:
    """Metadata written by SQL may hold one: the answer stays JSON, with null in its place."""
    db.one(
        "update krai_core.documents set stage_status = jsonb_set(stage_status, '{upload,metadata,n}', %s::jsonb)"
        " where id = %s returning 1",
        f"1{'0' * 400}.5",
        document,
    )
    assert api.get(f"/status/{document}").json()["stage_status"]["upload"]["metadata"] == {"n": None}


@pytest.mark.parametrize(
    ("role", "path", "status"),
    [
        ("anon", "/status/{}", 401), ("anon", "/stages/statistics", 401), ("anon", "/status/{}/events", 401),
        ("authenticated", "/stages/statistics", 403),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [StageTracker, AsyncStageTracker])
def test_rights_are_those_of_the_tracker(
    local: LocalSupabase, document: str, role: str, path: str, status: int, kind: type
) -> None:
    """What the database refuses is refused with the status of PostgREST."""
    tracker = kind(local.client(role) if kind is StageTracker else asyncio.run(local.async_client(role)))
    with served(app_of(tracker)) as client:
        answer = client.get(path.format(document))
    assert answer.status_code == status
    assert "permission denied" in answer.json()["detail"]
    assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)


def test_a_tracker_of_postgres_that_may_not_ask_is_403(local: LocalSupabase) -> None:
    """Without PostgREST nobody has said that the caller is unknown."""
    tracker = StageTracker.from_postgres(local.url_of("postgres", "authenticator"))
    with served(app_of(tracker)) as client:
        assert client.get("/stages/statistics").status_code == 403


def test_an_application_keeps_its_own_handling_of_errors(api: httpx.Client, local: LocalSupabase) -> None:
    """The router brings its answers to errors along; the routes around it are not touched."""
    app = FastAPI()
    app.include_router(create_router(StageTracker(local.client())), prefix="/pipeline")

    @app.get("/own/{number}")
    def own(number: int) -> int:
        return number

    with served(app) as client:
        assert client.get("/own/x").json()["detail"][0]["type"] == "int_parsing"
        assert client.get("/pipeline/status/x").json() == api.get("/status/x").json()


def test_a_pause_of_nothing_is_refused(local: LocalSupabase) -> None:
    """The database is not asked in a busy loop."""
    with pytest.raises(InvalidArgument, match="look_every 0 is not a number of seconds"):
        create_router(StageTracker(local.client()), look_every=0)


def test_a_dependency_that_gives_no_tracker_is_told_to_who_runs_the_server(caplog: pytest.LogCaptureFixture) -> None:
    """The caller hears 503, and the log what to return."""
    with served(app_of(lambda: None)) as client:
        assert client.get("/stages/statistics").status_code == 503
    assert "the dependency of create_router returned a NoneType, not a tracker. Pass a StageTracker" in caplog.text
