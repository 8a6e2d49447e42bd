"""The calls of those who watch and plan."""

import datetime as dt
import uuid
from collections.abc import AsyncIterator
from enum import Enum
from typing import ClassVar, cast

from processors_v2 import _calls, _display, _monitoring_calls, _times
from processors_v2._async import pages
from processors_v2._async.transports import AsyncTransport
from processors_v2._models import StageCounts, StageState
from processors_v2._monitoring_models import (
    DocumentEta,
    Failures,
    Forecast,
    ListedDocument,
    RunningStage,
    StageFlow,
    StuckStages,
    Timeline,
    WorkerLoad,
)


class AsyncMonitoring:
    """Methods of AsyncStageTracker."""

    STAGES: ClassVar[list[str]]

    _transport: AsyncTransport

    async def get_statistics(self) -> dict[str, StageCounts]:
        """Return counts by state, durations and waits (seconds), throughput and so on of every stage, in order."""
        call = _monitoring_calls.get_statistics(self.STAGES)
        return _display.shown(_display.StatisticsTable, await self._transport.send(call))

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
        stage = None if stage_name is None else _calls.stage_name(stage_name)
        found = pages.documents(
            self._transport,
            lambda size, after: _monitoring_calls.list_documents(stage, status, size, after, error, fingerprint),
            limit,
        )
        async for document in found:
            yield cast("ListedDocument", document)

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
        stage = None if stage_name is None else _calls.stage_name(stage_name)
        found = await self._transport.send(_monitoring_calls.get_failures(stage, since, limit))
        return cast("Failures", _display.shown(_display.FailureTable, found))

    async def get_stuck_stages(self, limit: int = 100, *, starved_after_seconds: float = 60) -> StuckStages:
        """Return what does not go on: stalled (lease over), slow (alive, but long at work), starved (nobody comes).

        Args:
            limit: Most stalled and most slow ones, 1 to 1000.
            starved_after_seconds: For how long a run must have been ready, while nobody works on its stage; 0 or more.

        Returns:
            The three apart.
        """
        call = _monitoring_calls.get_stuck_stages(limit, starved_after_seconds)
        return cast("StuckStages", await self._transport.send(call))

    async def get_workers(self) -> list[WorkerLoad]:
        """Return who works on what, by name; those without a name are one, the last."""
        return cast("list[WorkerLoad]", await self._transport.send(_monitoring_calls.get_workers()))

    async def get_running_stages(self) -> list[RunningStage]:
        """Return every stage that is being worked on, with what is left of it, in the order in which they began."""
        found = await pages.rows(self._transport, _monitoring_calls.get_running_stages)
        return cast("list[RunningStage]", _display.shown(_display.RunningTable, found))

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
        stage, begin = None if stage_name is None else _calls.stage_name(stage_name), _times.time_of(since)
        found = await pages.rows(self._transport, lambda after: _monitoring_calls.get_stage_flow(stage, begin, after))
        return cast("list[StageFlow]", _display.shown(_display.FlowTable, found))

    async def get_timeline(self, document_id: str | uuid.UUID) -> Timeline:
        """Return all runs of a document in the order in which they were opened."""
        call = _monitoring_calls.get_document_timeline(_calls.document_id(document_id))
        return cast("Timeline", _display.shown(_display.TimelineTable, await self._transport.send(call)))

    async def get_weighted_progress(self, document_id: str | uuid.UUID) -> float:
        """Return how far a document is in percent: stages by their weight, those that run or failed in part."""
        return await self._transport.send(_monitoring_calls.get_weighted_progress(_calls.document_id(document_id)))

    async def get_eta(self, document_id: str | uuid.UUID) -> DocumentEta:
        """Return when a document will be done, as a range; what stands in its way is named."""
        call = _monitoring_calls.get_document_eta(_calls.document_id(document_id), self.STAGES)
        return cast("DocumentEta", await self._transport.send(call))

    async def get_forecast(self, hours: int = 3) -> Forecast:
        """Return per stage what comes, what goes, how busy its workers are, and when its queue will be empty.

        Args:
            hours: How many hours are looked back at, 1 to 720, this one included.

        Returns:
            The stages in pipeline order.
        """
        found = await self._transport.send(_monitoring_calls.get_forecast(hours, self.STAGES))
        return cast("Forecast", _display.shown(_display.ForecastTable, found))
