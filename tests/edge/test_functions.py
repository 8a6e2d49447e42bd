"""What Edge Functions do beside handing on the answers of the SQL functions; those are compared in tests/contract."""

import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from edge_servers import PUBLISHABLE, Gateway, Programs, serve_function

from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker

Ask = Callable[..., httpx.Response]


@pytest.fixture
def ask(gateway: Gateway, local: LocalSupabase) -> Ask:
    """Ask a function, with the secret key unless other headers are given."""

    def ask(path: str, method: str = "GET", **headers: str) -> httpx.Response:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        given = sent or {"authorization": f"Bearer {local.key()}"}
        return httpx.request(method, f"{gateway.url}/functions/v1{path}", headers=given, timeout=30, trust_env=False)

    return ask


def sent_to_postgrest(gateway: Gateway) -> dict[str, str]:
    """The headers of the one request that the function sent, after that of the test."""
    (_, sent) = gateway.seen
    return sent


def test_the_rights_are_those_of_the_caller(ask: Ask, gateway: Gateway, document: str, local: LocalSupabase) -> None:
    """The caller's token is handed on as it came, and the key that opens the gateway is the public one."""
    token = f"Bearer {local.key('authenticated', sub=str(uuid.uuid4()))}"
    assert ask(f"/status/{document}", authorization=token).status_code == 403
    sent = sent_to_postgrest(gateway)
    assert (sent["authorization"], sent["apikey"]) == (token, PUBLISHABLE)


@pytest.mark.parametrize("role", ["no_such_role", "postgres", "constructor"])
def test_a_role_that_callers_cannot_have_is_401(ask: Ask, document: str, local: LocalSupabase, role: str) -> None:
    """A role that there is not, or that PostgREST may not become, is a token that is none."""
    answer = ask(f"/status/{document}", authorization=f"Bearer {local.key(role)}")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert set(answer.json()) == {"detail", "hint", "error"}


def test_a_token_that_is_too_long_is_401(ask: Ask, document: str) -> None:
    """PostgREST does not read it to its end, which is no outage of the database."""
    answer = ask(f"/status/{document}", authorization=f"Bearer {'x' * 60_000}")
    assert (answer.status_code, answer.json()["detail"]) == (401, "the token is too long")


@pytest.mark.parametrize("code", ["constructor", "toString"])
def test_a_code_is_only_a_name(
    gateway: Gateway, functions: dict[str, str], started: Programs, document: str, code: str
) -> None:
    """One that JavaScript has a meaning for is an unknown code like any other, and is told in the log."""
    gateway.faults.append((418, f'{{"code": "{code}", "message": "said"}}'))
    answer = httpx.get(f"{functions['status']}/status/{document}", headers={"authorization": "x"}, trust_env=False)
    assert answer.status_code == 503
    assert f'HTTP 503: HTTP 418 {{"code":"{code}"' in started.output("status")


def test_the_key_of_the_caller_is_handed_on(ask: Ask, gateway: Gateway, document: str) -> None:
    """A program with a secret key of the new kind sends it as apikey: then its rights count, without a token."""
    ask(f"/status/{document}", apikey="sb_secret_of_a_caller")
    sent = sent_to_postgrest(gateway)
    assert sent["apikey"] == "sb_secret_of_a_caller"
    assert "authorization" not in sent


def test_a_legacy_project_is_opened_by_its_anon_key(
    started: Programs, gateway: Gateway, local: LocalSupabase, document: str
) -> None:
    """Without publishable keys the anon key is sent."""
    environment = {"SUPABASE_URL": gateway.url, "SUPABASE_ANON_KEY": "the anon key"}
    url = serve_function(started, "status", environment, log="legacy")
    answer = httpx.get(f"{url}/status/{document}", headers={"authorization": f"Bearer {local.key()}"}, trust_env=False)
    assert answer.json()["document_id"] == document
    assert gateway.seen[-1]["apikey"] == "the anon key"


def test_a_browser_may_ask_from_any_site(ask: Ask, gateway: Gateway, document: str) -> None:
    """OPTIONS is answered without asking anybody, and every answer, errors too, may be read by any site."""
    preflight = ask(f"/status/{document}", "OPTIONS", origin="https://app.example")
    assert (preflight.status_code, preflight.content) == (204, b"")
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert len(gateway.seen) == 1
    for path in (f"/status/{document}", f"/status/{uuid.uuid4()}", "/status/no-id"):
        assert ask(path).headers["access-control-allow-origin"] == "*"


