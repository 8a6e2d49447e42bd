"""claim_stages among others: it waits for nobody, takes over what is expired, and costs the same in a long queue."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest


def _ids(claimed: list[dict[str, Any]]) -> list[uuid.UUID]:
    return [uuid.UUID(run["document_id"]) for run in claimed]


@pytest.mark.parametrize(
    "busy",
    [
        "select from krai_core.documents where id = %s for update",
        "select from krai_core.documents where id = %s for no key update",
        "select from krai_core.stage_runs where document_id = %s for update",
        "update krai_core.stage_runs set priority = 9 where document_id = %s",
        "update krai_core.documents set filename = 'b.pdf' where id = %s",
        "select krai_core.start_stage(%s, 'storage')",
        "select krai_core.set_priority(%s, 9)",
        "select krai_core.cancel_document(%s)",
        "delete from krai_core.documents where id = %s",
    ],
)
def test_what_another_transaction_is_writing_is_passed_over(service, connect: Callable, busy: str) -> None:
    """A claim never waits for anybody who works on the document: it takes the next one, or nothing."""
    locked, free = service.document(), service.document()
    holder, claimer = connect(), connect()
    claimer.run("set lock_timeout = '200ms'")
    holder.run("begin")
    holder.run(busy, locked)
    assert _ids(claimer.claim(limit=2)) == [free]
    assert claimer.claim(limit=2) == []
    holder.run("rollback")
    assert _ids(claimer.claim(limit=2)) == [locked]


def test_a_level_that_is_locked_leaves_the_claim_to_those_below(service, connect: Callable) -> None:
    """Where others write all that has a priority, the rest is handed out; a claim in vain leaves no trace behind."""
    urgent, usual, holder = service.document(), service.document(), connect()
    service.call("set_priority", urgent, 5)
    with holder.connection.transaction():
        holder.run("select from krai_core.documents where id = %s for update", urgent)
        assert _ids(service.claim(limit=2)) == [usual]
        with service.connection.transaction():
            assert service.claim(limit=2) == []
            # As a direct edit, which it would not be if the call had left its mark on the transaction.
            service.edit(usual, {**service.stage_status(usual), "storage": "completed"})
    assert service.stage(usual, "storage")["status"] == "completed"
    assert _ids(service.claim(limit=2)) == [urgent]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_claims_and_outcomes_of_one_snapshot_are_as_others(service, level: str) -> None:
    """In a transaction of one snapshot the rows are found where the statement before has locked and written them."""
    documents = [service.document() for _ in range(3)]
    with service.connection.transaction():
        service.run(f"set transaction isolation level {level}")
        claimed = service.claim(limit=3)
        answers = service.finish(
            *(
                {**{name: run[name] for name in ("document_id", "stage_name", "claim_id")}, "outcome": "completed"}
                for run in claimed
            )
        )
        following = service.claim("text_extraction", limit=3)
    assert _ids(claimed) == documents
    assert sorted(_ids(following)) == sorted(documents)
    assert answers == [{"ok": True}] * 3
    assert {service.stage(document, "text_extraction")["status"] for document in documents} == {"processing"}


def test_an_expired_run_that_is_locked_is_passed_over(service, connect: Callable) -> None:
    """So it is with a lease that is over and whose holder is just writing."""
    document, holder, claimer = service.document(), connect(), connect()
    (run,) = service.claim()
    service.end_lease(document, "upload")
    claimer.run("set lock_timeout = '200ms'")
    with holder.connection.transaction():
        holder.call("update_stage_progress", document, "upload", 50, p_claim_id=run["claim_id"])
        assert claimer.claim() == []
    assert claimer.claim() == []
    assert service.runs(document, "upload")[0]["status"] == "running"


def test_a_lease_that_is_over_is_taken_when_ready_runs_do_not_fill_the_batch(service) -> None:
    """Expired runs come after ready ones, as the next attempt, in one call; the old holder is refused from then on."""
    expired = service.document()
    (old,) = service.claim(p_claim_id=uuid.uuid4())
    service.call("update_stage_progress", expired, "upload", 30, {"pages": 2}, p_claim_id=old["claim_id"])
    service.end_lease(expired, "upload")
    ready = service.document()
    assert _ids(service.claim(limit=1)) == [ready]
    assert service.runs(expired, "upload")[0]["status"] == "running"
    (taken,) = service.claim(limit=5)
    assert (taken["document_id"], taken["attempt"], taken["metadata"]) == (str(expired), 2, {})
    lost, running = service.runs(expired, "upload")
    assert (lost["status"], lost["progress"], lost["metadata"]) == ("lost", 30, {"pages": 2})
    assert "the lease ended without a sign of life" in lost["error"]
    assert running["claim_id"] == taken["claim_id"]
    assert service.refused("complete_stage", expired, "upload", p_claim_id=old["claim_id"]).word == "lease_lost"


def test_a_run_beyond_its_timeout_is_taken_though_it_beats(alone) -> None:
    """timeout_seconds bounds a run that heartbeats keep alive."""
    alone.run("update krai_core.stages set timeout_seconds = 600 where name = 'upload'")
    document = alone.document()
    (run,) = alone.claim()
    age = "update krai_core.stage_runs set started_at = now() - make_interval(secs => %s) where status = 'running'"
    alone.run(age, 590)
    assert alone.claim() == []
    alone.run(age, 601)
    assert alone.call("heartbeat", [run])["alive"]
    assert [(one["document_id"], one["attempt"]) for one in alone.claim()] == [(str(document), 2)]
    assert alone.runs(document, "upload")[0]["error"] == "it took longer than 600 seconds"
    assert alone.call("heartbeat", [run])["lost"]


def test_a_dead_workers_stage_is_handed_out_within_a_second_after_its_lease(service, until: Callable) -> None:
    """By the clock of the database, the stage of a worker that gave no sign of life begins anew at once."""
    document = service.document()
    service.claim(p_lease_seconds=1)
    until(service.claim)
    assert service.rows(
        "select status, late >= interval '0' and late < interval '1 s' from (select r.status, "
        "lead(r.started_at) over (order by r.id) - r.lease_expires_at as late from krai_core.stage_runs r "
        "where document_id = %s and stage_name = 'upload' order by r.id) x",
        document,
    ) == [("lost", True), ("running", None)]


def test_many_workers_at_once_get_each_run_once(service, connect: Callable, background: type) -> None:
    """Eight connections empty a queue of 400 in batches of different size: each run is handed out exactly once."""
    service.run("insert into krai_core.documents (filename) select 'x.pdf' from generate_series(1, 400)")

    def drain(session: Any, limit: int) -> list[uuid.UUID]:
        taken: list[uuid.UUID] = []
        while claimed := _ids(session.claim(limit=limit)):
            taken += claimed
        return taken

    sessions = [connect() for _ in range(8)]
    threads = [background(lambda s=s, n=n: drain(s, n)) for n, s in enumerate(sessions, 1)]
    taken = [document for thread in threads for document in thread.outcome()]
    # A worker that finds all that is left locked by others stops; what they took is theirs.
    taken += drain(service, 100)
    assert len(taken) == len(set(taken)) == 400
    assert service.rows("select status, count(*) from krai_core.stage_runs group by 1") == [("running", 400)]


def test_a_claim_needs_no_wait_for_the_disk_as_an_rpc_of_its_own(service, connect: Callable) -> None:
    """synchronous_commit is let go only where the call is the whole rpc, never in somebody's own transaction."""
    session = connect()
    for path, expected in ((None, "on"), ("/rpc/heartbeat", "on"), ("/rpc/claim_stages", "off")):
        service.document()
        with session.connection.transaction():
            if path is not None:
                session.run("select set_config('request.path', %s, true)", path)
            assert len(session.claim()) == 1
            assert session.value("show synchronous_commit") == expected
        assert session.value("show synchronous_commit") == "on"


