"""SQL files, further databases, and the schema that PostgREST serves."""

from pathlib import Path

import httpx
import psycopg
import pytest
from postgrest import APIError

from processors_v2.local import LocalStackError, LocalSupabase


def write(folder: Path, name: str, text: str) -> Path:
    """Make an SQL file."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_folder_runs_in_the_order_of_its_names(bare: LocalSupabase, tmp_path: Path) -> None:
    """Files depend on earlier ones, as migrations do; other files in the folder are left alone."""
    write(tmp_path, "2_fill.sql", "insert into public.ordered values (1);")
    write(tmp_path, "1_make.sql", "create table public.ordered (id integer);")
    write(tmp_path, "notes.txt", "no sql")
    bare.apply(tmp_path)
    with psycopg.connect(bare.database_url) as connection:
        assert connection.execute("select * from public.ordered").fetchall() == [(1,)]


def test_files_run_as_the_role_postgres(bare: LocalSupabase, tmp_path: Path) -> None:
    """What a migration creates belongs to postgres, which is no superuser."""
    bare.apply(write(tmp_path, "own.sql", "create table public.whose (id integer);"))
    with psycopg.connect(bare.database_url) as connection:
        owner = connection.execute("select tableowner from pg_tables where tablename = 'whose'").fetchone()
    assert owner == ("postgres",)


def test_statements_that_refuse_a_transaction_work(bare: LocalSupabase, tmp_path: Path) -> None:
    """psql sends a file statement by statement, so that an index can be built concurrently."""
    text = "create table public.big (id integer);\ncreate index concurrently big_idx on public.big (id);"
    bare.apply(write(tmp_path, "index.sql", text))


def test_a_failing_file_stops_with_the_words_of_psql(bare: LocalSupabase, tmp_path: Path) -> None:
    """The error names the file and line and says what Postgres said; nothing after it runs."""
    path = write(tmp_path, "bad.sql", "select 1;\nselect missing_column;\ncreate table public.never (id integer);")
    with pytest.raises(LocalStackError, match=r'bad\.sql:2: ERROR:  column "missing_column" does not exist'):
        bare.apply([path])
    with psycopg.connect(bare.database_url) as connection:
        assert connection.execute("select to_regclass('public.never')").fetchone() == (None,)


def test_a_missing_file_is_an_error(bare: LocalSupabase, tmp_path: Path) -> None:
    """A path with a typing error is not silently no migration."""
    with pytest.raises(FileNotFoundError, match=r"none\.sql"):
        bare.apply([tmp_path / "none.sql"])


def test_settings_of_the_surroundings_do_not_redirect_psql(
    bare: LocalSupabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PGHOST, PGUSER and their like belong to some other server."""
    monkeypatch.setenv("PGHOSTADDR", "127.0.0.2")
    monkeypatch.setenv("PGOPTIONS", "-c role=anon")
    monkeypatch.setenv("PGSERVICE", "elsewhere")
    bare.apply(write(tmp_path, "here.sql", "select 1;"))


def test_reload_waits_for_the_current_schema(bare: LocalSupabase) -> None:
    """A function made before reload_schema is served after it, and one that was dropped is gone."""
    client = bare.client()
    with psycopg.connect(bare.database_url, autocommit=True) as connection:
        for number in range(5):
            connection.execute(f"create function public.fresh_{number}() returns integer language sql as 'select 1'")
            bare.reload_schema()
            assert client.rpc(f"fresh_{number}", {}).execute().data == 1
            connection.execute(f"drop function public.fresh_{number}()")
            bare.reload_schema()
            with pytest.raises(APIError) as caught:
                client.rpc(f"fresh_{number}", {}).execute()
            assert caught.value.code == "PGRST202"


def test_reload_leaves_nothing_in_the_schema(bare: LocalSupabase) -> None:
    """The function that serves as a mark is dropped, and is not in the OpenAPI in the meantime either."""
    bare.reload_schema()
    with psycopg.connect(bare.database_url) as connection:
        left = connection.execute("select proname from pg_proc where proname like 'reload%'").fetchall()
    assert left == []
    openapi = httpx.get(bare.url, headers={"Authorization": f"Bearer {bare.key()}"}, trust_env=False)
    assert "/rpc/who_am_i" in openapi.json()["paths"]
    assert "reload_" not in openapi.text


def test_a_new_database_is_ready_for_migrations(bare: LocalSupabase) -> None:
    """It belongs to postgres and has what Supabase puts in first; a copy has its tables; both can go."""
    bare.create_database("fresh")
    with psycopg.connect(bare.url_of("fresh")) as connection:
        assert connection.execute("select auth.role() is null, '[1]'::vector::text").fetchone() == (
            True,
            "[1]",
        )
        connection.execute("create table public.kept (id integer)")
    bare.create_database("copied", template="fresh")
    connection = psycopg.connect(bare.url_of("copied"))
    assert connection.execute("select count(*) from public.kept").fetchone() == (0,)
    bare.drop_database("copied")
    with pytest.raises(psycopg.OperationalError):
        connection.execute("select 1")
    connection.close()
    bare.drop_database("fresh")
    with psycopg.connect(bare.admin_url) as connection:
        left = connection.execute("select count(*) from pg_database where datname in ('fresh', 'copied')").fetchone()
    assert left == (0,)
