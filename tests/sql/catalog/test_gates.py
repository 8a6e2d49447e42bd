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

ROOT = Path(__file__).parents[3]
MIGRATIONS = migration_files(migrations_folder())
SOURCES = sorted((ROOT / "supabase" / "sql").glob("*.sql"))
OBJECTS = MIGRATIONS[:1]
FUNCTIONS = "from pg_proc p where p.pronamespace in ('krai_core'::regnamespace, 'krai_private'::regnamespace)"
API = "from pg_proc p where p.pronamespace = 'krai_core'::regnamespace"
# How a function is planned: not at all told, by index, or by index and in its order (docs/planning.md).
BY_INDEX = {
    "plan_cache_mode=force_generic_plan", "enable_seqscan=off", "enable_hashjoin=off", "enable_memoize=off",
    "enable_mergejoin=off", "jit=off",
}  # fmt: skip
IN_ORDER = BY_INDEX | {"enable_bitmapscan=off", "enable_sort=off"}
files = pytest.mark.parametrize("path", MIGRATIONS, ids=[path.stem for path in MIGRATIONS])
sources = pytest.mark.parametrize("path", SOURCES, ids=[path.stem for path in SOURCES])


def _code(path: Path) -> str:
    """The SQL of a file without its comments, those in function bodies included."""
    return re.sub(r"(?m)--.*$", "", path.read_text(encoding="utf-8"))


def _names(service: Any, condition: str, functions: str = FUNCTIONS) -> set[str]:
    return {name for (name,) in service.rows(f"select p.proname::text {functions} and {condition}")}


def test_every_function_pins_its_search_path(service) -> None:
    """All functions say `set search_path = ''`; a procedure that commits could not, so there is none."""
    pinned = "coalesce(p.proconfig && array['search_path=\"\"'], false)"
    assert _names(service, f"not {pinned}") == set()


def test_nothing_that_clients_may_call_runs_with_the_rights_of_its_owner(service) -> None:
    """No function of krai_core is SECURITY DEFINER; of the private ones only service_role may execute any."""
    assert _names(service, "p.prosecdef", API) == set()
    for role in ("anon", "authenticated"):
        assert _names(service, f"p.prosecdef and has_function_privilege('{role}', p.oid, 'execute')") == set()
    assert _names(service, "p.prorettype = 'trigger'::regtype and not p.prosecdef") == set()
    assert _names(service, "p.prorettype = 'trigger'::regtype and has_function_privilege(p.oid, 'execute')") == set()


def test_a_function_that_lends_rights_says_why(service) -> None:
    """The comment of each SECURITY DEFINER function but those of triggers gives the reason."""
    lent = "p.prosecdef and p.prorettype <> 'trigger'::regtype"
    assert _names(service, f"{lent} and obj_description(p.oid, 'pg_proc') !~ 'Security definer,\\s+because'") == set()
    assert _names(service, lent)


def test_private_functions_are_named_without_ornament(service) -> None:
    """The schema says that a function is private: no name begins with an underscore."""
    assert _names(service, "p.proname ~ '^_'") == set()


def test_a_function_is_planned_in_one_of_two_ways_or_as_the_planner_likes(service) -> None:
    """Planner settings are those of the profile by index, or of the profile in order, and no others."""
    for name, settings in service.rows(f"select p.proname::text, p.proconfig::text[] {FUNCTIONS}"):
        planner = {one for one in settings if one.startswith(("plan_", "enable_", "jit"))}
        assert planner in (set(), BY_INDEX, IN_ORDER), f"{name}: {planner}"


def test_no_name_is_overloaded(service) -> None:
    """PostgREST answers 300 where two functions of a name fit a call: each name stands once."""
    assert service.rows(f"select p.pronamespace, p.proname::text {FUNCTIONS} group by 1, 2 having count(*) > 1") == []


def test_no_function_that_raises_is_immutable(service) -> None:
    """The planner evaluates immutable functions of constants: an error would come where a call is only planned."""
    assert _names(service, "p.provolatile = 'i' and p.prosrc ~ 'raise_|raise exception'") == set()


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
    found = dict(service.rows(f"select p.proname::text, pg_get_function_arguments(p.oid) {API}"))
    results = dict(service.rows(f"select p.proname::text, pg_get_function_result(p.oid) {API}"))
    for name, arguments in seed.items():
        assert found[name].startswith(arguments)
        further = found[name][len(arguments) :].removeprefix(", ")
        assert all("DEFAULT" in one for one in further.split(", ") if one)
        assert results[name] == {"get_document_progress": "numeric", "get_current_stage": "text"}.get(name, "boolean")


