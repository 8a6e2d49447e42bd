"""Who may do what: the matrix of roles and objects, row level security through the views, and the claim ids."""

import uuid
from collections.abc import Callable
from typing import Any

import httpx
import psycopg
import pytest
from access import ROLES, held, listed, objects

from processors_v2.local import LocalSupabase

READABLE_OF_RUNS = {
    "id", "document_id", "stage_name", "open_stage", "status", "attempt", "priority", "available_at",
    "lease_expires_at", "heartbeat_at", "started_at", "finished_at", "error", "progress", "metadata", "retry_at",
    "reset_at", "is_current",
}  # fmt: skip


def test_every_object_has_the_rights_of_the_list(alone) -> None:
    """What the catalog grants is what the access list says; a helper that it leaves out is for service_role alone."""
    said, have = listed(alone), held(alone)
    for name, kind in objects(alone).items():
        if name not in said:
            assert name.startswith("krai_private."), f"{name} is not ours or lacks a line in supabase/sql/41_access.sql"
            usual = {"trigger": set(), "v": {"select"}}.get(kind, {"execute"})
            wanted = {"anon": set(), "authenticated": set(), "service_role": usual}
        else:
            wanted = said[name][1]
        # The documents table that we make may also be written to by service_role.
        more = {"insert", "update", "delete"} if name == "krai_core.documents" else set()
        for role in ROLES:
            assert have.get(name, {}).get(role, set()) - more == wanted[role] - {
                f"{one} stage_status" for one in more
            }, (
                name,
                role,
            )


def test_the_list_names_nothing_that_is_not_there(alone) -> None:
    """Every line of the list is an object of its kind; PostgREST needs readers STABLE and writers VOLATILE."""
    there = objects(alone)
    kinds = {"adopted table": "r", "table": "r", "view": "v", "sequence": "S", "reader": "reader", "writer": "writer"}
    for name, (kind, _) in listed(alone).items():
        if kind == "helper":
            assert name in there, name
        elif kind in kinds:
            assert there.get(name) == kinds[kind], name


def test_nothing_is_granted_to_everybody(alone) -> None:
    """PUBLIC holds no right on the two schemas or on anything in them."""
    assert [name for name, rights in held(alone).items() if rights.get("public")] == []
    assert (
        alone.rows(
            "select n.nspname from pg_namespace n, aclexplode(n.nspacl) acl "
            "where n.nspname in ('krai_core', 'krai_private') and acl.grantee = 0"
        )
        == []
    )


def test_every_table_has_row_level_security(alone) -> None:
    """RLS is on for all tables of ours and for the documents table that we make, and policies name their role."""
    assert (
        alone.rows(
            "select relname from pg_class "
            "where relnamespace = 'krai_core'::regnamespace and relkind = 'r' and not relrowsecurity"
        )
        == []
    )
    assert alone.rows("select policyname from pg_policies where schemaname = 'krai_core' and roles = '{public}'") == []


def _refused(session: Any, query: str) -> str:
    with pytest.raises(psycopg.Error) as caught:
        session.run(query)
    return caught.value.sqlstate or ""


def test_anon_is_refused_everywhere(alone, connect: Callable, local: LocalSupabase, own_database: str) -> None:
    """anon gets 42501 on every relation and on every function of krai_core, not zeros or empty answers."""
    anon = connect("anon", local.url_of(own_database))
    for (name,) in alone.rows(
        "select relname from pg_class where relnamespace = 'krai_core'::regnamespace and relkind in ('r', 'v')"
    ):
        assert _refused(anon, f"select * from krai_core.{name}") == "42501"
    for name, kind, types in alone.rows(
        "select proname, prokind, array(select format_type(t, null) from unnest(proargtypes) t) "
        "from pg_proc where pronamespace = 'krai_core'::regnamespace and prorettype <> 'trigger'::regtype"
    ):
        arguments = ", ".join(f"null::{one}" for one in types)
        verb = "call" if kind == "p" else "select"
        assert _refused(anon, f"{verb} krai_core.{name}({arguments})") == "42501"


