"""Two connections at once: who wins, who is refused, and that nobody waits for ever."""

import threading
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

ROUNDS = 200


def _both(background: type, one: Callable[[], Any], other: Callable[[], Any]) -> list[Any]:
    """What two calls answer that set out together."""
    gate = threading.Barrier(2)

    def after_gate(work: Callable[[], Any]) -> Any:
        gate.wait(20)
        return work()

    threads = [background(lambda work=work: after_gate(work)) for work in (one, other)]
    return [thread.outcome() for thread in threads]


@pytest.mark.parametrize("claimed", [True, False], ids=["claim ids", "claimless"])
def test_of_two_starters_exactly_one_wins(service, connect: Callable, background: type, claimed: bool) -> None:
    """In 200 rounds one call answers true and one false, and there is one run: that of the winner."""
    sessions = [connect(), connect()]
    documents = [service.document() for _ in range(ROUNDS)]
    claims = [[uuid.uuid4() if claimed else None for _ in sessions] for _ in documents]
    gate = threading.Barrier(2)

    def start_all(which: int) -> list[bool]:
        answers = []
        for document, both in zip(documents, claims, strict=True):
            gate.wait(20)
            answers.append(sessions[which].call("start_stage", document, "upload", p_claim_id=both[which]))
        return answers

    threads = [background(lambda which=which: start_all(which)) for which in (0, 1)]
    answers = list(zip(*(thread.outcome() for thread in threads), strict=True))
    assert [sorted(pair) for pair in answers] == [[False, True]] * ROUNDS
    for document, both, pair in zip(documents, claims, answers, strict=True):
        (run,) = service.runs(document, "upload")
        winner = both[pair.index(True)]
        assert run["claim_id"] == (str(winner) if claimed else None)


def test_a_starter_that_waited_for_the_row_sees_the_run_of_the_other(
    service, connect: Callable, background: type, until_waiting: Callable
) -> None:
    """A start that waits behind an uncommitted start answers false after the commit, and true after a rollback."""
    for outcome in (False, True):
        document = service.document()
        first, second = connect(), connect()
        first.run("begin")
        assert first.call("start_stage", document, "upload", p_claim_id=uuid.uuid4()) is True
        waiting = background(lambda s=second, d=document: s.call("start_stage", d, "upload", p_claim_id=uuid.uuid4()))
        until_waiting(second)
        first.run("rollback" if outcome else "commit")
        assert waiting.outcome() is outcome
        assert len(service.runs(document, "upload")) == 1


def test_the_same_start_twice_at_once_opens_one_run(
    service, connect: Callable, background: type, until_waiting: Callable
) -> None:
    """A repeat with the same claim id that arrives while the first still runs answers true, with one run."""
    document, claim = service.document(), uuid.uuid4()
    first, second = connect(), connect()
    first.run("begin")
    assert first.call("start_stage", document, "upload", p_claim_id=claim) is True
    waiting = background(lambda: second.call("start_stage", document, "upload", p_claim_id=claim))
    until_waiting(second)
    first.run("commit")
    assert waiting.outcome() is True
    assert len(service.runs(document, "upload")) == 1


LATE = [
    ("complete_stage", ()),
    ("fail_stage", ("x",)),
    ("skip_stage", ()),
    ("update_stage_progress", (90, {"late": True})),
    ("start_stage", ()),
]


@pytest.mark.parametrize(("function", "arguments"), LATE, ids=[name for name, _ in LATE])
def test_a_late_call_that_waited_while_another_took_over_is_refused(
    service, connect: Callable, background: type, until_waiting: Callable, function: str, arguments: tuple
) -> None:
    """The claim id is judged by what is true after the wait for the row: lease_lost, and nothing is written."""
    document, old, new = service.document(), uuid.uuid4(), uuid.uuid4()
    service.call("start_stage", document, "upload", p_claim_id=old)
    service.end_lease(document, "upload")
    taker, late = connect(), connect()
    taker.run("begin")
    assert taker.call("start_stage", document, "upload", p_claim_id=new) is True
    waiting = background(lambda: late.refused(function, document, "upload", *arguments, p_claim_id=old))
    until_waiting(late)
    taker.run("commit")
    taken = service.everything(document)
    refusal = waiting.outcome()
    assert (refusal.sqlstate, refusal.word) == ("PT409", "lease_lost")
    assert service.everything(document) == taken
    assert service.call("complete_stage", document, "upload", p_claim_id=new) is True


def test_complete_and_takeover_at_once_have_one_outcome(service, connect: Callable, background: type) -> None:
    """Either the holder completes, or the other takes over and the holder hears lease_lost; never both."""
    holder, taker = connect(), connect()
    seen = set()
    for _ in range(100):
        document, old, new = service.document(), uuid.uuid4(), uuid.uuid4()
        service.call("start_stage", document, "upload", p_claim_id=old)
        service.end_lease(document, "upload")

        def complete(document: Any = document, old: uuid.UUID = old) -> str:
            try:
                holder.call("complete_stage", document, "upload", p_claim_id=old)
            except psycopg.Error as error:
                return error.sqlstate or ""
            return "completed"

        completed, started = _both(
            background, complete, lambda d=document, c=new: taker.call("start_stage", d, "upload", p_claim_id=c)
        )
        assert started is True
        statuses = [run["status"] for run in service.runs(document, "upload")]
        assert statuses == {"completed": ["completed", "running"], "PT409": ["lost", "running"]}[completed]
        seen.add(completed)
    assert seen <= {"completed", "PT409"}


