"""The roles of the embedded stack are those of a Supabase project."""

import psycopg
import pytest

from processors_v2.local import LocalSupabase


def query(stack: LocalSupabase, statement: str) -> list[tuple[object, ...]]:
    """Ask as the role postgres."""
    with psycopg.connect(stack.database_url, autocommit=True) as connection:
        return connection.execute(statement).fetchall()


def test_roles_have_the_attributes_of_supabase(bare: LocalSupabase) -> None:
    """Only supabase_admin is a superuser, only service_role and postgres pass RLS, only three can log in."""
    rows = query(
        bare,
        "select rolname, rolsuper, rolcanlogin, rolinherit, rolbypassrls, rolcreatedb, rolcreaterole"
        " from pg_roles where rolname !~ '^pg_' order by 1",
    )
    assert rows == [
        ("anon", False, False, False, False, False, False),
        ("authenticated", False, False, False, False, False, False),
        ("authenticator", False, True, False, False, False, False),
        ("postgres", False, True, True, True, True, True),
        ("service_role", False, False, False, True, False, False),
        ("supabase_admin", True, True, True, True, True, True),
    ]


def test_postgres_may_hand_on_the_api_roles(bare: LocalSupabase) -> None:
    """Migrations may make further roles members of the API roles, as on hosted projects."""
    rows = query(
        bare,
        "select r.rolname, bool_or(m.admin_option) from pg_auth_members m join pg_roles r on r.oid = m.roleid"
        " where m.member = 'postgres'::regrole and r.rolname !~ '^pg_' group by 1 order by 1",
    )
    assert rows == [("anon", True), ("authenticated", True), ("authenticator", True), ("service_role", True)]


def test_postgres_owns_the_database_and_lacks_superuser_rights(bare: LocalSupabase) -> None:
    """A migration that only a superuser may run fails here as it would fail on a hosted project."""
    with psycopg.connect(bare.database_url, autocommit=True) as connection:
        connection.execute("create schema owned")
        connection.execute("drop schema owned")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("create role too_mighty superuser")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("copy (select 1) to program 'true'")


@pytest.mark.parametrize(("role", "timeout"), [("anon", "3s"), ("authenticated", "8s"), ("service_role", "8s")])
def test_calls_have_the_time_limits_of_supabase(bare: LocalSupabase, role: str, timeout: str) -> None:
    """What a hosted project would cancel is cancelled here; service_role inherits authenticator's limit."""
    assert bare.client(role).rpc("timeout", {}).execute().data == timeout


def test_vectors_live_in_the_schema_extensions(bare: LocalSupabase) -> None:
    """The extension pgvector is there before the first migration, and found without its schema's name."""
    assert query(bare, "select '[1,2]'::extensions.vector::text, '[1,2]'::vector::text") == [("[1,2]", "[1,2]")]


def test_a_password_is_needed(bare: LocalSupabase) -> None:
    """Another user of the machine cannot enter the database through its port."""
    url = bare.database_url
    password = url.split(":")[2].split("@")[0]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url.replace(password, "guess"))
