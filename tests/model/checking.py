"""What stands in the database, held against the model after every step."""

import json
from typing import Any
from uuid import UUID

from database import Database
from model import Document, Json, Place, Run, Stage, meaning
from operators import Operated
from truth import wrong_statistics

KEYS = {"status", "started_at", "completed_at", "duration_seconds", "progress", "error", "metadata"}
LONGEST_WAIT = 3600

# One statement, so that it is one snapshot, and cheap enough to be asked after each of many thousand steps.
STATE = """
select (extract(epoch from clock_timestamp()) * 1000000)::bigint,
    (select coalesce(jsonb_object_agg(d.id, jsonb_build_array(
        d.stage_status, d.processing_status, v.document_status, v.current_stage, v.progress_percentage)), '{}')
     from krai_core.documents d join krai_core.vw_documents_by_stage v on v.id = d.id)::text,
    (select coalesce(jsonb_agg(jsonb_build_array(
        r.document_id, r.stage_name, r.id, r.status, r.attempt, r.claim_id, r.closed_by_holder,
        r.lease_expires_at <= clock_timestamp(), r.priority, r.available_at <= clock_timestamp(),
        (extract(epoch from r.available_at) * 1000000)::bigint, (extract(epoch from r.retry_at) * 1000000)::bigint,
        r.is_current)
        order by r.id), '[]') from krai_core.stage_runs r)::text,
    (select coalesce(jsonb_agg(jsonb_build_array(t.document_id, t.stage_name)), '[]')
     from krai_private.startable_stages t)::text,
    (select coalesce(jsonb_object_agg(s.stage_name, jsonb_build_array(
        s.pending_count, s.processing_count, s.completed_count, s.failed_count, s.skipped_count)), '{}')
     from krai_core.vw_stage_statistics s)::text
"""
Row = tuple[Any, ...]


