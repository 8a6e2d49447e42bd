"""What the counters of vw_stage_statistics hold: whoever writes the truth, they follow within the same statement."""

import uuid
from collections.abc import Callable

import pytest
from psycopg.types.json import Jsonb
from truth import prove

STATUSES = ("pending", "processing", "completed", "failed", "skipped")
SHAPE = {"started_at": None, "completed_at": None, "progress": 0, "error": None, "metadata": {}}


@pytest.mark.parametrize(
    "value",
    [
        *({"status": status, **SHAPE} for status in STATUSES),
        {"status": "completed", "duration_seconds": 12.5, **SHAPE},
        {"status": "completed", "duration_seconds": 0, **SHAPE},
        {"status": "completed", "duration_seconds": 0.0000004, **SHAPE},
        {"status": "completed", "duration_seconds": 31_536_000, **SHAPE},
        {"status": "failed", "duration_seconds": 12.5, **SHAPE},
        {"status": "completed", "duration_seconds": "long"},
        {"status": "completed", "duration_seconds": -1},
        {"status": "completed", "duration_seconds": {"s": 1}},
        {"status": "in_progress"}, {"status": None}, {}, "completed", "failed", 7, [], None,
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("before", STATUSES)
def test_a_direct_edit_is_counted(service, bring: Callable, before: str, value: object) -> None:
    """Whatever somebody writes into a stage, in whatever state it was, is counted as what it means."""
    document = service.document()
    bring(document, "storage", before)
    service.edit(document, service.stage_status(document) | {"storage": value})
    prove(service)
    service.edit(document, {})
    prove(service)


@pytest.mark.parametrize("column", [None, [], {}, "completed", 5, {"unheard_of": {"status": "failed"}}], ids=str)
def test_an_odd_column_is_counted(service, column: object) -> None:
    """A whole column that is no object counts as pending stages, when it is inserted and when it is edited."""
    document = service.document(stage_status=None if column is None else Jsonb(column))
    prove(service)
    service.done(document, "upload", "storage")
    service.edit(document, column)
    prove(service)
    assert service.call("get_stage_statistics")["stages"]["upload"]["pending"] == 1


def test_an_edit_of_many_documents_is_counted(service) -> None:
    """One UPDATE over documents in different states counts each as it then is."""
    documents = [service.document() for _ in range(9)]
    for place, document in enumerate(documents):
        service.call(("start_stage", "complete_stage", "skip_stage")[place % 3], document, "upload")
    service.run(
        "update krai_core.documents set stage_status = "
        """stage_status || '{"upload": {"status": "failed"}, "storage": {"status": "completed"}}'"""
    )
    prove(service)
    counts = service.call("get_stage_statistics")["stages"]
    assert (counts["upload"]["failed"], counts["storage"]["completed"]) == (9, 9)


def test_a_stage_that_a_worker_holds_stays_counted_as_it_is(service) -> None:
    """An edit that is left out, because a worker holds the stage, changes no counter."""
    document = service.document()
    service.call("start_stage", document, "upload", p_claim_id=uuid.uuid4())
    service.edit(document, {"upload": {"status": "completed"}})
    assert service.call("get_stage_statistics")["stages"]["upload"]["processing"] == 1
    prove(service)


def test_an_edit_that_changes_no_stage_leaves_no_delta(alone) -> None:
    """Progress, metadata, another column, and the same value again are nothing to count."""
    document = alone.document()
    alone.call("start_stage", document, "upload")
    before = alone.value("select count(*) from krai_core.stage_deltas")
    alone.call("update_stage_progress", document, "upload", 10, {"a": 1})
    alone.run("update krai_core.documents set filename = 'other.pdf'")
    alone.run("update krai_core.documents set stage_status = stage_status")
    assert alone.value("select count(*) from krai_core.stage_deltas") == before


def test_a_duration_that_is_corrected_by_hand_leaves_no_trace(service) -> None:
    """Another duration_seconds of a completed stage takes the place of the old one in sum and percentiles."""
    document = service.document(stage_status={"upload": {"status": "completed", "duration_seconds": 100}})
    service.run(
        """update krai_core.documents set stage_status = jsonb_set(stage_status, '{upload,duration_seconds}', '2')"""
    )
    prove(service)
    said = service.call("get_stage_statistics")["stages"]["upload"]
    assert (said["timed"], said["avg_duration"]) == (1, 2)
    assert said["p99_duration"] < 3
    service.call("reset_stage", document, "upload")
    said = service.call("get_stage_statistics")["stages"]["upload"]
    assert (said["timed"], said["avg_duration"], said["p50_duration"]) == (0, None, None)


def test_a_document_that_was_finished_before_is_counted_as_completed(service) -> None:
    """Inserted with processing_status completed, a document is completed in every stage, and timed in none."""
    service.document(processing_status="completed")
    service.document()
    prove(service)
    for said in service.call("get_stage_statistics")["stages"].values():
        assert (said["pending"], said["completed"], said["timed"]) == (1, 1, 0)


def test_inserts_of_every_form_are_counted(service, owner) -> None:
    """COPY, INSERT ... SELECT with all kinds of columns, and ON CONFLICT in both directions."""
    with service.connection.cursor().copy("copy krai_core.documents (filename, stage_status) from stdin") as copy:
        for value in (
            '{"upload": {"status": "completed", "duration_seconds": 3}}', "{}", '{"upload": "completed"}', None,
        ):  # fmt: skip
            copy.write_row(["x.pdf", value])
    prove(service)
    known = service.value("select id from krai_core.documents limit 1")
    owner.run(
        "insert into krai_core.documents (id, filename, stage_status) "
        """select x.id, 'y.pdf', '{"embedding": {"status": "failed"}}' """
        "from unnest(array[%s, gen_random_uuid()]) x (id) "
        "on conflict (id) do update set stage_status = excluded.stage_status",
        known,
    )
    prove(service)
    owner.run("insert into krai_core.documents (id, filename) values (%s, 'z.pdf') on conflict do nothing", known)
    prove(service)
    assert service.call("get_stage_statistics")["stages"]["embedding"]["failed"] == 2


@pytest.mark.parametrize("status", ["default", "completed"])
def test_a_bulk_insert_leaves_as_many_deltas_as_one_document(alone, status: str) -> None:
    """One delta of the documents and one per stage, whether one document is inserted or a thousand."""
    insert = "insert into krai_core.documents (filename, stage_status) select 'x', {} from generate_series(1, %s)"
    column = "default" if status == "default" else """'{"upload": {"status": "completed", "duration_seconds": 2}}'"""
    if status == "default":
        insert = "insert into krai_core.documents (filename) select 'x' from generate_series(1, %s)"
    added = []
    for count in (1, 1000):
        before = alone.value("select count(*) from krai_core.stage_deltas")
        alone.run(insert.format(column), count)
        added.append(alone.value("select count(*) from krai_core.stage_deltas") - before)
    assert added[0] == added[1] <= 9
    assert alone.value("select sum(documents) from krai_core.stage_deltas where stage_name = ''") == 1001
    prove(alone)


def test_one_call_for_many_runs_leaves_few_deltas(alone, outcome: Callable) -> None:
    """claim_stages and finish_stages append per stage and bucket, not per run."""
    alone.run("insert into krai_core.documents (filename) select 'x' from generate_series(1, 200)")
    before = alone.value("select count(*) from krai_core.stage_deltas")
    runs = alone.claim(limit=200)
    claimed = alone.value("select count(*) from krai_core.stage_deltas")
    assert claimed - before <= 2
    alone.finish(*(outcome(run, "completed") for run in runs))
    # The upload leaves for a few buckets, and two stages become ready.
    buckets = alone.value("select count(distinct bucket) from krai_core.stage_deltas where stage_name = 'upload'")
    assert alone.value("select count(*) from krai_core.stage_deltas") - claimed <= buckets + 6
    prove(alone)


def test_deleted_documents_are_not_counted(service) -> None:
    """One document deleted, then several at once, then all: each time the rest is counted."""
    documents = [service.document() for _ in range(6)]
    for document in documents[:4]:
        service.call("start_stage", document, "upload")
    service.done(documents[0], "upload")
    service.call("fail_stage", documents[1], "upload", "x")
    service.run("delete from krai_core.documents where id = %s", documents[0])
    prove(service)
    service.run(
        "delete from krai_core.documents where id = any (%s::uuid[])", "{" + ",".join(map(str, documents[1:4])) + "}"
    )
    prove(service)
    assert service.call("get_stage_statistics")["stages"]["upload"]["pending"] == 2
    service.run("delete from krai_core.documents")
    assert service.call("rebuild_statistics") == {"mended": 0}
    assert service.call("get_stage_statistics")["stages"]["upload"]["pending"] == 0


def test_a_truncated_table_counts_nothing(alone) -> None:
    """After TRUNCATE all counts are zero and nothing is timed; what is inserted then is counted from there."""
    for place in range(3):
        alone.document(stage_status={"upload": {"status": "completed", "duration_seconds": place}})
    alone.run("truncate krai_core.documents")
    prove(alone)
    said = alone.call("get_stage_statistics")["stages"]["upload"]
    assert [said[status] for status in STATUSES] == [0] * 5
    assert (said["timed"], said["p50_duration"]) == (0, None)
    alone.document()
    prove(alone)


def test_a_new_stage_is_pending_everywhere_at_once(alone) -> None:
    """register_stage on live rows: the documents that are there are pending in it, without a delta for each."""
    alone.run("insert into krai_core.documents (filename) select 'x' from generate_series(1, 50)")
    before = alone.value("select count(*) from krai_core.stage_deltas")
    alone.call("register_stage", "translation")
    assert alone.value("select count(*) from krai_core.stage_deltas") - before <= 1
    assert alone.call("get_stage_statistics")["stages"]["translation"]["pending"] == 50
    prove(alone)


def test_a_disabled_stage_goes_and_comes_back_with_its_counts(alone) -> None:
    """disable_stage takes a stage out of the statistics; what happens to it meanwhile is counted when it is back."""
    first, second = alone.document(), alone.document()
    alone.done(first, "storage")
    alone.call("disable_stage", "storage")
    assert "storage" not in alone.call("get_stage_statistics")["stages"]
    prove(alone)
    alone.call("complete_stage", second, "storage")
    alone.document(stage_status={"storage": {"status": "skipped"}})
    alone.run("delete from krai_core.documents where id = %s", first)
    alone.call("register_stage", "storage")
    prove(alone)
    said = alone.call("get_stage_statistics")["stages"]["storage"]
    assert (said["completed"], said["skipped"], said["pending"]) == (1, 1, 0)


def test_a_key_that_was_there_before_its_stage_is_counted(alone) -> None:
    """A stage that documents already speak of when it is registered is counted as they say."""
    alone.document(stage_status={"translation": {"status": "completed", "duration_seconds": 4, **SHAPE}})
    alone.document(stage_status={"translation": {"status": "failed", **SHAPE}})
    document = alone.document(stage_status={"translation": {"status": "skipped", **SHAPE}})
    alone.call("register_stage", "translation")
    while alone.call("fill_ready_runs"):
        pass
    prove(alone)
    alone.call("reset_stage", document, "translation")
    prove(alone)


def test_a_stage_that_is_removed_and_added_again_is_counted(alone) -> None:
    """A row of krai_core.stages that its owner deletes, and inserts later, finds the counts of its documents."""
    document = alone.document()
    alone.done(document, "upload", "image_processing", "storage")
    alone.run("delete from krai_core.stages where name = 'storage'")
    prove(alone)
    other = alone.document(stage_status={"storage": {"status": "failed", **SHAPE}})
    alone.run("update krai_core.documents set stage_status = stage_status #- '{storage}' where id = %s", document)
    alone.run("insert into krai_core.stages (name, position) values ('storage', 60)")
    while alone.call("fill_ready_runs"):
        pass
    prove(alone)
    alone.call("reset_stage", other, "storage")
    prove(alone)


def test_a_stage_that_gets_another_name_is_pending_under_it(alone) -> None:
    """A renamed row of krai_core.stages has the counts of its new key; named back, it finds its old ones."""
    document = alone.document()
    alone.done(document, "upload", "image_processing", "storage")
    for name, before in (("archive", "storage"), ("storage", "archive")):
        alone.run("update krai_core.stages set name = %s where name = %s", name, before)
        while alone.call("fill_ready_runs"):
            pass
        prove(alone)
    assert alone.call("get_stage_statistics")["stages"]["storage"]["completed"] == 1


def test_what_is_rolled_back_was_never_counted(alone) -> None:
    """A transaction that ends in ROLLBACK leaves no delta, whatever it wrote."""
    document = alone.document()
    before = alone.rows("select * from krai_core.stage_deltas")
    alone.run("begin")
    alone.done(document, "upload")
    alone.document()
    alone.run("truncate krai_core.documents")
    alone.run("rollback")
    assert alone.rows("select * from krai_core.stage_deltas") == before
    prove(alone)


def test_what_is_rolled_back_to_a_savepoint_was_never_counted(alone) -> None:
    """Of a transaction only what was not taken back counts, also where a refused call took it back."""
    document = alone.document()
    alone.run("begin")
    alone.call("start_stage", document, "upload")
    alone.run("savepoint one")
    alone.call("complete_stage", document, "upload")
    alone.edit(document, {"upload": "completed", "storage": {"status": "failed"}})
    alone.run("rollback to one")
    alone.call("skip_stage", document, "upload")
    alone.run("commit")
    prove(alone)
    said = alone.call("get_stage_statistics")["stages"]
    assert (said["upload"]["skipped"], said["storage"]["failed"]) == (1, 0)


def test_a_transaction_sees_its_own_work_counted(alone, connect: Callable, local, own_database: str) -> None:
    """Inside of a transaction the statistics hold what it wrote; for others they do not until it commits."""
    other = connect(url=local.url_of(own_database))
    document = alone.document()
    alone.run("begin")
    alone.call("complete_stage", document, "upload")
    assert alone.call("get_stage_statistics")["stages"]["upload"]["completed"] == 1
    assert other.call("get_stage_statistics")["stages"]["upload"]["completed"] == 0
    alone.run("commit")
    assert other.call("get_stage_statistics")["stages"]["upload"]["completed"] == 1


@pytest.mark.triggers_off
def test_statistics_are_mended_after_writes_without_triggers(alone) -> None:
    """rebuild_statistics() says how much was wrong, and then everything is right, current runs included."""
    for _ in range(3):
        alone.document()
    alone.run("alter table krai_core.documents disable trigger user")
    alone.document(stage_status={"upload": {"status": "completed", "duration_seconds": 7, **SHAPE}})
    alone.run("""update krai_core.documents set stage_status = stage_status || '{"storage": {"status": "failed"}}'""")
    alone.run("delete from krai_core.documents where id = (select min(id::text)::uuid from krai_core.documents)")
    alone.run("alter table krai_core.documents enable trigger user")
    assert alone.call("rebuild_statistics")["mended"] > 0
    assert alone.call("rebuild_statistics") == {"mended": 0}
    alone.call("rebuild_ready_runs")
    prove(alone)


def test_folded_counters_that_are_lost_are_mended(alone) -> None:
    """Without any counter left, and with nonsense in them, rebuild_statistics() finds the truth again."""
    documents = [alone.document() for _ in range(3)]
    alone.done(documents[0], "upload")
    alone.run("truncate krai_core.stage_deltas, krai_core.stage_counters")
    alone.run("insert into krai_core.stage_counters values ('upload', 7, 0, 0, 40, 0, 0, 40, 12345)")
    assert alone.call("rebuild_statistics")["mended"] > 0
    prove(alone)
    assert alone.call("rebuild_statistics") == {"mended": 0}