def test_what_has_not_changed_is_not_sent_again(ask: Ask, tracker: StageTracker, document: str, local: Any) -> None:
    """If-None-Match with the tag of the same JSON is answered by 304 without a body; after a change by the new one."""
    path, token = f"/status/{document}", f"Bearer {local.key()}"
    tag = ask(path).headers["etag"]
    assert tag.startswith('"')
    for known in (tag, f"W/{tag}", f'"something else", {tag}'):
        same = ask(path, authorization=token, if_none_match=known)
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    tracker.complete_stage(document, "upload")
    changed = ask(path, authorization=token, if_none_match=tag)
    assert changed.json()["progress"] == 12.5
    assert changed.headers["etag"] != tag


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_only_get_is_served(ask: Ask, gateway: Gateway, document: str, method: str) -> None:
    """Another method is answered by 405 that names the right one, and nobody is asked."""
    answer = ask(f"/status/{document}", method)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, OPTIONS")
    assert answer.json() == {"detail": f"{method} is not served here", "hint": "Use GET", "error": "not_allowed"}
    assert len(gateway.seen) == 1


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/status/", "/status/{document_id}"),
        ("/status/a/b", "/status/{document_id}"),
        ("/stages/", "/stages/statistics"),
    ],
)
def test_another_path_is_told_the_right_one(ask: Ask, gateway: Gateway, path: str, right: str) -> None:
    """Where there is nothing, the answer says what to ask for instead, and nobody is asked."""
    answer = ask(path)
    assert answer.status_code == 404
    assert answer.json() == {"detail": f"there is nothing at {path}", "hint": f"Ask for {right}", "error": "not_found"}
    assert len(gateway.seen) == 1


@pytest.mark.parametrize("name", ["'; drop table krai_core.documents", "a%20b%zz%00", "..%2f..%2fdocuments"])
def test_an_odd_id_reaches_the_database_as_a_value(ask: Ask, name: str) -> None:
    """Whatever stands in the path is the id: it is compared, refused, and never part of another question."""
    answer = ask(f"/status/{name}")
    assert answer.status_code == 422
    assert "invalid input syntax for type uuid" in answer.json()["detail"]


@pytest.mark.parametrize(
    "fault",
    [
        (502, "<html>Bad gateway</html>"),
        (200, "<html>Somebody else's page</html>"),
        (503, '{"code": "PGRST002", "message": "Could not query the database for the schema cache. Retrying."}'),
        (504, '{"code": "PGRST003", "message": "Timed out acquiring connection from connection pool."}'),
        (500, '{"code": "57014", "message": "canceling statement due to statement timeout"}'),
        (404, '{"code": "PGRST202", "message": "Could not find the function", "hint": "Perhaps you meant another"}'),
        (406, '{"code": "PGRST106", "message": "The schema must be one of the following: public"}'),
    ],
    ids=lambda fault: str(fault)[:30],
)
def test_what_is_no_answer_to_the_question_is_503(
    gateway: Gateway, functions: dict[str, str], local: LocalSupabase, document: str, fault: tuple[int, str]
) -> None:
    """An outage, or a project that is not set up, is told apart from an unknown document, and asks for another try."""
    gateway.faults.append(fault)
    answer = httpx.get(
        f"{functions['status']}/status/{document}", headers={"authorization": f"Bearer {local.key()}"}, trust_env=False
    )
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert answer.json() == {
        "detail": "the database cannot be asked now",
        "hint": "Try again later",
        "error": "unavailable",
    }


def test_no_key_is_ever_told(ask: Ask, gateway: Gateway, started: Programs, local: LocalSupabase) -> None:
    """Neither answers nor logs hold a key or a token, also when nothing is there that answers."""
    behind = gateway.targets.pop("/rest/v1")
    gateway.targets["/rest/v1"] = "http://127.0.0.1:1"
    try:
        answer = ask("/stages/statistics")
    finally:
        gateway.targets["/rest/v1"] = behind
    assert answer.status_code == 503
    told = answer.text + str(answer.headers) + started.output("stages")
    assert local.key() not in told
    assert PUBLISHABLE not in told
