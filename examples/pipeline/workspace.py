"""What all processors share: the tracker, the database, the folders, and how a PDF file is opened."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psycopg
from pypdf import PdfReader

from processors_v2.stage_tracker import StageTracker

T = TypeVar("T")


class PasswordNeededError(Exception):
    """The file is encrypted, and no password is known that opens it."""


class StoppedError(Exception):
    """The operator ended the run while a stage was at work."""


@dataclass
class Workspace:
    """Hand one of these to every processor.

    Attributes:
        tracker: Where the stages are recorded.
        database_url: Postgres, for the processors' own tables (see quickstart.sql).
        scratch: Folder for files between two stages; may be emptied after a run.
        store: Folder of the object store (in production: a bucket).
        sources: Path of the user's file, by document id; read by the upload alone.
        passwords: Passwords by document id; an operator may add to it while a run is on.
        stopped: Set it to make all stages end at their next page.
    """

    tracker: StageTracker
    database_url: str
    scratch: Path
    store: Path
    sources: dict[str, Path] = field(default_factory=dict)
    passwords: dict[str, str] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)

    def database(self) -> psycopg.Connection:
        """Open a connection: `with work.database() as db` commits at the end, or rolls back on an error."""
        return psycopg.connect(self.database_url)

    def open_pdf(self, document_id: str) -> PdfReader:
        """Open the uploaded file of a document.

        Raises:
            PasswordNeededError: The file is encrypted and no password, or a wrong one, is in `passwords`.
        """
        with self.database() as db:
            row = db.execute("select path from manuals.files where document_id = %s", [document_id]).fetchone()
        if row is None:
            raise LookupError(f"document {document_id} was not uploaded")
        reader = PdfReader(row[0])
        password = self.passwords.get(document_id)
        # Many files are encrypted with an empty password, to forbid printing: these open without one.
        if reader.is_encrypted and not reader.decrypt(password or ""):
            raise PasswordNeededError(
                "Encrypted: a password is needed to open it"
                if password is None
                else "Encrypted: the password that was given does not open it"
            )
        return reader

    def until_stopped(self, items: Iterable[T]) -> Iterator[T]:
        """Pass the items on, and raise `StoppedError` between two of them once `stopped` is set."""
        for item in items:
            if self.stopped.is_set():
                raise StoppedError("Stopped by the operator")
            yield item

    def pages(self, document_id: str) -> list[tuple[int, str]]:
        """Return (page number from 1, text) of every page that has text; empty for a scan."""
        with self.database() as db:
            return db.execute(
                "select page, body from manuals.pages where document_id = %s order by page", [document_id]
            ).fetchall()
