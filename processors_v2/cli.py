"""The command ``stage-tracker``. Needs the extra ``cli``: ``pip install 'stage-tracker[cli]'``."""

from processors_v2._cli.entry import main

__all__ = ["main"]
