"""Changes of the pipeline while others work: nobody is missed, and nobody waits for long."""

import json
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


def _documents(sql: Any, count: int) -> None:
    sql.run("insert into krai_core.documents (filename) select 'x.pdf' from generate_series(1, %s)", count)


def _waits_for_the_pipeline(sql: Any, session: Any) -> bool:
    """Whether a session waits for the lock on stages, and not for one on documents."""
    waits: bool = sql.value(
        "select exists (select from pg_locks where pid = %s and not granted "
        "and relation = 'krai_core.stages'::regclass)",
        session.pid,
    )
    return waits


@pytest.mark.parametrize("flight", ["insert", "complete", "finish", "edit"])
def test_a_document_in_flight_is_not_missed(
    alone, connect: Callable, background: type, until: Callable, local: LocalSupabase, own_database: str,
    outcome: Callable, flight: str,
) -> None:  # fmt: skip
    """register_stage waits for a transaction that has derived and not committed, and its fill sees what that wrote."""
    writer, changer = (connect(role, local.url_of(own_database)) for role in (None, "service_role"))
    document = None if flight == "insert" else alone.document()
    run = alone.claim()[0] if flight == "finish" else None
    writer.run("begin")
    if flight == "insert":
        document = writer.document()
        writer.done(document, "upload")
    elif flight == "complete":
        writer.done(document, "upload")
    elif flight == "finish":
        writer.finish(outcome(run, "completed"))
    else:
        writer.edit(document, writer.stage_status(document) | {"upload": "completed"})

    def change() -> list[int]:
        assert changer.call("register_stage", "mine", "{upload}") is True
        return _fill(changer)

    waiting = background(change)
    until(lambda: _waits_for_the_pipeline(alone, changer))
    writer.run("commit")
    assert waiting.outcome() == [1]
    assert [run["status"] for run in alone.runs(document, "mine")] == ["ready"]


def test_who_derives_while_the_pipeline_changes_waits_for_it(
    alone, connect: Callable, background: type, until: Callable, local: LocalSupabase, own_database: str
) -> None:
    """A stage that is completed during the change is derived by the pipeline after it: nothing is left to the fill."""
    document, filled = alone.document(), alone.document()
    writer, changer = (connect(None, local.url_of(own_database)) for _ in range(2))
    changer.run("begin")
    changer.call("register_stage", "mine", "{upload}")
    waiting = background(lambda: writer.done(document, "upload"))
    until(lambda: _waits_for_the_pipeline(alone, writer))
    changer.run("commit")
    waiting.outcome()
    assert [run["status"] for run in alone.runs(document, "mine")] == ["ready"]
    assert alone.runs(filled, "mine") == []


def test_a_change_gives_way_when_the_pipeline_stays_busy(
    alone, connect: Callable, local: LocalSupabase, own_database: str
) -> None:
    """Behind a transaction that does not end it is 55P03 within a second; nothing is changed, it can be repeated."""
    writer = connect(None, local.url_of(own_database))
    before = _pipeline(alone)
    writer.run("begin")
    writer.document()
    for call in ("register_stage('mine')", "disable_stage('upload')"):
        with pytest.raises(psycopg.errors.LockNotAvailable):
            alone.run(f"select krai_core.{call}")
    assert _pipeline(alone) == before
    writer.run("commit")
    assert alone.call("register_stage", "mine") is True


def test_a_register_that_changes_nothing_locks_nobody_out(
    alone, connect: Callable, local: LocalSupabase, own_database: str
) -> None:
    """Each start of an application may register its stages, in the midst of the work of others."""
    alone.call("register_stage", "mine", "{upload,storage}")
    writer = connect(None, local.url_of(own_database))
    writer.run("begin")
    writer.document()
    assert alone.call("register_stage", "mine", "{storage,upload}", p_lease_seconds=77) is True
    assert alone.call("register_stage", "upload") is True
    with alone.connection.transaction():
        alone.call("register_stage", "mine", "{upload,storage}")
        modes = alone.rows(
            "select mode from pg_locks where pid = pg_backend_pid() and relation = 'krai_core.stages'::regclass"
        )
        assert ("AccessExclusiveLock",) not in modes
    writer.run("commit")
    assert alone.value("select lease_seconds from krai_core.stages where name = 'mine'") == 77


def test_the_default_is_renewed_later_where_the_table_is_in_use(
    alone, connect: Callable, local: LocalSupabase, own_database: str
) -> None:
    """A long reader does not stop the change: new documents lack the key, and reap sees to the default later."""
    reader = connect(None, local.url_of(own_database))
    reader.run("begin")
    reader.run("select from krai_core.documents")
    assert alone.call("register_stage", "mine") is True
    meanwhile = alone.document()
    assert alone.call("get_document_status", meanwhile)["stage_status"]["mine"]["status"] == "pending"
    assert [run["status"] for run in alone.runs(meanwhile, "mine")] == ["ready"]
    reader.run("commit")
    alone.call("reap")
    defaults = alone.rows(f"select pg_get_expr(adbin, adrelid) {DEFAULTS}")
    assert any('"mine"' in default for (default,) in defaults)
    assert "mine" in json.dumps(alone.stage_status(alone.document()))


def test_two_fills_at_once_do_not_do_the_same_work(
    alone, connect: Callable, local: LocalSupabase, own_database: str
) -> None:
    """While one session fills, another finds nothing to do, and does not wait."""
    _documents(alone, 5)
    alone.call("register_stage", "mine")
    one = connect("service_role", local.url_of(own_database))
    one.run("begin")
    assert one.call("fill_ready_runs", 3) == 3
    alone.run("set lock_timeout = '200ms'")
    assert alone.call("fill_ready_runs") == 0
    one.run("commit")
    assert _fill(alone) == [2]
