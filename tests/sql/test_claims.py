"""claim_stages: what is handed out, in which order, to whom, and that a claim waits for nobody."""

import datetime as dt
import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from processors_v2.local import LocalSupabase

ANSWERED = {
    "document_id", "filename", "stage_name", "attempt", "max_attempts", "claim_id", "lease_ms", "metadata",
}  # fmt: skip


def _ids(claimed: list[dict[str, Any]]) -> list[uuid.UUID]:
    return [uuid.UUID(run["document_id"]) for run in claimed]


def test_a_claim_starts_the_stage_and_says_what_it_is(service, moment: Callable) -> None:
    """A claimed stage is processing from now, its run carries claim id, worker and lease, and the answer tells them."""
    document, claim = service.document(filename="a.pdf"), uuid.uuid4()
    (answer,) = service.call("claim_stages", "upload", "w" * 300, p_claim_id=claim)
    assert answer == {
        "document_id": str(document), "filename": "a.pdf", "stage_name": "upload", "attempt": 1, "max_attempts": 5,
        "claim_id": str(claim), "lease_ms": 300000, "metadata": {},
    }  # fmt: skip
    (run,) = service.runs(document, "upload")
    assert (run["status"], run["claim_id"], run["worker"]) == ("running", str(claim), "w" * 200)
    assert run["started_at"] == run["heartbeat_at"]
    stage = service.stage(document, "upload")
    assert (stage["status"], stage["progress"], stage["completed_at"]) == ("processing", 0, None)
    assert moment(stage["started_at"]) == dt.datetime.fromisoformat(run["started_at"])
    assert service.call("complete_stage", document, "upload", p_claim_id=claim) is True


def test_a_claim_without_an_id_makes_one(service) -> None:
    """Left out, the claim id is made by the database; it holds for all runs of the call and for none of the next."""
    for _ in range(3):
        service.document()
    first, second = service.claim(limit=2), service.claim(limit=2)
    assert [len({run["claim_id"] for run in answer}) for answer in (first, second)] == [1, 1]
    assert first[0]["claim_id"] != second[0]["claim_id"]


def test_higher_priority_goes_first_and_then_the_longest_ready(service) -> None:
    """The order is priority, negative ones last, then the time since which a run is ready."""
    old, low, young, high, higher = (service.document() for _ in range(5))
    for document, priority in ((low, -1), (high, 5), (higher, 7)):
        service.call("set_priority", document, priority)
    service.run(
        "update krai_core.stage_runs set available_at = available_at - interval '1 h' where document_id = %s", high
    )
    assert _ids(service.claim(limit=2)) == [higher, high]
    assert _ids(service.claim(limit=2)) == [old, young]
    assert _ids(service.claim(limit=2)) == [low]


def _hide(service, document: uuid.UUID, how: str) -> None:
    if how == "not due":
        service.run(
            "update krai_core.stage_runs set available_at = now() + interval '1 min' where document_id = %s",
            document,
        )
    elif how in ("paused", "disabled"):
        service.call(f"{how.removesuffix('d')}_stage", "upload")
    elif how == "running":
        service.call("start_stage", document, "upload")
    elif how == "completed":
        service.call("complete_stage", document, "upload")
    elif how == "skipped":
        service.call("skip_stage", document, "upload")
    elif how == "failed":
        service.call("fail_stage", document, "upload", "for good")


@pytest.mark.parametrize(
    "how",
    ["not due", "paused", "disabled", "running", "completed", "skipped", "failed"],
)
def test_what_is_not_ready_is_not_handed_out(alone, how: str) -> None:
    """Nothing is handed out that waits, is paused, disabled, at work or finished; an empty claim writes nothing."""
    document = alone.document()
    _hide(alone, document, how)
    before = alone.everything(document)
    assert alone.claim() == []
    assert alone.everything(document) == before


