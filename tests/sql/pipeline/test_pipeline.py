"""register_stage and disable_stage: the pipeline is data, and is changed on live rows while workers run."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from processors_v2.local import LocalSupabase

DEFAULTS = "from pg_attrdef where adrelid = 'krai_core.documents'::regclass"


def _fill(sql: Any, limit: int = 1000) -> list[int]:
    """Bring ready runs after the pipeline, batch by batch; returns how many documents each batch looked at."""
    batches = []
    while looked_at := sql.call("fill_ready_runs", limit):
        batches.append(looked_at)
    return batches


def _pipeline(sql: Any) -> Any:
    stages = sql.rows(
        "select to_jsonb(s) - '{fill_after,changed_at}'::text[] from krai_core.stages s order by s.position"
    )
    edges = sql.rows("select stage_name, requires from krai_core.stage_prerequisites order by 1, 2")
    return stages, edges


def _ready(sql: Any, stage: str) -> int:
    found: int = sql.value(
        "select count(*) from krai_core.stage_runs where stage_name = %s and status = 'ready'", stage
    )
    return found


def _documents(sql: Any, count: int) -> None:
    sql.run("insert into krai_core.documents (filename) select 'x.pdf' from generate_series(1, %s)", count)


def test_a_new_stage_is_pending_in_the_documents_that_are_there(alone) -> None:
    """Nothing is rewritten: the missing key reads as pending, and the stage can be started and completed."""
    document = alone.document()
    before = alone.rows("select xmin::text, stage_status from krai_core.documents")
    assert alone.call("register_stage", "translation", "{upload}", p_actor="ines") is True
    assert alone.rows("select xmin::text, stage_status from krai_core.documents") == before
    assert "translation" not in alone.stage_status(document)
    told = alone.call("get_document_status", document)
    assert told["stage_status"]["translation"]["status"] == "pending"
    assert alone.value("select changed_by from krai_core.stages where name = 'translation'") == "ines"
    assert alone.call("can_start_stage", document, "translation") is False
    alone.done(document, "upload")
    assert [run["document_id"] for run in alone.claim("translation")] == [str(document)]
    assert alone.stage(document, "translation")["status"] == "processing"


def test_ready_runs_follow_in_bounded_batches(alone) -> None:
    """Each fill looks at so many documents as it may and goes on where it was, until there is nothing to do."""
    _documents(alone, 25)
    alone.call("register_stage", "translation")
    assert _ready(alone, "translation") == 0
    assert alone.call("fill_ready_runs", 10) == 10
    assert _ready(alone, "translation") == 10
    assert _fill(alone, 10) == [10, 5]
    assert _ready(alone, "translation") == 25
    assert alone.call("fill_ready_runs") == 0


@pytest.mark.parametrize("limit", [0, 100001, None])
def test_a_fill_looks_at_1_to_100000_documents(service, limit: int | None) -> None:
    """Any other limit is refused."""
    assert service.refused("fill_ready_runs", limit).word == "invalid_limit"


def test_reap_fills_too(alone) -> None:
    """What workers and cron call anyway brings ready runs after the pipeline."""
    _documents(alone, 5)
    alone.call("register_stage", "translation")
    assert alone.call("reap") == {"requeued": 0, "failed": 0, "filled": 5}
    assert _ready(alone, "translation") == 5


def test_new_documents_know_the_new_stage_at_once(alone) -> None:
    """The column default and the insert trigger are renewed with the pipeline."""
    alone.call("register_stage", "translation")
    document = alone.document()
    assert alone.stage(document, "translation") == alone.stage(document, "upload")
    assert _ready(alone, "translation") == 1


def test_a_new_prerequisite_takes_stages_out_of_the_queue(alone) -> None:
    """What was ready and now has to wait is removed, and a claim that comes before the fill gets none of it."""
    _documents(alone, 3)
    alone.call("register_stage", "virus_scan", p_position=1)
    alone.call("register_stage", "upload", "{virus_scan}")
    assert _ready(alone, "upload") == 3
    assert alone.claim("upload") == []
    _fill(alone)
    assert (_ready(alone, "upload"), _ready(alone, "virus_scan")) == (0, 3)
    (run,) = alone.claim("virus_scan")
    alone.call("complete_stage", run["document_id"], "virus_scan")
    assert len(alone.claim("upload", 5)) == 1


def test_a_prerequisite_less_makes_stages_ready(alone) -> None:
    """p_requires replaces those so far: with none left, the stage is ready everywhere."""
    _documents(alone, 3)
    alone.call("register_stage", "text_extraction", "{}")
    _fill(alone)
    assert _ready(alone, "text_extraction") == 3


def test_a_disabled_stage_counts_as_satisfied(alone) -> None:
    """It leaves queue and totals, what waited for it goes on, what runs may end, and what it held stays."""
    first, second = alone.document(), alone.document()
    (run,) = alone.claim()
    assert alone.call("disable_stage", "upload", "ines") is True
    assert alone.rows("select enabled, changed_by from krai_core.stages where name = 'upload'") == [(False, "ines")]
    assert alone.claim() == []
    _fill(alone)
    assert (_ready(alone, "upload"), _ready(alone, "text_extraction")) == (0, 2)
    assert alone.call("complete_stage", first, "upload", p_claim_id=run["claim_id"]) is True
    for stage in (
        "text_extraction",
        "image_processing",
        "classification",
        "metadata_extraction",
        "storage",
        "embedding",
        "search_indexing",
    ):
        alone.call("complete_stage", second, stage)
    assert alone.call("get_document_progress", second) == 100
    assert alone.call("register_stage", "upload", p_actor="omar") is True
    assert alone.call("get_document_progress", second) == 87.5
    _fill(alone)
    assert alone.stage(first, "upload")["status"] == "completed"
    assert [one["document_id"] for one in alone.claim(limit=5)] == [str(second)]


def test_forty_stages_are_counted_like_eight(alone) -> None:
    """Counts, percentages, JSON and statistics follow the pipeline; the view by stage keeps its eight columns."""
    columns = (
        "select count(*) from pg_attribute where attrelid = 'krai_core.vw_documents_by_stage'::regclass and attnum > 0"
    )
    before = alone.value(columns)
    names = [f"step_{number:02}" for number in range(1, 33)]
    for name, required in zip(names, ["upload", *names], strict=False):
        alone.call("register_stage", name, f"{{{required}}}")
    document = alone.document()
    assert alone.value("select count(*) from krai_core.vw_document_stages where document_id = %s", document) == 40
    alone.done(document, "upload", *names[:9])
    assert alone.call("get_document_progress", document) == 25
    told = alone.call("get_document_status", document)
    assert len(told["stage_status"]) == 40
    assert alone.value("select count(*) from krai_core.vw_stage_statistics") == 40
    assert alone.value("select count(*) from krai_core.vw_stage_statistics where completed_count = 1") == 10
    assert alone.value(columns) == before
    assert [run["stage_name"] for run in alone.claim(names, 40)] == [names[9]]
    for stage in told["stage_status"]:
        alone.call("complete_stage", document, stage)
    assert alone.call("get_document_status", document)["status"] == "completed"
    assert alone.value("select current_stage from krai_core.vw_documents_by_stage") == "completed"


def test_a_stage_is_inserted_at_its_place(alone) -> None:
    """The others move up; without a position a new stage is the last, and a known one stays where it is."""
    names = [name for (name,) in alone.rows("select name from krai_core.stages order by position")]
    alone.call("register_stage", "virus_scan", p_position=2)
    alone.call("register_stage", "archive")
    alone.call("register_stage", "virus_scan", p_description="Looks for viruses")
    assert [name for (name,) in alone.rows("select name from krai_core.stages order by position")] == [
        names[0], "virus_scan", *names[1:], "archive",
    ]  # fmt: skip
    alone.call("register_stage", "archive", p_position=1)
    assert alone.value("select name from krai_core.stages order by position limit 1") == "archive"


def test_what_is_left_out_stays_and_what_is_given_is_set(alone) -> None:
    """Each parameter sets its column; null keeps what is there."""
    settings = {
        "p_description": "Translates", "p_weight": 2.5, "p_lease_seconds": 60, "p_timeout_seconds": 600,
        "p_max_attempts": 7, "p_backoff_seconds": 9000,
    }  # fmt: skip
    alone.call("register_stage", "translation", "{upload}", **settings)
    columns = (
        "description, weight::float, lease_seconds, timeout_seconds, max_attempts, backoff_seconds, backoff_max_seconds"
    )
    row = f"select {columns} from krai_core.stages where name = 'translation'"
    given = [("Translates", 2.5, 60, 600, 7, 9000, 9000)]
    assert alone.rows(row) == given
    alone.call("register_stage", "translation")
    assert alone.rows(row) == given
    assert alone.rows("select requires from krai_core.stage_prerequisites where stage_name = 'translation'") == [
        ("upload",)
    ]


@pytest.mark.parametrize(
    ("stage", "named", "word"),
    [
        ("upload", {"p_requires": ["search_indexing"]}, "invalid_stage"),
        ("upload", {"p_requires": ["text_extraction"]}, "invalid_stage"),
        ("upload", {"p_requires": ["upload"]}, "invalid_stage"),
        ("mine", {"p_requires": ["mine"]}, "invalid_stage"),
        ("mine", {"p_requires": ["upload", "nonsense"]}, "unknown_stage"),
        ("mine", {"p_requires": [None]}, "unknown_stage"),
        ("Mine", {}, "invalid_stage"), ("1st", {}, "invalid_stage"), ("my stage", {}, "invalid_stage"),
        ("", {}, "invalid_stage"), (None, {}, "invalid_stage"), ("m" * 64, {}, "invalid_stage"),
        ("über", {}, "invalid_stage"),
        ("mine", {"p_weight": 0}, "invalid_stage"), ("mine", {"p_weight": "NaN"}, "invalid_stage"),
        ("mine", {"p_lease_seconds": 0}, "invalid_stage"), ("mine", {"p_lease_seconds": 604801}, "invalid_stage"),
        ("mine", {"p_timeout_seconds": 0}, "invalid_stage"), ("mine", {"p_max_attempts": 0}, "invalid_stage"),
        ("mine", {"p_backoff_seconds": -1}, "invalid_stage"), ("upload", {"p_max_attempts": 0}, "invalid_stage"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_is_refused_with_nothing_changed(service, stage: str, named: dict, word: str) -> None:
    """Circles, itself, unknown stages, bad names and values out of range: named, with a remedy."""
    before = _pipeline(service)
    if "p_requires" in named:
        named = named | {
            "p_requires": "{" + ",".join("null" if one is None else one for one in named["p_requires"]) + "}"
        }
    refusal = service.refused("register_stage", stage, **named)
    assert (refusal.sqlstate, refusal.word) == ("22023", word)
    assert refusal.hint
    assert _pipeline(service) == before


def test_a_circle_is_told_with_its_way(service) -> None:
    """The message names the stages in the order in which they require each other."""
    message = service.refused("register_stage", "upload", "{embedding}").message
    assert message.removeprefix("prerequisites form a circle: ").split(" requires ") in (
        ["upload", "embedding", "text_extraction", "upload"],
        ["embedding", "text_extraction", "upload", "embedding"],
        ["text_extraction", "upload", "embedding", "text_extraction"],
    )


def test_a_circle_by_hand_is_refused_too(owner) -> None:
    """The tables themselves hold the rule."""
    with pytest.raises(psycopg.Error, match="circle"):
        owner.run("insert into krai_core.stage_prerequisites values ('upload', 'storage')")


@pytest.mark.parametrize(
    ("by_hand", "call"),
    [
        ("insert into krai_core.stages (name, position) values ('mine', 9)", "register_stage('mine')"),
        ("update krai_core.stages set enabled = false where name = 'upload'", "disable_stage('upload')"),
        ("delete from krai_core.stage_prerequisites where stage_name = 'storage'", "register_stage('storage', '{}')"),
        (
            "insert into krai_core.stage_prerequisites values ('storage', 'embedding')",
            "register_stage('storage', '{image_processing,embedding}')",
        ),
        (
            "update krai_core.stage_prerequisites set requires = 'upload' where stage_name = 'storage'",
            "register_stage('storage', '{upload}')",
        ),
    ],
    ids=["insert", "disable", "delete edge", "insert edge", "update edge"],
)
def test_tables_edited_by_hand_have_the_same_effect(
    alone, connect: Callable, local: LocalSupabase, template: str, by_hand: str, call: str
) -> None:
    """An edit of stages or stage_prerequisites is followed by queue and default as the function's change is."""
    local.create_database("by_call", template)
    other = connect(None, local.url_of("by_call"))
    try:
        for one, statement in ((alone, by_hand), (other, f"select krai_core.{call}")):
            _documents(one, 4)
            one.claim(limit=1)
            one.run(statement)
            _fill(one)
        queue = "select stage_name, status, count(*) from krai_core.stage_runs group by 1, 2 order by 1, 2"
        default = f"select pg_get_expr(adbin, adrelid) {DEFAULTS} order by 1"
        assert alone.rows(queue) == other.rows(queue)
        assert alone.rows(default) == other.rows(default)
        assert [row | {"changed_by": None} for (row,) in _pipeline(alone)[0]] == [
            row | {"changed_by": None} for (row,) in _pipeline(other)[0]
        ]
    finally:
        other.connection.close()
        local.drop_database("by_call")


def test_service_role_may_register(connect: Callable, local: LocalSupabase, own_database: str) -> None:
    """The functions lend it the rights of the owner; the tables themselves it may not write."""
    session = connect("service_role", local.url_of(own_database))
    assert session.call("register_stage", "mine", "{upload}", p_actor="ines") is True
    assert session.call("disable_stage", "mine") is True
    for statement in (
        "delete from krai_core.stages",
        "update krai_core.stages set enabled = true",
        "delete from krai_core.stage_prerequisites",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            session.run(statement)
