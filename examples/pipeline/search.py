"""Ask what the pipeline has found: by words and by vector."""

from __future__ import annotations

from typing import NamedTuple

import psycopg

from pipeline.embedding import as_literal, embed


class Hit(NamedTuple):
    """One chunk that answers; the higher the score, the better (not comparable between the searches)."""

    filename: str
    page: int
    score: float
    snippet: str


def full_text(db: psycopg.Connection, words: str, limit: int = 3) -> list[Hit]:
    """Search like a web search: all words, "phrases" in quotes, -without. Best first, each page once."""
    rows = db.execute(
        # The words are stemmed as English and as German, as a page may be either.
        "with query as (select websearch_to_tsquery('english', %(words)s)"
        "   || websearch_to_tsquery('german', %(words)s) as q),"
        " best as (select distinct on (c.document_id, c.page) c.*, ts_rank(c.search, q) as score"
        "   from manuals.chunks c, query where c.search @@ q"
        "   order by c.document_id, c.page, ts_rank(c.search, q) desc)"
        " select d.filename, best.page, best.score, ts_headline('english', best.body, q,"
        "   'StartSel=«, StopSel=», MaxWords=30, MinWords=15')"
        " from best join krai_core.documents d on d.id = best.document_id, query"
        " order by best.score desc, d.filename, best.page limit %(limit)s",
        {"words": words, "limit": limit},
    )
    # Postgres takes a code such as C-2557 for two words.
    return [Hit(name, page, score, snippet.replace("»«", "")) for name, page, score, snippet in rows]


def by_vector(db: psycopg.Connection, text: str, limit: int = 3) -> list[Hit]:
    """Return the chunks whose vectors point most nearly the same way; score is the cosine, 1 at best."""
    vector = as_literal(embed(text))
    if vector is None:
        return []
    rows = db.execute(
        "select d.filename, c.page, 1 - (c.embedding <=> %(vector)s::vector), c.body"
        " from manuals.chunks c join krai_core.documents d on d.id = c.document_id"
        " where c.embedding is not null order by c.embedding <=> %(vector)s::vector, c.id limit %(limit)s",
        {"vector": vector, "limit": limit},
    )
    return [Hit(*row) for row in rows]


def common_word(db: psycopg.Connection) -> str | None:
    """Return a long word that many documents share, to search for in files that nobody here has read."""
    row = db.execute(
        "select word from (select document_id, body from manuals.chunks order by id limit 2000) as c,"
        " regexp_matches(lower(c.body), '[[:alpha:]]{8,}', 'g') as m, unnest(m) as word"
        " group by word order by count(distinct c.document_id) desc, count(*) desc, word limit 1"
    ).fetchone()
    return None if row is None else str(row[0])
