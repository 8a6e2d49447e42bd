"""What schedulers do, and what an installation is asked."""

import datetime as dt
from typing import cast

from processors_v2._async.transport import AsyncTransport
from processors_v2._calls import upkeep
from processors_v2._shapes.upkeep import Maintenance, Pruned, Reaped, Rebuilt, RebuiltStatistics


class AsyncUpkeep:
    """Methods of AsyncStageTracker."""

    _transport: AsyncTransport

    async def reap(self, limit: int = 1000) -> Reaped:
        """Bring back what nobody holds any more; workers do it by themselves, so this is for schedulers.

        Args:
            limit: Most runs, and documents to look at, at once.

        Returns:
            How much there was.
        """
        return cast("Reaped", await self._transport.send(upkeep.reap(limit)))

    async def fill_ready_runs(self, limit: int = 1000) -> int:
        """Let the queue follow a changed pipeline; returns how many documents were looked at, 0 when none is left."""
        return await self._transport.send(upkeep.fill_ready_runs(limit))

    async def rebuild_ready_runs(self) -> Rebuilt:
        """Compare the whole queue with the truth and mend it; reads every document. Returns how much was wrong."""
        return cast("Rebuilt", await self._transport.send(upkeep.rebuild_ready_runs()))

    async def rebuild_statistics(self) -> RebuiltStatistics:
        """Compare the figures with all documents and mend them; finds nothing unless triggers were switched off.

        Returns:
            How many sums were wrong. Every document is read: give the tracker a longer timeout where there are many.
        """
        return cast("RebuiltStatistics", await self._transport.send(upkeep.rebuild_statistics()))

    async def prune_runs(self, older_than: dt.timedelta, *, keep_failures: bool = True, limit: int = 10_000) -> Pruned:
        """Delete runs that ended longer ago than that and that no stage stands on any more; statistics keep them.

        Args:
            older_than: 0 or more.
            keep_failures: Leave failed and lost runs alone.
            limit: Most runs at once, 1 to 100000; while ``more`` is True, call again.

        Returns:
            How many there were, and whether there are more.
        """
        call = upkeep.prune_runs(older_than, limit, keep_failures=keep_failures)
        return cast("Pruned", await self._transport.send(call))

    async def schedule_maintenance(
        self, prune_older_than: dt.timedelta | None = None, *, keep_failures: bool = True
    ) -> Maintenance:
        """Have pg_cron call reap and, where an age is given, prune_runs; nothing happens where there is no pg_cron.

        Args:
            prune_older_than: As for prune_runs; None: nothing is pruned by it, any more either.
            keep_failures: As for prune_runs.

        Returns:
            Whether it is scheduled, and what.
        """
        call = upkeep.schedule_maintenance(prune_older_than, keep_failures=keep_failures)
        return cast("Maintenance", await self._transport.send(call))

    async def schema_version(self) -> str:
        """Return the version of the SQL in the database, such as ``0.1``."""
        return await self._transport.send(upkeep.schema_version())
