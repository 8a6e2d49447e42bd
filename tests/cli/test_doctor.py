"""The doctor: set-ups that are broken, each found and told with its remedy; what it tells to run mends them."""

import datetime as dt
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import supabase

from processors_v2._doctor import examination
from processors_v2._doctor.rest import Gateway
from processors_v2._local.database import url_to_database
from processors_v2._local.process import free_port, wait_until
from processors_v2._transport.version import SCHEMA_VERSION
from processors_v2.doctor import Finding, examine, is_green
from processors_v2.local import LocalSupabase

VERSION = """
create or replace function krai_core.schema_version() returns text language plpgsql immutable set search_path = ''
as $$ begin return '{}'; end; $$
"""
OWNER_SEES = "select pg_get_functiondef('krai_core.get_installation()'::regprocedure)"


@pytest.fixture(scope="module")
def stack(local: LocalSupabase, template: str) -> Iterator[LocalSupabase]:
    """A PostgREST of these tests' own, before a database that they may break."""
    name = f"doctor_{uuid.uuid4().hex}"
    local.create_database(name, template)
    with LocalSupabase(database_url=url_to_database(local.admin_url, name), migrations=None) as running:
        yield running
    local.drop_database(name)


@pytest.fixture
def sql(stack: LocalSupabase) -> "Iterator[Callable[..., Any]]":
    """Run statements as the role postgres; the result of the last one, where it has one."""
    with psycopg.connect(stack.database_url, autocommit=True) as connection:

        def run(*statements: str) -> Any:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchone()[0] if cursor.description else None

        yield run


def found(client: supabase.Client | None, check: str, **options: Any) -> Finding:
    """The one problem that is found, of that check; none of the rest is blamed for it."""
    findings = examine(client, timeout=5.0, **options)
    problems = [finding for finding in findings if finding.level == "problem"]
    assert [finding.check for finding in problems] == [check], findings
    return problems[0]


def told_to_run(finding: Finding) -> str:
    """The statements of a remedy."""
    assert finding.remedy is not None
    return ";".join(re.findall(r"(?:grant|alter table|notify|revoke) [^;]*(?=;)", finding.remedy))


def assert_green(stack: LocalSupabase) -> None:
    """Nothing is wrong."""
    findings = examine(stack.client())
    assert is_green(findings), findings


def test_a_sound_project_is_green(stack: LocalSupabase) -> None:
    """Everything is looked at, and nothing is wrong, through PostgREST alone and with Postgres beside it."""
    checks = ["key", "schema", "version", "objects", "grants", "rls", "readers", "clock", "max_rows"]
    findings = examine(stack.client())
    assert [(finding.check, finding.level) for finding in findings] == [(check, "ok") for check in checks]
    both = examine(stack.client(), database_url=stack.database_url)
    assert [finding.check for finding in both] == [*checks, "database"]
    assert is_green(both)


def test_a_schema_that_is_not_exposed(stack: LocalSupabase) -> None:
    """PostgREST serves other schemas only: where to add krai_core is told."""
    with LocalSupabase(database_url=stack.admin_url, migrations=None, schemas=("public",)) as closed:
        finding = found(closed.client(), "schema")
    assert "schemas under [api] in supabase/config.toml" in str(finding.remedy)


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_a_key_for_browsers(stack: LocalSupabase, role: str) -> None:
    """The key of the wrong kind is known before anything is asked."""
    finding = found(stack.client(role), "key")
    assert f"the {role} key" in finding.message
    assert "secret (or service_role) key" in str(finding.remedy)


def test_a_key_of_another_project(stack: LocalSupabase, local: LocalSupabase) -> None:
    """A key that was signed elsewhere is refused: where the right one stands is told, and not the key."""
    options = supabase.ClientOptions(httpx_client=stack.client().options.httpx_client)
    finding = found(supabase.create_client(stack.url, local.key(), options=options), "key")
    assert "refuses the key" in finding.message
    assert "Project Settings > API Keys" in str(finding.remedy)
    assert local.key() not in repr(finding)


def test_a_url_of_something_else(stack: LocalSupabase) -> None:
    """A server that is no PostgREST answers: the URL is to be checked."""
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        finding = found(supabase.create_client(f"http://127.0.0.1:{server.server_port}", stack.key()), "url")
        server.shutdown()
    assert "not as PostgREST does" in finding.message
    assert "Check that the URL is that of the Supabase project" in str(finding.remedy)


def test_nobody_answers(stack: LocalSupabase) -> None:
    """Nothing listens there: network and URL are to be checked, and it does not take until a retry is over."""
    finding = found(supabase.create_client(f"http://127.0.0.1:{free_port()}", stack.key()), "connection")
    assert "no answer from 127.0.0.1" in finding.message
    assert "neither paused nor deleted" in str(finding.remedy)


def test_postgres_is_asked_where_postgrest_is_away(stack: LocalSupabase) -> None:
    """With a database URL all that the database knows is looked at, whatever PostgREST says."""
    away = supabase.create_client(f"http://127.0.0.1:{free_port()}", stack.key())
    findings = examine(away, database_url=stack.database_url)
    assert [finding.check for finding in findings if finding.level == "problem"] == ["connection"]
    assert {"version", "objects", "grants", "rls", "clock"} <= {finding.check for finding in findings}


