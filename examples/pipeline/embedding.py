"""Stage embedding: a vector for each chunk, in a pgvector column.

The vectors here are counts of words and of their three-letter parts, hashed into 256 places: they need no
download, are the same on every machine, and find texts that share words or parts of words ("Fixiereinheiten"
finds "Fixiereinheit"). They do not know that two different words mean the same. For that put a model in the
place of `embed`, for example

    model = sentence_transformers.SentenceTransformer("intfloat/multilingual-e5-small")
    def embed(text): return model.encode("passage: " + text, normalize_embeddings=True).tolist()

and set the length of the column in quickstart.sql to what the model returns (384 for this one).
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter

from pipeline.workspace import Workspace
from processors_v2.stage_tracker import StageContext

DIMENSIONS = 256


def embed_chunks(work: Workspace, document_id: str) -> None:
    """Give each chunk of the document its vector."""
    with StageContext(work.tracker, document_id, "embedding") as ctx:
        with work.database() as db:
            chunks = db.execute(
                "select id, body from manuals.chunks where document_id = %s order by id", [document_id]
            ).fetchall()
        if not chunks:
            ctx.skip("No text to embed")
            return
        vectors = [
            (as_literal(embed(body)), chunk_id)
            for chunk_id, body in ctx.track(work.until_stopped(chunks), total=len(chunks))
        ]
        with work.database() as db, db.cursor() as cursor:
            cursor.executemany("update manuals.chunks set embedding = %s where id = %s", vectors)
        ctx.set_metadata("vectors", len(vectors))
        ctx.set_metadata("dimensions", DIMENSIONS)


def embed(text: str) -> list[float] | None:
    """Return a vector of length 1, or None for a text without letters and digits."""
    features: Counter[str] = Counter()
    for word in re.findall(r"\w+", text.lower()):
        features[word] += 1
        features.update(f"<{word}>"[start : start + 3] for start in range(len(word)))
    vector = [0.0] * DIMENSIONS
    for feature, count in features.items():
        place = zlib.crc32(feature.encode("utf-8", "replace"))
        # Half of the features count downwards, so that two that fall on one place do not simply add up.
        vector[place % DIMENSIONS] += (1 if place & 0x8000_0000 else -1) * (1 + math.log(count))
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector] if length else None


def as_literal(vector: list[float] | None) -> str | None:
    """Write a vector as pgvector reads it."""
    return None if vector is None else "[" + ",".join(f"{value:.6g}" for value in vector) + "]"
