"""Per-stage status tracking of documents on Supabase.

Import what you need from the modules: ``processors_v2.stage_tracker`` (StageTracker, StageContext),
``processors_v2.errors``, ``processors_v2.local``.
"""

import pathlib
import pkgutil

# Projects have a folder ``processors_v2`` of their own: its modules and these are found side by side, theirs first, as
# they are when their folder has an __init__ with the usual extend_path line. Modules of ours import each other only by
# names with a leading underscore, so that a models.py of theirs is not taken for ours. Another copy of this package,
# installed beside a clone of it, is not mixed with this one.
__path__ = [
    folder for folder in pkgutil.extend_path(__path__, __name__) if not pathlib.Path(folder, "_errors.py").exists()
] + __path__
