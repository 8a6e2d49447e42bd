"""The public API as a program that type checkers read: every name, parameter and result in its documented type.

It is checked, not run; ``assert_type`` fails the check where a type is another one.
"""

import datetime as dt
import enum
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal, assert_type

import supabase
from fastapi import APIRouter, FastAPI

from processors_v2 import errors
from processors_v2.api import app, create_router
from processors_v2.local import LocalSupabase
from processors_v2.models import (
    AwaitedStage,
    DocumentEta,
    DocumentState,
    DocumentStatus,
    EstimatedFrom,
    FailureGroup,
    Failures,
    Forecast,
    HeartbeatAnswer,
    ListedDocument,
    ListedRun,
    Maintenance,
    OutcomeAnswer,
    Pruned,
    Reaped,
    Rebuilt,
    RebuiltStatistics,
    ReleaseAnswer,
    Retried,
    RetriedRun,
    RunningStage,
    SecondsRange,
    Stage,
    StageChange,
    StageCounts,
    StageEta,
    StageExplanation,
    StageFlow,
    StageForecast,
    StageOutcome,
    StageRun,
    StageState,
    StageStatus,
    StarvedStage,
    StuckStages,
    Timeline,
    TimelineRun,
    WatchEvent,
    WorkerLoad,
)
from processors_v2.stage_tracker import (
    AsyncClaimedRun,
    AsyncStageContext,
    AsyncStageTracker,
    ClaimedRun,
    StageContext,
    StageTracker,
)
from processors_v2.worker import StageWorker


class Name(enum.Enum):
    """Stage names as processors define them."""

    UPLOAD = "upload"


async def on_event(event: str, stage: str, document_id: str, status: str) -> None:
    """A callback."""


def construct(client: supabase.Client, local: LocalSupabase) -> StageTracker:
    """All ways to a tracker."""
    assert_type(StageTracker.from_env(), StageTracker)
    assert_type(StageTracker.from_env(timeout=5.0, retry_for=60.0), StageTracker)
    StageTracker(supabase_client=client, websocket_callback=on_event, timeout=5.0, retry_for=0)
    StageTracker(local.client(), on_event)
    assert_type(StageTracker.STAGES, list[str])
    assert_type(StageTracker.from_postgres("postgresql://", on_event, timeout=5.0, retry_for=0), StageTracker)
    with StageTracker(client) as tracker:
        assert_type(tracker, StageTracker)
        assert_type(tracker.supabase, supabase.Client | None)
        tracker.close()
    return StageTracker(client)


def write(tracker: StageTracker, document_id: str | uuid.UUID) -> None:
    """Every mutator answers bool."""
    claim_id = uuid.uuid4()
    assert_type(tracker.start_stage(document_id, "upload"), bool)
    assert_type(tracker.start_stage(document_id, Name.UPLOAD, claim_id=claim_id, worker="w", lease_seconds=60), bool)
    assert_type(tracker.update_progress(document_id, "upload", 45.5), bool)
    assert_type(tracker.update_progress(document_id, "upload", progress=None, metadata={"a": [1]}), bool)
    assert_type(tracker.update_stage_progress(document_id, Name.UPLOAD, 50, {"a": 1}, claim_id=claim_id), bool)
    assert_type(tracker.complete_stage(document_id=document_id, stage_name="upload", metadata={"a": claim_id}), bool)
    assert_type(tracker.fail_stage(document_id, "upload", "text", {"a": 1}), bool)
    assert_type(tracker.fail_stage(document_id, "upload", error=ValueError(), claim_id=claim_id), bool)
    assert_type(tracker.fail_stage(document_id, "upload", None, retry=True), bool)
    assert_type(tracker.skip_stage(document_id, "upload", reason="no images"), bool)
    assert_type(tracker.retry_stage(document_id, "upload", actor="me"), bool)
    assert_type(tracker.reset_stage(document_id, "upload", cascade=True, force=True, actor="me"), bool)


def read(tracker: StageTracker, document_id: str | uuid.UUID) -> None:
    """Every reader answers what the seed's examples use."""
    assert_type(tracker.get_progress(document_id), float)
    assert_type(tracker.get_current_stage(document_id), str)
    assert_type(tracker.can_start_stage(document_id, Name.UPLOAD), bool)
    stages = tracker.get_stage_status(document_id)
    assert_type(stages, dict[str, StageStatus])
    assert_type(stages["upload"]["status"], StageState)
    assert_type(stages["upload"]["metadata"], dict[str, Any])
    assert_type(stages["upload"]["duration_seconds"], float | None)
    document = tracker.get_document_status(document_id)
    assert_type(document, DocumentStatus)
    assert_type(document["status"], DocumentState)
    assert_type(document["stage_status"]["upload"]["error"], str | None)
    statistics = tracker.get_statistics()
    assert_type(statistics, dict[str, StageCounts])
    assert_type(statistics["upload"]["completed"], int)
    assert_type(statistics["upload"]["avg_duration"], float | None)
    listed = tracker.list_stages()
    assert_type(listed, list[Stage])
    assert_type(listed[0].requires, tuple[str, ...])