def test_a_claim_reads_no_more_of_a_long_queue(alone) -> None:
    """With 20,000 ready runs a claim of one touches as many pages of the queue as it would of a short one."""
    alone.run("insert into krai_core.documents (filename) select 'x.pdf' from generate_series(1, 20000)")
    alone.run("analyze krai_core.stage_runs")
    alone.claim()
    alone.run("select pg_stat_force_next_flush()")
    read = "select idx_tup_read::int from pg_stat_user_indexes where indexrelname = 'stage_runs_ready'"
    before = alone.value(read)
    assert len(alone.claim(limit=5)) == 5
    alone.run("select pg_stat_force_next_flush()")
    assert alone.value(read) - before < 100


def test_plans_do_not_come_from_the_first_hour(alone, outcome: Callable) -> None:
    """A session whose plans were made when there was one document reads no more than it takes among 5,000."""
    alone.document()
    alone.run("analyze krai_core.documents, krai_core.stage_runs")
    alone.finish(outcome(alone.claim()[0], "completed"))
    alone.run("insert into krai_core.documents (filename) select 'x.pdf' from generate_series(1, 5000)")
    read = "select sum(idx_tup_read)::int from pg_stat_user_indexes where relname in ('documents', 'stage_runs')"
    alone.run("select pg_stat_force_next_flush()")
    before = alone.value(read)
    claimed = alone.claim(limit=50)
    alone.call("heartbeat", claimed)
    assert alone.finish(*(outcome(run, "completed") for run in claimed)) == [{"ok": True}] * 50
    alone.run("select pg_stat_force_next_flush()")
    assert alone.value(read) - before < 4000
