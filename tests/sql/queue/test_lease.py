"""Leases: how long a run is held, what renews it, who may take it over, and what a heartbeat answers."""

import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

LATE_CALLS = [
    ("start_stage", ()),
    ("update_stage_progress", (50,)),
    ("complete_stage", ()),
    ("fail_stage", ("x",)),
    ("skip_stage", ()),
]


def _lease(service, document: uuid.UUID, stage: str = "upload") -> tuple[Decimal, float]:
    """Length of the running run's lease, and for how many seconds it was given last."""
    ((seconds, given),) = service.rows(
        "select lease_seconds, extract(epoch from lease_expires_at - heartbeat_at)::float from krai_core.stage_runs "
        "where document_id = %s and stage_name = %s and status = 'running'",
        document,
        stage,
    )
    return seconds, given


def _let_pass(service, document: uuid.UUID, seconds: float, stage: str = "upload") -> None:
    """As if the run had begun and beaten so much earlier."""
    service.run(
        "update krai_core.stage_runs set lease_expires_at = lease_expires_at - make_interval(secs => %s), "
        "heartbeat_at = heartbeat_at - make_interval(secs => %s), started_at = started_at - make_interval(secs => %s) "
        "where document_id = %s and stage_name = %s and status = 'running'",
        Decimal(seconds), Decimal(seconds), Decimal(seconds), document, stage,
    )  # fmt: skip


def _beat(service, *runs: tuple[uuid.UUID, str, uuid.UUID]) -> dict[str, list[dict[str, Any]]]:
    asked = [{"document_id": str(one), "stage_name": stage, "claim_id": str(claim)} for one, stage, claim in runs]
    return service.call("heartbeat", asked)


@pytest.mark.parametrize(
    ("of_stage", "asked", "claim", "expected"),
    [
        (300, None, None, 3600),
        (7200, None, None, 7200),
        (300, None, True, 300),
        (7200, None, True, 7200),
        (300, 12.5, True, 12.5),
        (300, 604800, True, 604800),
        (300, 60, None, 60),
    ],
)
def test_the_length_of_a_lease(alone, of_stage: int, asked: float | None, claim: bool | None, expected: float) -> None:
    """The stage's own, at least an hour without claim id, or what was asked for."""
    alone.run("update krai_core.stages set lease_seconds = %s where name = 'upload'", of_stage)
    document = alone.document()
    alone.call("start_stage", document, "upload", p_claim_id=claim and uuid.uuid4(), p_lease_seconds=asked)
    assert _lease(alone, document) == (Decimal(str(expected)), expected)


@pytest.mark.parametrize(
    "claim", [None, uuid.UUID("0b0c0d00-0000-4000-8000-000000000003")], ids=["claimless", "claimed"]
)
def test_progress_renews_the_lease(service, claim: uuid.UUID | None) -> None:
    """Each progress call is a sign of life: the lease begins anew at its full length, also when it was over."""
    document = service.document()
    service.call("start_stage", document, "upload", p_claim_id=claim)
    length = float(_lease(service, document)[0])
    for passed in (length / 2, length * 3):
        _let_pass(service, document, passed)
        assert service.call("update_stage_progress", document, "upload", None, p_claim_id=claim) is True
        assert _lease(service, document)[1] == length
        assert service.value(
            "select lease_expires_at > clock_timestamp() from krai_core.stage_runs where document_id = %s", document
        )


def test_a_lease_that_was_just_renewed_is_not_written_again(service) -> None:
    """A busy loop of progress calls writes the run only once the lease has aged by a twentieth."""
    document = service.document()
    service.call("start_stage", document, "upload")
    before = service.everything(document)[1]
    service.call("update_stage_progress", document, "upload", 50)
    assert service.everything(document)[1] == before
    _let_pass(service, document, 3600 * 0.06)
    service.call("update_stage_progress", document, "upload", 51)
    assert _lease(service, document)[1] == 3600


def test_a_heartbeat_renews_the_lease(service) -> None:
    """A heartbeat gives the full lease again, and tells its length in milliseconds."""
    document, claim = service.document(), uuid.uuid4()
    service.call("start_stage", document, "upload", p_claim_id=claim, p_lease_seconds=30)
    _let_pass(service, document, 25)
    before = service.stage(document, "upload")
    answer = _beat(service, (document, "upload", claim))
    assert answer == {
        "alive": [{"document_id": str(document), "stage_name": "upload", "claim_id": str(claim), "lease_ms": 30000}],
        "lost": [],
        "cancelled": [],
    }
    assert _lease(service, document) == (30, pytest.approx(30, abs=0.001))
    assert service.stage(document, "upload") == before