def run(tracker: StageTracker, document_id: str | uuid.UUID, pages: list[bytes], more: Iterator[int]) -> None:
    """The context and what can be done inside of its block."""
    with StageContext(tracker, document_id, Name.UPLOAD, lease_seconds=60, interval=0.5, worker="gpu-7") as ctx:
        assert_type(ctx, StageContext)
        assert_type(ctx.document_id, str)
        assert_type(ctx.stage_name, str)
        assert_type(ctx.metadata, dict[str, Any])
        assert_type(ctx.claim_id, uuid.UUID | None)
        ctx.update_progress(50)
        ctx.update_progress(None, {"a": 1})
        ctx.set_metadata("a", uuid.uuid4())
        for page in ctx.track(pages, unit="pages"):
            assert_type(page, bytes)
        for number in ctx.track(more, total=3):
            assert_type(number, int)
        ctx.skip()
        ctx.skip(reason="no images")


def operate(tracker: StageTracker, document_id: str | uuid.UUID) -> None:
    """What people and schedulers call."""
    retried = tracker.retry_failed(Name.UPLOAD, "timeout", dt.datetime.now(dt.UTC), 10, dry_run=True, actor="me")
    assert_type(retried, Retried)
    assert_type(retried["runs"], list[RetriedRun])
    assert_type(tracker.retry_failed(), Retried)
    assert_type(tracker.cancel_document(document_id, "not wanted", actor="me"), bool)
    assert_type(tracker.set_priority(document_id, 5, actor="me"), bool)
    assert_type(tracker.pause_stage("upload", actor="me"), bool)
    assert_type(tracker.resume_stage(Name.UPLOAD), bool)
    assert_type(tracker.register_stage("ocr", ["upload", Name.UPLOAD], position=3, weight=1.5, actor="me"), bool)
    assert_type(tracker.register_stage("ocr", lease_seconds=60, timeout_seconds=600, max_attempts=3), bool)
    assert_type(tracker.disable_stage("ocr"), bool)
    assert_type(tracker.reap(), Reaped)
    assert_type(tracker.fill_ready_runs(100), int)
    assert_type(tracker.rebuild_ready_runs(), Rebuilt)
    told = tracker.explain_stage(document_id, "upload")
    assert_type(told, StageExplanation)
    assert_type(told["waits_for"], list[AwaitedStage])
    assert_type(told["place"], int | None)


def watch(tracker: StageTracker, document_id: str | uuid.UUID) -> None:
    """What those ask who watch and plan."""
    assert_type(tracker.get_statistics()["upload"]["p95_duration"], float | None)
    for listed in tracker.list_documents(Name.UPLOAD, "failed", limit=5, error="timeout", fingerprint="1"):
        assert_type(listed, ListedDocument)
        assert_type(listed["run"], ListedRun | None)
        assert_type(listed["stage"], StageStatus)
    list(tracker.list_documents())
    failures = tracker.get_failures(Name.UPLOAD, dt.datetime.now(dt.UTC), 10)
    assert_type(failures, Failures)
    assert_type(failures["groups"], list[FailureGroup])
    assert_type(tracker.get_failures(), Failures)
    stuck = tracker.get_stuck_stages(10, starved_after_seconds=1.5)
    assert_type(stuck, StuckStages)
    assert_type(stuck["slow"], list[RunningStage])
    assert_type(stuck["starved"], list[StarvedStage])
    assert_type(tracker.get_workers(), list[WorkerLoad])
    running = tracker.get_running_stages()
    assert_type(running, list[RunningStage])
    assert_type(running[0]["condition"], Literal["working", "slow", "stalled"])
    assert_type(running[0]["estimated_from"], EstimatedFrom)
    assert_type(tracker.get_stage_flow(Name.UPLOAD, since=dt.datetime.now(dt.UTC)), list[StageFlow])
    timeline = tracker.get_timeline(document_id)
    assert_type(timeline, Timeline)
    assert_type(timeline["runs"], list[TimelineRun])
    assert_type(tracker.get_weighted_progress(document_id), float)
    eta = tracker.get_eta(document_id)
    assert_type(eta, DocumentEta)
    assert_type(eta["remaining"], SecondsRange | None)
    assert_type(eta["stages"], dict[str, StageEta])
    forecast = tracker.get_forecast(hours=5)
    assert_type(forecast, Forecast)
    assert_type(forecast["stages"], dict[str, StageForecast])
    assert_type(forecast["stages"]["upload"]["empty"]["one_more"], float | None)
    for event in tracker.watch(document_id, every=0.5, after=None):
        assert_type(event, WatchEvent)
        assert_type(event["changes"], list[StageChange])


