"""The processors of pipeline/ as handlers of a StageWorker, for the notebooks.

What they find stays in memory: no tables, no object store, so that they run against any project that has the
migrations. Processors that keep what they find are in pipeline/.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.classification import FIRST_PAGES, classify_text
from pipeline.embedding import DIMENSIONS, embed
from pipeline.image_processing import images_of
from pipeline.metadata_extraction import find_facts
from pipeline.text_extraction import clean, split
from pipeline.upload import UnreadablePdfError, count_pages
from pypdf import PdfReader

from processors_v2.errors import PermanentError
from processors_v2.worker import RunContext

DOCUMENTS = Path(__file__).resolve().parent / "documents"

# pypdf warns of every oddity that it could work round; what it could not is the error of the stage.
logging.getLogger("pypdf").setLevel(logging.CRITICAL)


class Handlers:
    """A handler for each stage: `StageWorker(tracker, Handlers().by_stage)`.

    Attributes:
        by_stage: The handlers by the names of their stages.
        passwords: Passwords by file name; may be added to at any time.
        texts: The text of each page, by document id.
        images: Hashes of the images, by document id.
        vectors: The vectors of the chunks, by document id.
        pages_by_word: File name and page of each occurrence of a word.
    """

    def __init__(self, folder: Path = DOCUMENTS) -> None:
        self.folder = folder
        self.passwords: dict[str, str] = {}
        self.texts: dict[str, list[str]] = {}
        self.images: dict[str, set[str]] = {}
        self.vectors: dict[str, list[list[float] | None]] = {}
        self.pages_by_word: dict[str, set[tuple[str, int]]] = {}
        self.by_stage: dict[str, Callable[[RunContext], dict[str, Any] | None]] = {
            "upload": self.upload,
            "text_extraction": self.text_extraction,
            "image_processing": self.image_processing,
            "classification": self.classification,
            "metadata_extraction": self.metadata_extraction,
            "storage": self.storage,
            "embedding": self.embedding,
            "search_indexing": self.search_indexing,
        }

    def upload(self, ctx: RunContext) -> dict[str, Any]:
        """Check the file."""
        try:
            pages = count_pages(self.path(ctx))
        except UnreadablePdfError as error:
            raise PermanentError(str(error)) from error  # no second attempt would read it either
        return {"file_size": self.path(ctx).stat().st_size, "page_count": pages, "encrypted": pages is None}

    def text_extraction(self, ctx: RunContext) -> dict[str, Any] | None:
        """Read all pages; each moves the progress."""
        pages = [clean(page.extract_text()) for page in ctx.track(self.open(ctx).pages, unit="pages")]
        if not any(pages):
            ctx.skip("No text in PDF: a scan, it would need OCR")
            return None
        self.texts[ctx.document_id] = pages
        return {"characters": sum(map(len, pages))}

    def image_processing(self, ctx: RunContext) -> dict[str, Any] | None:
        """Take every image once."""
        found = {
            hashlib.sha256(image.tobytes()).hexdigest()
            for page in ctx.track(self.open(ctx).pages, unit="pages")
            for image, _ in images_of(page)
            if image is not None
        }
        if not found:
            ctx.skip("No images found in PDF")
            return None
        self.images[ctx.document_id] = found
        return {"images": len(found)}

    def classification(self, ctx: RunContext) -> dict[str, Any] | None:
        """Find out what kind of document this is."""
        pages = self.text(ctx)
        return classify_text(" ".join(pages[:FIRST_PAGES]))._asdict() if pages else None

    def metadata_extraction(self, ctx: RunContext) -> dict[str, Any] | None:
        """Find error codes and versions."""
        pages = self.text(ctx)
        kinds = [kind for kind, _ in find_facts(enumerate(pages, 1))]
        return {"error_codes": kinds.count("error_code"), "versions": kinds.count("version")} if pages else None

    def storage(self, ctx: RunContext) -> dict[str, Any]:
        """Name the file by its bytes, as an object store would."""
        return {"object_key": hashlib.sha256(self.path(ctx).read_bytes()).hexdigest()}

    def embedding(self, ctx: RunContext) -> dict[str, Any] | None:
        """Make a vector of each chunk."""
        chunks = [chunk for text in self.text(ctx) for chunk in split(text)]
        self.vectors[ctx.document_id] = [embed(chunk) for chunk in ctx.track(chunks, unit="chunks")]
        return {"vectors": len(chunks), "dimensions": DIMENSIONS} if chunks else None

    def search_indexing(self, ctx: RunContext) -> dict[str, Any] | None:
        """Note where each word stands."""
        pages = self.text(ctx)
        for number, text in enumerate(pages, 1):
            for word in text.lower().split():
                self.pages_by_word.setdefault(word, set()).add((str(ctx.filename), number))
        return {"pages_indexed": len(pages)} if pages else None

    def path(self, ctx: RunContext) -> Path:
        """Return where the file of a run is."""
        return self.folder / str(ctx.filename)

    def open(self, ctx: RunContext) -> PdfReader:
        """Open the file of a run.

        Raises:
            PermanentError: It is encrypted, and the password is missing or wrong.
        """
        reader = PdfReader(self.path(ctx))
        if reader.is_encrypted and not reader.decrypt(self.passwords.get(str(ctx.filename), "")):
            raise PermanentError("Encrypted: a password is needed to open it")
        return reader

    def text(self, ctx: RunContext) -> list[str]:
        """Return the pages that text_extraction has read; where there are none, the stage is skipped."""
        pages = self.texts.get(ctx.document_id, [])
        if not pages:
            ctx.skip("No text in PDF")
        return pages
