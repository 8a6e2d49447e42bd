"""Keys and clients of the embedded stack act as the roles they are for."""

import asyncio
import uuid

import httpx
import psycopg
import pytest
from postgrest import APIError

from processors_v2.local import LocalStackError, LocalSupabase
from tests.stack.conftest import MAX_ROWS

ALICE, BOB = str(uuid.uuid4()), str(uuid.uuid4())


@pytest.fixture(scope="module")
def notes(bare: LocalSupabase) -> LocalSupabase:
    """Two notes of two users."""
    with psycopg.connect(bare.database_url) as connection:
        connection.execute("truncate public.notes")
        connection.execute("insert into public.notes values (1, %s, 'hers'), (2, %s, 'his')", [ALICE, BOB])
    return bare


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
def test_a_client_acts_as_its_role(bare: LocalSupabase, role: str) -> None:
    """supabase.create_client with the key of a role runs statements as that role."""
    assert bare.client(role).rpc("who_am_i", {}).execute().data == role


def test_an_async_client_acts_as_its_role_and_leaves_no_connection(bare: LocalSupabase) -> None:
    """The async client works within one asyncio.run, and nothing of it is left open (warnings are errors)."""

    async def ask() -> object:
        client = await bare.async_client("authenticated")
        return (await client.rpc("who_am_i", {}).execute()).data

    assert asyncio.run(ask()) == "authenticated"


def test_claims_decide_which_rows_a_user_sees(notes: LocalSupabase) -> None:
    """Row level security sees the claims of the key: auth.uid() is its sub."""
    rows = notes.client("authenticated", sub=ALICE).table("notes").select("text").execute().data
    assert rows == [{"text": "hers"}]


def test_service_role_passes_row_level_security(notes: LocalSupabase) -> None:
    """service_role sees the rows of all users."""
    rows = notes.client().table("notes").select("id").order("id").execute().data
    assert rows == [{"id": 1}, {"id": 2}]


def test_anon_sees_nothing_that_was_not_granted(notes: LocalSupabase) -> None:
    """A table without a grant for anon answers 42501, not zero rows."""
    with pytest.raises(APIError) as caught:
        notes.client("anon").table("notes").select("*").execute()
    assert caught.value.code == "42501"


def test_a_key_of_another_stack_is_refused(bare: LocalSupabase) -> None:
    """Secrets are made anew for each stack, so that a key leaked from one opens no other."""
    foreign = bare.key()[:-8] + "AAAAAAAA"
    answer = httpx.get(bare.url, headers={"Authorization": f"Bearer {foreign}"}, trust_env=False)
    assert answer.status_code == 401


def test_an_expired_key_is_refused(bare: LocalSupabase) -> None:
    """Claims given by the caller win over the defaults, so that expiry can be tested."""
    with pytest.raises(APIError) as caught:
        bare.client("service_role", exp=1).rpc("who_am_i", {}).execute()
    assert "expired" in caught.value.message


def test_results_are_cut_at_max_rows(bare: LocalSupabase) -> None:
    """max_rows reaches PostgREST, which cuts longer results without a word."""
    assert len(bare.client().rpc("many", {}).execute().data) == MAX_ROWS


def test_nothing_can_be_asked_of_a_stack_that_does_not_run() -> None:
    """Before the start and after the end, properties say how to use the stack instead of returning None."""
    stack = LocalSupabase()
    for ask in (lambda: stack.url, lambda: stack.database_url, stack.client, stack.key, stack.reload_schema):
        with pytest.raises(LocalStackError, match="not running"):
            ask()
