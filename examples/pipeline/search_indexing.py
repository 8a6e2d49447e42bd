"""Stage search_indexing: the full-text index, in the language of the document."""

from __future__ import annotations

from pipeline.workspace import Workspace
from processors_v2.stage_tracker import StageContext

CONFIGURATIONS = {"de": "german", "en": "english"}
"""Postgres knows word stems of some thirty languages (\\dF in psql); "simple" takes words as they are."""


def index_chunks(work: Workspace, document_id: str) -> None:
    """Make the chunks of the document findable by their words."""
    with StageContext(work.tracker, document_id, "search_indexing") as ctx, work.database() as db:
        row = db.execute(
            "select language, concat_ws(' ', manufacturer, product) from manuals.files where document_id = %s",
            [document_id],
        ).fetchone()
        if row is None:
            raise LookupError(f"document {document_id} was not uploaded")
        configuration = CONFIGURATIONS.get(row[0], "simple")
        # Names weigh more than text (A before D), so that a search for a product finds its own manual first.
        indexed = db.execute(
            "update manuals.chunks set search = setweight(to_tsvector('simple', %(names)s), 'A')"
            " || to_tsvector(%(configuration)s::regconfig, body) where document_id = %(id)s",
            {"names": row[1], "configuration": configuration, "id": document_id},
        ).rowcount
        if indexed == 0:
            ctx.skip("No text to index")
            return
        ctx.set_metadata("chunks_indexed", indexed)
        ctx.set_metadata("configuration", configuration)