def test_no_function_is_longer_than_a_page(service) -> None:
    """A body has at most 80 lines, or 100 where it is one statement; what needs more needs a helper."""
    lines = "array_length(string_to_array(p.prosrc, E'\\n'), 1)"
    statements = "regexp_count(regexp_replace(p.prosrc, '--[^\\n]*', '', 'g'), ';')"
    assert _names(service, f"{lines} > 100 or {lines} > 80 and {statements} > 8") == set()


def test_every_object_has_a_comment(service) -> None:
    """Schema objects, columns and functions say what they are; PostgREST publishes it."""
    assert _names(service, "coalesce(obj_description(p.oid, 'pg_proc'), '') = ''") == set()
    relations = (
        "pg_class c where c.relnamespace::regnamespace::text ~ '^krai_(core|private)$' and c.relkind in ('r', 'v')"
    )
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
        f"select p.proname::text, obj_description(p.oid, 'pg_proc') {API} and p.prokind = 'f'"
    ):
        assert re.search("PT404|22023|42501", comment), name
        assert comment.splitlines()[0].endswith((".", "}.")), name


def test_every_view_runs_with_the_rights_of_its_caller(service) -> None:
    """security_invoker is on for all views, or row level security would be passed by."""
    assert (
        service.rows(
            "select relname from pg_class where relnamespace::regnamespace::text ~ '^krai_' and relkind in ('v', 'm') "
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


@sources
def test_every_source_begins_with_an_essay_and_can_be_read(path: Path) -> None:
    """What a file holds and by which rules stands at its top; it is short, and no line exceeds 120 characters."""
    lines = path.read_text(encoding="utf-8").splitlines()
    essay = list(itertools.takewhile(lambda line: line.startswith("--"), lines))
    assert essay
    assert len(lines) < 500
    assert [number for number, line in enumerate(lines, 1) if len(line) > 120] == []


def test_a_function_is_made_before_what_calls_it() -> None:
    """Read from first to last, nothing calls a function of a later file, but for one trigger that is named."""
    made: dict[str, str] = {}
    texts = {path.stem: _code(path) for path in SOURCES}
    for name, text in texts.items():
        for function in re.findall(r"create or replace function (krai_\w+\.\w+)", text):
            made.setdefault(function, name)
    later = {
        (name, function)
        for name, text in texts.items()
        for function in re.findall(r"krai_\w+\.\w+(?=\()", re.sub(r"comment on (?:[^;']|'[^']*')*;", "", text))
        if made.get(function, "") > name
    }
    assert later == {("20_pipeline", "krai_private.tg_documents_repair")}


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


def test_every_block_bounds_its_waiting() -> None:
    """Each transaction of the objects sets lock_timeout before it can queue others behind itself."""
    [path] = OBJECTS
    statements = [statement.stmt for statement in pglast.parse_sql(path.read_text(encoding="utf-8"))]
    begins = [
        number
        for number, statement in enumerate(statements)
        if isinstance(statement, ast.TransactionStmt)
        and statement.kind == pglast.enums.TransactionStmtKind.TRANS_STMT_BEGIN
    ]
    assert begins[0] == 0
    for begin in begins:
        assert (statements[begin + 1].name, statements[begin + 1].is_local) == ("lock_timeout", True)
    # Nothing stands between a commit and the next begin.
    ends = [
        number
        for number, statement in enumerate(statements)
        if isinstance(statement, ast.TransactionStmt)
        and statement.kind == pglast.enums.TransactionStmtKind.TRANS_STMT_COMMIT
    ]
    assert [end + 1 for end in ends] == [*begins[1:], len(statements)]


def test_what_keeps_others_waiting_commits_within_ten_statements() -> None:
    """From the first statement of a block that locks a table or a view to its commit are at most ten round trips."""
    locking = (
        ast.CreateTrigStmt,
        ast.ViewStmt,
        ast.AlterTableStmt,
        ast.CreatePolicyStmt,
        ast.IndexStmt,
        ast.UpdateStmt,
    )
    held: int | None = None
    longest = 0
    for statement in pglast.parse_sql(OBJECTS[0].read_text(encoding="utf-8")):
        if isinstance(statement.stmt, ast.TransactionStmt):
            longest = max(longest, held or 0)
            held = None
        elif held is not None:
            held += 1
        elif isinstance(statement.stmt, locking):
            held = 1
    assert 0 < longest <= 10


def test_the_schema_is_reloaded_behind_the_last_object() -> None:
    """PostgREST is told of the new schema after the last function and view is there."""
    text = _code(OBJECTS[0])
    last = max(match.start() for match in re.finditer("create or replace (function|view)", text))
    assert text.index("notify pgrst, 'reload schema'") > last
