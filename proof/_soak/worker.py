"""One worker process of a soak: a StageWorker whose handlers fail, skip and report progress now and then.

Its orders come as a line of JSON on its standard input, and so does its end: when that is closed, it stops. Then it
says in a line of JSON what it did.
"""

import json
import logging
import random
import sys
import threading
import time
from typing import Any

from processors_v2._local import clients
from processors_v2.errors import PermanentError
from processors_v2.stage_tracker import StageTracker
from processors_v2.worker import RunContext, StageWorker

_CONCURRENCY = 2
# Nothing waits for these, so that one that failed for good holds up nothing.
_LEAVES = {"storage", "search_indexing"}
_ON_PURPOSE = "on purpose"
_SHOWN = 20


def handle(context: RunContext) -> dict[str, Any]:
    """Be the handler of every stage; what happens is drawn anew for each attempt."""
    drawn = random.Random(context.idempotency_key)
    pages = drawn.randint(2, 20)
    if drawn.random() < 0.3:
        for _ in context.track(range(pages), unit="pages"):
            time.sleep(0.005)
    else:
        time.sleep(drawn.uniform(0.005, 0.05))
    fate = drawn.random()
    if fate < 0.05 and context.attempt < 3:
        raise RuntimeError(f"{_ON_PURPOSE}: page {pages} of /inbox/{context.filename} cannot be read")
    if fate > 0.99 and context.stage_name in _LEAVES:
        raise PermanentError(f"{_ON_PURPOSE}: {context.filename} is no PDF file")
    if fate > 0.94:
        context.skip("nothing to do")
    return {"characters": drawn.randrange(100_000), "language": drawn.choice(["de", "en", "fr"])}


class _Said(logging.Handler):
    """Keeps what the worker complained about, but for the failures that are on purpose."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first lines, so that a worker with much to say does not grow by it."""
        line = self.format(record)
        if _ON_PURPOSE not in line:
            self.count += 1
            if len(self.lines) < _SHOWN:
                self.lines.append(line)


def main() -> None:
    """Work until the standard input is closed."""
    orders = json.loads(sys.stdin.readline())
    said = _Said()
    logging.getLogger("processors_v2").addHandler(said)
    if orders["lane"] == "direct":
        tracker = StageTracker.from_postgres(orders["url"])
    else:
        tracker = StageTracker(clients.connect(orders["url"], orders["key"])[0])
    worker = StageWorker(
        tracker, dict.fromkeys(StageTracker.STAGES, handle), concurrency=_CONCURRENCY, name=orders["name"], idle_max=0.5
    )
    threading.Thread(target=_stop_with_input, args=(worker,), daemon=True).start()
    worker.run()
    print(json.dumps({"counts": worker.counts, "complaints": said.count, "lines": said.lines}))


def _stop_with_input(worker: StageWorker) -> None:
    sys.stdin.read()
    worker.stop()


if __name__ == "__main__":
    main()
