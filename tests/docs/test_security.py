"""docs/security.md says who may do what, and its recipes show each user his own documents and nothing else."""

import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
import supabase
from blocks import blocks_of, text_of
from postgrest.exceptions import APIError

from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker

Connect = Callable[..., "psycopg.Connection[tuple[Any, ...]]"]

PAGE = text_of("docs/security.md")
RECIPES = [block.text for block in blocks_of("docs/security.md") if block.note == "run by"]
SELECTED = {"owner_id": RECIPES[0], "tenant_id": RECIPES[1]}
UPLOADS = RECIPES[2]
STATISTICS = [
    "get_stage_statistics", "list_documents", "get_failures", "get_stuck_stages", "get_workers", "get_forecast",
]  # fmt: skip


def _said(rights: str) -> str:
    """How the page says what the access list grants to a role."""
    for start, words in (("execute", "calls"), ("select (", "reads some columns"), ("select, ", "reads, writes")):
        if rights.startswith(start):
            return words
    return "reads" if rights else "no"


def test_the_table_is_that_of_the_access_list(connect: Connect) -> None:
    """Each table, view and function of krai_core has the rights on the page that the access list gives it."""
    rows = connect().execute(
        "select split_part(l.name, '.', 2), l.anon, l.authenticated, l.service_role from krai_private.access_list() l"
        " where l.kind in ('adopted table', 'table', 'view', 'reader', 'writer')"
    )
    wanted = {str(name): [_said(str(one)) for one in rights] for name, *rights in rows}
    table = re.findall(r"^\| (`.+|every other function) \| (.+) \| (.+) \| (.+) \|$", PAGE, re.MULTILINE)
    said = {name: list(row[1:]) for row in table for name in re.findall(r"`(\w+)`", row[0]) if row[1] == "no"}
    [others] = [list(row[1:]) for row in table if row[0] == "every other function"]
    assert {name: said.get(name, others) for name in wanted} == wanted
    assert set(said) <= set(wanted)
    # A table or view is named; only functions may be among the others.
    assert others == ["no", "no", "calls"]


@dataclass
class Tenants:
    """Two users, a document of each, and a stack in which a recipe was followed."""

    local: LocalSupabase
    column: str
    users: tuple[uuid.UUID, uuid.UUID]
    documents: tuple[str, str]

    def client(self, number: int) -> supabase.Client:
        """A client that is signed in as a user."""
        claims: dict[str, Any] = {"sub": str(self.users[number])}
        if self.column == "tenant_id":
            claims = {"sub": str(uuid.uuid4()), "app_metadata": {"tenant_id": str(self.users[number])}}
        return self.local.client("authenticated", **claims)

    def owner(self, statement: str) -> Any:
        """Run a statement as the owner of the table."""
        with psycopg.connect(self.local.database_url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else None


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalSupabase]:
    """A stack of its own: recipes change the documents."""
    with LocalSupabase() as local:
        yield local


@pytest.fixture(scope="module", params=SELECTED)
def tenants(stack: LocalSupabase, request: pytest.FixtureRequest) -> Iterator[Tenants]:
    """The stack after a recipe, with a document of each user, on which work was done."""
    users = (uuid.uuid4(), uuid.uuid4())
    made = Tenants(stack, request.param, users, ("", ""))
    made.owner(SELECTED[request.param])
    stack.reload_schema()
    service = stack.client().schema("krai_core").table("documents")
    rows = [{"filename": f"{number}.pdf", request.param: str(user)} for number, user in enumerate(users)]
    made.documents = tuple(row["id"] for row in service.insert(rows).execute().data)
    tracker = StageTracker(stack.client())
    for document in made.documents:
        tracker.start_stage(document, "upload", claim_id=uuid.uuid4(), worker="w-1")
    yield made
    made.owner(
        f"drop policy documents_select_{'own' if request.param == 'owner_id' else 'tenant'} on krai_core.documents"
    )
    made.owner(f"delete from krai_core.documents; alter table krai_core.documents drop column {request.param} cascade")


def _refused(request: Any) -> str:
    with pytest.raises(APIError) as caught:
        request.execute()
    return str(caught.value.code)


@pytest.mark.parametrize("number", [0, 1])
def test_each_user_sees_his_own_rows(tenants: Tenants, number: int) -> None:
    """Documents, stages and runs of his, in the tables and the views; the other user's are not there."""
    core = tenants.client(number).schema("krai_core")
    mine = {tenants.documents[number]}
    for relation, key in (
        ("documents", "id"), ("vw_documents_by_stage", "id"),
        ("vw_document_stages", "document_id"), ("stage_runs", "document_id"),
    ):  # fmt: skip
        assert {row[key] for row in core.table(relation).select(key).execute().data} == mine


