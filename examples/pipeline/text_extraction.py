"""Stage text_extraction: the text of every page, and chunks of it for the search."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.workspace import Workspace
from processors_v2.stage_tracker import StageContext

CHUNK_CHARACTERS = 700
OVERLAP_CHARACTERS = 100


def extract_text(work: Workspace, document_id: str) -> None:
    """Read all pages of the document."""
    with StageContext(work.tracker, document_id, "text_extraction") as ctx:
        reader = work.open_pdf(document_id)
        total = len(reader.pages)
        pages: list[tuple[int, str]] = []
        for number, page in enumerate(work.until_stopped(reader.pages), start=1):
            text = clean(page.extract_text())
            if text:
                pages.append((number, text))
            ctx.update_progress(100 * number / total, {"pages_processed": number, "total_pages": total})
        if not pages:
            ctx.skip("No text in PDF: a scan, it would need OCR")
            return
        chunks = [(number, chunk) for number, text in pages for chunk in split(text)]
        # One transaction that ends before the stage does: "completed" always means that the rows are there,
        # and a retry replaces what an earlier run left.
        with work.database() as db, db.cursor() as cursor:
            cursor.execute("delete from manuals.pages where document_id = %s", [document_id])
            cursor.execute("delete from manuals.chunks where document_id = %s", [document_id])
            cursor.executemany(
                "insert into manuals.pages (document_id, page, body) values (%s, %s, %s)",
                [(document_id, number, text) for number, text in pages],
            )
            cursor.executemany(
                "insert into manuals.chunks (document_id, page, body) values (%s, %s, %s)",
                [(document_id, number, chunk) for number, chunk in chunks],
            )
            cursor.execute("update manuals.files set page_count = %s where document_id = %s", [total, document_id])
        ctx.set_metadata("chunks", len(chunks))


def clean(text: str) -> str:
    """Drop what Postgres cannot store (NUL, lone surrogates): odd fonts in PDF files produce both."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode("utf-8").strip()


def split(text: str) -> Iterator[str]:
    """Cut a page into chunks at white space, each beginning with the last words of the one before."""
    words = re.split(r"\s+", text)
    start = 0
    while start < len(words):
        end, length = start, 0
        while end < len(words) and (end == start or length + len(words[end]) < CHUNK_CHARACTERS):
            length += len(words[end]) + 1
            end += 1
        yield " ".join(words[start:end])
        if end == len(words):
            return
        back, overlap = end, 0
        while back > start + 1 and overlap + len(words[back - 1]) < OVERLAP_CHARACTERS:
            overlap += len(words[back - 1]) + 1
            back -= 1
        start = back
