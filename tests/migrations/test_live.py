"""On a table in use: some thousand documents, writers that do not stop, and ends at random moments."""

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from processors_v2._local.project import topic_of
from proof._migration import field, judge
from proof._migration.killer import Killer
from proof._migration.traffic import Traffic
from proof._migration.ways import Psql, Step, Stopped, sessions

Fresh = Callable[..., Any]

pytestmark = pytest.mark.parametrize("server", ["16"], indirect=True)

DOCUMENTS = 1000


@pytest.fixture(params=["v1", "field"])
def live(request: pytest.FixtureRequest, fresh: Fresh) -> Any:
    """A database of each kind, with documents of every sort."""
    database = fresh("empty")
    database.kind = request.param
    for _ in field.fill(database.connection, request.param, DOCUMENTS):
        pass
    return database


def _url(database: Any) -> str:
    return str(database.local.url_of(database.name))


def _wrong(database: Any, before: tuple[Any, ...], traffic: Traffic) -> dict[str, int]:
    verdicts = dict(judge.verdicts(database.connection, database.kind, before, traffic.told))
    assert len(verdicts) == judge.VERDICTS
    return {what: number for what, number in verdicts.items() if number}


def test_nothing_is_lost_and_no_write_is_refused(live: Any) -> None:
    """While inserts, edits and renames go on, each file goes through, and all is as it must be at the end."""
    before = judge.others(live.connection)
    steps: dict[str, Step] = {}
    with Traffic(_url(live), DOCUMENTS, 1) as traffic:
        live.wait_for(lambda: traffic.told.inserted)
        Psql(_url(live)).apply(traffic.enter, steps)
    assert [*steps] == [path.stem for path in live.files()]
    assert traffic.told.filenames
    assert _wrong(live, before, traffic) == {}