def test_parallel_progress_of_two_stages_loses_nothing(service, connect: Callable, background: type) -> None:
    """Writers of different stages of one document, and of metadata of one stage, do not overwrite each other."""
    document, sessions = service.document(), [connect(), connect()]
    for stage in ("text_extraction", "image_processing"):
        service.call("start_stage", document, stage)

    def report(which: int) -> None:
        for step in range(50):
            stage = ("text_extraction", "image_processing")[(which + step) % 2]
            sessions[which].call("update_stage_progress", document, stage, step, {f"{which}-{step}": step})

    _both(background, lambda: report(0), lambda: report(1))
    stages = service.stage_status(document)
    kept = stages["text_extraction"]["metadata"] | stages["image_processing"]["metadata"]
    assert kept == {f"{which}-{step}": step for which in (0, 1) for step in range(50)}


def test_a_complete_that_waits_for_a_delete_is_told_so(
    service, connect: Callable, background: type, until_waiting: Callable
) -> None:
    """After the delete commits, complete is unknown_document, and no run is left behind."""
    document, claim = service.document(), uuid.uuid4()
    service.call("start_stage", document, "upload", p_claim_id=claim)
    deleter, late = connect(), connect()
    deleter.run("begin")
    deleter.run("delete from krai_core.documents where id = %s", document)
    waiting = background(lambda: late.refused("complete_stage", document, "upload", p_claim_id=claim))
    until_waiting(late)
    deleter.run("commit")
    assert waiting.outcome().word == "unknown_document"
    assert service.runs(document, "upload") == []


def test_a_delete_that_waits_for_a_start_takes_its_run_along(
    service, connect: Callable, background: type, until_waiting: Callable
) -> None:
    """A run that was opened while the delete waited is deleted with the document."""
    document = service.document()
    starter, deleter = connect(), connect()
    starter.run("begin")
    starter.call("start_stage", document, "upload", p_claim_id=uuid.uuid4())
    waiting = background(lambda: deleter.run("delete from krai_core.documents where id = %s", document))
    until_waiting(deleter)
    starter.run("commit")
    waiting.outcome()
    assert service.runs(document, "upload") == []


def test_a_document_that_is_deleted_meanwhile_is_no_failure_to_retry(
    service, connect: Callable, background: type, until_waiting: Callable
) -> None:
    """retry_failed that waits for a delete passes the document over, and retries the others."""
    documents = sorted(service.document() for _ in range(3))
    for document in documents:
        service.call("fail_stage", document, "upload", "x")
    deleter, operator = connect(), connect()
    deleter.run("begin")
    deleter.run("delete from krai_core.documents where id = %s", documents[1])
    waiting = background(lambda: operator.call("retry_failed", "upload"))
    until_waiting(operator)
    deleter.run("commit")
    retried = {run["document_id"] for run in waiting.outcome()["runs"]}
    assert {str(documents[0]), str(documents[2])} <= retried
    assert str(documents[1]) not in retried


def test_a_direct_edit_that_waited_for_a_start_keeps_the_started_stage(
    service, connect: Callable, background: type, until_waiting: Callable
) -> None:
    """A stale column, written back behind an uncommitted start, leaves the started stage alone, with a WARNING."""
    document, claim = service.document(), uuid.uuid4()
    stale = service.stage_status(document)
    stale["storage"]["metadata"] = {"by": "hand"}
    starter, editor = connect(), connect()
    starter.run("begin")
    starter.call("start_stage", document, "upload", p_claim_id=claim)
    waiting = background(lambda: editor.edit(document, stale))
    until_waiting(editor)
    starter.run("commit")
    waiting.outcome()
    assert service.stage(document, "upload")["status"] == "processing"
    assert service.stage(document, "storage")["metadata"] == {"by": "hand"}
    assert len(editor.warnings) == 1
    assert service.call("complete_stage", document, "upload", p_claim_id=claim) is True


def test_a_start_that_waited_for_a_direct_edit_sees_it(
    service, connect: Callable, background: type, until_waiting: Callable
) -> None:
    """A start behind an uncommitted edit keeps what the edit wrote in other stages."""
    document = service.document()
    editor, starter = connect(), connect()
    editor.run("begin")
    editor.edit(document, {"storage": "completed"})
    waiting = background(lambda: starter.call("start_stage", document, "upload"))
    until_waiting(starter)
    editor.run("commit")
    assert waiting.outcome() is True
    stages = service.stage_status(document)
    assert (stages["upload"]["status"], stages["storage"]["status"]) == ("processing", "completed")


