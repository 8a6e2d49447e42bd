"""How a run ended, from what its handler did. The same in this process, in another one and in an event loop."""

import asyncio
import inspect
import logging
import traceback
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from processors_v2._calls import arguments, storable
from processors_v2._errors import PermanentError
from processors_v2._worker.context import RunContext

_logger = logging.getLogger("processors_v2")

Handler = Callable[[RunContext], Any]


@dataclass(slots=True)
class Ending:
    """The end of a run, plain values only, so that it can be pickled.

    Attributes:
        outcome: completed, failed or skipped.
        metadata: To be merged into what is stored.
        error: Of a failure, for people.
        retry: Whether a failure is to be tried again while attempts are left.
        reason: Of a skip.
        progress: Percent that was reported last, where it was not written yet; None where it does not matter.
        trace: Traceback of a failure, for the log.
    """

    outcome: str
    metadata: dict[str, Any] | None = None
    error: str | None = None
    retry: bool = True
    reason: str | None = None
    progress: float | None = None
    trace: str | None = None

    def before(self) -> tuple[float | None, dict[str, Any]] | None:
        """Return, once, what the outcome itself does not carry and has to be reported before it, if there is such."""
        progress, metadata = self.progress, {}
        self.progress = None
        if self.outcome == "skipped" and self.metadata:
            metadata, self.metadata = self.metadata, None
        return (progress, metadata) if metadata or progress is not None else None

    def request(self, run: RunContext) -> dict[str, Any]:
        """Return the outcome as finish_stages wants it."""
        request: dict[str, Any] = {
            "document_id": run.document_id,
            "stage_name": run.stage_name,
            "claim_id": run._claim_text,
            "outcome": self.outcome,
        }
        if self.metadata:
            request["metadata"] = self.metadata
        if self.outcome == "failed":
            request["error"], request["retry"] = self.error, self.retry
        elif self.outcome == "skipped":
            request["reason"] = self.reason
        return request


def of_return(run: RunContext, returned: object) -> Ending:
    """Return the ending of a run whose handler came to its end.

    Raises:
        InvalidArgument: The metadata cannot be stored.
    """
    if isinstance(returned, Mapping):
        run.metadata.update(returned)
    elif returned is not None:
        _logger.warning(
            "the handler of stage %s returned a %s, which is not stored: return a mapping or nothing",
            run.stage_name,
            type(returned).__name__,
        )
    metadata = storable.metadata(run.metadata) if run.metadata else None
    if run._reason is not None:
        return Ending("skipped", metadata, reason=run._reason)
    return Ending("completed", metadata)


def of_error(run: RunContext, error: BaseException) -> Ending:
    """Return the ending of a run whose handler raised."""
    try:
        metadata = storable.metadata(run.metadata)
    except ValueError:
        # What cannot be stored is often the error itself, and must not hide it.
        metadata = None
    if run._reason is not None:
        return Ending("skipped", metadata, reason=run._reason)
    return Ending(
        "failed",
        metadata,
        error=storable.text(arguments.error_text(error)),
        retry=not isinstance(error, PermanentError),
        progress=run._progress,
        trace="".join(traceback.format_exception(error)),
    )


def perform(handler: Handler, run: RunContext, wait_for: Callable[[Coroutine[Any, Any, Any]], Any]) -> Ending:
    """Run a handler to its end.

    Args:
        handler: What to call with the run.
        run: The run.
        wait_for: Runs a coroutine to its end, where the handler returned something to await.
    """
    try:
        returned = handler(run)
        if returned is not None and inspect.isawaitable(returned):
            returned = wait_for(_awaited(returned))
        return of_return(run, returned)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it ends this run and not its thread
        return of_error(run, error)


async def perform_async(handler: Handler, run: RunContext) -> Ending:
    """Run an asynchronous handler to its end."""
    try:
        return of_return(run, await handler(run))
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - as above
        return of_error(run, error)


def is_async(handler: Handler) -> bool:
    """Whether calling the handler gives a coroutine."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004 - of the object's class


async def _awaited(awaitable: Any) -> Any:
    return await awaitable
