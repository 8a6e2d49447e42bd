"""An existing processor, and the three lines of it that change.

    pip install "stage-tracker[local,demo]"
    python examples/drop_in_processor.py

`Before` is a processor as projects have it: it starts, completes and fails its stage by hand. It runs as it is with
this tracker. `After` is the same class with three other lines. From then on two workers never do the same stage twice,
a worker that dies is noticed when its lease is over, and every page moves the progress. complete_stage and fail_stage
stay where they are: inside of a StageContext they act for its run.
"""

import difflib
import inspect
import logging
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pypdf import PdfReader
from supabase import Client

from processors_v2.errors import StageBusy
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageContext, StageTracker

DOCUMENTS = Path(__file__).resolve().parent / "documents"
IMPORTS = (
    "from processors_v2.stage_tracker import StageTracker",
    "from processors_v2.stage_tracker import StageContext, StageTracker",
)
"""The first of the three lines, before and after."""


class Before:
    """Reads the text of PDF files."""

    def __init__(self, supabase_client: Client) -> None:
        self.stage_tracker = StageTracker(supabase_client)

    def process_document(self, document_id: uuid.UUID, file_path: Path) -> dict[str, Any]:
        """Run the stage text_extraction of one document."""
        self.stage_tracker.start_stage(str(document_id), "text_extraction")
        try:
            reader = PdfReader(file_path)
            characters = 0
            for page in reader.pages:
                characters += len(page.extract_text())
            found = {"total_pages": len(reader.pages), "characters": characters}
            self.stage_tracker.complete_stage(str(document_id), "text_extraction", metadata=found)
        except Exception as error:  # noqa: BLE001 - whatever it was, the stage has failed
            self.stage_tracker.fail_stage(str(document_id), "text_extraction", str(error))
            return {"success": False, "error": str(error)}
        return {"success": True, **found}


class After:
    """Reads the text of PDF files."""

    def __init__(self, supabase_client: Client) -> None:
        self.stage_tracker = StageTracker(supabase_client)

    def process_document(self, document_id: uuid.UUID, file_path: Path) -> dict[str, Any]:
        """Run the stage text_extraction of one document."""
        with StageContext(self.stage_tracker, document_id, "text_extraction") as ctx:
            try:
                reader = PdfReader(file_path)
                characters = 0
                for page in ctx.track(reader.pages, unit="pages"):
                    characters += len(page.extract_text())
                found = {"total_pages": len(reader.pages), "characters": characters}
                self.stage_tracker.complete_stage(str(document_id), "text_extraction", metadata=found)
            except Exception as error:  # noqa: BLE001 - whatever it was, the stage has failed
                self.stage_tracker.fail_stage(str(document_id), "text_extraction", str(error))
                return {"success": False, "error": str(error)}
            return {"success": True, **found}


def changed_lines() -> Iterator[tuple[str, str]]:
    """Yield the lines that differ, before and after; what is only indented further does not."""
    yield IMPORTS
    before, after = ([line.strip() for line in inspect.getsource(kind).splitlines()[1:]] for kind in (Before, After))
    for kind, start, end, other_start, other_end in difflib.SequenceMatcher(None, before, after).get_opcodes():
        if kind != "equal":
            yield from zip(before[start:end], after[other_start:other_end], strict=True)


def new_document(client: Client, name: str) -> uuid.UUID:
    """Insert a document whose upload is done."""
    answer: Any = client.schema("krai_core").table("documents").insert({"filename": name}).execute()
    StageTracker(client).complete_stage(document_id=answer.data[0]["id"], stage_name="upload")
    return uuid.UUID(answer.data[0]["id"])


def meet(kind: type[Before] | type[After], client: Client, name: str) -> list[str]:
    """Let a second worker come for a document that the first one is reading, and return what each had of it."""
    document, tracker = new_document(client, name), StageTracker(client)
    results: list[str] = []

    def work() -> None:
        try:
            answer = kind(client).process_document(document, DOCUMENTS / name)
        except StageBusy as error:
            results.append(f"refused: {error.message.replace(str(document), name)}")
        else:
            results.append(f"read {answer['total_pages']} pages")

    first = threading.Thread(target=work)
    first.start()
    while first.is_alive() and tracker.get_stage_status(document)["text_extraction"]["status"] == "pending":
        first.join(0.01)
    work()
    first.join()
    return sorted(results)


def main() -> None:
    """Show the three lines, and what each class makes of a second worker and of a damaged file."""
    # pypdf warns of what it could work round; what it could not is the error of the stage.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    print("Three lines change:\n")
    for before, after in changed_lines():
        print(f"  - {before}\n  + {after}")
    with LocalSupabase() as local:
        client = local.client()
        for kind in (Before, After):
            print(f"\n{kind.__name__}, two workers at one document:")
            for result in meet(kind, client, "tarnwick-c450.pdf"):
                print(f"  {result}")
            document = new_document(client, "damaged-bulletin.pdf")
            kind(client).process_document(document, DOCUMENTS / "damaged-bulletin.pdf")
            stage = StageTracker(client).get_stage_status(document)["text_extraction"]
            print(f"{kind.__name__}, a damaged file:\n  {stage['status']}: {stage['error']}")


if __name__ == "__main__":
    main()
