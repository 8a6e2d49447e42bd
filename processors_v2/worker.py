"""Workers: StageWorker claims stages and runs their handlers, each of which gets a RunContext."""

from processors_v2._worker.context import RunContext
from processors_v2._worker.stage_worker import StageWorker

__all__ = ["RunContext", "StageWorker"]
