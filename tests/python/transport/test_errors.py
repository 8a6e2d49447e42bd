"""Every error of the database as the exception that people catch."""

import pickle
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import supabase

from processors_v2.errors import (
    AccessDenied,
    DatabaseUnavailable,
    InvalidArgument,
    MigrationMissing,
    SchemaNotExposed,
    StageConflict,
    StageLost,
    StageTrackerError,
    UnknownDocument,
    UnknownStage,
)
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker

CLAIM = uuid.uuid4()

FROM_THE_RULES: list[tuple[Any, type[StageTrackerError], str, str, dict[str, Any]]] = [
    (
        lambda t, _: t.start_stage(CLAIM, "upload"),
        UnknownDocument,
        "PT404",
        "unknown_document",
        {"document_id": str(CLAIM)},
    ),
    (lambda t, _: t.get_progress(CLAIM), UnknownDocument, "PT404", "unknown_document", {"document_id": str(CLAIM)}),
    (lambda t, _: t.get_document_status(CLAIM), UnknownDocument, "PT404", "unknown_document", {}),
    (lambda t, _: t.get_current_stage(CLAIM), UnknownDocument, "PT404", "unknown_document", {}),
    (lambda t, _: t.can_start_stage(CLAIM, "upload"), UnknownDocument, "PT404", "unknown_document", {}),
    (lambda t, d: t.start_stage(d, "ocr"), UnknownStage, "22023", "unknown_stage", {"stage": "ocr"}),
    (
        lambda t, d: t.update_progress(d, "upload", 5),
        StageConflict,
        "PT409",
        "conflict",
        {"stage": "upload", "status": "pending"},
    ),
    (
        lambda t, d: t.update_progress(d, "upload", 100.5),
        InvalidArgument,
        "22023",
        "invalid_progress",
        {"progress": "100.5"},
    ),
    (lambda t, d: t.complete_stage(d, "upload", claim_id=CLAIM), StageLost, "PT409", "lease_lost", {"stage": "upload"}),
    (
        lambda t, d: t.start_stage(d, "upload", lease_seconds=0),
        InvalidArgument,
        "22023",
        "invalid_lease",
        {"lease_seconds": "0"},
    ),
]


@pytest.mark.parametrize(("call", "kind", "code", "word", "details"), FROM_THE_RULES)
def test_an_error_of_the_rules(
    tracker: StageTracker, document: str, call: Any, kind: type, code: str, word: str, details: dict[str, Any]
) -> None:
    """The exception has its class, SQLSTATE, machine word, the values of DETAIL, and says what to do."""
    with pytest.raises(StageTrackerError) as caught:
        call(tracker, document)
    error = caught.value
    assert type(error) is kind
    assert (error.code, error.error) == (code, word)
    assert details.items() <= error.details.items()
    assert "error" not in error.details
    assert error.document_id == error.details.get("document_id")
    assert error.stage == error.details.get("stage")
    assert error.hint
    assert str(error) == f"{error.message}. {error.hint}"


def test_a_disabled_stage_is_a_conflict(tracker: StageTracker, document: str, db: Any) -> None:
    """start_stage of a disabled stage raises StageConflict with its own word."""
    disable = "update krai_core.stages set enabled = %s where name = 'storage' returning 1"
    db.one(disable, False)
    try:
        with pytest.raises(StageConflict, match="storage is disabled") as caught:
            tracker.start_stage(document, "storage")
    finally:
        db.one(disable, True)
    assert (type(caught.value), caught.value.error) == (StageConflict, "stage_disabled")


def test_errors_travel_between_processes(tracker: StageTracker, document: str) -> None:
    """An exception is the same after pickling, as a pool of processes does it."""
    with pytest.raises(StageConflict) as caught:
        tracker.retry_stage(document, "upload")
        tracker.update_progress(document, "upload", 1)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is type(caught.value)
    assert str(copy) == str(caught.value)
    assert vars(copy) == vars(caught.value)


def test_a_detail_that_is_not_ours_is_kept(proxy: Any, through: StageTracker, document: str) -> None:
    """An error of somebody else's trigger comes out with code, message, hint and details, whatever these hold."""
    for details in ('{"error": ["no", "word"]}', "plain text", None, '["list"]'):
        proxy.faults = [(400, {"code": "P0001", "message": "no.", "hint": "ask them", "details": details})]
        with pytest.raises(StageTrackerError) as caught:
            through.start_stage(document, "upload")
        assert type(caught.value) is StageTrackerError
        assert str(caught.value) == "no. ask them"
        assert caught.value.code == "P0001"


@pytest.fixture(scope="module")
def unexposed() -> Iterator[LocalSupabase]:
    """A stack whose PostgREST serves public alone."""
    with LocalSupabase(migrations=None, schemas=("public",)) as stack:
        yield stack


@pytest.fixture(scope="module")
def unmigrated() -> Iterator[LocalSupabase]:
    """A stack that serves krai_core, which is empty."""
    with LocalSupabase(migrations=None) as stack:
        with psycopg.connect(stack.database_url) as connection:
            connection.execute("create schema if not exists krai_core; grant usage on schema krai_core to service_role")
        stack.reload_schema()
        yield stack


