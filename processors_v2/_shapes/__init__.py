"""Shapes of what comes back, and of what finish_stages takes, by room. People import ``processors_v2.models``.

Where people write ``doc["..."]`` a plain dict comes back, described here as a TypedDict; the rest are frozen models.
Times are ISO 8601, UTC, of the database clock. The source of truth of every field is the comment on the SQL column or
function.
"""
