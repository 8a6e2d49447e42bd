"""What all ways to the database have in common: a call is sent, and sent again; the version is checked at first use."""

import asyncio
import logging
from typing import Any, TypeVar

from processors_v2._calls import upkeep
from processors_v2._calls.call import Call
from processors_v2._errors import AccessDenied, StageTrackerError
from processors_v2._transport import rest, version
from processors_v2._transport.retries import Attempts, TransientError, check_times, name_of

T = TypeVar("T")

_logger = logging.getLogger("processors_v2")


class AsyncTransport:
    """Sends calls, and sends them again.

    Args:
        source: Supabase client, or URL of Postgres.
        timeout: Seconds to wait for one answer.
        retry_for: Seconds in all for one call, repeats included.
    """

    def __init__(self, source: Any, *, timeout: float, retry_for: float) -> None:
        check_times(timeout, retry_for)
        self.source = source
        self._timeout = timeout
        self._retry_for = retry_for

    @property
    def times(self) -> dict[str, float]:
        """Arguments for another transport like this."""
        return {"timeout": self._timeout, "retry_for": self._retry_for}

    @property
    def host(self) -> str:
        """Host of the database, for messages."""
        raise NotImplementedError

    @property
    def place(self) -> str:
        """Which database it is, apart from others that this process has to do with."""
        raise NotImplementedError

    async def send(self, call: Call[T], *, retry: bool = True, within: float | None = None) -> T:
        """Send a call and return its result.

        Args:
            call: The request.
            retry: Whether a call that may be repeated is, until ``retry_for`` is over.
            within: Seconds to wait for one answer, where that is shorter than the transport's own.

        Raises:
            StageTrackerError: Whatever the database answers; DatabaseUnavailable where it does not; VersionMismatch or
                MigrationMissing at first use of one that is older or newer than this client.
        """
        if not version.is_known(self.place):
            await self._check_version(retry=retry, within=within)
        return await self._send(call, retry=retry, within=within)

    async def _check_version(self, *, retry: bool, within: float | None) -> None:
        try:
            found = await self._send(upkeep.schema_version(), retry=retry, within=within)
        except AccessDenied:
            # The call itself is denied with better words.
            return
        version.check(found, self.host, self.place)

    async def _send(self, call: Call[T], *, retry: bool, within: float | None) -> T:
        seconds = self._timeout if within is None else min(within, self._timeout)
        attempts = Attempts(call, retry=retry, timeout=seconds, retry_for=self._retry_for)
        while True:
            try:
                answer = await self._exchange(call, attempts.begin())
                break
            except TransientError as problem:
                pause = attempts.pause(problem, self.host)
                _logger.debug("%s: %s, sent again in %.2f s", name_of(call), problem, pause)
            await asyncio.sleep(pause)
        try:
            return call.parse(answer)
        except (LookupError, TypeError, ValueError) as error:
            raise StageTrackerError(
                f"{name_of(call)}: what {self.host} answered is nothing of the stage tracker's", hint=rest.CHECK_URL
            ) from error

    async def close(self) -> None:
        """Close the connections that are not in use; a later call opens others."""
        raise NotImplementedError

    async def _exchange(self, call: Call[Any], seconds: float) -> Any:
        raise NotImplementedError