def test_a_schema_that_is_not_exposed(unexposed: LocalSupabase) -> None:
    """Where krai_core is not served, every call says what to set, on a machine and in a hosted project."""
    tracker = StageTracker(unexposed.client())
    for call in (lambda: tracker.start_stage(CLAIM, "upload"), tracker.get_statistics, tracker.list_stages):
        with pytest.raises(SchemaNotExposed) as caught:
            call()
        text = str(caught.value)
        assert caught.value.code == "PGRST106"
        assert 'add "krai_core" to schemas under [api] in supabase/config.toml' in text
        assert "Project Settings > Data API > Exposed schemas" in text


def test_functions_that_are_missing(unmigrated: LocalSupabase) -> None:
    """Where the migrations are not applied, every call says so, and how to reload a stale schema cache."""
    tracker = StageTracker(unmigrated.client())
    for call in (lambda: tracker.start_stage(CLAIM, "upload"), tracker.get_statistics, tracker.list_stages):
        with pytest.raises(MigrationMissing, match="supabase db push.*notify pgrst, 'reload schema'"):
            call()


KEYS: dict[str, Any] = {
    "anon": lambda local: local.client("anon"),
    "authenticated": lambda local: local.client("authenticated", sub=str(CLAIM)),
    "expired": lambda local: local.client("service_role", exp=1),
    "of another project": lambda local: _with_key(local, local.key()[:-4] + "AAAA"),
    "no token": lambda local: _with_key(local, "sb_secret_without_a_gateway"),
}


def _with_key(local: LocalSupabase, key: str) -> supabase.Client:
    client = local.client()
    client.options.headers.update(apiKey=key, Authorization=f"Bearer {key}")
    return client


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_may_not(local: LocalSupabase, document: str, db: Any, key: str) -> None:
    """A key of the wrong kind is refused with the key that is needed, and nothing is changed."""
    tracker = StageTracker(KEYS[key](local))
    for call in (lambda: tracker.start_stage(document, "upload"), tracker.get_statistics):
        with pytest.raises(AccessDenied, match="Workers need the secret key"):
            call()
    assert db.stage(document, "upload")["status"] == "pending"


def test_an_api_key_that_the_gateway_refuses(proxy: Any, through: StageTracker, document: str) -> None:
    """The gateway's own 401, which has no code, is AccessDenied."""
    proxy.faults = [(401, {"message": "Invalid API key", "hint": "Double check your API key."})]
    with pytest.raises(AccessDenied, match="Invalid API key.*secret key"):
        through.start_stage(document, "upload")


def test_a_url_with_a_path_is_not_the_project(local: LocalSupabase) -> None:
    """Where the path is wrong, PostgREST answers an empty 404, and the sentence says to check the URL."""
    tracker = StageTracker(supabase.create_client(f"{local.url}/rest/v1", local.key()))
    with pytest.raises(StageTrackerError, match="127.0.0.1 answered HTTP 404, .*Check that the URL") as caught:
        tracker.get_statistics()
    assert caught.value.code == "404"


def test_a_server_that_speaks_html(proxy: Any, through: StageTracker, document: str, db: Any) -> None:
    """A page with status 200 is no answer: the call raises, and says to check the URL."""
    proxy.faults = ["page"]
    with pytest.raises(StageTrackerError, match="not as PostgREST does.*Check that the URL"):
        through.complete_stage(document, "upload")
    assert db.stage(document, "upload")["status"] == "pending"


@pytest.mark.parametrize("body", [{"ok": True}, [], "true", None, 3.5])
def test_a_server_that_speaks_other_json(proxy: Any, through: StageTracker, document: str, body: object) -> None:
    """JSON of another API raises StageTrackerError in readers and writers, never a TypeError."""
    calls = (
        lambda: through.start_stage(document, "upload"),
        lambda: through.get_stage_status(document),
        through.get_statistics,
    )
    for call in calls:
        proxy.faults = [(200, body)]
        with pytest.raises(StageTrackerError):
            call()


def test_a_redirect_is_not_followed(proxy: Any, through: StageTracker, document: str) -> None:
    """A key is not carried to where a redirect points."""
    proxy.faults = ["redirect"]
    with pytest.raises(StageTrackerError, match="HTTP 307"):
        through.start_stage(document, "upload")
    assert proxy.requests == ["start_stage"]


def test_nobody_listens(proxy: Any, gateway_client: supabase.Client, document: str) -> None:
    """Where nothing listens, the call ends with DatabaseUnavailable, which names the host and the tries."""
    proxy.down()
    try:
        tracker = StageTracker(gateway_client, retry_for=0.2)
        with pytest.raises(DatabaseUnavailable, match=r"rpc/start_stage: no answer from 127\.0\.0\.1 .* after \d+ tr"):
            tracker.start_stage(document, "upload")
    finally:
        proxy.up()
