"""Rules that hold for all SQL of the project, read from the catalog and from the files."""

import itertools
import re
from pathlib import Path
from typing import Any

import pglast
import pytest
from pglast import ast
from pglast.visitors import Visitor

from processors_v2._local.project import migration_files, migrations_folder

MIGRATIONS = migration_files(migrations_folder())
# What fires for anybody who writes documents, and must touch what he may not.
DEFINERS = {
    "_tg_documents_repair", "_tg_documents_note", "_tg_documents_inserted", "_tg_documents_edited",
    "_tg_documents_delete_runs", "_tg_documents_keep_rest", "_tg_pipeline_lock", "_tg_pipeline_follow",
}  # fmt: skip
# What service_role calls and may not do itself: write the pipeline, alter the table, write legacy columns, plan jobs.
LENT = {
    "register_stage", "disable_stage", "fill_ready_runs", "schedule_maintenance", "_renew_default", "_follow_legacy",
}  # fmt: skip
READERS = {
    "get_document_progress", "get_current_stage", "can_start_stage", "get_document_status", "get_stage_statistics",
    "explain_stage", "get_documents_ready_for", "list_documents", "get_failures", "get_stuck_stages", "get_workers",
    "get_document_timeline", "get_weighted_progress", "get_document_eta", "get_forecast", "get_document_events",
    "schema_version", "get_installation",
}  # fmt: skip
FUNCTIONS = "from pg_proc p where p.pronamespace = 'krai_core'::regnamespace"
files = pytest.mark.parametrize("path", MIGRATIONS, ids=[path.stem for path in MIGRATIONS])


def _code(path: Path) -> str:
    """The SQL of a file without its comments, those in function bodies included."""
    return re.sub(r"(?m)--.*$", "", path.read_text(encoding="utf-8"))


def _names(service: Any, condition: str) -> set[str]:
    return {name for (name,) in service.rows(f"select p.proname::text {FUNCTIONS} and {condition}")}


def test_every_function_pins_its_search_path(service) -> None:
    """All functions say `set search_path = ''`; a procedure that commits could not, so there is none."""
    pinned = "coalesce(p.proconfig && array['search_path=\"\"'], false)"
    assert _names(service, f"not {pinned}") == set()


def test_only_triggers_and_six_others_run_with_the_rights_of_their_owner(service) -> None:
    """SECURITY DEFINER is for triggers, which nobody may execute, and for six that service_role alone may."""
    assert _names(service, "p.prosecdef") == DEFINERS | LENT
    assert _names(service, "p.prorettype = 'trigger'::regtype") == DEFINERS
    for role, lent in (("anon", set()), ("authenticated", set()), ("service_role", LENT)):
        assert _names(service, f"p.prosecdef and has_function_privilege('{role}', p.oid, 'execute')") == lent


def test_a_function_that_lends_rights_says_why(service) -> None:
    """The comment of each SECURITY DEFINER function that may be called gives the reason."""
    told = _names(service, "obj_description(p.oid, 'pg_proc') ~ 'Security definer, (because|as)'")
    assert told >= LENT


def test_no_name_is_overloaded(service) -> None:
    """PostgREST answers 300 where two functions of a name fit a call: each name stands once."""
    assert service.rows(f"select p.proname::text {FUNCTIONS} group by 1 having count(*) > 1") == []


def test_readers_are_stable_and_writers_volatile(service) -> None:
    """PostgREST serves STABLE functions by GET and runs them read-only; what writes must be VOLATILE."""
    exposed = "p.proname !~ '^_' and p.prokind = 'f'"
    assert _names(service, f"{exposed} and p.provolatile = 's'") == READERS
    assert _names(service, f"{exposed} and p.provolatile = 'i'") == set()


def test_no_function_that_raises_is_immutable(service) -> None:
    """The planner evaluates immutable functions of constants: an error would come where a call is only planned."""
    assert _names(service, "p.provolatile = 'i' and p.prosrc ~ '_raise|raise exception'") == set()