def test_anon_is_refused_over_http(local: LocalSupabase) -> None:
    """Through PostgREST that is 401 with 42501, for reading, calling and statistics."""
    headers = {
        "Authorization": f"Bearer {local.key('anon')}",
        "Accept-Profile": "krai_core",
        "Content-Profile": "krai_core",
    }
    with httpx.Client(base_url=local.url, headers=headers, trust_env=False) as http:
        answers = [
            http.get("/documents"),
            http.get("/vw_stage_statistics"),
            http.get("/rpc/get_stage_statistics"),
            http.post("/rpc/start_stage", json={"p_document_id": str(uuid.uuid4()), "p_stage_name": "upload"}),
        ]
    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(401, "42501")] * 4


@pytest.mark.parametrize(
    "path",
    [
        "/vw_stage_statistics", "/vw_stage_flow", "/vw_running_stages", "/stage_counters", "/stage_deltas",
        "/stage_flow",
        "/rpc/get_stage_statistics", "/rpc/list_documents", "/rpc/get_failures", "/rpc/get_stuck_stages",
        "/rpc/get_workers", "/rpc/get_forecast",
        "/rpc/get_document_eta?p_document_id=00000000-0000-0000-0000-000000000000",
    ],
)  # fmt: skip
def test_statistics_are_for_service_role(local: LocalSupabase, path: str) -> None:
    """A signed-in user gets 42501 and HTTP 403 for what tells of all documents; service_role gets an answer by GET."""
    with httpx.Client(base_url=local.url, trust_env=False) as http:
        headers = {"Authorization": f"Bearer {local.key('authenticated')}", "Accept-Profile": "krai_core"}
        answer = http.get(path, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "42501")
        headers["Authorization"] = f"Bearer {local.key('service_role')}"
        # Of a document that is not there it is told as well.
        assert http.get(path, headers=headers).status_code == (404 if "document_id" in path else 200)


@pytest.fixture
def tenants(alone, connect: Callable, local: LocalSupabase, own_database: str) -> Any:
    """Documents with owners and a policy that shows each his own; opens a session signed in as somebody."""
    alone.run("alter table krai_core.documents add column owner uuid")
    alone.run("grant select on krai_core.documents to authenticated")
    alone.run(
        "create policy own_documents on krai_core.documents "
        "for select to authenticated using (owner = (select auth.uid()))"
    )

    def sign_in(user: uuid.UUID) -> Any:
        session = connect("authenticated", local.url_of(own_database))
        session.run("select set_config('request.jwt.claims', %s, false)", f'{{"sub": "{user}"}}')
        return session

    return sign_in


def test_an_owner_sees_his_documents_through_views_and_functions(alone, tenants: Callable) -> None:
    """The policy of documents decides what its owner sees in each view and function."""
    owner = uuid.uuid4()
    mine, theirs = alone.document(owner=owner), alone.document(owner=uuid.uuid4())
    for document in (mine, theirs):
        alone.call("start_stage", document, "upload", p_claim_id=uuid.uuid4())
    session = tenants(owner)
    assert session.rows("select id from krai_core.documents") == [(mine,)]
    assert session.rows("select id, upload_status ->> 'status' from krai_core.vw_documents_by_stage") == [
        (mine, "processing")
    ]
    assert session.value("select count(*) from krai_core.vw_document_stages") == 8
    assert session.rows("select document_id, status from krai_core.stage_runs") == [(mine, "running")]
    assert session.call("get_document_status", mine)["current_stage"] == "upload"
    assert session.call("get_document_progress", mine) == 0
    assert session.call("get_weighted_progress", mine) == 0
    assert session.call("get_current_stage", mine) == "upload"
    assert session.call("can_start_stage", mine, "upload") is False
    assert session.refused("get_document_status", theirs).word == "unknown_document"


def test_an_owner_sees_the_timeline_of_his_documents_without_names(alone, tenants: Callable) -> None:
    """All runs of his own document, worker and actor null; the service sees both; others' documents are unknown."""
    owner = uuid.uuid4()
    mine, theirs = alone.document(owner=owner), alone.document(owner=uuid.uuid4())
    for document in (mine, theirs):
        alone.call("start_stage", document, "upload", p_worker="anna")
        alone.call("fail_stage", document, "upload", "broken")
        alone.call("retry_stage", document, "upload", "bert")
    session = tenants(owner)
    told = session.call("get_document_timeline", mine)["runs"]
    assert [(run["status"], run["error"], run["worker"], run["actor"]) for run in told] == [
        ("failed", "broken", None, None),
        ("ready", None, None, None),
    ]
    names = {(run["worker"], run["actor"]) for run in alone.call("get_document_timeline", mine)["runs"]}
    assert names == {("anna", "bert"), (None, None)}
    for function in ("get_document_timeline", "get_weighted_progress"):
        assert session.refused(function, theirs).word == "unknown_document"