def test_a_stage_is_handed_out_once_all_that_it_requires_is_finished(service) -> None:
    """Completed and skipped both finish a prerequisite; pending, processing and failed do not."""
    document = service.document()
    required = ("classification", "metadata_extraction", "embedding")
    for stage, ended in zip(required, ("complete_stage", "skip_stage", "complete_stage"), strict=True):
        service.call("start_stage", document, stage)
        assert service.claim("search_indexing") == []
        service.call("fail_stage", document, stage, "x")
        assert service.claim("search_indexing") == []
        service.call(ended, document, stage)
    assert _ids(service.claim("search_indexing")) == [document]


def test_a_deleted_document_is_not_handed_out(service) -> None:
    """With the document its place in the queue is gone."""
    gone, there = service.document(), service.document()
    service.run("delete from krai_core.documents where id = %s", gone)
    assert _ids(service.claim(limit=5)) == [there]


@pytest.mark.triggers_off
@pytest.mark.parametrize("status", ["processing", "completed", "skipped", '"completed"', "required stage pending"])
def test_the_truth_on_the_document_is_asked_again(service, bypass, status: str) -> None:
    """A ready run that the column gives the lie to, as a restore without triggers leaves it, is not handed out."""
    document, stage = service.document(), "upload"
    if status == "required stage pending":
        service.done(document, "upload")
        stage = "text_extraction"
        bypass.edit(document, service.call("_default_stage_status"))
    else:
        stored = "completed" if status.startswith('"') else service.stage(document, "upload") | {"status": status}
        bypass.edit(document, service.stage_status(document) | {"upload": stored})
    assert [run["status"] for run in service.runs(document, stage)] == ["ready"]
    assert service.claim(stage) == []


def test_a_repeat_with_the_same_claim_id_answers_the_same(service) -> None:
    """A lost answer is asked for again: the same runs in their order, with what is left of the lease, no others."""
    for number in range(4):
        service.call("set_priority", service.document(), number)
    claim = uuid.uuid4()
    first = service.claim(limit=3, p_claim_id=claim, p_lease_seconds=60)
    again = service.claim(limit=3, p_claim_id=claim, p_lease_seconds=60)
    assert [run | {"lease_ms": 0} for run in again] == [run | {"lease_ms": 0} for run in first]
    assert [run["lease_ms"] for run in first] == [60000] * 3
    assert all(0 < run["lease_ms"] <= 60000 for run in again)
    assert service.value("select count(*) from krai_core.stage_runs where status = 'running'") == 3


def test_a_repeat_answers_only_what_still_runs(service, outcome: Callable) -> None:
    """Runs that have ended since are left out; when all have, the answer is empty, and nothing new is taken with it."""
    for _ in range(3):
        service.document()
    claim = uuid.uuid4()
    one, other = service.claim(limit=2, p_claim_id=claim)
    service.finish(outcome(one, "completed"))
    assert _ids(service.claim(limit=2, p_claim_id=claim)) == _ids([other])
    service.finish(outcome(other, "failed", error="x"))
    assert service.claim(limit=2, p_claim_id=claim) == []
    assert len(service.claim(limit=2, p_claim_id=uuid.uuid4())) == 1


def test_a_repeat_that_comes_while_the_first_still_runs_is_told_to_come_back(service, connect: Callable) -> None:
    """claim_in_progress, at once and with no run taken; after the commit the repeat answers the first call's runs."""
    for _ in range(2):
        service.document()
    first, claim = connect(), uuid.uuid4()
    first.run("begin")
    taken = first.claim(p_claim_id=claim)
    refusal = service.refused("claim_stages", "upload", "w", p_claim_id=claim)
    assert (refusal.sqlstate, refusal.word) == ("PT409", "claim_in_progress")
    assert refusal.detail["claim_id"] == str(claim)
    assert str(claim) in refusal.message
    assert refusal.hint
    first.run("commit")
    assert _ids(service.claim(p_claim_id=claim)) == _ids(taken)
    assert service.value("select count(*) from krai_core.stage_runs where status = 'running'") == 1


