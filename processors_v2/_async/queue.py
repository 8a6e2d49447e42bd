"""Runs out of the queue, and many of them at once."""

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar, cast

from processors_v2._async import cancellation
from processors_v2._async.claimed import AsyncClaimedRun
from processors_v2._async.context import this_worker
from processors_v2._async.runs import AsyncRuns
from processors_v2._calls import arguments, queue
from processors_v2._calls.call import Call
from processors_v2._errors import StageTrackerError
from processors_v2._pulse import Run
from processors_v2._shapes.queue import HeartbeatAnswer, OutcomeAnswer, ReleaseAnswer, StageOutcome, StageRun

if TYPE_CHECKING:
    from processors_v2._async.tracker import AsyncStageTracker

T = TypeVar("T")

_logger = logging.getLogger("processors_v2")


class AsyncQueue(AsyncRuns):
    """Methods of AsyncStageTracker."""

    async def claim(
        self,
        stage_name: str | Enum | Sequence[str | Enum],
        limit: int = 1,
        *,
        worker: str | None = None,
        lease_seconds: float | None = None,
    ) -> list[AsyncClaimedRun]:
        """Claim runs that are ready, the most urgent first; never waits, and never gives one to two.

        Args:
            stage_name: A stage, or several in order of preference.
            limit: Most runs to get, 1 to 1000.
            worker: Name to show for who works on them; None: host name and process id.
            lease_seconds: For how long each is held without a sign of life; None: as its stage says.

        Returns:
            The runs, started already and kept alive from now on, each to be used as a ``with`` block; [] where nothing
            is ready.

        Raises:
            DatabaseUnavailable: No answer. The claim may have happened: nothing is lost by it, since its lease ends.
        """
        names = [stage_name] if isinstance(stage_name, str | Enum) else list(stage_name)
        worker = worker or this_worker()
        since = time.monotonic()
        stages = [arguments.stage_name(name) for name in names]
        claim_id = uuid.uuid4()
        call = queue.claim_stages(stages, worker, limit, lease_seconds, claim_id)
        claimed = await self._claimed(
            call, lambda answer: [(one["document_id"], one["stage_name"], claim_id) for one in answer]
        )
        tracker = cast("AsyncStageTracker", self)
        return [AsyncClaimedRun._of(tracker, one, worker, since) for one in claimed]  # noqa: SLF001 - the two are one

    async def get_next_document(self, stage_name: str | Enum, *, worker: str | None = None) -> dict[str, Any] | None:
        """Claim the next document that is ready for a stage.

        The stage is processing then, for an hour at least, renewed by progress. start_stage, a context, complete_stage
        and so on of this tracker act for that claim.

        Args:
            stage_name: A stage.
            worker: Name to show for who works on it; None: host name and process id.

        Returns:
            The whole row of krai_core.documents, or None where nothing is ready.

        Raises:
            DatabaseUnavailable: No answer. The claim may have happened: nothing is lost by it, since its lease ends.
        """
        stage, claim_id = arguments.stage_name(stage_name), uuid.uuid4()
        call = queue.get_next_document(stage, worker or this_worker(), claim_id)
        document = await self._claimed(call, lambda row: [] if row is None else [(row["id"], stage, claim_id)])
        if document is not None:
            self._claims.remember(document["id"], stage, claim_id)
        return document

    async def finish_stages(self, outcomes: Iterable[StageOutcome]) -> list[OutcomeAnswer]:
        """Report what became of many runs in one call. Safe to repeat.

        Args:
            outcomes: What became of each.

        Returns:
            An answer to each outcome, in their order; one that is refused hinders no other.

        Raises:
            InvalidArgument: An id is none; nothing was changed.
        """
        given = [queue.outcome(outcome) for outcome in outcomes]
        answers = await self._transport.send(queue.finish_stages(given))
        for outcome, answer in zip(given, answers, strict=True):
            state, document, stage = outcome["outcome"], outcome["document_id"], outcome["stage_name"]
            if not answer["ok"] or state == "progress":
                continue
            self._is_closed(document, stage, uuid.UUID(outcome["claim_id"]), state)
            if state in {"completed", "failed"}:
                await self._notify(f"stage_{state}", stage, document, state)
        return cast("list[OutcomeAnswer]", answers)

    async def heartbeat(self, runs: Iterable[StageRun]) -> HeartbeatAnswer:
        """Renew the leases of many runs; contexts and claimed runs do it by themselves. Safe to repeat."""
        call = queue.heartbeat([queue.run(run) for run in runs])
        return cast("HeartbeatAnswer", await self._transport.send(call))

    async def release_stages(self, runs: Iterable[StageRun]) -> ReleaseAnswer:
        """Give many runs back untouched: no attempt is used up, and they keep their place. Safe to repeat."""
        given = [queue.run(run) for run in runs]
        answer = await self._transport.send(queue.release_stages(given))
        for document, stage, claim_id in given:
            self._is_closed(document, stage, claim_id, "released")
        return cast("ReleaseAnswer", answer)

    async def _claimed(self, call: Call[T], runs: Callable[[T], list[Run]]) -> T:
        """Claim; give back what was claimed for a task that was cancelled meanwhile."""
        try:
            return await cancellation.shielded(self._transport.send(call))
        except BaseException as error:
            if cancellation.is_cancelled(error):
                await cancellation.shielded(self._claim_and_release(call, runs), error)
            raise

    async def _claim_and_release(self, call: Call[T], runs: Callable[[T], list[Run]]) -> bool:
        try:
            # The same claim again answers the same again.
            given = runs(await self._transport.send(call))
            if given:
                await self._transport.send(queue.release_stages(given))
        except StageTrackerError as problem:
            _logger.warning("what was claimed for a cancelled task is held until its lease ends: %s", problem)
            return False
        return True
