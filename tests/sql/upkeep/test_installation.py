"""get_installation: whether an installation is whole."""

import datetime as dt
import re
from collections.abc import Callable
from typing import Any

import pytest
from access import listed

from processors_v2._transport.version import SCHEMA_VERSION
from processors_v2.local import LocalSupabase

REVOKE_ALL = "revoke all on all {kind} in schema krai_core from service_role"


@pytest.fixture
def told(owner: Any) -> "Callable[..., dict[str, Any]]":
    """What get_installation says after statements, which are rolled back."""

    def tell(*statements: str) -> dict[str, Any]:
        owner.run("begin")
        try:
            for statement in statements:
                owner.run(statement)
            answer: dict[str, Any] = owner.call("get_installation")
            return answer
        finally:
            owner.run("rollback")

    return tell


def test_a_whole_installation_lacks_nothing(service: Any) -> None:
    """After the migrations nothing is missing, no table is open, and nobody but service_role reads documents."""
    before = dt.datetime.now(dt.UTC)
    answer = service.call("get_installation")
    assert before <= dt.datetime.fromisoformat(answer.pop("time")) <= dt.datetime.now(dt.UTC)
    assert answer == {
        "version": SCHEMA_VERSION,
        "missing_objects": [],
        "missing_grants": [],
        "excess_grants": [],
        "tables_without_rls": [],
        "leftovers": [],
        "readers_of_documents": {},
    }


def test_every_right_that_workers_have_is_missed(told: Any, owner: Any) -> None:
    """Each right that the access list gives service_role is missed when it is gone, of functions by their signature."""
    wanted = {"usage on schema krai_core"}
    for name, (_, rights) in listed(owner).items():
        wanted |= {f"{one} on {name}" for one in rights["service_role"] if not name.startswith("krai_private.")}
    missed = told(
        *(REVOKE_ALL.format(kind=kind) for kind in ("tables", "functions", "sequences")),
        "revoke usage on schema krai_core from service_role",
    )["missing_grants"]
    assert {_short(grant) for grant in missed} == wanted


def _short(grant: str) -> str:
    match = re.fullmatch(
        r"grant (\w+)(?: \((\w+)\))? on (?:(schema \w+)|\w+ ([\w.]+)(?:\(.*\))?) to service_role", grant
    )
    assert match, grant
    privilege, column, schema, name = match.groups()
    return f"{privilege}{' ' + column if column else ''} on {schema or name}"


def test_what_is_told_gives_the_rights_back(told: Any) -> None:
    """The statements that are told can be run as they stand, and nothing is missing then."""
    revocations = [REVOKE_ALL.format(kind=kind) for kind in ("tables", "functions", "sequences")]
    missed = told(*revocations)["missing_grants"]
    assert told(*revocations, *missed)["missing_grants"] == []


def test_a_right_on_a_column_is_missed_by_itself(told: Any) -> None:
    """Of stages only the columns that a pause writes may be updated, and each of them is needed."""
    missed = told("revoke update (paused) on krai_core.stages from service_role")["missing_grants"]
    assert missed == ["grant update (paused) on table krai_core.stages to service_role"]


@pytest.mark.parametrize(
    ("statement", "missing"),
    [
        ("drop function krai_core.reap(integer)", "function reap"),
        ("drop view krai_core.vw_stage_flow", "relation vw_stage_flow"),
        ("alter table krai_core.documents disable trigger documents_200_edited", "trigger documents_200_edited"),
        ("drop index krai_core.idx_documents_stage_status", "index idx_documents_stage_status"),
    ],
)
def test_what_is_gone_or_switched_off_is_named(told: Any, statement: str, missing: str) -> None:
    """A function, a view or an index that is gone, and a trigger that is disabled, are named."""
    assert told(statement)["missing_objects"] == [missing]


def test_an_index_that_was_not_built_to_its_end_is_named(connect: Callable[..., Any], local: LocalSupabase) -> None:
    """What an interrupted build leaves behind is no index."""
    admin = connect(None, local.admin_url)
    admin.run("begin")
    admin.run(
        "update pg_index set indisvalid = false where indexrelid = 'krai_core.idx_documents_stage_status'::regclass"
    )
    assert admin.call("get_installation")["missing_objects"] == ["index idx_documents_stage_status"]
    admin.run("rollback")


def test_every_trigger_on_documents_is_looked_for(told: Any, owner: Any) -> None:
    """All triggers that the migrations put on documents are missed when they are disabled."""
    triggers = {
        f"trigger {name}"
        for (name,) in owner.rows(
            "select tgname::text from pg_trigger where tgrelid = 'krai_core.documents'::regclass and not tgisinternal"
        )
    }
    assert set(told("alter table krai_core.documents disable trigger user")["missing_objects"]) == triggers


def test_a_table_without_row_level_security_is_named(told: Any, owner: Any) -> None:
    """Each table of the tracker, and documents, is named when its row level security is off."""
    tables = [
        name
        for (name,) in owner.rows(
            "select relname::text from pg_class"
            " where relnamespace = 'krai_core'::regnamespace and relkind = 'r' order by 1"
        )
    ]
    off = [f"alter table krai_core.{name} disable row level security" for name in tables]
    assert told(*off, "create table krai_core.of_yours (id integer)")["tables_without_rls"] == tables


def test_who_may_read_documents_is_told_with_the_policies(told: Any) -> None:
    """Of those who may select stage_status the policies that admit rows are told; one that admits none is not."""
    granted = (
        "grant select on krai_core.documents to authenticated;"
        "grant select (stage_status) on krai_core.documents to anon"
    )
    usage = "grant usage on schema krai_core to anon"
    policy = "create policy own_rows on krai_core.documents for select to authenticated using (filename = 'mine')"
    assert told(granted)["readers_of_documents"] == {"authenticated": []}
    assert told(granted, usage)["readers_of_documents"] == {"authenticated": [], "anon": []}
    assert told(granted, usage, policy)["readers_of_documents"] == {"authenticated": ["own_rows"], "anon": []}
    off = "alter table krai_core.documents disable row level security"
    assert told(granted, usage, off)["readers_of_documents"] == {"authenticated": ["*"], "anon": ["*"]}
