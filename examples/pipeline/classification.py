"""Stage classification: manufacturer, product, kind of document and language, by rules that one can read.

Put your own manufacturers and words in the tables below.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pipeline.workspace import Workspace
from processors_v2.stage_tracker import StageContext

MANUFACTURERS = {
    "Tarnwick": r"\b[CM]\d{3}i?\b",
    "Ardelune": r"\bM\d{2}(?:dn)?\b",
    "Brosevik": r"\bLP-\d{3}\b",
    "Halvorn": r"\bX\d{3}\b",
    "Kestrane": r"\bKX-\d+\b",
}
"""Name, and what the manufacturer's product names look like."""

DOCUMENT_TYPES = {
    "service_manual": ["service manual", "wartungshandbuch", "error code", "fehlercode"],
    "release_notes": ["release notes", "no longer appears", "known limitation"],
    "parts_catalogue": ["parts catalogue", "order number", "assembly"],
    "contract": ["agreement", "lessee", "vertrag", "liability"],
    "paper": ["abstract", "we measured", "references"],
}
LANGUAGES = {
    "en": {"the", "and", "of", "is", "to", "in", "for", "with"},
    "de": {"der", "die", "das", "und", "ist", "mit", "nicht", "den"},
}
FIRST_PAGES = 5


class Classification(NamedTuple):
    """What the rules say; None where none of them fits."""

    manufacturer: str | None
    product: str | None
    document_type: str | None
    language: str | None


def classify(work: Workspace, document_id: str) -> None:
    """Find out what kind of document this is, and of whose make."""
    with StageContext(work.tracker, document_id, "classification") as ctx:
        pages = work.pages(document_id)
        if not pages:
            ctx.skip("No text to classify")
            return
        found = classify_text(" ".join(body for _, body in pages[:FIRST_PAGES]))
        with work.database() as db:
            db.execute(
                "update manuals.files set manufacturer = %s, product = %s, document_type = %s, language = %s"
                " where document_id = %s",
                [*found, document_id],
            )
        for key, value in found._asdict().items():
            ctx.set_metadata(key, value)


def classify_text(text: str) -> Classification:
    """Apply the rules to the beginning of a document."""
    manufacturer = most_frequent({name: len(re.findall(rf"\b{name}\b", text)) for name in MANUFACTURERS})
    product = None
    if manufacturer is not None:
        products = re.findall(MANUFACTURERS[manufacturer], text)
        product = most_frequent({name: products.count(name) for name in dict.fromkeys(products)})
    lowered = text.lower()
    words = re.findall(r"\w+", lowered)
    return Classification(
        manufacturer,
        product,
        most_frequent({kind: sum(map(lowered.count, signs)) for kind, signs in DOCUMENT_TYPES.items()}),
        most_frequent({code: sum(word in common for word in words) for code, common in LANGUAGES.items()}),
    )


def most_frequent(counts: dict[str, int]) -> str | None:
    """Return the key with the highest count, the first of equals, None if nothing was counted."""
    best = max(counts, key=lambda key: counts[key], default=None)
    return best if best is not None and counts[best] > 0 else None