def test_a_repeat_after_a_rollback_takes_anew(service, connect: Callable) -> None:
    """What the first call took and lost by a rollback is free, for the same claim id too."""
    document, first, claim = service.document(), connect(), uuid.uuid4()
    first.run("begin")
    first.claim(p_claim_id=claim)
    first.run("rollback")
    assert _ids(service.claim(p_claim_id=claim)) == [document]


@pytest.mark.parametrize("notation", ['["storage", "upload"]', "{storage,upload}"])
def test_stages_are_taken_in_their_order_of_preference(service, notation: str) -> None:
    """An array of stages, as JSON or as Postgres writes it: the first that has something first, the next fill up."""
    documents = [service.document() for _ in range(3)]
    service.done(documents[2], "upload", "image_processing")
    claimed = service.call("claim_stages", notation, "w", 2)
    assert [(run["stage_name"], run["document_id"]) for run in claimed] == [
        ("storage", str(documents[2])),
        ("upload", str(documents[0])),
    ]
    assert [run["stage_name"] for run in service.call("claim_stages", notation, "w", 5)] == ["upload"]


def test_a_paused_stage_of_several_is_passed_over(alone) -> None:
    """Of an array those that are paused or disabled give nothing, and the others still do."""
    document = alone.document()
    alone.call("pause_stage", "storage")
    alone.call("disable_stage", "embedding")
    assert _ids(alone.claim(["storage", "embedding", "upload"])) == [document]


@pytest.mark.parametrize("stages", ["nonsense", '["upload", "nonsense"]', "{upload,nonsense}", "[]]", "{a", "", None])
def test_a_name_that_is_no_stage_is_refused(service, stages: str | None) -> None:
    """unknown_stage for a name, or an array that holds one; nothing is taken."""
    document = service.document()
    before = service.everything(document)
    refusal = service.refused("claim_stages", stages, "w", 5)
    assert (refusal.sqlstate, refusal.word) == ("22023", "unknown_stage")
    assert service.everything(document) == before


@pytest.mark.parametrize(
    ("limit", "word"), [(0, "invalid_limit"), (-1, "invalid_limit"), (1001, "invalid_limit"), (None, "invalid_limit")]
)
def test_a_limit_out_of_range_is_refused(service, limit: int | None, word: str) -> None:
    """1 to 1000 runs can be claimed; anything else is named in the refusal."""
    service.document()
    refusal = service.refused("claim_stages", "upload", "w", limit)
    assert (refusal.sqlstate, refusal.word, refusal.detail["limit"]) == ("22023", word, limit)
    assert "1 to 1000" in (refusal.hint or "")
    assert len(service.claim(limit=1000)) == 1


@pytest.mark.parametrize("lease", ["0", "-5", "NaN", "604800.1"])
def test_a_lease_out_of_range_is_refused(service, lease: str) -> None:
    """More than 0 and at most a week, as for start_stage."""
    service.document()
    refusal = service.refused("claim_stages", "upload", "w", p_lease_seconds=lease)
    assert (refusal.sqlstate, refusal.word) == ("22023", "invalid_lease")


@pytest.mark.parametrize(("of_stage", "asked", "seconds"), [(300, None, 300), (42, None, 42), (42, 12.5, 12.5)])
def test_the_lease_is_that_of_the_stage_or_the_one_asked_for(
    alone, of_stage: int, asked: float | None, seconds: float
) -> None:
    """Length, end and answer of the lease agree."""
    alone.run("update krai_core.stages set lease_seconds = %s where name = 'upload'", of_stage)
    alone.document()
    (run,) = alone.claim(p_lease_seconds=asked)
    assert run["lease_ms"] == seconds * 1000
    assert alone.rows(
        "select lease_seconds::float, extract(epoch from lease_expires_at - started_at)::float "
        "from krai_core.stage_runs where status = 'running'"
    ) == [(seconds, seconds)]


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