def test_of_two_direct_edits_the_later_stands(
    service, connect: Callable, background: type, until_waiting: Callable
) -> None:
    """The second of two whole-column edits wins, sound, with the runs that it ends closed once."""
    document = service.document()
    service.call("start_stage", document, "upload")
    first, second = connect(), connect()
    first.run("begin")
    first.edit(document, {"upload": "completed"})
    waiting = background(lambda: second.edit(document, {"upload": "in_progress"}))
    until_waiting(second)
    first.run("commit")
    waiting.outcome()
    assert service.stage(document, "upload")["metadata"] == {"v1": "in_progress"}
    assert [run["status"] for run in service.runs(document, "upload")] == ["cancelled", "completed", "ready"]
    assert service.call("krai_private.is_sound", service.stage_status(document)) is True


def test_two_edits_of_single_keys_both_stand(
    service, connect: Callable, background: type, until_waiting: Callable
) -> None:
    """jsonb_set on two stages of one document at once: the second sees the first."""
    document = service.document()
    query = (
        "update krai_core.documents set stage_status = jsonb_set(stage_status, "
        "array[%s, 'status'], '\"completed\"') where id = %s"
    )
    first, second = connect(), connect()
    first.run("begin")
    first.run(query, "upload", document)
    waiting = background(lambda: second.run(query, "storage", document))
    until_waiting(second)
    first.run("commit")
    waiting.outcome()
    stages = service.stage_status(document)
    assert (stages["upload"]["status"], stages["storage"]["status"]) == ("completed", "completed")


def test_transactions_that_touch_documents_in_id_order_do_not_deadlock(
    service, connect: Callable, background: type
) -> None:
    """Resets with cascade, bulk edits, starts and heartbeats over the same documents: nobody is a deadlock victim."""
    documents = sorted(service.document() for _ in range(4))
    claim = uuid.uuid4()
    for document in documents:
        for stage in ("upload", "text_extraction", "embedding"):
            service.call("start_stage", document, stage, p_claim_id=claim)
    one, other = connect(), connect()
    runs = [
        {"document_id": str(document), "stage_name": stage, "claim_id": str(claim)}
        for document in reversed(documents)
        for stage in ("embedding", "upload", "text_extraction")
    ]

    def reset_and_start() -> None:
        for _ in range(15):
            with one.connection.transaction():
                for document in documents:
                    one.call("reset_stage", document, "upload", p_cascade=True, p_force=True)
                    one.call("start_stage", document, "upload")
                    one.call("start_stage", document, "embedding")

    def edit_and_beat() -> None:
        for _ in range(15):
            with other.connection.transaction():
                other.run(
                    "update krai_core.documents d "
                    "set stage_status = jsonb_set(stage_status, '{upload,status}', '\"pending\"') "
                    "from (select id from krai_core.documents where id = any (%s::uuid[]) "
                    "order by id for no key update) l "
                    "where d.id = l.id",
                    "{" + ",".join(map(str, documents)) + "}",
                )
            other.call("heartbeat", runs)

    _both(background, reset_and_start, edit_and_beat)
    for document in documents:
        assert service.stage(document, "embedding")["status"] == "processing"


def test_a_writer_does_not_collide_with_an_open_insert_of_a_child_row(
    alone, connect: Callable, local: Any, own_database: str
) -> None:
    """While a foreign key holds the document's key share lock, stages of it can be written."""
    alone.run("create table public.pages (document_id uuid references krai_core.documents (id))")
    document = alone.document()
    child, writer = (connect(None, local.url_of(own_database)) for _ in range(2))
    writer.run("set lock_timeout = '500ms'")
    with child.connection.transaction():
        child.run("insert into public.pages values (%s)", document)
        assert writer.call("start_stage", document, "upload") is True
        assert writer.call("complete_stage", document, "upload") is True
        assert writer.call("reset_stage", document, "upload") is True


@pytest.mark.parametrize(("start", "end"), [("UTC", "Asia/Tokyo"), ("America/New_York", "UTC"), ("Asia/Tokyo", "UTC")])
def test_sessions_of_different_zones_agree_on_the_duration(
    service, connect: Callable, moment: Callable, start: str, end: str
) -> None:
    """A start in one time zone and a completion in another: the duration is the time between, not the offset."""
    starter, ender = connect(), connect()
    starter.run("select set_config('timezone', %s, false)", start)
    ender.run("select set_config('timezone', %s, false)", end)
    document, claimless = service.document(), service.document()
    starter.call("start_stage", document, "upload", p_claim_id=uuid.UUID(int=7))
    ender.call("complete_stage", document, "upload", p_claim_id=uuid.UUID(int=7))
    stages = starter.stage_status(claimless)
    # A start that only the column knows, as an edit leaves it.
    started = starter.value("select krai_private.iso_time(clock_timestamp())")
    starter.edit(claimless, stages | {"upload": stages["upload"] | {"status": "processing", "started_at": started}})
    ender.call("complete_stage", claimless, "upload")
    for one in (document, claimless):
        stage = service.stage(one, "upload")
        between = (moment(stage["completed_at"]) - moment(stage["started_at"])).total_seconds()
        assert stage["duration_seconds"] == pytest.approx(between, abs=1e-9)
        # Less than the smallest difference between two zones would make of it.
        assert stage["duration_seconds"] < 900