@pytest.mark.parametrize("number", [0, 1])
def test_each_user_is_answered_for_his_own_documents(tenants: Tenants, number: int) -> None:
    """Status, timeline and events of his document; of the other one it is said that there is none."""
    core = tenants.client(number).schema("krai_core")
    mine, other = tenants.documents[number], tenants.documents[1 - number]
    for function in ("get_document_status", "get_document_timeline"):
        assert core.rpc(function, {"p_document_id": mine}).execute().data["document_id"] == mine
        assert _refused(core.rpc(function, {"p_document_id": other})) == "PT404"
    events = core.rpc("get_document_events", {"p_documents": {mine: None, other: None}}).execute().data
    assert (events[mine]["state"]["current_stage"], events[other]["state"]) == ("upload", None)


def test_statistics_are_refused(tenants: Tenants) -> None:
    """A user gets 42501 for whatever is of all documents."""
    core = tenants.client(0).schema("krai_core")
    assert {_refused(core.rpc(function, {})) for function in STATISTICS} == {"42501"}
    assert {
        _refused(core.table(view).select("*")) for view in ("vw_stage_statistics", "vw_running_stages", "vw_stage_flow")
    } == {"42501"}


def test_a_user_writes_nothing(tenants: Tenants) -> None:
    """No function that writes, and no column, of his own document either."""
    core = tenants.client(0).schema("krai_core")
    mine = {"p_document_id": tenants.documents[0], "p_stage_name": "upload"}
    assert _refused(core.rpc("complete_stage", mine)) == "42501"
    assert _refused(core.table("documents").update({"filename": "x"}).eq("id", tenants.documents[0])) == "42501"


def test_anon_sees_nothing(tenants: Tenants) -> None:
    """Without a user everything is refused, of documents as well."""
    core = tenants.local.client("anon").schema("krai_core")
    for request in (
        core.table("documents").select("id"), core.table("vw_documents_by_stage").select("id"),
        core.rpc("get_document_status", {"p_document_id": tenants.documents[0]}),
    ):  # fmt: skip
        assert _refused(request) == "42501"


def test_the_policy_uses_its_index(tenants: Tenants) -> None:
    """Whose documents are shown is worked out once, and looked up."""
    claims = f'{{"sub": "{tenants.users[0]}", "app_metadata": {{"tenant_id": "{tenants.users[0]}"}}}}'
    with psycopg.connect(tenants.local.database_url) as connection:
        connection.execute("set local enable_seqscan = off")
        connection.execute("set local role authenticated")
        connection.execute("select set_config('request.jwt.claims', %s, true)", [claims])
        plan = str(connection.execute("explain select id from krai_core.documents").fetchall())
    assert "InitPlan" in plan
    assert f"documents_{tenants.column}" in plan


def test_without_row_level_security_every_user_sees_all(tenants: Tenants) -> None:
    """With the grant alone, all documents and all their stages are shown."""
    tenants.owner("alter table krai_core.documents disable row level security")
    try:
        seen = tenants.client(0).schema("krai_core").table("vw_documents_by_stage").select("id").execute().data
        assert {row["id"] for row in seen} == set(tenants.documents)
    finally:
        tenants.owner("alter table krai_core.documents enable row level security")


def test_a_user_without_stage_status_is_refused_the_views(tenants: Tenants) -> None:
    """With a grant of the other columns alone he reads those, and gets 42501 from what shows stages."""
    tenants.owner("revoke select on krai_core.documents from authenticated")
    tenants.owner("grant select (id, filename) on krai_core.documents to authenticated")
    core = tenants.client(0).schema("krai_core")
    try:
        assert core.table("documents").select("filename").execute().data == [{"filename": "0.pdf"}]
        assert _refused(core.table("documents").select("stage_status")) == "42501"
        assert _refused(core.table("vw_documents_by_stage").select("id")) == "42501"
        assert _refused(core.rpc("get_document_status", {"p_document_id": tenants.documents[0]})) == "42501"
    finally:
        tenants.owner("grant select on krai_core.documents to authenticated")


@pytest.mark.parametrize("tenants", ["owner_id"], indirect=True)
def test_a_user_uploads_and_says_nothing_of_stages(tenants: Tenants) -> None:
    """He inserts a document of his own, which is ready to be worked on; none of somebody else, and no stage_status."""
    tenants.owner(UPLOADS)
    documents = tenants.client(0).schema("krai_core").table("documents")
    mine, other = (str(user) for user in tenants.users)
    row = documents.insert({"filename": "new.pdf", "owner_id": mine}).execute().data[0]
    assert row["stage_status"]["upload"]["status"] == "pending"
    ready = StageTracker(tenants.local.client()).get_documents_ready_for("upload")
    assert row["id"] in {document["id"] for document in ready}
    assert _refused(documents.insert({"filename": "new.pdf", "owner_id": other})) == "42501"
    done = {"filename": "new.pdf", "owner_id": mine, "stage_status": {"upload": {"status": "completed"}}}
    assert _refused(documents.insert(done)) == "42501"
    tenants.owner("drop policy documents_insert_own on krai_core.documents")