@pytest.mark.parametrize(
    "revoked",
    [
        "execute on function krai_core.claim_stages(text, text, integer, numeric, uuid)",
        "select on krai_core.documents",
        "update (paused) on krai_core.stages",
        "all on all tables in schema krai_core",
    ],
)
def test_a_right_that_is_missing(stack: LocalSupabase, sql: Callable[..., Any], revoked: str) -> None:
    """What service_role lacks is told as the statements that give it back, and they do."""
    sql(f"revoke {revoked} from service_role")
    finding = next(finding for finding in examine(stack.client()) if finding.level == "problem")
    sql(told_to_run(finding))
    assert finding.check == "grants"
    assert_green(stack)


@pytest.mark.parametrize("revoked", ["usage on schema krai_core", "execute on function krai_core.get_installation()"])
def test_a_right_without_which_nothing_can_be_asked(
    stack: LocalSupabase, sql: Callable[..., Any], revoked: str
) -> None:
    """Where even the question is denied, the words of the database are told, and Postgres itself tells the rest."""
    sql(f"revoke {revoked} from service_role")
    denied = found(stack.client(), "grants")
    direct = examine(database_url=stack.database_url)
    sql(told_to_run(denied), *(told_to_run(finding) for finding in direct if finding.check == "grants"))
    assert "permission denied" in denied.message
    assert "run the migrations again" in str(denied.remedy)
    assert_green(stack)


@pytest.mark.parametrize(
    ("version", "remedy"),
    [("0.0", "stage-tracker init --update, then supabase db push"), ("9.0", "pip install --upgrade stage-tracker")],
    ids=["older", "newer"],
)
def test_a_database_of_another_version(
    stack: LocalSupabase, sql: Callable[..., Any], version: str, remedy: str
) -> None:
    """An older database needs the migrations, and a newer one a newer client."""
    sql(VERSION.format(version))
    finding = found(stack.client(), "version")
    sql(VERSION.format(SCHEMA_VERSION))
    assert f"has version {version}, and this client is made for {SCHEMA_VERSION}" in finding.message
    assert remedy in str(finding.remedy)


def test_an_older_database_that_cannot_tell(stack: LocalSupabase, sql: Callable[..., Any]) -> None:
    """Where an older one lacks the function that tells the rest, its age is the one finding."""
    definition = sql(OWNER_SEES)
    sql(VERSION.format("0.0"), "drop function krai_core.get_installation()")
    stack.reload_schema()
    finding = found(stack.client(), "version")
    sql(VERSION.format(SCHEMA_VERSION), definition)
    sql(
        "revoke execute on function krai_core.get_installation() from public",
        "grant execute on function krai_core.get_installation() to service_role",
    )
    stack.reload_schema()
    assert "version 0.0" in finding.message