def test_history_is_looked_up_whatever_the_planner_believes(fresh: Fresh) -> None:
    """What stages of a batch ran before is asked of an index, also by plans from when there were no runs."""
    database = fresh("empty")
    for _ in field.fill(database.connection, "v1", DOCUMENTS):
        pass
    database.prepare_repair()
    # Statistics that come in between would make the plans anew.
    database.run("alter table krai_core.stage_runs set (autovacuum_enabled = off)")
    query = "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'stage_runs_document_open_stage'"
    read = [0]
    for _ in range(DOCUMENTS // 100):
        assert database.value("select krai_core.fill_ready_runs(100)") == 100
        database.run("select pg_stat_force_next_flush()")
        read.append(database.value(query))
    of_batches = [after - before for before, after in itertools.pairwise(read)]
    # Were all runs read for each batch, the last one would read ten times what the first does.
    assert 0 < of_batches[-1] < 2 * of_batches[0]


@pytest.mark.parametrize("live", ["v1"], indirect=True)
def test_ended_at_random_it_ends_as_if_undisturbed(live: Any, server: Any) -> None:
    """With sessions ended and psql killed in the midst of it, started again until it is through: the same rows."""
    name = f"{live.name}_undisturbed"
    live.close()
    server.local.create_database(name, live.name)
    live.__post_init__()
    psql = Psql(_url(live))
    with Killer(_url(live), psql, 6, 0.8, random.Random(7)) as killer:
        while not _is_through(psql, killer):
            pass
    assert killer.done > 0
    live.wait_for(lambda: not sessions(live.connection))
    server.local.apply_to(name, live.files())
    undisturbed = type(live)(server.local, name)
    try:
        assert live.catalog() == undisturbed.catalog()
        mine, theirs = live.comparable(), undisturbed.comparable()
        for table in [name for name in sorted(set(mine) | set(theirs)) if not _is_sum(name)]:
            assert mine[table] == theirs[table], table
        assert live.value("select krai_core.rebuild_statistics()") == {"mended": 0}
    finally:
        undisturbed.close()
        server.local.drop_database(name)


def _is_sum(table: str) -> bool:
    """Whether a table holds figures, which are spread over deltas and sums in another way each time."""
    return table.startswith(("krai_core.stage_deltas", "krai_core.stage_counters", "krai_core.stage_f"))


def _is_through(psql: Psql, killer: Killer) -> bool:
    try:
        psql.apply(lambda _: None, {})
    except Stopped as stopped:
        if not killer.was_it(str(stopped)):
            raise
        return False
    return True


@pytest.mark.parametrize("live", ["v1"], indirect=True)
def test_in_one_transaction_psql_goes_through_too(live: Any) -> None:
    """`psql -1` opens a transaction around a file, which the first commit of the file ends: all works as without."""
    before = judge.others(live.connection)
    traffic = Traffic(_url(live), DOCUMENTS, 1)
    for path in live.files():
        # The file of the index has no commit of its own, and says what it cannot do in a transaction.
        code, said = Psql(_url(live)).run(path, *([] if topic_of(path) == "stage_tracker_index" else ["-1"]))
        assert code == 0, said
    assert _wrong(live, before, traffic) == {}


@pytest.mark.parametrize("topic", ["stage_tracker_repair", "stage_tracker_index"])
def test_sent_as_one_message_what_commits_is_refused(fresh: Fresh, topic: str) -> None:
    """An editor that sends a whole file at once gets an error of Postgres for these two, and nothing has changed."""
    database = fresh("v1_rows")
    database.prepare_repair()
    database.run("drop index krai_core.idx_documents_stage_status")
    before = (database.catalog(), database.contents())
    with pytest.raises(psycopg.Error, match="invalid transaction termination|cannot (run|be executed) "):
        _send_at_once(database, database.file(topic))
    database.run("rollback")
    assert (database.catalog(), database.contents()) == before
    database.migrate()
    assert database.value("select bool_and(krai_private.is_sound(stage_status)) from krai_core.documents")


def test_sent_as_one_message_the_objects_work(fresh: Fresh, server: Any) -> None:
    """A file that is all transactions may come as one message, as the SQL editor of a dashboard sends it."""
    database = fresh("v1_rows")
    for path in database.files():
        if topic_of(path) == "stage_tracker":
            _send_at_once(database, path)
        else:
            database.migrate([path])
    with server.copy("v1_rows", migrated=True) as undisturbed:
        assert database.catalog() == undisturbed.catalog()
        assert database.comparable() == undisturbed.comparable()


def _send_at_once(database: Any, path: Path) -> None:
    database.connection.execute(path.read_bytes())


def _ready_to_fill(fresh: Fresh, documents: int) -> Any:
    database = fresh("empty")
    for _ in field.fill(database.connection, "field", documents):
        pass
    database.prepare_repair()
    return database


def test_the_repair_puts_off_what_is_held(fresh: Fresh) -> None:
    """Somebody who keeps a document keeps no batch, and it is repaired when he lets go."""
    database = _ready_to_fill(fresh, 300)
    holder = database.connect()
    holder.execute("begin; update krai_core.documents set language = 'de' where page_count = 5")
    assert database.value("select o_held from krai_private.repair_batch(null, 300)") == [field.document_id(5)]
    holder.execute("commit")
    database.migrate()
    assert database.stage_status("5.pdf")["upload"]["status"] == "completed"


def test_a_batch_ends_before_what_is_held_and_waits_for_that_alone(fresh: Fresh) -> None:
    """Who waits for a document of the batch does not wait for others that hold other documents."""
    database = _ready_to_fill(fresh, 100)
    ids = [row for (row,) in database.rows("select id from krai_core.documents order by id")]
    holder, filler, writer = database.connect(), database.connect(), database.connect()
    holder.execute("begin")
    holder.execute("update krai_core.documents set language = 'de' where id = %s", [ids[5]])
    assert database.value("select krai_core.fill_ready_runs(50)") == 5
    heard: list[BaseException] = []

    def fill() -> None:
        try:
            filler.execute("select krai_core.fill_ready_runs(50)")
        except psycopg.errors.LockNotAvailable as error:
            heard.append(error)

    thread = threading.Thread(target=fill)
    thread.start()
    waiting = "select from pg_locks where not granted and pid = %s"
    database.wait_for(lambda: database.rows(waiting, filler.info.backend_pid))
    writer.execute("set lock_timeout = '300ms'")
    for document in (ids[4], ids[6]):
        writer.execute("update krai_core.documents set language = 'fr' where id = %s", [document])
    thread.join()
    assert heard
    holder.execute("commit")
    filled = 0
    while more := database.value("select krai_core.fill_ready_runs(50)"):
        filled += more
    assert filled == 95
    assert database.value("select krai_core.rebuild_ready_runs()") == {"added": 0, "removed": 0, "adopted": 0}


@pytest.fixture
def busy_autovacuum(server: Any) -> Iterator[None]:
    """An autovacuum that comes at once."""
    with psycopg.connect(server.local.admin_url, autocommit=True) as admin:
        admin.execute("alter system set autovacuum_naptime = '1s'")
        admin.execute("select pg_reload_conf()")
        yield
        admin.execute("alter system reset autovacuum_naptime")
        admin.execute("select pg_reload_conf()")


@pytest.mark.usefixtures("busy_autovacuum")
def test_an_autovacuum_gives_way(live: Any) -> None:
    """Blocks that need the table to themselves do not fail for as long as it is being vacuumed."""
    # One that does not end by itself in the time of a test.
    live.run(
        "alter table krai_core.documents set (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0,"
        " autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)",
        "update krai_core.documents set language = 'de'",
    )
    at_work = "select from pg_locks l join pg_stat_activity a using (pid) where a.backend_type = 'autovacuum worker'"
    at_work += " and l.relation = 'krai_core.documents'::regclass and a.datname = current_database()"
    for block in live.blocks(live.file("stage_tracker")):
        if block.section in ("05_documents", "51_triggers"):
            live.wait_for(lambda: live.rows(at_work))
        live.run(*block.statements)