class Checker:
    """Compares what STATE gives with a model, and takes over into it what only the database knows."""

    def __init__(self, model: Operated) -> None:
        self._model = model
        self.columns: dict[UUID, Json] = {}
        self._clock = 0
        self._now = 0
        self._statuses: dict[UUID, list[str]] = {}
        self._pipeline: list[str] = []

    def compare(self, row: Row) -> None:
        """Raise AssertionError where the two differ."""
        self._clock, self._now = self._now, row[0]
        documents = {UUID(document): value for document, value in json.loads(row[1]).items()}
        assert documents.keys() == self._model.documents.keys()
        for document, stored in documents.items():
            self._compare_document(document, *stored)
        self.columns = {document: stored[0] for document, stored in documents.items()}
        self._compare_runs(json.loads(row[2]))
        self._compare_ready_stages(json.loads(row[3]))
        self._compare_counts(json.loads(row[4]))
        self._pipeline = self._model.names()

    def _compare_document(
        self, document: UUID, column: Json, legacy: str, status: str, current: str, percent: float
    ) -> None:
        model = self._model
        for name in model.names(all_of_them=True):
            value = column.get(name)
            expected = model.at(document, name).column
            assert value is None or value.keys() == KEYS, f"{document} {name}: {value}"
            assert meaning(value) == expected, f"{document} {name}: is {value}, should be {expected}"
        assert (status, current) == (model.overall(document), model.current_stage(document)), document
        assert percent == model.percent(document), document
        statuses = model.statuses(document)
        if self._pipeline == model.names() and self._statuses.get(document, statuses) != statuses:
            assert legacy == status, f"{document}: processing_status is {legacy}, the stages are {status}"
        self._statuses[document] = statuses

    def _compare_runs(self, rows: list[Row]) -> None:
        found: dict[tuple[UUID, str], list[Row]] = {}
        for row in rows:
            found.setdefault((UUID(row[0]), row[1]), []).append(row[2:])
        cells = {(document, name): stage for document, name, stage in self._model.cells()}
        assert found.keys() <= cells.keys(), "runs of a document or a stage that is not there"
        for cell, stage in cells.items():
            where, of_stage = f"{cell[0]} {cell[1]} ({stage.status})", found.get(cell, [])
            ready = [row for row in of_stage if row[1] == "ready"]
            closed = [row for row in of_stage if row[1] != "ready"]
            expected = [
                (run.status, run.attempt, run.claim and str(run.claim), run.by_holder, stage.is_current(run))
                for run in stage.runs
            ]
            assert [(*row[1:5], row[10]) for row in closed] == expected, (
                f"{where}: runs are {closed}, should be {expected}"
            )
            for run, row in zip(stage.runs, closed, strict=True):
                self._take_over(where, run, row)
            self._compare_place(cell, where, stage, ready)

    def _take_over(self, where: str, run: Run, row: Row) -> None:
        run.id, lease_is_over, available_at, retry_at = row[0], row[5], row[8], row[9]
        if run.status == "running":
            assert lease_is_over == run.lease_over, f"{where}: lease over is {lease_is_over}"
        assert run.available_at in {None, available_at}, f"{where}: the place changed"
        run.available_at = available_at
        assert (retry_at is not None) == run.retries, (
            f"{where}: retry_at is {retry_at} and should be there: {run.retries}"
        )
        if run.retries and run.retry_at is None and run.backs_off:
            settings = next(one for name, one in self._model.pipeline.items() if where.split()[1] == name)
            wait = 1_000_000 * min(settings.backoff * 2 ** (run.attempt - 1), LONGEST_WAIT)
            assert self._clock + wait / 2 <= retry_at <= self._now + wait, f"{where}: tried again at {retry_at}"
        assert run.retry_at in {None, retry_at}, f"{where}: the time of the retry changed"
        run.retry_at = retry_at

    def _compare_place(self, cell: tuple[UUID, str], where: str, stage: Stage, ready: list[Row]) -> None:
        document = self._model.documents[cell[0]]
        should_be = self._model.is_ready(*cell)
        assert document.is_behind or bool(ready) == should_be, (
            f"{where}: ready run is {ready}, should be there: {should_be}"
        )
        before, stage.place = stage.place, None
        if not ready:
            return
        # Also where the queue is behind the pipeline, what is not to be run is out of it.
        assert stage.status == "pending" or (stage.status == "failed" and stage.retries), f"{where}: ready run {ready}"
        ((run_id, _, attempt, claim, _, _, priority, is_due, available_at, *_),) = ready
        stage.place = Place(-priority, available_at, run_id)
        expected = (stage.next_attempt, None, document.priority, not stage.backs_off)
        assert (attempt, claim, priority, is_due) == expected, f"{where}: ready run is {ready}, should be {expected}"
        last = stage.runs[-1] if stage.runs else Run("none")
        if before and not document.is_behind:
            kept = (before.available_at, before.id)
            assert (available_at, run_id) == kept, f"{where}: lost its place {kept}: {ready}"
        elif stage.retries:
            assert available_at == last.retry_at, f"{where}: {ready} is not due at {last.retry_at}"
        elif last.status == "released" and last.available_at:
            assert available_at == last.available_at, f"{where}: given back, did not keep its place: {ready}"
        elif not document.is_behind:
            assert available_at >= self._clock, f"{where}: stands before what came earlier: {ready}"

    def _compare_ready_stages(self, rows: list[tuple[str, str]]) -> None:
        found = {(UUID(document), name) for document, name in rows}
        model = self._model
        expected = {(document, name) for document, name, _ in model.cells() if model.can_start_stage(document, name)}
        assert found == expected, f"_ready_stages differs in {found ^ expected}"

    def _compare_counts(self, found: dict[str, list[int]]) -> None:
        statuses = ("pending", "processing", "completed", "failed", "skipped")
        expected = {
            name: [
                sum(self._model.at(one, name).status == status for one in self._model.documents) for status in statuses
            ]
            for name in self._model.names()
        }
        assert found == expected, f"vw_stage_statistics is {found}, should be {expected}"
        assert all(sum(counts) == len(self._model.documents) for counts in found.values())


def behind(documents: dict[UUID, Document]) -> bool:
    """Whether the queue has still to come to some document."""
    return any(document.is_behind for document in documents.values())


def prove_statistics(database: Database) -> None:
    """Counts and durations are what the documents say, also in the eyes of rebuild_statistics()."""
    assert wrong_statistics(database) == []
    assert database.rows("select krai_core.rebuild_statistics()") == [({"mended": 0},)]