async def serve(tracker: StageTracker, other: AsyncStageTracker) -> None:
    """The endpoints in an application, over each kind of tracker."""
    assert_type(create_router(tracker), APIRouter)
    assert_type(create_router(other, look_every=1), APIRouter)
    assert_type(create_router(lambda: tracker), APIRouter)
    assert_type(app, FastAPI)


def maintain(tracker: StageTracker) -> None:
    """What keeps the database small."""
    assert_type(tracker.prune_runs(dt.timedelta(days=30), keep_failures=False, limit=100), Pruned)
    assert_type(tracker.rebuild_statistics(), RebuiltStatistics)
    assert_type(tracker.schedule_maintenance(), Maintenance)
    assert_type(tracker.schedule_maintenance(dt.timedelta(days=30), keep_failures=False), Maintenance)
    StageWorker(tracker, {"upload": lambda _: None}, prune_older_than=dt.timedelta(days=30))


def work(tracker: StageTracker) -> None:
    """What workers call."""
    for document in tracker.get_documents_ready_for("upload", limit=5):
        assert_type(document, dict[str, Any])
    assert_type(tracker.get_next_document(Name.UPLOAD, worker="w"), dict[str, Any] | None)
    assert_type(tracker.claim(["upload", Name.UPLOAD], 10, worker="w", lease_seconds=60), list[ClaimedRun])
    for run in tracker.claim("upload"):
        with run as ctx:
            assert_type(ctx, ClaimedRun)
            assert_type(ctx.filename, str)
            assert_type(ctx.attempt, int)
            assert_type(ctx.max_attempts, int)
            assert_type(ctx.idempotency_key, str)
            assert_type(ctx.release(), bool)
            raise errors.PermanentError
    named: StageRun = {"document_id": uuid.uuid4(), "stage_name": "upload", "claim_id": uuid.uuid4()}
    outcome: StageOutcome = {
        "document_id": "",
        "stage_name": "upload",
        "claim_id": uuid.uuid4(),
        "outcome": "failed",
        "error": ValueError(),
        "retry": True,
    }
    answers = tracker.finish_stages([outcome])
    assert_type(answers, list[OutcomeAnswer])
    assert_type(answers[0]["ok"], bool)
    assert_type(tracker.heartbeat([named]), HeartbeatAnswer)
    assert_type(tracker.release_stages([named]), ReleaseAnswer)


async def asynchronously(client: supabase.AsyncClient, document_id: uuid.UUID, more: AsyncIterator[int]) -> None:
    """The same, awaited."""
    assert_type(await AsyncStageTracker.from_env(), AsyncStageTracker)
    assert_type(AsyncStageTracker.from_postgres("postgresql://"), AsyncStageTracker)
    async with AsyncStageTracker(client, on_event, timeout=5.0, retry_for=0) as tracker:
        assert_type(tracker.supabase, supabase.AsyncClient | None)
        assert_type(await tracker.start_stage(document_id, Name.UPLOAD), bool)
        assert_type(await tracker.get_document_status(document_id), DocumentStatus)
        async with AsyncStageContext(tracker, document_id, "upload") as ctx:
            assert_type(ctx, AsyncStageContext)
            ctx.update_progress(50)
            for page in ctx.track([b""], unit="pages"):
                assert_type(page, bytes)
            async for number in ctx.track(more, total=3):
                assert_type(number, int)
            await ctx.skip()
        for run in await tracker.claim("upload", limit=2):
            assert_type(run, AsyncClaimedRun)
            async with run:
                assert_type(await run.release(), bool)
        async for document in tracker.get_documents_ready_for("upload"):
            assert_type(document, dict[str, Any])
        async for listed in tracker.list_documents("upload", "pending"):
            assert_type(listed, ListedDocument)
        assert_type(await tracker.get_running_stages(), list[RunningStage])
        assert_type(await tracker.get_eta(document_id), DocumentEta)
        async for event in tracker.watch(document_id):
            assert_type(event, WatchEvent)
        await tracker.close()


def handle(work: Callable[[], None]) -> None:
    """Errors are caught by class."""
    try:
        work()
    except (errors.StageBusy, errors.StageLost) as error:
        assert_type(error.document_id, str | None)
        assert_type(error.stage, str | None)
    except (errors.UnknownDocument, errors.UnknownStage, errors.InvalidArgument, errors.StageConflict) as error:
        assert_type(error.details, dict[str, Any])
    except (errors.AccessDenied, errors.SchemaNotExposed, errors.MigrationMissing, errors.ConfigurationError) as error:
        assert_type(error.hint, str | None)
    except errors.DatabaseUnavailable as error:
        assert_type(error.message, str)
    except errors.StageTrackerError as error:
        assert_type(error.code, str | None)
        assert_type(error.error, str | None)


STATE: StageState = "skipped"
EVERY: Literal["pending", "processing", "completed", "failed", "skipped"] = STATE
