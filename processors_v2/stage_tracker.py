"""The classes that processors import: StageTracker, StageContext and ClaimedRun, and the same for asyncio.

The asynchronous ones send heartbeats and progress from a thread, over connections of its own, so that a blocked event
loop costs no lease. Where the AsyncClient has an HTTP client that somebody chose (``httpx_client=``, for a proxy or for
certificates), give that one an attribute ``synchronous``: a httpx.Client made the same way, for the thread.
"""

from processors_v2._async.claimed import AsyncClaimedRun
from processors_v2._async.context import AsyncStageContext
from processors_v2._async.tracker import AsyncStageTracker
from processors_v2._sync.claimed import ClaimedRun
from processors_v2._sync.context import StageContext
from processors_v2._sync.tracker import StageTracker

__all__ = ["AsyncClaimedRun", "AsyncStageContext", "AsyncStageTracker", "ClaimedRun", "StageContext", "StageTracker"]

for _public in (AsyncClaimedRun, AsyncStageContext, AsyncStageTracker, ClaimedRun, StageContext, StageTracker):
    # Tracebacks, help() and logs name the module that people import from.
    _public.__module__ = __name__
