"""Bulk calls over the same documents in opposite order, from two connections at once: nobody is a deadlock victim."""

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from processors_v2.local import LocalSupabase

ROUNDS = 1000
DOCUMENTS = 6


@pytest.fixture
def no_deadlock(owner) -> Any:
    """The counter of the server stands where it stood when the test is over."""
    count = "select deadlocks from pg_stat_database where datname = current_database()"
    before = owner.value(count)
    yield
    owner.run("select pg_stat_force_next_flush()")
    assert owner.value(count) == before


def _together(background: type, one: Callable[[int], None], other: Callable[[int], None], rounds: int) -> None:
    """Two loops that begin every round at the same time."""
    gate = threading.Barrier(2)

    def go(work: Callable[[int], None]) -> None:
        try:
            for number in range(rounds):
                gate.wait(30)
                work(number)
        except psycopg.Error:
            # The other side shall not wait for a round that never comes.
            gate.abort()
            raise

    threads = [background(lambda work=work: go(work)) for work in (one, other)]
    for thread in threads:
        thread.outcome()


@pytest.mark.usefixtures("no_deadlock")
def test_bulk_calls_in_opposite_order(service, connect: Callable, background: type) -> None:
    """1,000 rounds of progress for many runs, heartbeats among them, each side in the other's reverse order."""
    documents = [service.document() for _ in range(DOCUMENTS)]
    for document in documents:
        service.done(document, "upload")
    runs = [run for stage in ("text_extraction", "image_processing") for run in service.claim(stage, DOCUMENTS)]
    ids = [{name: run[name] for name in ("document_id", "stage_name", "claim_id")} for run in runs]
    sides = [ids, list(reversed(ids))]
    sessions = [connect(), connect()]

    def report(which: int) -> Callable[[int], None]:
        outcomes = [run | {"outcome": "progress", "progress": 5} for run in sides[which]]

        def once(number: int) -> None:
            if number % 5 == 4 * which:
                sessions[which].call("heartbeat", sides[which])
            else:
                assert all(answer["ok"] for answer in sessions[which].finish(*outcomes))

        return once

    _together(background, report(0), report(1), ROUNDS)