def test_a_stale_schema_cache(stack: LocalSupabase, sql: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that the database has and PostgREST does not know is no missing migration; the remedy reloads it."""
    definition = sql(OWNER_SEES)
    sql("drop function krai_core.get_installation()")
    # Told once, PostgREST loads once. Told again meanwhile, by the remedy beside this, it would load once more at
    # some time later, and no longer be stale where a test needs it to be.
    stack.reload_schema()
    missing = found(stack.client(), "migrations")
    sql(
        definition,
        "revoke execute on function krai_core.get_installation() from public",
        "grant execute on function krai_core.get_installation() to service_role",
    )
    finding = found(stack.client(), "cache")
    # A PostgREST that describes no API leaves it open, until Postgres itself is asked.
    monkeypatch.setattr(Gateway, "_is_in_catalog", lambda *_: False)
    left_open = found(stack.client(), "migrations")
    told_by_postgres = found(stack.client(), "cache", database_url=stack.database_url)
    monkeypatch.undo()
    sql(told_to_run(finding))
    assert wait_until(lambda: is_green(examine(stack.client())), 30.0)
    assert "supabase db push" in str(missing.remedy)
    assert "the database has functions that it lacks" in finding.message
    assert "notify pgrst" in str(left_open.remedy)
    assert told_by_postgres == finding


def test_a_database_without_the_migrations(local: LocalSupabase) -> None:
    """Nothing of the tracker is there: supabase db push is told, and Postgres says the same."""
    name = f"doctor_{uuid.uuid4().hex}"
    local.create_database(name)
    with LocalSupabase(database_url=url_to_database(local.admin_url, name), migrations=None) as bare:
        with psycopg.connect(bare.database_url) as connection:
            connection.execute("create schema krai_core; grant usage on schema krai_core to service_role")
        bare.reload_schema()
        finding = found(bare.client(), "migrations")
        direct = found(None, "migrations", database_url=bare.database_url)
    local.drop_database(name)
    assert "supabase db push" in str(finding.remedy)
    assert "supabase db push" in str(direct.remedy)


def test_max_rows_below_the_documents(stack: LocalSupabase, sql: Callable[..., Any]) -> None:
    """PostgREST returns fewer rows than there are documents; as many as there are, and it is no problem."""
    sql("insert into krai_core.documents (filename) select n || '.pdf' from generate_series(1, 3) n")
    with LocalSupabase(database_url=stack.admin_url, migrations=None, max_rows=2) as low:
        finding = found(low.client(), "max_rows")
    with LocalSupabase(database_url=stack.admin_url, migrations=None, max_rows=4) as high:
        assert_green(high)
    sql("delete from krai_core.documents")
    assert "at most 2 rows" in finding.message
    assert "Max rows" in str(finding.remedy)


@pytest.mark.parametrize("table", ["documents", "stage_runs"])
def test_row_level_security_is_off(stack: LocalSupabase, sql: Callable[..., Any], table: str) -> None:
    """The tables are named, and the statement that switches it on."""
    sql(f"alter table krai_core.{table} disable row level security")
    finding = found(stack.client(), "rls")
    sql(told_to_run(finding))
    assert table in finding.message
    assert_green(stack)


def test_documents_that_everybody_may_read(stack: LocalSupabase, sql: Callable[..., Any]) -> None:
    """Without row level security, whom select was granted sees every stage: anon is named, and what takes it away."""
    sql(
        "grant usage on schema krai_core to anon",
        "grant select on krai_core.documents to anon",
        "alter table krai_core.documents disable row level security",
    )
    problems = {finding.check: finding for finding in examine(stack.client()) if finding.level == "problem"}
    sql(*(told_to_run(finding) for finding in problems.values()), "revoke usage on schema krai_core from anon")
    assert [*problems] == ["rls", "readers"]
    assert "anon may select krai_core.documents with stage_status, errors and metadata in it" in (
        problems["readers"].message
    )
    assert_green(stack)


def test_documents_that_a_policy_opens_are_worth_a_note(stack: LocalSupabase, sql: Callable[..., Any]) -> None:
    """Who may read documents by a policy sees their stages: that is told, and is no problem."""
    sql(
        "grant usage on schema krai_core to anon",
        "grant select on krai_core.documents to anon",
        "create policy shared on krai_core.documents for select to anon using (filename = 'shared')",
    )
    findings = examine(stack.client())
    [note] = [finding for finding in findings if finding.level == "note"]
    sql(
        told_to_run(note),
        "drop policy shared on krai_core.documents",
        "revoke usage on schema krai_core from anon",
    )
    assert (note.check, is_green(findings)) == ("readers", True)
    assert "as policy shared admits" in note.message
    assert [finding.message for finding in examine(stack.client()) if finding.check == "readers"] == [
        "only the service role may select documents"
    ]


@pytest.mark.parametrize(("hours", "said"), [(1, "3600 s ahead of"), (-1, "3600 s behind")])
def test_a_clock_that_is_off(stack: LocalSupabase, monkeypatch: pytest.MonkeyPatch, hours: int, said: str) -> None:
    """A machine whose clock is an hour off is told so, and in which direction."""

    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
            return dt.datetime.now(tz) + dt.timedelta(hours=hours)

    monkeypatch.setattr(examination, "dt", SimpleNamespace(datetime=Clock, UTC=dt.UTC))
    finding = found(stack.client(), "clock")
    assert re.sub(r"\b(3599|3601) s", "3600 s", finding.message).startswith(f"the clock of this machine is {said}")
    assert "time server" in str(finding.remedy)


def test_a_database_url_that_leads_nowhere(stack: LocalSupabase) -> None:
    """What is wrong with the database URL is told beside what PostgREST says, without its password."""
    nowhere = f"postgresql://postgres:secret-word@127.0.0.1:{free_port()}/postgres"
    assert "secret-word" not in repr(found(stack.client(), "database", database_url=nowhere))
    assert "Its form is" in str(found(stack.client(), "database", database_url="postgresql://a:b:secret-word").remedy)


def test_the_command_is_green(run: Callable[..., Any], project: LocalSupabase) -> None:
    """Exit code 0, one line for each check, no key; --json gives the same as one document."""
    done = run("doctor")
    assert (done.code, done.err) == (0, ""), done.out
    assert [line.split()[1] for line in done.out.splitlines() if not line.startswith(" ")][:3] == [
        "key", "schema", "version",
    ]  # fmt: skip
    assert project.key() not in done.out
    answer = json.loads(run("doctor", "--json").out)
    assert answer["ok"] is True
    assert answer["findings"][1] == {
        "check": "schema", "level": "ok", "message": "127.0.0.1 answers for schema krai_core", "remedy": None,
    }  # fmt: skip


def test_the_command_with_a_database_url_alone(run: Callable[..., Any], direct: str) -> None:
    """With nothing but SUPABASE_DB_URL the database is looked at, and no word is lost about PostgREST."""
    assert direct
    done = run("doctor", "--json")
    assert (done.code, json.loads(done.out)["findings"][0]["check"]) == (0, "database")
