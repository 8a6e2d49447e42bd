"""A worker of the package in a folder: completes every stage until SIGTERM, and then says what it logged."""

import json
import logging
import os
import sys
from pathlib import Path

FOLDER, WAY = sys.argv[1:]
# A copy of another version that is on the path as well would be mixed with this one.
sys.path[:] = [FOLDER, *(path for path in sys.path if not Path(path, "processors_v2", "stage_tracker.py").exists())]

from processors_v2._local import clients  # noqa: E402 - whichever is there
from processors_v2.stage_tracker import StageTracker  # noqa: E402
from processors_v2.worker import StageWorker  # noqa: E402

_said: list[dict[str, str]] = []


class _Keep(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Keep what is worth a warning."""
        _said.append({"level": record.levelname, "message": record.getMessage()})


def _connected() -> StageTracker:
    if WAY == "postgres":
        return StageTracker.from_postgres(os.environ["DSN"])
    client, _ = clients.connect(os.environ["SUPABASE_URL"], os.environ["SUPABASE_KEY"])
    return StageTracker(client)


def main() -> None:
    """Work until SIGTERM."""
    logging.getLogger().addHandler(_Keep(logging.WARNING))
    handlers = dict.fromkeys(StageTracker.STAGES, lambda ctx: {"stage": ctx.stage_name})
    worker = StageWorker(_connected(), handlers, name=WAY, batch=10, idle_max=0.05)
    worker.run()
    for line in [*_said, {"level": "COUNTS", "message": json.dumps(dict(worker.counts))}]:
        print(json.dumps(line))


main()
