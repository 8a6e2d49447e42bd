"""One processor per stage: `PROCESSORS[stage](work, document_id)`.

Each is a plain function that opens a `StageContext`, does its work inside and lets exceptions fly:
the context records them. Start reading with `text_extraction.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.classification import classify
from pipeline.embedding import embed_chunks
from pipeline.image_processing import extract_images
from pipeline.metadata_extraction import extract_metadata
from pipeline.search_indexing import index_chunks
from pipeline.storage import store_objects
from pipeline.text_extraction import extract_text
from pipeline.upload import check_upload, register
from pipeline.workspace import Workspace

PROCESSORS: dict[str, Callable[[Workspace, str], None]] = {
    "upload": check_upload,
    "text_extraction": extract_text,
    "image_processing": extract_images,
    "classification": classify,
    "metadata_extraction": extract_metadata,
    "storage": store_objects,
    "embedding": embed_chunks,
    "search_indexing": index_chunks,
}

__all__ = ["PROCESSORS", "Workspace", "register"]
