"""At first use a client asks which version of the SQL a database has."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from processors_v2._local import project
from processors_v2._transport import version
from processors_v2._transport.version import SCHEMA_VERSION
from processors_v2.errors import MigrationMissing, VersionMismatch
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has been asked yet in this process."""
    monkeypatch.setattr(version, "_checked", set())


@pytest.fixture(scope="module")
def other(local: LocalSupabase) -> Iterator[str]:
    """URL of a database that may have another version."""
    local.create_database("versions")
    local.apply_to("versions", project.migrations_folder())
    yield local.url_of("versions")
    local.drop_database("versions")


def set_version(url: str, version: str) -> None:
    """Let a database say that it has this one."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "create or replace function krai_core.schema_version() returns text language sql immutable"
            f" set search_path = '' as $$ select '{version}' $$"
        )


def test_client_and_migrations_name_the_same_version(tracker: StageTracker) -> None:
    """What this package brings fits together."""
    assert tracker.schema_version() == SCHEMA_VERSION


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        ("0.0", "Apply the newer migrations: stage-tracker init --update, then supabase db push"),
        ("99.0", "Install the newer client: pip install --upgrade stage-tracker"),
        ("0.10", "Install the newer client"),
    ],
)
def test_another_version_is_told_with_its_remedy(other: str, version: str, remedy: str) -> None:
    """Older and newer are told apart, number by number, before anything is changed."""
    set_version(other, version)
    tracker = StageTracker.from_postgres(other)
    with pytest.raises(VersionMismatch, match=f"has version {version}, and this client is made for") as caught:
        tracker.start_stage("00000000-0000-0000-0000-000000000000", "upload")
    assert remedy in str(caught.value)
    set_version(other, SCHEMA_VERSION)
    tracker.list_stages()


def test_a_database_without_a_version_is_not_migrated_whole(other: str) -> None:
    """The last file brings it, so that what stopped halfway has none."""
    with psycopg.connect(other, autocommit=True) as connection:
        connection.execute("alter function krai_core.schema_version() rename to was")
        try:
            with pytest.raises(MigrationMissing, match="schema_version"):
                StageTracker.from_postgres(other).list_stages()
        finally:
            connection.execute("alter function krai_core.was() rename to schema_version")


def test_it_is_asked_once_in_a_process(proxy: Any, gateway_client: Any) -> None:
    """However many trackers are made, and by any call."""
    for _ in range(2):
        StageTracker(gateway_client).list_stages()
    assert [request.partition("?")[0].strip("/") for request in proxy.requests] == [
        "schema_version",
        "stages",
        "stages",
    ]
