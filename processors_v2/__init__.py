"""Per-stage status tracking of documents on Supabase.

Import what you need from the modules: ``processors_v2.stage_tracker`` (StageTracker, StageContext),
``processors_v2.errors``, ``processors_v2.local``.
"""

import pkgutil

# Projects have a folder ``processors_v2`` of their own: its modules and these are found side by side.
__path__ = pkgutil.extend_path(__path__, __name__)