@pytest.mark.parametrize(
    "holder", [None, uuid.UUID("0b0c0d00-0000-4000-8000-000000000004")], ids=["claimless", "claimed"]
)
@pytest.mark.parametrize(
    "taker", [None, uuid.UUID("0b0c0d00-0000-4000-8000-000000000005")], ids=["claimless", "claimed"]
)
def test_a_living_run_is_not_taken_and_an_expired_one_is(
    service, holder: uuid.UUID | None, taker: uuid.UUID | None
) -> None:
    """start answers false while the lease runs, and once it is over closes the run as lost and opens another."""
    document = service.document()
    service.call("start_stage", document, "upload", p_claim_id=holder)
    service.call("update_stage_progress", document, "upload", 30, {"pages": 3}, p_claim_id=holder)
    assert service.call("start_stage", document, "upload", p_claim_id=taker) is False
    service.end_lease(document, "upload")
    assert service.call("start_stage", document, "upload", p_claim_id=taker) is True
    first, second = service.runs(document, "upload")
    assert (first["status"], first["progress"], first["metadata"]) == ("lost", 30, {"pages": 3})
    assert (second["status"], second["attempt"]) == ("running", 2)
    assert (service.stage(document, "upload")["progress"], service.stage(document, "upload")["metadata"]) == (0, {})


@pytest.mark.parametrize(("function", "arguments"), LATE_CALLS, ids=[name for name, _ in LATE_CALLS])
def test_the_old_holder_is_refused_at_each_call(service, function: str, arguments: tuple) -> None:
    """After a takeover nothing that the old holder sends changes anything."""
    document, old, new = service.document(), uuid.uuid4(), uuid.uuid4()
    service.call("start_stage", document, "upload", p_claim_id=old)
    service.end_lease(document, "upload")
    service.call("start_stage", document, "upload", p_claim_id=new)
    before = service.everything(document)
    refusal = service.refused(function, document, "upload", *arguments, p_claim_id=old)
    assert (refusal.sqlstate, refusal.word, refusal.detail["run"]) == ("PT409", "lease_lost", "lost")
    assert "another took the stage over" in refusal.message
    assert service.everything(document) == before
    assert service.call("complete_stage", document, "upload", p_claim_id=new) is True


def test_an_expired_lease_that_nobody_took_still_ends_well(service) -> None:
    """Being late alone loses nothing: the holder may complete as long as nobody took the stage over."""
    document, claim = service.document(), uuid.uuid4()
    service.call("start_stage", document, "upload", p_claim_id=claim)
    service.end_lease(document, "upload")
    assert service.call("complete_stage", document, "upload", p_claim_id=claim) is True


def test_a_timeout_bounds_a_run_that_beats(alone) -> None:
    """A run longer than timeout_seconds may be taken over though its lease was just renewed; a shorter one may not."""
    alone.run("update krai_core.stages set timeout_seconds = 600 where name = 'upload'")
    document, claim = alone.document(), uuid.uuid4()
    alone.call("start_stage", document, "upload", p_claim_id=claim)
    _let_pass(alone, document, 590)
    assert len(_beat(alone, (document, "upload", claim))["alive"]) == 1
    assert alone.call("start_stage", document, "upload") is False
    _let_pass(alone, document, 20)
    assert len(_beat(alone, (document, "upload", claim))["alive"]) == 1
    assert alone.call("start_stage", document, "upload") is True
    assert _beat(alone, (document, "upload", claim))["lost"]


def test_a_heartbeat_sorts_runs_into_alive_lost_and_cancelled(service) -> None:
    """Held runs are alive; closed, taken and unknown ones are lost; those reset by force are cancelled."""
    claims = {name: uuid.uuid4() for name in ("held", "taken", "completed", "unknown", "reset", "edited")}
    documents = {name: service.document() for name in claims}
    for name, claim in claims.items():
        if name != "unknown":
            service.call("start_stage", documents[name], "upload", p_claim_id=claim)
    service.end_lease(documents["taken"], "upload")
    service.call("start_stage", documents["taken"], "upload")
    service.call("complete_stage", documents["completed"], "upload", p_claim_id=claims["completed"])
    service.call("reset_stage", documents["reset"], "upload", p_force=True)
    service.end_lease(documents["edited"], "upload")
    service.edit(documents["edited"], {})
    answer = _beat(service, *((documents[name], "upload", claims[name]) for name in claims))
    found = {kind: {run["claim_id"] for run in runs} for kind, runs in answer.items()}
    assert found == {
        "alive": {str(claims["held"])},
        "lost": {str(claims[name]) for name in ("taken", "completed", "unknown")},
        "cancelled": {str(claims[name]) for name in ("reset", "edited")},
    }
    assert service.call("heartbeat", []) == {"alive": [], "lost": [], "cancelled": []}


