"""What PostgREST offers to each kind of key, as installed and after everything was granted to everybody."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg
import pytest
from access import ROLES, listed

from processors_v2.local import LocalSupabase

# As the platform's guide "Using custom schemas" tells everybody to run.
GUIDE = [
    "grant usage on schema krai_core to anon, authenticated, service_role",
    "grant all on all tables in schema krai_core to anon, authenticated, service_role",
    "grant all on all routines in schema krai_core to anon, authenticated, service_role",
    "grant all on all sequences in schema krai_core to anon, authenticated, service_role",
]


def _http(local: LocalSupabase, role: str) -> httpx.Client:
    headers = {
        "Authorization": f"Bearer {local.key(role)}",
        "Accept-Profile": "krai_core",
        "Content-Profile": "krai_core",
    }
    return httpx.Client(base_url=local.url, headers=headers, trust_env=False)


@pytest.mark.parametrize("role", ROLES)
def test_postgrest_offers_each_key_what_the_list_gives_it(local: LocalSupabase, service: Any, role: str) -> None:
    """Under /rpc service_role finds the public functions, a signed-in user the readers of his, anon nothing."""
    with _http(local, role) as http:
        offered = {path.removeprefix("/rpc/") for path in http.get("/").json()["paths"] if path.startswith("/rpc/")}
    assert offered == {
        name.removeprefix("krai_core.")
        for name, (_, rights) in listed(service).items()
        if name.startswith("krai_core.") and "execute" in rights[role]
    }


def test_no_key_reaches_a_private_function(local: LocalSupabase) -> None:
    """krai_private is no schema of the API, whichever profile a caller names."""
    for role in ROLES:
        with _http(local, role) as http:
            for headers in ({}, {"Content-Profile": "krai_private", "Accept-Profile": "krai_private"}):
                answer = http.post("/rpc/raise_error", headers=headers, json={"p_word": "conflict"})
                assert answer.status_code in (401, 403, 404, 406), (role, headers)


@pytest.fixture(scope="module")
def opened() -> Iterator[LocalSupabase]:
    """A stack in which the guide was followed to the letter, with a document and a failed stage."""
    with LocalSupabase() as local:
        with psycopg.connect(local.database_url, autocommit=True) as owner:
            for statement in GUIDE:
                owner.execute(statement)
            owner.execute("insert into krai_core.documents (filename) values ('a.pdf')")
            owner.execute("select krai_core.claim_stages('upload', 'anna')")
            owner.execute("notify pgrst, 'reload schema'")
        yield local


@pytest.fixture
def calls(opened: LocalSupabase) -> Callable[[str], list[tuple[str, httpx.Response]]]:
    """Calls every function of the API as a role, with arguments that are of the right types."""

    def call_all(role: str) -> list[tuple[str, httpx.Response]]:
        with psycopg.connect(opened.database_url) as owner:
            document = owner.execute("select id from krai_core.documents limit 1").fetchone()[0]  # type: ignore[index]
            functions = owner.execute(
                "select p.proname::text, p.proargnames[1:p.pronargs - p.pronargdefaults], "
                "array(select format_type(t, null) from unnest(p.proargtypes) t) "
                "from pg_proc p join krai_private.access_list() l on l.name = 'krai_core.' || p.proname "
                "where p.pronamespace = 'krai_core'::regnamespace and l.kind in ('reader', 'writer')"
            ).fetchall()
        example = {
            "uuid": str(document), "text": "upload", "numeric": 1, "integer": 1, "jsonb": [], "boolean": True,
            "interval": "1 day", "timestamp with time zone": "2026-01-01", "text[]": [],
        }  # fmt: skip
        with _http(opened, role) as http:
            return [
                (
                    name,
                    http.post(f"/rpc/{name}", json={n: example[t] for n, t in zip(names or [], types, strict=False)}),
                )
                for name, names, types in functions
            ]

    return call_all


def test_after_the_guide_anon_changes_and_reads_nothing(opened: LocalSupabase, calls: Callable[..., Any]) -> None:
    """Names may be seen then, but every call is 401, every table and view empty or refused, and nothing has changed."""
    before = _contents(opened)
    answers = calls("anon")
    assert len(answers) > 40
    for name, answer in answers:
        assert (answer.status_code, answer.json().get("code")) == (401, "42501"), (name, answer.text)
    with _http(opened, "anon") as http:
        for relation in _relations(opened):
            answer = http.get(f"/{relation}")
            assert answer.status_code == 401 or answer.json() == [], (relation, answer.text)
            if relation.startswith("vw_"):
                continue
            assert http.patch(f"/{relation}", params=_anything(opened, relation), json={}).status_code in (
                200,
                204,
                400,
                401,
            )
            assert http.delete(f"/{relation}", params=_anything(opened, relation)).status_code in (200, 204, 401)
    assert _contents(opened) == before


def test_after_the_guide_a_signed_in_user_changes_nothing(opened: LocalSupabase, calls: Callable[..., Any]) -> None:
    """What writes is 403 for authenticated, whichever right it was given on the face of a function or on a table."""
    before = _contents(opened)
    with psycopg.connect(opened.database_url) as owner:
        kinds = dict(owner.execute("select name, kind from krai_private.access_list()").fetchall())
    for name, answer in calls("authenticated"):
        if kinds[f"krai_core.{name}"] == "writer":
            assert (answer.status_code, answer.json().get("code")) == (403, "42501"), (name, answer.text)
    with _http(opened, "authenticated") as http:
        for relation in _relations(opened):
            if not relation.startswith("vw_"):
                assert http.delete(f"/{relation}", params=_anything(opened, relation)).status_code in (200, 204, 403)
        created = http.post("/stages", json={"name": "mine", "position": 99})
        assert (created.status_code, created.json()["code"]) == (403, "42501")
    assert _contents(opened) == before


def test_doctor_names_each_right_that_is_too_many(opened: LocalSupabase) -> None:
    """The statements that get_installation tells take every right of the guide away from anon and authenticated."""
    with psycopg.connect(opened.database_url) as owner:
        with owner.transaction(force_rollback=True):
            told = owner.execute("select krai_core.get_installation() -> 'excess_grants'").fetchone()[0]  # type: ignore[index]
            objects = {statement.split(" on ")[1].split(" from ")[0] for statement in told}
            assert "function krai_core.disable_stage(text,text)" in objects
            assert "table krai_core.stages" in objects
            for statement in told:
                owner.execute(statement)
            again = owner.execute("select krai_core.get_installation()").fetchone()[0]  # type: ignore[index]
            assert (again["excess_grants"], again["missing_grants"]) == ([], [])
            readable = owner.execute(
                "select has_column_privilege('authenticated', 'krai_core.stages', 'name', 'select'), "
                "has_column_privilege('authenticated', 'krai_core.stages', 'changed_by', 'select')"
            ).fetchone()
            assert readable == (True, False)


def _relations(local: LocalSupabase) -> list[str]:
    with psycopg.connect(local.database_url) as owner:
        rows = owner.execute(
            "select regexp_replace(name, '^krai_core\\.', '') from krai_private.access_list() "
            "where kind in ('table', 'view')"
        ).fetchall()
    return [name for (name,) in rows]


def _anything(local: LocalSupabase, relation: str) -> dict[str, str]:
    """A filter that matches every row."""
    with psycopg.connect(local.database_url) as owner:
        row = owner.execute(
            "select attname::text from pg_attribute "
            "where attrelid = %s::regclass and attnum > 0 and attnotnull limit 1",
            [f"krai_core.{relation}"],
        ).fetchone()
    return {str(row[0]): "not.is.null"} if row else {}


def _contents(local: LocalSupabase) -> dict[str, Any]:
    with psycopg.connect(local.database_url) as owner:
        return {
            relation: owner.execute(
                f"select coalesce(jsonb_agg(to_jsonb(t) order by t), '[]') from krai_core.{relation} t"
            ).fetchone()  # type: ignore[arg-type]
            for relation in [*_relations(local), "documents"]
            if not relation.startswith("vw_")
        }


def test_bookkeeping_about_workers_and_people_is_for_service_role(
    alone: Any, connect: Callable[..., Any], local: LocalSupabase, own_database: str
) -> None:
    """The error of a lost run names no worker, and signed-in users cannot read who changed a stage."""
    document = alone.document()
    alone.call("register_stage", "upload", p_max_attempts=1, p_actor="anna")
    alone.call("start_stage", document, "upload", uuid.uuid4(), "host-7:4711", 1)
    alone.run("update krai_core.stage_runs set lease_expires_at = now() - interval '1 hour' where status = 'running'")
    alone.call("reap")
    stored = str(alone.stage_status(document)) + str(alone.value("select jsonb_agg(error) from krai_core.stage_runs"))
    assert "the lease ended" in stored
    assert "host-7" not in stored
    session = connect("authenticated", local.url_of(own_database))
    assert session.value("select count(*) from krai_core.stages where changed_at is not null") == 1
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.run("select changed_by from krai_core.stages")
