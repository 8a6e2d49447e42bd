"""The one background thread of a tracker, as contexts use it."""

import gc
import threading
from collections.abc import Callable
from typing import Any

from processors_v2._local.process import wait_until
from processors_v2.stage_tracker import StageContext, StageTracker


def test_contexts_of_a_tracker_share_the_thread(tracker: StageTracker, db: Any) -> None:
    """Ten contexts at once have one thread, and all of their leases are renewed."""
    contexts = [StageContext(tracker, db.document(), "upload", lease_seconds=1) for _ in range(10)]
    for ctx in contexts:
        ctx.__enter__()
    threads = [thread for thread in threading.enumerate() if thread is tracker._heart._thread]
    assert len(threads) == 1
    began = [db.run(ctx.document_id, "upload", "lease_expires_at") for ctx in contexts]

    def renewed(number: int) -> Callable[[], bool]:
        expires = "lease_expires_at"
        return lambda: (db.run(contexts[number].document_id, "upload", expires) - began[number]).total_seconds() > 1.5

    assert all(wait_until(renewed(number), 20) for number in range(10))
    for ctx in contexts:
        ctx.update_progress(50, {"name": ctx.document_id})
    assert all(
        wait_until(lambda ctx=ctx: db.stage(ctx.document_id, "upload")["progress"] == 50, 20) for ctx in contexts
    )
    for ctx in contexts:
        assert db.stage(ctx.document_id, "upload")["metadata"] == {"name": ctx.document_id}
        ctx.__exit__(None, None, None)
        assert db.stage(ctx.document_id, "upload")["status"] == "completed"


def test_a_context_that_nobody_ends_is_not_kept_alive(tracker: StageTracker, document: str) -> None:
    """A context that was entered and dropped beats no more once it is collected, so that its lease ends."""
    ctx: StageContext | None = StageContext(tracker, document, "upload")
    assert ctx is not None
    ctx.__enter__()
    assert any(pulse.run[0] == document for pulse in tracker._heart._pulses.values())
    ctx = None
    gc.collect()
    assert not any(pulse.run[0] == document for pulse in tracker._heart._pulses.copy().values())
