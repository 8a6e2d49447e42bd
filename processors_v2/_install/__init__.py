"""The stage tracker's SQL in a Supabase project of your own: what ``stage-tracker init`` and ``sql`` do."""
