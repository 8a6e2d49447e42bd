"""processors_v2.api:app: the endpoints alone, where callers have the rights of their tokens."""

import asyncio
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from processors_v2._local.keys import sign
from processors_v2._local.process import free_port
from processors_v2.api import app
from processors_v2.errors import ConfigurationError
from processors_v2.local import LocalSupabase
from tests.api.conftest import following, forget_project, in_loop
from tests.python.conftest import Proxy

NAMES = ["SUPABASE_PUBLISHABLE_KEYS", "SUPABASE_PUBLISHABLE_KEY", "SUPABASE_ANON_KEY"]


@pytest.fixture
def signed_in(local: LocalSupabase, document: str) -> Iterator[Callable[..., dict[str, str]]]:
    """Headers of the one user who may see the document, or of another."""
    owner = str(uuid.uuid4())
    with psycopg.connect(local.admin_url, autocommit=True) as admin:
        admin.execute("grant select on krai_core.documents to authenticated")
        admin.execute(
            "create policy owned on krai_core.documents for select to authenticated"
            f" using (id = '{document}' and (select auth.uid()) = '{owner}')"
        )
        yield lambda user=owner, **claims: {"Authorization": f"Bearer {local.key('authenticated', sub=user, **claims)}"}
        admin.execute("drop policy owned on krai_core.documents")
        admin.execute("revoke select on krai_core.documents from authenticated")


def test_the_policies_decide_what_a_token_sees(
    alone: httpx.Client, signed_in: Callable[..., dict[str, str]], document: str, local: LocalSupabase
) -> None:
    """The owner gets his document, to others there is none, and the secret key sees all."""
    mine = alone.get(f"/status/{document}", headers=signed_in())
    assert (mine.status_code, mine.json()["document_id"]) == (200, document)
    assert alone.get(f"/status/{document}", headers=signed_in(str(uuid.uuid4()))).status_code == 404
    assert alone.get(f"/status/{document}", headers={"Authorization": f"Bearer {local.key()}"}).json() == mine.json()


def test_without_a_token_nothing_is_told(alone: httpx.Client, document: str) -> None:
    """The caller is anon, who gets nothing of ours, and is asked for a token."""
    for path in (f"/status/{document}", f"/status/{document}/events", "/stages/statistics"):
        answer = alone.get(path)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert set(answer.json()) == {"detail", "hint", "error"}


def test_statistics_are_not_for_signed_in_users(alone: httpx.Client, signed_in: Callable[..., dict[str, str]]) -> None:
    """They tell of all documents, so they are 403."""
    assert alone.get("/stages/statistics", headers=signed_in()).status_code == 403


@pytest.mark.parametrize(
    "token",
    [
        "Bearer x",
        "Bearer a.b.c",
        "Bearer ü",
        "Bearer a b",
        "Bearer \x7f",
        "Basic YTpi",
        "Bearer",
        "Bearer " + "x" * 9000,
    ],
)
def test_a_token_that_is_none_is_401(alone: httpx.Client, document: str, token: str) -> None:
    """Whatever stands in the header, the answer is that of somebody unknown."""
    answer = alone.get(f"/status/{document}", headers={"Authorization": token.encode("latin-1")})
    assert answer.status_code == 401


def test_an_expired_token_is_401(alone: httpx.Client, document: str, signed_in: Callable[..., dict[str, str]]) -> None:
    """The answer says so."""
    answer = alone.get(f"/status/{document}", headers=signed_in(exp=1))
    assert (answer.status_code, answer.json()["detail"]) == (401, "JWT expired")