def test_parameters_are_named(service) -> None:
    """Every parameter begins with p_ (what is returned with o_, but for tables), as PostgREST calls by name."""
    rows = service.rows(f"select p.proname::text, p.proargnames, p.proargmodes::text[], p.pronargs {FUNCTIONS}")
    for name, parameters, modes, count in rows:
        assert len(parameters or []) >= count, name
        for parameter, mode in zip(parameters or [], modes or ["i"] * count, strict=True):
            assert parameter.startswith({"i": "p_", "o": "o_", "t": ""}[mode]), name


def test_the_functions_of_the_seed_have_its_signatures(service) -> None:
    """Names, parameters, order and defaults of the eight are the seed's; more only behind them, with defaults."""
    seed = {
        "start_stage": "p_document_id uuid, p_stage_name text",
        "update_stage_progress":
            "p_document_id uuid, p_stage_name text, p_progress numeric, p_metadata jsonb DEFAULT '{}'::jsonb",
        "complete_stage": "p_document_id uuid, p_stage_name text, p_metadata jsonb DEFAULT '{}'::jsonb",
        "fail_stage": "p_document_id uuid, p_stage_name text, p_error text, p_metadata jsonb DEFAULT '{}'::jsonb",
        "skip_stage": "p_document_id uuid, p_stage_name text, p_reason text DEFAULT 'Not applicable'::text",
        "get_document_progress": "p_document_id uuid",
        "get_current_stage": "p_document_id uuid",
        "can_start_stage": "p_document_id uuid, p_stage_name text",
    }  # fmt: skip
    found = dict(service.rows(f"select p.proname::text, pg_get_function_arguments(p.oid) {FUNCTIONS}"))
    results = dict(service.rows(f"select p.proname::text, pg_get_function_result(p.oid) {FUNCTIONS}"))
    for name, arguments in seed.items():
        assert found[name].startswith(arguments)
        further = found[name][len(arguments) :].removeprefix(", ")
        assert all("DEFAULT" in one for one in further.split(", ") if one)
        assert results[name] == {"get_document_progress": "numeric", "get_current_stage": "text"}.get(name, "boolean")


def test_no_function_is_longer_than_eighty_lines(service) -> None:
    """A body that needs more needs a helper."""
    assert _names(service, "array_length(string_to_array(p.prosrc, E'\\n'), 1) > 80") == set()


def test_every_object_has_a_comment(service) -> None:
    """Schema objects, columns and functions say what they are; PostgREST publishes it."""
    assert _names(service, "coalesce(obj_description(p.oid, 'pg_proc'), '') = ''") == set()
    relations = "pg_class c where c.relnamespace = 'krai_core'::regnamespace and c.relkind in ('r', 'v')"
    assert (
        service.rows(f"select relname from {relations} and coalesce(obj_description(c.oid, 'pg_class'), '') = ''") == []
    )
    assert (
        service.rows(
            f"select c.relname, a.attname from pg_attribute a, {relations} and a.attrelid = c.oid and a.attnum > 0 "
            "and not a.attisdropped and coalesce(col_description(c.oid, a.attnum), '') = ''"
        )
        == []
    )


def test_the_comment_of_an_exposed_function_names_its_errors(service) -> None:
    """What a caller may call tells him which SQLSTATE it raises, and its first line is a sentence of its own."""
    for name, comment in service.rows(
        f"select p.proname::text, obj_description(p.oid, 'pg_proc') {FUNCTIONS} "
        "and p.proname !~ '^_' and p.prokind = 'f'"
    ):
        assert re.search("PT404|22023|42501", comment), name
        assert comment.splitlines()[0].endswith((".", "}.")), name


def test_every_view_runs_with_the_rights_of_its_caller(service) -> None:
    """security_invoker is on for all views, or row level security would be passed by."""
    assert (
        service.rows(
            "select relname from pg_class where relnamespace = 'krai_core'::regnamespace and relkind in ('v', 'm') "
            "and not coalesce(reloptions @> array['security_invoker=true'], false)"
        )
        == []
    )


