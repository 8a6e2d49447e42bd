"""The questions of those who watch, through the tracker."""

import datetime as dt
import enum
import uuid
from collections.abc import Iterator
from typing import Any, get_type_hints

import pytest

from processors_v2 import models
from processors_v2.errors import AccessDenied, InvalidArgument, UnknownDocument, UnknownStage
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker

ZONE = dt.timezone(dt.timedelta(hours=5, minutes=30))


class State(str, enum.Enum):  # noqa: UP042 - as processors define it
    """A state by a name of theirs."""

    SKIPPED = "skipped"


@pytest.fixture
def stage(tracker: StageTracker, db: Any) -> Iterator[str]:
    """A stage without a past, which nothing else in the session uses."""
    name = f"stage_{uuid.uuid4().hex[:12]}"
    tracker.register_stage(name, [])
    yield name
    db.drop_stage(name)


def keys(kind: type) -> set[str]:
    """The keys of a TypedDict."""
    return set(get_type_hints(kind))


def timed(db: Any, stage: str, seconds: float, count: int = 1) -> None:
    """Insert documents whose stage is completed and took so long."""
    for _ in range(count):
        db.one(
            "insert into krai_core.documents (filename, stage_status) values ('timed.pdf', jsonb_build_object(%s::text,"
            " jsonb_build_object('status', 'completed', 'progress', 100, 'duration_seconds', %s::numeric)))"
            " returning 1",
            stage,
            seconds,
        )


def test_statistics_tell_durations_and_who_works(tracker: StageTracker, stage: str, document: str, db: Any) -> None:
    """get_statistics has counts, quantiles, the oldest that waits, and the workers at work."""
    timed(db, stage, 10, 9)
    timed(db, stage, 1000)
    tracker.start_stage(document, stage, worker="gpu-7")
    found = tracker.get_statistics()[stage]
    assert set(found) == keys(models.StageCounts)
    assert (found["completed"], found["timed"], found["processing"], found["workers_busy"]) == (10, 10, 1, 1)
    assert found["avg_duration"] == 109
    assert found["p50_duration"] == pytest.approx(10, rel=0.2)
    assert found["p99_duration"] == pytest.approx(1000, rel=0.2)
    assert found["throughput_per_hour"] >= 0
    db.document()
    waiting = tracker.get_statistics()[stage]
    assert waiting["oldest_waiting"] is not None
    assert dt.datetime.fromisoformat(str(waiting["oldest_waiting_at"])).utcoffset() == dt.timedelta(0)


def test_documents_are_listed_newest_first(tracker: StageTracker, stage: str, db: Any) -> None:
    """list_documents gives those in a state of a stage, by when they came into it, up to the limit."""
    first, second, third = (db.document() for _ in range(3))
    for document in (second, first, third):
        tracker.skip_stage(document, stage)
    found = list(tracker.list_documents(stage, "skipped"))
    assert [document["document_id"] for document in found] == [third, first, second]
    assert [document["document_id"] for document in tracker.list_documents(stage, "skipped", limit=2)] == [third, first]
    assert list(tracker.list_documents(stage, "skipped", limit=0)) == []
    assert list(tracker.list_documents(stage, State.SKIPPED)) == found
    assert set(found[0]) == keys(models.ListedDocument)
    assert set(found[0]["run"] or ()) == keys(models.ListedRun)
    assert set(found[0]["stage"]) == keys(models.StageStatus)