@pytest.mark.usefixtures("no_deadlock")
def test_calls_that_end_runs_in_opposite_order(service, connect: Callable, background: type) -> None:
    """Claims against releases and outcomes of all kinds over a handful of documents, in opposite order."""
    documents = [service.document() for _ in range(DOCUMENTS)]
    sessions = [connect(), connect()]

    def work(which: int) -> Callable[[int], None]:
        def once(number: int) -> None:
            session = sessions[which]
            claimed = session.claim(limit=DOCUMENTS)
            if which:
                claimed.reverse()
            ids = [{name: run[name] for name in ("document_id", "stage_name", "claim_id")} for run in claimed]
            session.call("heartbeat", ids)
            if number % 2:
                session.call("release_stages", ids)
            else:
                session.finish(*(run | {"outcome": "skipped"} for run in ids))
                # Nobody else has these: back to the beginning, in the same order of documents.
                with session.connection.transaction():
                    for run in sorted(ids, key=lambda run: run["document_id"]):
                        session.call("reset_stage", run["document_id"], "upload")

        return once

    _together(background, work(0), work(1), ROUNDS // 4)
    assert {service.stage(document, "upload")["status"] for document in documents} == {"pending"}


@pytest.mark.usefixtures("no_deadlock")
def test_the_same_runs_given_back_in_opposite_order(service, connect: Callable, background: type) -> None:
    """Both sides release the same runs, each in the other's reverse order: both are told that they are released."""
    documents = [service.document() for _ in range(DOCUMENTS)]
    sessions, claimer, gate = [connect(), connect()], connect(), threading.Barrier(2)
    claimed: list[dict[str, Any]] = []

    def work(which: int) -> Callable[[int], None]:
        def once(_: int) -> None:
            if which == 0:
                claimed[:] = [
                    {name: run[name] for name in ("document_id", "stage_name", "claim_id")}
                    for run in claimer.claim(limit=DOCUMENTS)
                ]
            gate.wait(30)
            given = list(reversed(claimed)) if which else list(claimed)
            assert sessions[which].call("release_stages", given) == {"released": given, "lost": []}
            gate.wait(30)

        return once

    _together(background, work(0), work(1), ROUNDS // 4)
    assert {service.stage(document, "upload")["status"] for document in documents} == {"pending"}


AGAINST = {
    "skip": "select krai_core.skip_stage(%s, 'upload')",
    "complete": "select krai_core.complete_stage(%s, 'upload')",
    "cancel": "select krai_core.cancel_document(%s)",
    "priority": "select krai_core.set_priority(%s, 3)",
    "edit": 'update krai_core.documents set stage_status = \'{"upload": "completed"}\' where id = %s',
    "delete": "delete from krai_core.documents where id = %s",
    "reset": "select krai_core.reset_stage(%s, 'upload', true, true)",
}


@pytest.mark.parametrize("against", AGAINST)
@pytest.mark.usefixtures("no_deadlock")
def test_claims_against(service, connect: Callable, background: type, against: str) -> None:
    """Claims in batches and one call for each document of the queue, from its other end: both go through."""
    count = 150
    service.run("insert into krai_core.documents (filename) select 'x.pdf' from generate_series(1, %s)", count)
    documents = [one for (one,) in service.rows("select document_id from krai_core.stage_runs order by id desc")]
    claimer, other = connect(), connect()
    taken: list[str] = []

    def claim(_: int) -> None:
        taken.extend(run["document_id"] for run in claimer.claim(limit=3))

    _together(background, claim, lambda number: other.run(AGAINST[against], documents[number]), count)
    if against == "delete":
        assert service.value("select count(*) from krai_core.stage_runs") == 0
    elif against == "reset":
        assert len(taken) >= count
    else:
        assert len(taken) == len(set(taken))


@pytest.mark.usefixtures("no_deadlock")
def test_bulk_deletes_against_bulk_outcomes(service, connect: Callable, background: type) -> None:
    """Deleting documents while their outcomes are reported in the reverse order: one waits, nobody is a victim."""
    writer, deleter = connect(), connect()

    def make(number: int) -> None:
        outcomes = [
            {
                "document_id": run["document_id"],
                "stage_name": "upload",
                "claim_id": run["claim_id"],
                "outcome": "completed",
            }
            for run in batches[number]
        ]
        answers = writer.finish(*reversed(outcomes))
        assert all(answer["ok"] or answer["error"] == "unknown_document" for answer in answers)

    service.run("insert into krai_core.documents (filename) select 'x.pdf' from generate_series(1, 300)")
    batches = [service.claim(limit=5) for _ in range(60)]

    def delete(number: int) -> None:
        deleter.run(
            "delete from krai_core.documents where id in "
            "(select id from krai_core.documents where id = any (%s::uuid[]) order by id for update)",
            "{" + ",".join(run["document_id"] for run in batches[number]) + "}",
        )

    _together(background, make, delete, 60)
    assert service.value("select count(*) from krai_core.stage_runs") == 0


def test_a_deadlock_is_noticed(
    alone, connect: Callable, background: type, local: LocalSupabase, own_database: str
) -> None:
    """Two transactions that lock two documents in opposite order are one: the counter that these tests ask moves."""
    documents = [alone.document() for _ in range(2)]
    sessions, gate = [connect(None, local.url_of(own_database)) for _ in range(2)], threading.Barrier(2)

    def cross(which: int) -> str:
        sessions[which].run("begin")
        sessions[which].call("start_stage", documents[which], "upload")
        gate.wait(20)
        try:
            sessions[which].call("start_stage", documents[1 - which], "upload")
        except psycopg.errors.DeadlockDetected:
            sessions[which].run("rollback")
            return "victim"
        sessions[which].run("commit")
        return "through"

    threads = [background(lambda which=which: cross(which)) for which in (0, 1)]
    assert sorted(thread.outcome() for thread in threads) == ["through", "victim"]