PATHS = ["/status/{}", "/status/{}/events", "/stages/statistics"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("role", ["no_such_role", "", "postgres", "pg_read_all_data", "r" * 300, "a'b"])
def test_a_role_that_callers_cannot_have_is_401(
    alone: httpx.Client, document: str, local: LocalSupabase, path: str, role: str
) -> None:
    """A role that there is not, or that PostgREST may not become, is a token that is none, and not a wrong question."""
    answer = alone.get(path.format(document), headers={"Authorization": f"Bearer {local.key(role)}"})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert set(answer.json()) == {"detail", "hint", "error"}
    assert answer.json()["hint"] == "Send the token of a signed-in user of this project"


@pytest.mark.parametrize("claims", [{"exp": 1}, {"nbf": 9999999999}, {"iat": 9999999999}, {"exp": "soon"}])
def test_a_token_of_another_time_is_401(alone: httpx.Client, document: str, local: LocalSupabase, claims: Any) -> None:
    """Over, not yet begun, or without a time that can be read."""
    token = local.key("authenticated", **claims)
    assert alone.get(f"/status/{document}", headers={"Authorization": f"Bearer {token}"}).status_code == 401


def test_a_token_of_another_project_is_401(alone: httpx.Client, document: str) -> None:
    """Its signature is not that of this project."""
    token = sign("another secret, of another project", "service_role", {})
    assert alone.get(f"/status/{document}", headers={"Authorization": f"Bearer {token}"}).status_code == 401


def test_a_claim_that_a_policy_cannot_read_is_401(
    alone: httpx.Client, document: str, signed_in: Callable[..., dict[str, str]]
) -> None:
    """The id of the document is right, so what is no UUID is the user in the token."""
    answer = alone.get(f"/status/{document}", headers=signed_in("nobody"))
    assert (answer.status_code, 'type uuid: "nobody"' in answer.json()["detail"]) == (401, True)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("length", [9_000, 49_000, 52_000, 60_000])
def test_a_token_of_any_length_is_401(alone: httpx.Client, document: str, path: str, length: int) -> None:
    """Also one that PostgREST does not read to its end, which is no outage of the database."""
    answer = alone.get(path.format(document), headers={"Authorization": f"Bearer {'x' * length}"})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert set(answer.json()) == {"detail", "hint", "error"}


@pytest.mark.parametrize("status", [400, 413, 414, 431])
def test_a_gateway_that_takes_no_long_token_is_401(
    alone: httpx.Client, document: str, gateway: Proxy, local: LocalSupabase, status: int
) -> None:
    """It says so in words of its own; of a short token they say that this is no PostgREST, which is 503."""
    gateway.reset()
    long = local.key("authenticated", app_metadata="x" * 5000)
    for token, expected in ((long, 401), (local.key("authenticated"), 503)):
        gateway.faults = [(status, "Request Header Or Cookie Too Large")]
        answer = alone.get(f"/status/{document}", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == expected
        assert token not in answer.text


def test_events_follow_with_the_rights_of_the_token(
    alone: httpx.Client, document: str, signed_in: Callable[..., dict[str, str]], gateway: Proxy
) -> None:
    """Two streams of one user share a reader, and a stranger gets none."""

    async def follow(client: httpx.AsyncClient) -> None:
        headers = signed_in()
        async with following(client, document, **headers) as one, following(client, document, **headers) as two:
            assert (await anext(one))["id"] == (await anext(two))["id"]
        stranger = await client.get(f"/status/{document}/events", headers=signed_in(str(uuid.uuid4())))
        assert stranger.status_code == 404

    in_loop(alone, follow)
    assert gateway.requests


def test_the_publishable_key_goes_along_with_the_token(
    alone: httpx.Client, document: str, signed_in: Callable[..., dict[str, str]], gateway: Proxy, anon_key: str
) -> None:
    """The gateway of a project wants the one as apikey, PostgREST the other."""
    gateway.reset()
    headers = signed_in()
    assert alone.get(f"/status/{document}", headers=headers).status_code == 200
    sent = {name.lower(): value for name, value in gateway.headers[-1].items()}
    assert (sent["apikey"], sent["authorization"]) == (anon_key, headers["Authorization"])


def test_a_database_that_is_away_is_told_soon(
    alone: httpx.Client,
    document: str,
    gateway: Proxy,
    signed_in: Callable[..., dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The application waits a moment for it, answers 503, and is there again when the database is."""
    monkeypatch.setattr("processors_v2._api.app._RETRY_FOR", 0.2)
    headers = signed_in()
    assert alone.get(f"/status/{document}", headers=headers).status_code == 200
    gateway.faults = ["html"] * 1000
    assert alone.get(f"/status/{document}", headers=headers).status_code == 503
    gateway.faults = []
    assert alone.get(f"/status/{document}", headers=headers).status_code == 200


URL = "https://abcdefghijkl.supabase.co"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"SUPABASE_ANON_KEY": "x"}, "SUPABASE_URL is missing"),
        ({"SUPABASE_URL": URL, "SUPABASE_KEY": "x"}, f"no key: none of {', '.join(NAMES)} is set"),
        ({"SUPABASE_URL": URL, "SUPABASE_ANON_KEY": "sb_secret_x"}, "SUPABASE_ANON_KEY is a secret key"),
        ({"SUPABASE_URL": URL, "SUPABASE_PUBLISHABLE_KEY": "<service>"}, "SUPABASE_PUBLISHABLE_KEY is a secret key"),
        ({"SUPABASE_URL": URL, "SUPABASE_PUBLISHABLE_KEYS": '["x"]'}, "SUPABASE_PUBLISHABLE_KEYS is not a JSON object"),
    ],
)
def test_an_environment_that_does_not_do_is_refused(
    local: LocalSupabase, clean: pytest.MonkeyPatch, environment: dict[str, str], said: str
) -> None:
    """The error names the variable and not its value; a secret key would give everybody all rights."""
    for name, value in environment.items():
        clean.setenv(name, local.key() if value == "<service>" else value)
    with pytest.raises(ConfigurationError, match=said) as caught:
        asyncio.run(start_and_stop())
    assert "sb_secret_x" not in str(caught.value)


def test_a_key_is_not_sent_to_the_url_of_another_place(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tokens of callers would go there too, so the server does not start, and names both places."""
    (tmp_path / ".env").write_text(f"SUPABASE_URL={URL}\n", encoding="utf-8")
    clean.setenv("SUPABASE_ANON_KEY", "sb_publishable_x")
    with pytest.raises(ConfigurationError, match=r"SUPABASE_URL comes from .*\.env and SUPABASE_ANON_KEY from the env"):
        asyncio.run(start_and_stop())


async def start_and_stop() -> None:
    """What a server does with an application."""
    async with app.router.lifespan_context(app):
        pass


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment without variables of Supabase, in an empty folder."""
    forget_project(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def test_uvicorn_ends_with_the_error(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without an environment the server does not start, and says what is missing."""
    clean.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    done = subprocess.run(
        [sys.executable, "-m", "uvicorn", "processors_v2.api:app", "--port", "0"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "SUPABASE_URL is missing or not an http(s) URL. Set it to the URL of the project" in done.stderr


def test_a_server_that_is_to_stop_ends_its_streams(
    clean: pytest.MonkeyPatch, gateway: Proxy, anon_key: str, local: LocalSupabase, document: str
) -> None:
    """SIGTERM ends uvicorn at once, every stream in order, and without an error in its log."""
    clean.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    clean.setenv("SUPABASE_URL", gateway.url)
    clean.setenv("SUPABASE_PUBLISHABLE_KEY", anon_key)
    command = [sys.executable, "-m", "uvicorn", "processors_v2.api:app", "--port", str(port := free_port())]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as server:
        assert server.stderr is not None
        log = list(takewhile(lambda line: "Uvicorn running" not in line, server.stderr))
        with httpx.stream(
            "GET",
            f"http://127.0.0.1:{port}/status/{document}/events",
            headers={"Authorization": f"Bearer {local.key()}"},
            timeout=30,
            trust_env=False,
        ) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("id: ")
            server.send_signal(signal.SIGTERM)
            assert "event: status" in list(lines)
        log += server.stderr.read().splitlines()
    assert [line for line in log if "ERROR" in line] == []
