"""All migrations as one text for the SQL editor of the dashboard.

An editor sends a text as one message, which Postgres runs as one transaction unless the text itself begins and ends
some. What commits within a statement, or must stand outside of transactions, is refused there; so two files, the repair
of what is there and the index, are put in another form.
"""

import re

from processors_v2._local.project import newest_migrations
from processors_v2._transport.version import SCHEMA_VERSION

_HEADER = """\
-- Per-stage document tracking, version {version}: all migrations as one text, for the SQL editor of the dashboard or
-- any other program that sends a text at once. Run all of it; it may be run again at any time, also over an earlier
-- version.
--
-- Two files are other than in supabase/migrations. The documents that are there are repaired in one transaction and
-- not in batches, and the index is built while writers of documents wait, not concurrently. On a large table in use
-- take `stage-tracker init` and `supabase db push`, or psql with the files themselves.
--
-- An error leaves what was done before it, in whole files. Do what it says and run all of it again.
"""
_FOOTER = "select 'stage tracker ' || krai_core.schema_version() as installed;\n"

_COMMENT_ABOVE = re.compile(r"\A(--.*\n)+")
_COMMIT_WITHIN = re.compile(r"^ +commit;\n", re.MULTILINE)
_CONCURRENTLY = re.compile(r"\bcreate index concurrently\b")
_OWN_TRANSACTION = re.compile(r"^begin;\n(.*?)^commit;\n", re.MULTILINE | re.DOTALL)


def editor_text() -> str:
    """Return the text, which ends with a query that shows the version."""
    parts = [_HEADER.format(version=SCHEMA_VERSION)]
    for path in newest_migrations():
        text = path.read_text(encoding="utf-8")
        if _COMMIT_WITHIN.search(text) or _CONCURRENTLY.search(text):
            text = _as_one_transaction(text)
        parts.append(f"-- {path.name}\n{text}")
    return "\n".join([*parts, _FOOTER])


def _as_one_transaction(text: str) -> str:
    text = _COMMENT_ABOVE.sub("", text)
    text = _OWN_TRANSACTION.sub(r"\1", text)
    text = _COMMIT_WITHIN.sub("", text)
    text = _CONCURRENTLY.sub("create index", text)
    # As every other file, it rather fails than have writers queue behind it.
    return f"begin;\nset local lock_timeout = '900ms';\n{text}commit;\n"