def test_a_list_goes_on_page_by_page(
    tracker: StageTracker, stage: str, db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All documents come, each once, in the order of one large page, and no call asks for more than is wanted."""
    documents = [db.document() for _ in range(7)]
    for document in documents:
        tracker.skip_stage(document, stage)
    sizes: list[int] = []
    send = tracker._transport.send

    def noted(call: Any, **options: Any) -> Any:
        sizes.append(call.arguments["p_limit"])
        return send(call, **options)

    monkeypatch.setattr(tracker._transport, "send", noted)
    for module in ("_sync", "_async"):
        monkeypatch.setattr(f"processors_v2.{module}.pages._PAGE", 3)
    assert [one["document_id"] for one in tracker.list_documents(stage, "skipped")] == documents[::-1]
    assert sizes == [3, 3, 3]
    sizes.clear()
    assert [one["document_id"] for one in tracker.list_documents(stage, "skipped", limit=5)] == documents[:1:-1]
    assert sizes == [3, 2]


def test_failures_lead_to_their_documents(tracker: StageTracker, stage: str, db: Any) -> None:
    """get_failures groups errors that differ in numbers and paths, and its fingerprint lists the documents."""
    since = dt.datetime.now(ZONE) - dt.timedelta(minutes=1)
    same, other = [db.document() for _ in range(3)], db.document()
    for number, document in enumerate(same):
        tracker.fail_stage(document, stage, f"page {number} of /tmp/{number}.pdf is damaged")
    tracker.fail_stage(other, stage, "R2 is away")
    found = tracker.get_failures(stage, since)
    assert set(found) == keys(models.Failures)
    assert (found["looked_at"], found["is_all"]) == (4, True)
    first, second = found["groups"]
    assert set(first) == keys(models.FailureGroup)
    assert set(first["sample"]) == keys(models.FailureSample)
    assert (first["count"], second["count"], first["stage_name"]) == (3, 1, stage)
    assert first["sample"]["document_id"] == same[-1]
    listed = tracker.list_documents(fingerprint=first["fingerprint"])
    assert {document["document_id"] for document in listed} == set(same)
    assert [one["document_id"] for one in tracker.list_documents(stage, error="r2 is")] == [other]
    assert len(tracker.get_failures(stage, limit=1)["groups"]) == 1
    assert tracker.get_failures(stage, dt.datetime.now(ZONE) + dt.timedelta(hours=1))["groups"] == []


def test_what_does_not_go_on_is_told_apart(tracker: StageTracker, stage: str, db: Any) -> None:
    """A lease that is over is stalled, long work is slow, and a stage that nobody comes for is starved."""
    stalled, slow, starved = db.document(), db.document(), db.document()
    timed(db, stage, 1, 5)
    for document in (stalled, slow):
        tracker.start_stage(document, stage, worker="gpu-7")
    db.end_lease(stalled, stage)
    db.one(
        "update krai_core.stage_runs set started_at = started_at - interval '1 hour' where document_id = %s"
        " and stage_name = %s and status = 'running' returning 1",
        slow,
        stage,
    )
    found = tracker.get_stuck_stages(1000)
    assert set(found) == keys(models.StuckStages)
    mine = {word: [row["document_id"] for row in found[word] if row["stage_name"] == stage]
            for word in ("stalled", "slow")}  # fmt: skip
    assert mine == {"stalled": [stalled], "slow": [slow]}
    assert all(set(row) == keys(models.RunningStage) for word in ("stalled", "slow") for row in found[word])
    tracker.complete_stage(slow, stage)
    assert stage not in {row["stage_name"] for row in tracker.get_stuck_stages()["starved"]}
    rows = [row for row in tracker.get_stuck_stages(starved_after_seconds=0)["starved"] if row["stage_name"] == stage]
    assert [row["is_paused"] for row in rows] == [False]
    assert set(rows[0]) == keys(models.StarvedStage)
    assert starved


def test_workers_are_listed_with_what_they_hold(tracker: StageTracker, stage: str, db: Any) -> None:
    """get_workers counts the runs of each worker by stage, and those whose lease is over."""
    name = f"worker-{uuid.uuid4()}"
    held = [db.document() for _ in range(3)]
    for document in held:
        tracker.start_stage(document, stage, worker=name)
    db.end_lease(held[0], stage)
    (mine,) = [worker for worker in tracker.get_workers() if worker["worker"] == name]
    assert set(mine) == keys(models.WorkerLoad)
    assert (mine["running"], mine["stalled"], mine["stages"]) == (3, 1, {stage: 3})
    assert mine["last_heartbeat_at"] is not None


def test_running_stages_come_with_what_is_left(tracker: StageTracker, stage: str, document: str, db: Any) -> None:
    """get_running_stages has a row for each, estimated from its progress."""
    tracker.start_stage(document, stage, worker="gpu-7")
    tracker.update_progress(document, stage, 50, {"page": 2})
    rows = tracker.get_running_stages()
    (mine,) = [row for row in rows if row["stage_name"] == stage]
    assert set(mine) == keys(models.RunningStage)
    assert (mine["document_id"], mine["worker"], mine["attempt"]) == (document, "gpu-7", 1)
    assert (mine["progress"], mine["metadata"], mine["condition"]) == (50, {"page": 2}, "working")
    assert (mine["estimated_from"], mine["remaining_p50_seconds"] is not None) == ("progress", True)
    assert db.run(document, stage, "started_at") == dt.datetime.fromisoformat(mine["started_at"])


def test_rows_beyond_one_page_are_fetched(
    tracker: StageTracker, stage: str, db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each running stage comes once, the longest running first, also where two began at the same instant."""
    documents = sorted(db.document() for _ in range(5))
    for document in documents:
        tracker.start_stage(document, stage)
    # The first by their ids began last.
    db.one(
        "with same as (update krai_core.stage_runs set started_at = '2026-01-01 12:00+05:30'"
        " where document_id = any (%s::uuid[]) and stage_name = %s and status = 'running' returning 1)"
        " select count(*) from same",
        documents[2:],
        stage,
    )
    monkeypatch.setattr("processors_v2._calls.pages._ROWS", 2)
    rows = tracker.get_running_stages()
    mine = [row["document_id"] for row in rows if row["stage_name"] == stage]
    assert mine[:3] == documents[2:]
    assert sorted(mine[3:]) == documents[:2]
    assert [row["started_at"] for row in rows] == sorted(row["started_at"] for row in rows)


def test_fewer_rows_than_asked_for_are_not_the_end() -> None:
    """Where PostgREST cuts an answer (max-rows), the rest is asked for."""
    with LocalSupabase(max_rows=2) as cut:
        tracker, documents = StageTracker(cut.client()), cut.client().schema("krai_core").table("documents")
        made = [documents.insert({"filename": f"{number}.pdf"}).execute().data[0]["id"] for number in range(5)]
        for document in made:
            tracker.start_stage(document, "upload")
        assert [row["document_id"] for row in tracker.get_running_stages()] == made


def test_the_flow_is_told_by_the_hour(tracker: StageTracker, stage: str, document: str, db: Any) -> None:
    """get_stage_flow has a row for each stage and hour, oldest first, from an instant on, and of one stage."""
    other = db.document()
    tracker.start_stage(document, stage)
    tracker.complete_stage(document, stage)
    tracker.start_stage(other, stage)
    tracker.fail_stage(other, stage, "R2 is away")
    hour = db.one("select date_trunc('hour', clock_timestamp(), 'UTC')")
    db.one(
        "insert into krai_core.stage_deltas (stage_name, hour, arrived) values (%s, %s, 3) returning 1",
        stage,
        hour - dt.timedelta(hours=5),
    )
    rows = tracker.get_stage_flow(stage)
    assert [set(row) for row in rows] == [keys(models.StageFlow)] * len(rows)
    assert (rows[0]["arrived"], dt.datetime.fromisoformat(rows[0]["hour"])) == (3, hour - dt.timedelta(hours=5))
    since = (hour - dt.timedelta(hours=4)).astimezone(ZONE)
    recent = tracker.get_stage_flow(stage, since)
    assert all(dt.datetime.fromisoformat(row["hour"]) >= since for row in recent)
    # The hour may have changed meanwhile.
    assert {word: sum(row[word] for row in recent) for word in ("started", "completed", "failed", "skipped")} == {
        "started": 2, "completed": 1, "failed": 1, "skipped": 0,
    }  # fmt: skip
    names = [row["stage_name"] for row in tracker.get_stage_flow(since=since)]
    assert {"", stage} <= set(names)
    assert tracker.get_stage_flow("no_such_stage") == []


def test_flow_beyond_one_page_is_fetched(
    tracker: StageTracker, stage: str, db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every hour comes once, in order."""
    db.one(
        "with made as (insert into krai_core.stage_deltas (stage_name, hour, arrived) select %s, timestamptz"
        " '2020-01-01 00:00Z' + n * interval '1 hour', n from generate_series(1, 7) n returning 1)"
        " select count(*) from made",
        stage,
    )
    monkeypatch.setattr("processors_v2._calls.pages._ROWS", 3)
    assert [row["arrived"] for row in tracker.get_stage_flow(stage) if row["hour"] < "2021"] == [1, 2, 3, 4, 5, 6, 7]


def test_the_timeline_has_all_runs(tracker: StageTracker, stage: str, document: str) -> None:
    """get_timeline tells every attempt in order, with who worked on it and how it ended."""
    tracker.start_stage(document, stage, worker="gpu-7")
    tracker.fail_stage(document, stage, "R2 is away")
    tracker.retry_stage(document, stage, actor="operator")
    tracker.start_stage(document, stage)
    found = tracker.get_timeline(document)
    assert set(found) == keys(models.Timeline)
    assert all(set(run) == keys(models.TimelineRun) for run in found["runs"])
    failed, running = [run for run in found["runs"] if run["stage_name"] == stage]
    assert (failed["status"], failed["worker"], failed["error"], failed["actor"]) == (
        "failed", "gpu-7", "R2 is away", "operator",
    )  # fmt: skip
    assert (running["status"], running["finished_at"]) == ("running", None)


def test_weighted_progress_counts_what_runs(tracker: StageTracker, stage: str, document: str) -> None:
    """A stage that runs counts in part, and a heavy one more."""
    tracker.register_stage(stage, weight=92)
    tracker.start_stage(document, stage)
    tracker.update_progress(document, stage, 50)
    assert tracker.get_weighted_progress(document) == 46.0
    assert tracker.get_progress(document) == 0.0


def test_an_estimate_names_what_it_does_not_know(tracker: StageTracker, stage: str, document: str, db: Any) -> None:
    """get_eta has a range for each stage with five durations, and the others by name, in pipeline order."""
    timed(db, stage, 100, 5)
    found = tracker.get_eta(document)
    assert set(found) == keys(models.DocumentEta)
    assert list(found["stages"])[:8] == StageTracker.STAGES
    mine = found["stages"][stage]
    assert set(mine) == keys(models.StageEta)
    assert (mine["status"], mine["estimated_from"]) == ("pending", "durations")
    assert mine["p50"] == pytest.approx(100, rel=0.2)
    other = f"{stage}_other"
    tracker.register_stage(other, [])
    try:
        unknown = tracker.get_eta(document)
        assert other in unknown["unknown"]
        assert (unknown["remaining"], unknown["done_at"]) == (None, None)
        for name in [*StageTracker.STAGES, other]:
            tracker.skip_stage(document, name)
        known = tracker.get_eta(document)
        assert known["remaining"] == {"p50": mine["p50"], "p90": mine["p90"]}
        assert keys(models.TimeRange) == set(known["done_at"] or ())
    finally:
        db.drop_stage(other)


def test_the_forecast_has_all_stages_in_order(tracker: StageTracker, stage: str, db: Any) -> None:
    """get_forecast tells what waits, what comes and goes, and when the queue is empty, for each stage."""
    timed(db, stage, 100, 5)
    before = tracker.get_forecast()["stages"][stage]["waiting"]
    tracker.start_stage(db.document(), stage, worker="gpu-7")
    db.document()
    found = tracker.get_forecast(1)
    assert set(found) == keys(models.Forecast)
    assert list(found["stages"])[:8] == StageTracker.STAGES
    assert 0 < found["hours"] <= 1
    mine = found["stages"][stage]
    assert set(mine) == keys(models.StageForecast)
    assert set(mine["empty"]) == keys(models.EmptyQueue)
    assert (mine["waiting"], mine["running"], mine["workers"]) == (before + 1, 1, 1)
    assert mine["backlog"] is not None
    assert mine["backlog"]["p50"] == pytest.approx(100 * mine["waiting"])


@pytest.mark.parametrize(
    ("call", "kind", "word"),
    [
        (lambda t, _: t.get_timeline(uuid.uuid4()), UnknownDocument, "unknown_document"),
        (lambda t, _: t.get_eta(uuid.uuid4()), UnknownDocument, "unknown_document"),
        (lambda t, _: t.get_weighted_progress(uuid.uuid4()), UnknownDocument, "unknown_document"),
        (lambda t, _: t.get_timeline("x"), InvalidArgument, "invalid_document_id"),
        (lambda t, _: t.get_failures("ocr"), UnknownStage, "unknown_stage"),
        (lambda t, _: list(t.list_documents("ocr")), UnknownStage, "unknown_stage"),
        (lambda t, _: list(t.list_documents(3)), InvalidArgument, "unknown_stage"),
        (lambda t, s: list(t.list_documents(s, "done")), InvalidArgument, "invalid_status"),
        (lambda t, s: list(t.list_documents(s, 3)), InvalidArgument, "invalid_status"),
        (lambda t, _: list(t.list_documents(status="pending")), InvalidArgument, "invalid_status"),
        (lambda t, s: list(t.list_documents(s, "pending", error="x")), InvalidArgument, "invalid_status"),
        (lambda t, _: list(t.list_documents(limit=-1)), InvalidArgument, "invalid_limit"),
        (lambda t, s: list(t.get_documents_ready_for(s, limit=-1)), InvalidArgument, "invalid_limit"),
        (lambda t, _: list(t.list_documents(fingerprint="x")), InvalidArgument, "invalid_fingerprint"),
        (lambda t, _: t.get_failures(limit=0), InvalidArgument, "invalid_limit"),
        (lambda t, _: t.get_stuck_stages(0), InvalidArgument, "invalid_limit"),
        (lambda t, _: t.get_stuck_stages(starved_after_seconds=-1), InvalidArgument, "invalid_age"),
        (lambda t, _: t.get_stuck_stages(starved_after_seconds=float("nan")), InvalidArgument, "invalid_age"),
        (lambda t, _: t.get_forecast(0), InvalidArgument, "invalid_age"),
        (lambda t, _: t.get_forecast(hours=721), InvalidArgument, "invalid_age"),
    ],
)
def test_what_cannot_be_asked_is_an_error(tracker: StageTracker, stage: str, call: Any, kind: type, word: str) -> None:
    """What does not exist and what is out of range raises its class and word, and says what to do."""
    with pytest.raises(kind) as caught:
        call(tracker, stage)
    assert caught.value.error == word  # type: ignore[attr-defined]
    assert caught.value.hint  # type: ignore[attr-defined]


@pytest.mark.parametrize("since", [dt.datetime(2026, 1, 1), "2026-01-01"])  # noqa: DTZ001 - what is refused
def test_a_time_without_zone_is_not_sent(tracker: StageTracker, since: Any) -> None:
    """What no two machines read the same is refused, as retry_failed does."""
    for ask in (tracker.get_failures, tracker.get_stage_flow):
        with pytest.raises(InvalidArgument, match="is not a datetime with a time zone"):
            ask(since=since)


def test_signed_in_users_ask_for_their_documents_only(local: LocalSupabase, document: str) -> None:
    """What tells of all documents and of workers is refused to them."""
    tracker = StageTracker(local.client("authenticated"))
    for ask in (
        tracker.get_statistics, tracker.get_workers, tracker.get_stuck_stages, tracker.get_running_stages,
        tracker.get_stage_flow, tracker.get_failures, tracker.get_forecast, tracker.rebuild_statistics,
        lambda: list(tracker.list_documents()), lambda: tracker.get_eta(document),
        lambda: tracker.prune_runs(dt.timedelta(days=1)), tracker.schedule_maintenance,
    ):  # fmt: skip
        with pytest.raises(AccessDenied):
            ask()


def test_an_explanation_has_the_keys_of_its_type(tracker: StageTracker, document: str) -> None:
    """explain_stage answers with exactly the keys of StageExplanation, and a sentence."""
    told = tracker.explain_stage(document, "embedding")
    assert set(told) == set(get_type_hints(models.StageExplanation))
    assert told["waits_for"] == [{"stage": "text_extraction", "status": "pending"}]
    assert told["message"] == "Waiting for text_extraction (pending)."


def test_ready_documents_come_in_pages(
    tracker: StageTracker, ready_documents: list[str], lone_stage: str, db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """get_documents_ready_for goes through all pages in the order of the queue, claims nothing, and obeys its limit."""
    monkeypatch.setattr("processors_v2._sync.pages._PAGE", 2)
    rows = list(tracker.get_documents_ready_for(lone_stage))
    assert [row["id"] for row in rows] == ready_documents
    assert rows[0]["filename"]
    assert [row["id"] for row in tracker.get_documents_ready_for(lone_stage, limit=1)] == ready_documents[:1]
    assert [row["id"] for row in tracker.get_documents_ready_for(lone_stage, limit=2)] == ready_documents[:2]
    assert list(tracker.get_documents_ready_for(lone_stage, limit=0)) == []
    assert {db.stage(document, lone_stage)["status"] for document in ready_documents} == {"pending"}
