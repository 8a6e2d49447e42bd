"""What the tracker does with the client that it is given."""

import asyncio
import gc
import multiprocessing
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import supabase

from processors_v2.errors import AccessDenied, ConfigurationError
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageContext, StageTracker


@pytest.mark.parametrize("schema", ["public", "krai_core", "graphql_public"])
def test_the_default_schema_does_not_matter(proxy: Any, local: LocalSupabase, document: str, schema: str) -> None:
    """Functions and tables of krai_core are found whatever the default schema of the client is, which stays."""
    client = supabase.create_client(proxy.url, local.key(), supabase.ClientOptions(schema=schema))
    tracker = StageTracker(client)
    assert tracker.start_stage(document, "upload") is True
    assert tracker.get_document_status(document)["current_stage"] == "upload"
    assert len(tracker.list_stages()) == 8
    assert client.options.schema == schema


def test_the_key_is_read_at_each_call(local: LocalSupabase, document: str) -> None:
    """A token that the client got after the tracker was made is used by the next call."""
    client = local.client("anon")
    tracker = StageTracker(client)
    with pytest.raises(AccessDenied):
        tracker.start_stage(document, "upload")
    client.options.headers["Authorization"] = f"Bearer {local.key()}"
    assert tracker.start_stage(document, "upload") is True
    client.options.headers["Authorization"] = f"Bearer {local.key('authenticated')}"
    with pytest.raises(AccessDenied):
        tracker.complete_stage(document, "upload")


def test_a_refreshed_session_reaches_the_context(local: LocalSupabase, document: str, db: Any) -> None:
    """The event by which supabase-py announces a refreshed session counts in the middle of a block."""
    client = local.client()
    with StageContext(StageTracker(client), document, "upload"):
        client.supabase_key = local.key("service_role", session_id="refreshed")
        client._listen_to_auth_events("TOKEN_REFRESHED", None)
        assert client.options.headers["Authorization"].endswith(client.supabase_key)
    assert db.stage(document, "upload")["status"] == "completed"


def test_headers_of_the_client_are_sent(proxy: Any, local: LocalSupabase, document: str) -> None:
    """Headers that somebody gave the client go along, beside the key and the profile."""
    options = supabase.ClientOptions(headers={"X-Tenant": "north"})
    client = supabase.create_client(proxy.url, local.key(), options)
    StageTracker(client).start_stage(document, "upload")
    (sent,) = proxy.headers
    assert sent["X-Tenant"] == "north"
    assert sent["Content-Profile"] == "krai_core"
    assert sent["apiKey"] == client.supabase_key


def test_an_http_client_of_the_users_choice_is_kept(local: LocalSupabase, document: str) -> None:
    """ClientOptions(httpx_client=...) is what requests go through, and it is not closed with the tracker."""
    seen: list[str] = []
    pool = local.client().options.httpx_client
    assert pool is not None
    pool.event_hooks["request"].append(lambda request: seen.append(request.url.path))
    client = supabase.create_client(local.url, local.key(), supabase.ClientOptions(httpx_client=pool))
    tracker = StageTracker(client)
    tracker.start_stage(document, "upload")
    assert seen == ["/rest/v1/rpc/start_stage"]
    del tracker
    gc.collect()
    assert not pool.is_closed


def test_the_own_client_is_http_1_and_pooled(proxy: Any, through: StageTracker, document: str) -> None:
    """Without a chosen HTTP client, calls share one connection over HTTP/1.1."""
    for _ in range(20):
        through.get_progress(document)
    assert len(proxy.requests) == 20
    assert proxy.connections == 1
    (http,) = through._transport._clients._free  # type: ignore[attr-defined]
    assert http._transport._pool._http2 is False


def test_sixteen_threads_share_a_tracker_without_loss(
    proxy: Any, gateway_client: supabase.Client, document: str, db: Any
) -> None:
    """Every call of 16 threads takes effect, over no more connections than there are threads."""
    tracker = StageTracker(gateway_client)
    tracker.start_stage(document, "upload")

    def work(number: int) -> bool:
        return tracker.update_progress(document, "upload", None, {f"key{number}": number})

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(320)))
    assert db.stage(document, "upload")["metadata"] == {f"key{number}": number for number in range(320)}
    assert proxy.connections <= 16


def _in_child(tracker: StageTracker, document: str, result: Any) -> None:
    result.put((tracker.complete_stage(document, "upload"), os.getpid()))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_connections_of_its_own(proxy: Any, through: StageTracker, document: str) -> None:
    """After a fork the child opens connections of its own, and those of the parent go on working."""
    through.start_stage(document, "upload")
    connections = proxy.connections
    fork = multiprocessing.get_context("fork")
    result = fork.SimpleQueue()
    child = fork.Process(target=_in_child, args=(through, document, result))
    child.start()
    done, pid = result.get()
    child.join(20)
    assert (done, child.exitcode) == (True, 0)
    assert pid != os.getpid()
    assert proxy.connections == connections + 1
    assert through.get_current_stage(document) == "text_extraction"
    assert proxy.connections == connections + 1


def test_an_asynchronous_client_is_refused(local: LocalSupabase) -> None:
    """An AsyncClient is refused with the class it would need the tracker for."""
    client = asyncio.run(local.async_client())
    with pytest.raises(ConfigurationError, match=r"synchronous.*AsyncClient.*supabase\.create_client"):
        StageTracker(client)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": -1}, {"retry_for": -1}, {"timeout": float("nan")}])
def test_times_have_a_range(gateway_client: supabase.Client, options: dict[str, float]) -> None:
    """A timeout of nothing and a negative bound are refused."""
    with pytest.raises(ConfigurationError, match="in seconds"):
        StageTracker(gateway_client, **options)  # type: ignore[arg-type]


@pytest.fixture
def strict_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """Collect every warning, those of sockets too."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def test_a_dropped_tracker_leaves_no_open_socket(
    proxy: Any, gateway_client: supabase.Client, document: str, strict_warnings: list[warnings.WarningMessage]
) -> None:
    """When nobody holds a tracker any more, its connections are closed, without a ResourceWarning."""
    tracker = StageTracker(gateway_client)
    with StageContext(tracker, document, "upload"):
        pass
    own, beating = tracker._transport._clients._free, tracker._heart._thread  # type: ignore[attr-defined]
    if beating is not None:
        beating.join(20)
    own = list(own)
    assert own
    del tracker, beating
    gc.collect()
    assert all(http.is_closed for http in own)
    assert strict_warnings == []
    assert proxy.connections == 1


def test_from_env_works_on_a_real_server(
    local: LocalSupabase, running_proxy: object, monkeypatch: pytest.MonkeyPatch, document: str
) -> None:
    """What from_env returns is a tracker; options are passed on."""
    monkeypatch.setenv("SUPABASE_URL", running_proxy.url)  # type: ignore[attr-defined]
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", local.key())
    tracker = StageTracker.from_env(timeout=3.0, retry_for=1.0)
    assert tracker.start_stage(document, "upload") is True
    assert (tracker._transport._timeout, tracker._transport._retry_for) == (3.0, 1.0)