def test_every_foreign_key_has_an_index(service) -> None:
    """The leading columns of some index are those of each foreign key."""
    assert (
        service.rows(
            "select conname from pg_constraint c where contype = 'f' and connamespace = 'krai_core'::regnamespace "
            "and not exists (select from pg_index i where i.indrelid = c.conrelid "
            "and (i.indkey::int2[])[0:cardinality(c.conkey) - 1] @> c.conkey)"
        )
        == []
    )


@files
def test_no_file_raises_what_postgrest_repeats_or_hides(path: Path) -> None:
    """40001 is repeated without end by PostgREST before 16, P0002 becomes HTTP 500: no statement names either."""
    assert re.findall("40001|P0002|serializable|no_data_found", _code(path), re.IGNORECASE) == []


@files
def test_every_file_begins_with_an_essay(path: Path) -> None:
    """What a file holds and by which rules stands at its top, and the file is short enough to be read."""
    lines = path.read_text(encoding="utf-8").splitlines()
    essay = list(itertools.takewhile(lambda line: line.startswith("--"), lines))
    assert len(essay) >= 3
    assert len(lines) < 400


# ruff: noqa: N802 - pglast looks for its visitors by the names of the statements.
class _Harm(Visitor):  # type: ignore[misc]
    """Collects statements that a second run, or a user's objects, would suffer from."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def visit_CreateFunctionStmt(self, _: object, node: ast.CreateFunctionStmt) -> None:
        """Functions are replaced."""
        if not node.replace:
            self.found.append(f"create function {node.funcname[-1].sval}")

    def visit_ViewStmt(self, _: object, node: ast.ViewStmt) -> None:
        """Views are replaced."""
        if not node.replace:
            self.found.append(f"create view {node.view.relname}")

    def visit_CreateStmt(self, _: object, node: ast.CreateStmt) -> None:
        """Tables are left where they are."""
        if not node.if_not_exists:
            self.found.append(f"create table {node.relation.relname}")

    def visit_IndexStmt(self, _: object, node: ast.IndexStmt) -> None:
        """So are indexes."""
        if not node.if_not_exists:
            self.found.append(f"create index {node.idxname}")

    def visit_CreateTrigStmt(self, _: object, node: ast.CreateTrigStmt) -> None:
        """Triggers are replaced."""
        if not node.replace:
            self.found.append(f"create trigger {node.trigname}")

    def visit_DropStmt(self, _: object, node: ast.DropStmt) -> None:
        """What is dropped takes nothing along."""
        if not node.missing_ok or int(node.behavior) == int(pglast.enums.DropBehavior.DROP_CASCADE):
            self.found.append("drop")


@files
def test_every_file_can_be_run_again(path: Path) -> None:
    """Statements create or replace, create if missing, drop if there, and never drop with CASCADE."""
    harm = _Harm()
    harm(pglast.parse_sql(path.read_text(encoding="utf-8")))
    assert harm.found == []
    dropped = re.findall(r"drop\s+[^;]*\bcascade\b", _code(path), re.IGNORECASE)
    assert dropped == []


@files
def test_every_transaction_bounds_its_waiting(path: Path) -> None:
    """A file that makes objects is one transaction, and sets lock_timeout before it can queue writers behind it."""
    statements = [statement.stmt for statement in pglast.parse_sql(path.read_text(encoding="utf-8"))]
    kinds = [type(statement).__name__ for statement in statements]
    if not {"CreateFunctionStmt", "CreateStmt"} & set(kinds):
        # The backfill and the concurrent index, which commit as they go.
        return
    assert kinds[0] == kinds[-1] == "TransactionStmt"
    assert (statements[1].name, statements[1].is_local) == ("lock_timeout", True)


def test_the_schema_is_reloaded_at_the_end() -> None:
    """PostgREST is told of the new schema after the last object is there."""
    notified = [path.name for path in MIGRATIONS if "notify pgrst, 'reload schema'" in _code(path)]
    created = [path.name for path in MIGRATIONS if re.search("create (or replace )?(function|view|table)", _code(path))]
    assert notified
    assert notified[-1] >= max(name for name in created if "repair" not in name)
