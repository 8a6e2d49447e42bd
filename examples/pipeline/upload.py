"""Stage upload: is this a PDF file that the other stages can work with, and which one is it?"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from pypdf import PdfReader
from supabase import Client

from pipeline.workspace import Workspace
from processors_v2.stage_tracker import StageContext


class UnreadablePdfError(Exception):
    """The file is no PDF file, or too damaged to find a page in it."""


def register(work: Workspace, client: Client, path: Path) -> str:
    """Make the row in krai_core.documents, with all stages pending, and return its id."""
    row = {"filename": path.name.encode("utf-8", "replace").decode()}
    answer = client.schema("krai_core").table("documents").insert(row).execute()
    document_id = str(answer.data[0]["id"])  # type: ignore[call-overload, index]
    work.sources[document_id] = path
    return document_id


def check_upload(work: Workspace, document_id: str) -> None:
    """Check the file, and note its hash, size and number of pages."""
    with StageContext(work.tracker, document_id, "upload") as ctx:
        # A copy of our own: what happens to the user's file from here on does not matter to the other stages.
        path = work.scratch / document_id / "original.pdf"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(work.sources[document_id], path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
        page_count = count_pages(path)
        with work.database() as db:
            db.execute(
                "insert into manuals.files (document_id, path, sha256, size_bytes, page_count)"
                " values (%s, %s, %s, %s, %s) on conflict (document_id) do update"
                " set path = excluded.path, sha256 = excluded.sha256, size_bytes = excluded.size_bytes,"
                " page_count = excluded.page_count",
                [document_id, str(path), digest, size, page_count],
            )
        ctx.set_metadata("file_hash", digest)
        ctx.set_metadata("file_size", size)
        ctx.set_metadata("page_count", page_count)
        ctx.set_metadata("encrypted", page_count is None)


def count_pages(path: Path) -> int | None:
    """Return the number of pages, or None if the file is encrypted and only a password will tell.

    Raises:
        UnreadablePdfError: Empty, not a PDF file, damaged, or without a page.
    """
    with path.open("rb") as file:
        start = file.read(1024)
    if not start:
        raise UnreadablePdfError("The file is empty")
    if b"%PDF-" not in start:
        raise UnreadablePdfError("Not a PDF file: it does not begin with %PDF-")
    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            return None
        pages = len(reader.pages)
    except Exception as error:  # pypdf meets damaged files with many exception types
        raise UnreadablePdfError(f"Damaged file, no page can be read: {error}") from error
    if pages == 0:
        raise UnreadablePdfError("The file has no pages")
    return pages
