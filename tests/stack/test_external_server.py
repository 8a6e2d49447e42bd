"""The stack on a Postgres server that was there before."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from processors_v2._local.postgres import SUPERUSER, Postgres, find_installation
from processors_v2._local.process import Watchdog
from processors_v2.local import LocalStackError, LocalSupabase

HERE = "create function public.here() returns name language sql as 'select current_database()'"
ROLES = "select rolname, rolpassword, setconfig from pg_authid left join pg_db_role_setting on setrole = oid"
DEBIAN = Path("/usr/lib/postgresql/15")


@pytest.fixture(scope="module", params=["debian-15", "pypi-18"])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The superuser's URL of a server that knows nothing of Supabase."""
    if request.param == "debian-15" and not (DEBIAN / "bin" / "initdb").exists():
        pytest.skip("Debian's postgresql-15 is not installed")
    watchdog = Watchdog()
    postgres = Postgres(find_installation(DEBIAN if request.param == "debian-15" else 18), None, {}, watchdog)
    try:
        postgres.start()
        yield f"postgresql://{SUPERUSER}:{postgres.password}@127.0.0.1:{postgres.port}/postgres"
    finally:
        postgres.stop()
        watchdog.close()


def login_roles(url: str) -> set[str]:
    """Names of the roles that can log in."""
    with psycopg.connect(url) as connection:
        return {name for (name,) in connection.execute("select rolname from pg_roles where rolcanlogin")}


def test_an_existing_server_gets_what_is_missing_and_goes_on(server: str, tmp_path: Path) -> None:
    """Roles are created, files run as a non-superuser, PostgREST serves; at the end only its login goes."""
    path = tmp_path / "make.sql"
    path.write_text(
        "create function public.who_am_i() returns text language sql as 'select current_user::text';"
        "create table public.kept (id integer);"
    )
    with LocalSupabase(database_url=server, migrations=[path]) as stack:
        assert stack.admin_url == server
        assert stack.client("authenticated").rpc("who_am_i", {}).execute().data == "authenticated"
        with psycopg.connect(stack.database_url) as connection:
            assert connection.execute("select current_user, current_setting('is_superuser')").fetchone() == (
                "postgres",
                "off",
            )
    assert login_roles(server) == {SUPERUSER, "authenticator", "postgres"}
    with psycopg.connect(server) as connection:
        assert connection.execute("select tableowner from pg_tables where tablename = 'kept'").fetchone() == (
            "postgres",
        )


def test_roles_that_exist_are_left_as_they_are(server: str) -> None:
    """Passwords and settings of a server that is not ours stay: its own PostgREST uses them."""
    with psycopg.connect(server, autocommit=True) as connection:
        LocalSupabase(database_url=server, migrations=None).start().stop()
        connection.execute("alter role authenticator password 'theirs'")
        connection.execute("alter role anon set statement_timeout = '1s'")
        before = sorted(map(str, connection.execute(ROLES).fetchall()))
        with LocalSupabase(database_url=server, migrations=None) as stack:
            assert stack.key("anon")
        assert sorted(map(str, connection.execute(ROLES).fetchall())) == before


def test_two_stacks_share_one_server(server: str) -> None:
    """Each has a PostgREST with a login and a secret of its own, and may have a database of its own."""
    with LocalSupabase(database_url=server, migrations=None) as first:
        first.create_database("second")
        with LocalSupabase(
            database_url=first.url_of("second", SUPERUSER), migrations=None, schemas=["public"]
        ) as second:
            with psycopg.connect(second.database_url) as connection:
                connection.execute(
                    "create function public.here() returns name language sql as 'select current_database()'"
                )
            second.reload_schema()
            assert second.client().rpc("here", {}).execute().data == "second"
        first.drop_database("second")


def test_a_foreign_server_is_not_restarted(server: str) -> None:
    """Faults are only put into servers that belong to the stack."""
    with (
        LocalSupabase(database_url=server, migrations=None) as stack,
        pytest.raises(LocalStackError, match="not ours to restart"),
    ):
        stack.restart_postgres()


def test_a_server_that_does_not_answer_is_an_error_without_the_password() -> None:
    """The message says what psycopg said; the password in the URL is not repeated."""
    with pytest.raises(LocalStackError, match="cannot be reached") as caught:
        LocalSupabase(database_url="postgresql://postgres:s3cret@127.0.0.1:1/postgres", migrations=None).start()
    assert "s3cret" not in str(caught.value)
