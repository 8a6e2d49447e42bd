"""Versions of Postgres other than the default."""

import psycopg
import pytest

from processors_v2.local import LocalStackError, LocalSupabase

SETTINGS = (
    "create function public.settings() returns text language sql as $$ select current_setting('max_connections') $$"
)


def test_postgres_18_serves_like_16() -> None:
    """postgres=18 starts that version, with roles, pgvector and PostgREST, and its settings can be given."""
    with LocalSupabase(postgres=18, migrations=None, settings={"max_connections": "33"}) as stack:
        with psycopg.connect(stack.database_url) as connection:
            shown = connection.execute("select current_setting('server_version_num')::int / 10000, '[1]'::vector::text")
            assert shown.fetchone() == (18, "[1]")
            connection.execute(SETTINGS)
        stack.reload_schema()
        assert stack.client().schema("public").rpc("settings", {}).execute().data == "33"


def test_an_unknown_version_is_an_error() -> None:
    """The message names the versions that there are."""
    with pytest.raises(LocalStackError, match="16, 18"):
        LocalSupabase(postgres=17, migrations=None).start()  # type: ignore[arg-type]


def test_a_setting_that_postgres_refuses_shows_its_words() -> None:
    """A server that does not come up fails at once, with its log."""
    with pytest.raises(LocalStackError, match='unrecognized configuration parameter "no_such_thing"'):
        LocalSupabase(migrations=None, settings={"no_such_thing": "1"}).start()
