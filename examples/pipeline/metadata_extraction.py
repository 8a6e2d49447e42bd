"""Stage metadata_extraction: error codes and versions, each with the first page that names it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pipeline.workspace import Workspace
from processors_v2.stage_tracker import StageContext

LETTER_CODE = re.compile(r"\b[A-Z]-\d{4}\b")
# 30.03.01 may be a code or a date: it counts as a code only where the text says so.
NUMBER_CODE = re.compile(r"(?:\bcode|fehlercode|\berror|\bfehler)\s+(\d{2}\.\d{2}\.\d{2})\b", re.IGNORECASE)
VERSION = re.compile(r"\b(?:version|firmware|release)\s+v?(\d+(?:\.\d+){1,3})\b", re.IGNORECASE)


def extract_metadata(work: Workspace, document_id: str) -> None:
    """Note every error code and version that the document names."""
    with StageContext(work.tracker, document_id, "metadata_extraction") as ctx:
        pages = work.pages(document_id)
        if not pages:
            ctx.skip("No text to look for error codes")
            return
        facts = find_facts(ctx.track(work.until_stopped(pages), total=len(pages)))
        with work.database() as db, db.cursor() as cursor:
            cursor.execute("delete from manuals.facts where document_id = %s", [document_id])
            cursor.executemany(
                "insert into manuals.facts (document_id, kind, value, page) values (%s, %s, %s, %s)",
                [(document_id, kind, value, page) for (kind, value), page in facts.items()],
            )
        kinds = [kind for kind, _ in facts]
        ctx.set_metadata("error_codes", kinds.count("error_code"))
        ctx.set_metadata("versions", kinds.count("version"))


def find_facts(pages: Iterable[tuple[int, str]]) -> dict[tuple[str, str], int]:
    """Return the first page of each (kind, value); kind is error_code or version."""
    facts: dict[tuple[str, str], int] = {}
    for page, body in pages:
        for kind, pattern in (("error_code", LETTER_CODE), ("error_code", NUMBER_CODE), ("version", VERSION)):
            for value in pattern.findall(body):
                facts.setdefault((kind, value), page)
    return facts