def test_a_heartbeat_gives_back_what_was_given(service) -> None:
    """Keys that a client adds to find its run again come back with it."""
    document, claim = service.document(), uuid.uuid4()
    service.call("start_stage", document, "upload", p_claim_id=claim)
    run = {"document_id": str(document).upper(), "stage_name": "upload", "claim_id": claim.hex, "tag": [7]}
    (alive,) = service.call("heartbeat", [run])["alive"]
    assert alive == run | {"lease_ms": 300000}


def test_a_heartbeat_does_not_wait_for_a_locked_run(service, connect: Callable) -> None:
    """A run that another transaction has locked counts as alive and is passed over; the others are renewed."""
    locked, free, claim = service.document(), service.document(), uuid.uuid4()
    for document in (locked, free):
        service.call("start_stage", document, "upload", p_claim_id=claim, p_lease_seconds=60)
        _let_pass(service, document, 50)
    beater, holder = connect(), connect()
    beater.run("set lock_timeout = '200ms'")
    with holder.connection.transaction():
        holder.run("select from krai_core.stage_runs where document_id = %s for update", locked)
        answer = _beat(beater, (locked, "upload", claim), (free, "upload", claim))
        assert {run["document_id"] for run in answer["alive"]} == {str(locked), str(free)}
        assert _lease(service, free)[1] == pytest.approx(60, abs=0.001)
        assert service.value(
            "select lease_expires_at - clock_timestamp() < interval '30 s' from krai_core.stage_runs "
            "where document_id = %s",
            locked,
        )


def test_a_heartbeat_waits_for_no_lock_of_a_document(service, connect: Callable) -> None:
    """A document that is being written to does not hold up the heartbeat of its runs."""
    document, claim = service.document(), uuid.uuid4()
    service.call("start_stage", document, "upload", p_claim_id=claim)
    beater, holder = connect(), connect()
    beater.run("set lock_timeout = '200ms'")
    with holder.connection.transaction():
        holder.call("start_stage", document, "embedding")
        assert len(_beat(beater, (document, "upload", claim))["alive"]) == 1


def test_heartbeats_are_hot_updates(alone) -> None:
    """No index of stage_runs holds what a heartbeat changes: all of them are heap-only updates."""
    claims = [(alone.document(), "upload", uuid.uuid4()) for _ in range(20)]
    for document, stage, claim in claims:
        alone.call("start_stage", document, stage, p_claim_id=claim)
    counts = "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'stage_runs'"
    alone.run("select pg_stat_force_next_flush()")
    ((updated, hot),) = alone.rows(counts)
    for _ in range(50):
        _beat(alone, *claims)
    alone.run("select pg_stat_force_next_flush()")
    ((updated_after, hot_after),) = alone.rows(counts)
    assert updated_after - updated == 1000
    assert hot_after - hot >= 990


def test_a_column_that_heartbeats_change_is_in_no_index(service) -> None:
    """lease_expires_at and heartbeat_at stand in no index, neither as a key nor in a condition."""
    assert (
        service.rows(
            "select indexrelid::regclass::text from pg_index where indrelid = 'krai_core.stage_runs'::regclass "
            "and pg_get_indexdef(indexrelid) ~ '(lease_expires_at|heartbeat_at)'"
        )
        == []
    )


@pytest.mark.parametrize(
    ("function", "arguments"),
    [("update_stage_progress", ("upload", 5)), ("heartbeat", ())],
)
def test_a_commit_waits_for_the_disk_inside_a_users_transaction(
    service, connect: Callable, function: str, arguments: tuple
) -> None:
    """synchronous_commit is let go only where the call is the whole rpc, never in somebody's own transaction."""
    document = service.document()
    service.call("start_stage", document, "upload")
    session = connect()
    given = (document, *arguments) if arguments else ([],)
    for path, expected in ((None, "on"), ("/rpc/other", "on"), (f"/rpc/{function}", "off")):
        with session.connection.transaction():
            if path is not None:
                session.run("select set_config('request.path', %s, true)", path)
            session.call(function, *given)
            assert session.value("show synchronous_commit") == expected
        assert session.value("show synchronous_commit") == "on"


@pytest.mark.parametrize(
    "call", ["start_stage", "complete_stage", "fail_stage", "skip_stage", "reset_stage", "retry_stage"]
)
def test_a_transition_waits_for_the_disk(service, connect: Callable, call: str) -> None:
    """What may not be lost is committed to disk, over PostgREST too."""
    document, session = service.document(), connect()
    with session.connection.transaction():
        session.run("select set_config('request.path', %s, true)", f"/rpc/{call}")
        session.call(call, document, "upload", *(["x"] if call == "fail_stage" else []))
        assert session.value("show synchronous_commit") == "on"
