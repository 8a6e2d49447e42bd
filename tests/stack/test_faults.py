"""Crashes on purpose, and what is there after them."""

import httpx
import psycopg
import pytest
from postgrest import APIError

from processors_v2._local.process import wait_until
from processors_v2.local import LocalSupabase


def answers(stack: LocalSupabase) -> bool:
    """Whether a call through PostgREST reaches the database."""
    try:
        return bool(stack.client().rpc("who_am_i", {}).execute().data == "service_role")
    except (APIError, httpx.TransportError):
        return False


@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_postgres_comes_back_on_the_same_port_with_its_data(bare: LocalSupabase, mode: str) -> None:
    """A restart ends open sessions, keeps URL and committed data, and PostgREST finds its way back."""
    url = bare.database_url
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"create table public.kept_{mode} as select 1 as id")
        bare.restart_postgres(mode)  # type: ignore[arg-type]
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    assert bare.database_url == url
    with psycopg.connect(url) as connection:
        assert connection.execute(f"select id from public.kept_{mode}").fetchall() == [(1,)]
    assert wait_until(lambda: answers(bare), 30)


def test_schema_can_be_reloaded_right_after_a_crash(bare: LocalSupabase) -> None:
    """PostgREST misses the notification, since it has lost the database, and loads the schema all the same."""
    bare.restart_postgres("immediate")
    bare.reload_schema()
    assert answers(bare)


def test_postgrest_can_be_killed_and_started_again(bare: LocalSupabase) -> None:
    """Calls fail while it is gone; then it serves the same URL and honours the same keys."""
    client, url = bare.client(), bare.url
    bare.kill_postgrest()
    with pytest.raises(httpx.TransportError):
        client.rpc("who_am_i", {}).execute()
    bare.restart_postgrest()
    assert bare.url == url
    assert client.rpc("who_am_i", {}).execute().data == "service_role"


def test_a_running_postgrest_can_be_restarted(bare: LocalSupabase) -> None:
    """restart_postgrest needs no kill_postgrest before it."""
    bare.restart_postgrest()
    assert answers(bare)
