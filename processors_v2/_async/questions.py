"""Where documents stand, what is at work, what is to be expected."""

import datetime as dt
import uuid
from collections.abc import AsyncIterator
from enum import Enum
from typing import Any, ClassVar, cast

from processors_v2 import _display
from processors_v2._async import pages
from processors_v2._async.transport import AsyncTransport
from processors_v2._calls import arguments, questions
from processors_v2._shapes.document import DocumentStatus, StageState, StageStatus
from processors_v2._shapes.questions import Failures, ListedDocument, StageExplanation, Timeline
from processors_v2._shapes.questions_estimates import DocumentEta, Forecast
from processors_v2._shapes.questions_statistics import StageCounts, StageFlow
from processors_v2._shapes.questions_work import RunningStage, StuckStages, WorkerLoad


class AsyncQuestions:
    """Methods of AsyncStageTracker."""

    STAGES: ClassVar[list[str]]

    _transport: AsyncTransport

    async def get_progress(self, document_id: str | uuid.UUID) -> float:
        """Return the finished stages in percent of the enabled ones: 37.5 for 3 of 8."""
        return await self._transport.send(questions.get_document_progress(arguments.document_id(document_id)))

    async def get_current_stage(self, document_id: str | uuid.UUID) -> str:
        """Return the first stage in pipeline order that is not finished, or ``completed``."""
        return await self._transport.send(questions.get_current_stage(arguments.document_id(document_id)))

    async def can_start_stage(self, document_id: str | uuid.UUID, stage_name: str | Enum) -> bool:
        """Return whether the stage is pending or failed and everything that it requires is finished."""
        call = questions.can_start_stage(arguments.document_id(document_id), arguments.stage_name(stage_name))
        return await self._transport.send(call)

    async def get_stage_status(self, document_id: str | uuid.UUID) -> dict[str, StageStatus]:
        """Return every stage of a document by name: status, times, progress (percent), error, metadata."""
        call = questions.get_stage_status(arguments.document_id(document_id), self.STAGES)
        return _display.as_table(_display.StageTable, await self._transport.send(call))

    async def get_document_status(self, document_id: str | uuid.UUID) -> DocumentStatus:
        """Return everything about one document: status, current stage, progress, times, error, stage_status."""
        call = questions.get_document_status(arguments.document_id(document_id), self.STAGES)
        return _display.as_table(_display.DocumentTable, await self._transport.send(call))

    async def get_weighted_progress(self, document_id: str | uuid.UUID) -> float:
        """Return how far a document is in percent: stages by their weight, those that run or failed in part."""
        return await self._transport.send(questions.get_weighted_progress(arguments.document_id(document_id)))

    async def get_timeline(self, document_id: str | uuid.UUID) -> Timeline:
        """Return all runs of a document in the order in which they were opened."""
        call = questions.get_document_timeline(arguments.document_id(document_id))
        return cast("Timeline", _display.as_table(_display.TimelineTable, await self._transport.send(call)))

    async def explain_stage(self, document_id: str | uuid.UUID, stage_name: str | Enum) -> StageExplanation:
        """Return why a stage of a document stands where it stands, as a sentence and as data."""
        call = questions.explain_stage(arguments.document_id(document_id), arguments.stage_name(stage_name))
        return cast("StageExplanation", await self._transport.send(call))

    async def list_documents(
        self,
        stage_name: str | Enum | None = None,
        status: StageState | Enum | None = None,
        *,
        limit: int | None = None,
        error: str | None = None,
        fingerprint: str | None = None,
    ) -> AsyncIterator[ListedDocument]:
        """Go through documents by stage and status, the newest first: by when the stage came into that status.

        Args:
            stage_name: A stage; None: any that is failed or processing, or, without a status, all documents.
            status: None: any.
            limit: Most documents to give; None: all.
            error: Part of the error, letter case aside; % and _ as in LIKE. Then status is failed.
            fingerprint: Of a group of get_failures. Then status is failed.

        Yields:
            One document after the other. One that changes meanwhile may be among them twice or not at all.

        Raises:
            InvalidArgument: The status needs a stage, or is none.
        """
        stage = None if stage_name is None else arguments.stage_name(stage_name)
        found = pages.documents(
            self._transport,
            lambda size, after: questions.list_documents(stage, status, size, after, error, fingerprint),
            limit,
        )
        async for document in found:
            yield cast("ListedDocument", document)

    async def get_documents_ready_for(
        self, stage_name: str | Enum, *, limit: int | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Go through the documents that are ready for a stage, in the order of the queue; nothing is claimed by it.

        Args:
            stage_name: A stage; a paused or disabled one has none.
            limit: Most documents to give; None: all.

        Yields:
            Whole rows of krai_core.documents. What becomes ready or is claimed meanwhile may be among them or not.
        """
        stage = arguments.stage_name(stage_name)
        found = pages.documents(
            self._transport,
            lambda size, after: questions.get_documents_ready_for(stage, size, after),
            limit,
        )
        async for document in found:
            yield document

    async def get_failures(
        self, stage_name: str | Enum | None = None, since: dt.datetime | None = None, limit: int = 50
    ) -> Failures:
        """Return the stages that are failed now by the kind of their error, the most frequent kind first.

        Args:
            stage_name: Of this stage only; None: of all.
            since: Only what failed since then; with a time zone.
            limit: Most kinds, 1 to 1000.

        Returns:
            The kinds, and whether they are of all failures: the newest 10,000 are looked at.
        """
        stage = None if stage_name is None else arguments.stage_name(stage_name)
        found = await self._transport.send(questions.get_failures(stage, since, limit))
        return cast("Failures", _display.as_table(_display.FailureTable, found))

    async def get_statistics(self) -> dict[str, StageCounts]:
        """Return counts by state, durations and waits (seconds), throughput and so on of every stage, in order."""
        found = await self._transport.send(questions.get_stage_statistics(self.STAGES))
        return _display.as_table(_display.StatisticsTable, cast("dict[str, StageCounts]", found["stages"]))

    async def get_stage_flow(
        self, stage_name: str | Enum | None = None, since: dt.datetime | None = None
    ) -> list[StageFlow]:
        """Return what came, began and ended hour by hour, the oldest hour first.

        Args:
            stage_name: Of this stage only, which has no rows where it does not exist; None: of all, and with the empty
                name how many documents arrived.
            since: Hours that begin then or later, with a time zone; None: all that ever were.

        Returns:
            A row for each stage and hour in which anything happened.
        """
        stage, begin = None if stage_name is None else arguments.stage_name(stage_name), arguments.time_of(since)
        found = await pages.rows(self._transport, lambda after: questions.get_stage_flow(stage, begin, after))
        return cast("list[StageFlow]", _display.as_table(_display.FlowTable, found))

    async def get_stuck_stages(self, limit: int = 100, *, starved_after_seconds: float = 60) -> StuckStages:
        """Return what does not go on: stalled (lease over), slow (alive, but long at work), starved (nobody comes).

        Args:
            limit: Most stalled and most slow ones, 1 to 1000.
            starved_after_seconds: For how long a run must have been ready, while nobody works on its stage; 0 or more.

        Returns:
            The three apart.
        """
        call = questions.get_stuck_stages(limit, starved_after_seconds)
        return cast("StuckStages", await self._transport.send(call))

    async def get_running_stages(self) -> list[RunningStage]:
        """Return every stage that is being worked on, with what is left of it, in the order in which they began."""
        found = await pages.rows(self._transport, questions.get_running_stages)
        return cast("list[RunningStage]", _display.as_table(_display.RunningTable, found))

    async def get_workers(self) -> list[WorkerLoad]:
        """Return who works on what, by name; those without a name are one, the last."""
        return cast("list[WorkerLoad]", await self._transport.send(questions.get_workers()))

    async def get_eta(self, document_id: str | uuid.UUID) -> DocumentEta:
        """Return when a document will be done, as a range; what stands in its way is named."""
        call = questions.get_document_eta(arguments.document_id(document_id), self.STAGES)
        return cast("DocumentEta", await self._transport.send(call))

    async def get_forecast(self, hours: int = 3) -> Forecast:
        """Return per stage what comes, what goes, how busy its workers are, and when its queue will be empty.

        Args:
            hours: How many hours are looked back at, 1 to 720, this one included.

        Returns:
            The stages in pipeline order.
        """
        found = await self._transport.send(questions.get_forecast(hours, self.STAGES))
        return cast("Forecast", _display.as_table(_display.ForecastTable, found))
