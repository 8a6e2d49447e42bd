"""The classes that processors import: StageTracker and StageContext."""

from processors_v2._sync.context import StageContext
from processors_v2._sync.tracker import StageTracker

__all__ = ["StageContext", "StageTracker"]

for _public in (StageContext, StageTracker):
    # Tracebacks, help() and logs name the module that people import from.
    _public.__module__ = __name__