@pytest.mark.triggers_off
def test_an_owner_reads_odd_rows_too(alone, tenants: Callable) -> None:
    """What a reader repairs on the way is within the rights of a signed-in user."""
    owner = uuid.uuid4()
    mine = alone.document(owner=owner)
    alone.run("alter table krai_core.documents disable trigger user")
    alone.edit(mine, {"upload": "completed", "storage": {"status": "x", "started_at": "2025-10-04 08:00:00+02"}})
    session = tenants(owner)
    assert session.call("get_document_status", mine)["stage_status"]["upload"]["status"] == "completed"
    assert session.value("select storage_status ->> 'status' from krai_core.vw_documents_by_stage") == "pending"


def test_a_stranger_sees_nothing(alone, tenants: Callable) -> None:
    """Whom no policy admits sees no rows, and every function tells him that there is no such document."""
    document = alone.document(owner=uuid.uuid4())
    alone.call("start_stage", document, "upload")
    session = tenants(uuid.uuid4())
    for relation in ("documents", "vw_document_stages", "vw_documents_by_stage", "stage_runs"):
        assert session.value(f"select count(*) from krai_core.{relation}") == 0
    for function, arguments in (
        ("get_document_status", ()), ("get_document_progress", ()), ("get_current_stage", ()),
        ("get_document_timeline", ()), ("get_weighted_progress", ()), ("can_start_stage", ("upload",)),
    ):  # fmt: skip
        refusal = session.refused(function, document, *arguments)
        assert (refusal.sqlstate, refusal.word) == ("PT404", "unknown_document")


def test_a_signed_in_user_without_a_grant_on_documents_is_refused(
    alone, connect: Callable, local: LocalSupabase, own_database: str
) -> None:
    """No grant on documents means 42501 from the views and functions, not an empty answer."""
    document = alone.document()
    session = connect("authenticated", local.url_of(own_database))
    assert _refused(session, "select * from krai_core.vw_documents_by_stage") == "42501"
    assert _refused(session, f"select krai_core.get_document_status('{document}')") == "42501"


def test_the_credentials_of_runs_are_unreadable(tenants: Callable) -> None:
    """claim_id, worker and who acted are not for signed-in users, by name or by star."""
    session = tenants(uuid.uuid4())
    readable = session.value(
        "select array_agg(attname::text) from pg_attribute where attrelid = 'krai_core.stage_runs'::regclass "
        "and attnum > 0 and has_column_privilege('authenticated', attrelid, attnum, 'select')"
    )
    assert set(readable) == READABLE_OF_RUNS
    for columns in ("claim_id", "worker", "actor", "closed_by_holder", "*", "stage_runs"):
        assert _refused(session, f"select {columns} from krai_core.stage_runs") == "42501"


@pytest.mark.parametrize(
    "statement",
    [
        "insert into krai_core.stage_runs (document_id, stage_name, status) values (gen_random_uuid(), 'x', 'ready')",
        "update krai_core.stage_runs set lease_expires_at = now()",
        "delete from krai_core.stage_runs",
        "update krai_core.stages set paused = true",
        "delete from krai_core.stage_prerequisites",
        "update krai_core.documents set filename = 'x'",
        "select krai_core.start_stage(gen_random_uuid(), 'upload')",
        "select krai_private.write_stage_status(gen_random_uuid(), '{}')",
        "select krai_core.claim_stages('upload', 'w')",
        "select krai_core.register_stage('mine')",
        "select krai_core.fill_ready_runs()",
        "select krai_core.rebuild_statistics()",
        "select krai_core.prune_runs()",
        "select krai_core.schedule_maintenance()",
        "insert into krai_core.stage_deltas (documents) values (1)",
        "update krai_core.stage_counters set completed = 0",
        "delete from krai_core.stage_flow",
        "insert into krai_core.document_priorities (document_id, priority) values (gen_random_uuid(), 1)",
        "select krai_private.tg_documents_repair()",
        "select krai_private.repair_batch(null, 1)",
    ],
)
def test_a_signed_in_user_cannot_write(tenants: Callable, statement: str) -> None:
    """Whatever changes something is 42501 for a signed-in user without rights of his own."""
    assert _refused(tenants(uuid.uuid4()), statement) == "42501"
