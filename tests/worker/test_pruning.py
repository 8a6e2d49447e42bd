"""A worker that deletes old runs, beside its work."""

import datetime as dt
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from processors_v2.errors import InvalidArgument
from processors_v2.stage_tracker import StageTracker
from processors_v2.worker import StageWorker

Documents = Callable[..., list[str]]


def superseded(tracker: StageTracker, documents: Documents, count: int) -> None:
    """Make documents whose upload was completed twice."""
    for document in documents(count):
        for _ in range(2):
            tracker.start_stage(document, "upload")
            tracker.complete_stage(document, "upload")


def closed(db: Any) -> int:
    """How many closed runs there are."""
    found: int = db.one("select count(*) from krai_core.stage_runs where finished_at is not null")
    return found


def test_old_runs_are_deleted(tracker: StageTracker, documents: Documents, db: Any, run_beside: Any, soon: Any) -> None:
    """Also while the worker has nothing to do; what stages stand on stays."""
    superseded(tracker, documents, 3)
    assert closed(db) == 6
    with run_beside(
        StageWorker(tracker, {"storage": lambda _: None}, reap_seconds=0.1, prune_older_than=dt.timedelta(0))
    ):
        soon(lambda: closed(db) == 3)


def test_nothing_is_deleted_unless_asked_for(
    through: StageTracker, documents: Documents, proxy: Any, run_beside: Any, soon: Any
) -> None:
    """By default a worker does not even ask."""
    documents()
    with run_beside(StageWorker(through, {"storage": lambda _: None}, reap_seconds=0.05)):
        soon(lambda: proxy.requests.count("reap") >= 3)
    assert "prune_runs" not in proxy.requests


def test_more_is_deleted_at_once(
    through: StageTracker, documents: Documents, proxy: Any, db: Any, run_beside: Any, soon: Any, monkeypatch: Any
) -> None:
    """What one call leaves the next ones delete without a pause, each a bounded number, and failed runs stay."""
    monkeypatch.setattr("processors_v2._worker.pruner._LIMIT", 2)
    pauses = iter([0.0])
    chance = SimpleNamespace(uniform=lambda *_: next(pauses, 3600.0))
    superseded(through, documents, 5)
    failed = db.document()
    through.fail_stage(failed, "upload", "R2 is away")
    through.retry_stage(failed, "upload")
    through.complete_stage(failed, "upload")
    before = closed(db)
    proxy.reset()
    monkeypatch.setattr("processors_v2._worker.pruner.random", chance)
    with run_beside(StageWorker(through, {"storage": lambda _: None}, prune_older_than=dt.timedelta(0))):
        soon(lambda: closed(db) == before - 5)
        soon(lambda: proxy.requests.count("prune_runs") == 3)


def test_claims_do_not_wait_for_it(tracker: StageTracker, documents: Documents, monkeypatch: Any) -> None:
    """Documents are worked on while a call that deletes takes its time."""
    begun, go_on, over, send = threading.Event(), threading.Event(), threading.Event(), tracker._transport.send
    chance = SimpleNamespace(uniform=lambda *_: 0.0)
    monkeypatch.setattr("processors_v2._worker.pruner.random", chance)

    def slow(call: Any, **options: Any) -> Any:
        if call.path == "rpc/prune_runs":
            begun.set()
            go_on.wait(60)
            over.set()
        elif call.path == "rpc/claim_stages":
            assert begun.wait(20)
        return send(call, **options)

    monkeypatch.setattr(tracker._transport, "send", slow)
    documents(5)
    worker = StageWorker(tracker, {"upload": lambda _: None}, prune_older_than=dt.timedelta(days=1))
    try:
        worker.run(until_empty=True)
        assert worker.counts["completed"] == 5
        assert not over.is_set()
    finally:
        go_on.set()


def test_a_call_that_fails_is_tried_again(
    through: StageTracker, documents: Documents, proxy: Any, db: Any, run_beside: Any, soon: Any
) -> None:
    """A database that is away for a moment costs nothing but that moment."""
    superseded(through, documents, 2)
    proxy.only, proxy.faults = "prune_runs", ["html", "cut"]
    with run_beside(
        StageWorker(through, {"storage": lambda _: None}, reap_seconds=0.1, prune_older_than=dt.timedelta(0))
    ):
        soon(lambda: closed(db) == 2)
    assert proxy.faults == []


def test_what_the_database_refuses_ends_the_worker(tracker: StageTracker, documents: Documents) -> None:
    """An age below nothing is raised by run()."""
    documents()
    worker = StageWorker(
        tracker, {"storage": lambda _: None}, reap_seconds=0.05, prune_older_than=dt.timedelta(days=-1)
    )
    with pytest.raises(InvalidArgument, match="is no age"):
        worker.run()