def test_the_metadata_of_a_pending_stage_stays_and_is_answered(service) -> None:
    """What somebody put on a stage before it began is for the one who works on it."""
    document = service.document()
    service.edit(document, {"upload": {"status": "pending", "metadata": {"ocr": "de"}, "note": 7}})
    (run,) = service.claim()
    assert run["metadata"] == {"ocr": "de"}
    stage = service.stage(document, "upload")
    assert (stage["metadata"], stage["note"], stage["status"]) == ({"ocr": "de"}, 7, "processing")


def test_what_a_failed_attempt_left_goes_to_its_history(service, outcome: Callable) -> None:
    """The next attempt begins clean: progress, metadata and error of the failed one stay with its run."""
    document = service.document()
    (first,) = service.claim()
    service.finish(outcome(first, "progress", progress=40, metadata={"pages": 3}))
    service.finish(outcome(first, "failed", error="no paper", retry=True))
    service.run("update krai_core.stage_runs set available_at = clock_timestamp() where status = 'ready'")
    (second,) = service.claim()
    assert (second["attempt"], second["metadata"]) == (2, {})
    kept, running = service.runs(document, "upload")
    assert (kept["progress"], kept["metadata"], kept["error"]) == (40, {"pages": 3}, "no paper")
    assert (running["progress"], running["metadata"]) == (None, None)
    stage = service.stage(document, "upload")
    assert (stage["error"], stage["progress"], stage["metadata"]) == (None, 0, {})


@pytest.mark.triggers_off
@pytest.mark.parametrize(
    ("column", "metadata"),
    [
        (None, {}),
        ({}, {}),
        ("text", {}),
        ([], {}),
        ({"upload": None}, {}),
        ({"upload": "in_progress"}, {"v1": "in_progress"}),
        ({"upload": {"status": "queued", "by": "v1"}}, {"v1": {"status": "queued", "by": "v1"}}),
        ({"upload": {"metadata": [1]}}, {"v1": {"metadata": [1]}}),
        ({"upload": {"status": "pending", "progress": "x", "metadata": {"a": 1}}}, None),
    ],
    ids=json.dumps,
)
def test_odd_rows_are_handed_out_and_repaired(service, bypass, column: Any, metadata: dict | None) -> None:
    """A stage in no shape of ours counts as pending: it is handed out in shape, and what it held is kept."""
    document = service.document()
    bypass.edit(document, column)
    (run,) = service.claim()
    stage = service.stage(document, "upload")
    assert run["document_id"] == str(document)
    assert (stage["status"], stage["progress"], stage["error"]) == ("processing", 0, None)
    assert run["metadata"] == stage["metadata"]
    if metadata is not None and column != "text":
        assert stage["metadata"] == metadata
    assert service.call("complete_stage", document, "upload", p_claim_id=run["claim_id"]) is True
    assert service.call("_is_sound", service.stage_status(document)) is True


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
    assert "the lease ended without a sign of life (worker w)" in lost["error"]
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
    assert alone.runs(document, "upload")[0]["error"] == "it took longer than 600 seconds (worker w)"
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


def test_every_answer_has_the_same_keys(service) -> None:
    """First answer, repeat, and what came from an expired run: the eight keys and no others."""
    document, claim = service.document(), uuid.uuid4()
    answers = [service.claim(p_claim_id=claim), service.claim(p_claim_id=claim)]
    service.end_lease(document, "upload")
    answers.append(service.claim())
    assert [set(run) for (run,) in answers] == [ANSWERED] * 3


def test_a_claim_over_http_answers_an_array(local: LocalSupabase, service) -> None:
    """supabase-py gets a list of dicts."""
    document = service.document()
    answer = (
        local.client().schema("krai_core").rpc("claim_stages", {"p_stage_name": "upload", "p_worker": "w"}).execute()
    )
    assert [run["document_id"] for run in answer.data] == [str(document)]
