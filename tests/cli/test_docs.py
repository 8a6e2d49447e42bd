"""docs/cli.md shows what the commands print."""

import re
import shlex
import uuid
from pathlib import Path
from typing import Any

import pytest

from processors_v2.stage_tracker import StageTracker

PAGE = (Path(__file__).parents[2] / "docs/cli.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```console\n\$ stage-tracker ([^\n]+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
MODULE = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[0]

MANUAL, OTHER = "3f0c9a52-6f0e-4c5e-9d0a-0d1f6a1b2c3d", "8c1d3b67-52a4-4f3e-8a55-5e0f6a7b8c9d"
DAMAGED = "d2a7f0c4-91b8-4e27-b3c6-7f8a9b0c1d2e"
# Minutes before now at which the runs of the manual became ready, began and ended.
HISTORY = {
    ("upload", "completed"): (62.5, 60.5, 58.5),
    ("text_extraction", "failed"): (58.5, 50.5, 30.5),
    ("image_processing", "completed"): (58.5, 45.5, 15.5),
    ("text_extraction", "running"): (20.5, 7.5, None),
    ("storage", "ready"): (15.5, None, None),
}


@pytest.fixture(scope="module")
def scene(db: Any, tracker: StageTracker) -> None:
    """Thirty documents that are done, and six under way."""
    for number in range(30):
        done = {stage: {"status": "completed", "progress": 100, "duration_seconds": 30 + 10 * number} for stage in
                StageTracker.STAGES}  # fmt: skip
        insert(db, str(uuid.uuid4()), f"old-{number}.pdf", done)
    insert(db, MANUAL, "X500_service_manual.pdf")
    insert(db, OTHER, "bizhub_C250i.pdf")
    insert(db, DAMAGED, "firmware-0.pdf")
    others = [db.document(f"firmware-{number}.pdf") for number in range(1, 4)]
    for document in (MANUAL, OTHER, DAMAGED, *others):
        tracker.start_stage(document, "upload", claim_id=(claim := uuid.uuid4()), worker="gpu-1")
        tracker.complete_stage(document, "upload", {"file_size": 81_543_210}, claim_id=claim)
    tracker.start_stage(MANUAL, "text_extraction", claim_id=(claim := uuid.uuid4()), worker="gpu-1", lease_seconds=3600)
    tracker.fail_stage(MANUAL, "text_extraction", "OCR engine timeout after 300 s", claim_id=claim)
    tracker.retry_stage(MANUAL, "text_extraction")
    tracker.start_stage(MANUAL, "text_extraction", claim_id=(claim := uuid.uuid4()), worker="gpu-1", lease_seconds=3600)
    pages = {"pages_processed": 1993, "total_pages": 4386}
    tracker.update_progress(MANUAL, "text_extraction", 45.5, pages, claim_id=claim)
    tracker.start_stage(MANUAL, "image_processing", claim_id=(claim := uuid.uuid4()), worker="gpu-2")
    tracker.complete_stage(MANUAL, "image_processing", claim_id=claim)
    tracker.fail_stage(OTHER, "image_processing", "OCR engine timeout after 300 s")
    tracker.fail_stage(OTHER, "text_extraction", "page 7 of /inbox/c250i.pdf is damaged")
    tracker.fail_stage(DAMAGED, "text_extraction", "page 12 of /inbox/firmware.pdf is damaged")
    for (stage, status), minutes in HISTORY.items():
        times = [None if one is None else f"{one} minutes" for one in minutes]
        db.connection.execute(
            "update krai_core.stage_runs set available_at = now() - %s::interval,"
            " started_at = now() - %s::interval, finished_at = now() - %s::interval"
            " where document_id = %s and stage_name = %s and status = %s",
            [*times, MANUAL, stage, status],
        )
    # The flow of an hour that is not over yet would depend on the minute.
    db.connection.execute("update krai_core.stage_deltas set hour = hour - interval '2 hours'")


def insert(db: Any, document: str, filename: str, stages: Any = None) -> None:
    """Insert a document with an id that the page names."""
    from psycopg.types.json import Jsonb  # noqa: PLC0415 - an extra

    columns = "(id, filename)" if stages is None else "(id, filename, stage_status)"
    values = [document, filename] if stages is None else [document, filename, Jsonb(stages)]
    db.connection.execute(
        f"insert into krai_core.documents {columns} values ({', '.join(['%s'] * len(values))})", values
    )


def meaning(text: str) -> list[str]:
    """The words of an output; durations, times and the lengths of bars differ from run to run."""
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)? UTC", "<time>", text)
    amount, unit = r"[\d.,]+", r"(?:s|min|h|d)\b"
    text = re.sub(rf"{amount}(?: {unit})? to {amount} {unit}", "<range>", text)
    text = re.sub(rf"{amount} {unit}(?: {amount} {unit})?", "<duration>", text)
    text = re.sub(r"([█░▒▶·╌─])\1*", r"\1", text)
    return re.findall(r"\d[\d.,]*|\S", text)


def is_same(printed: str, shown: str) -> bool:
    """Whether an output has the same words, and numbers of the same size."""
    found, wanted = meaning(printed), meaning(shown)
    return len(found) == len(wanted) and all(
        one == other or (one[0].isdigit() and other[0].isdigit() and is_near(one, other))
        for one, other in zip(found, wanted, strict=True)
    )


def is_near(one: str, other: str) -> bool:
    """Whether one number is no more than twice as large as another."""
    small, large = sorted(float(number.replace(",", "").rstrip(".")) for number in (one, other))
    return small > 0 and large / small <= 2


@pytest.mark.usefixtures("direct", "scene", "imports")
@pytest.mark.parametrize(("command", "shown"), BLOCKS, ids=[command.split()[0] for command, _ in BLOCKS])
def test_each_command_prints_what_stands_under_it(seen: Any, folder: Path, command: str, shown: str) -> None:
    """Word for word, in the order of the page."""
    (folder / "my_handlers.py").write_text(MODULE, encoding="utf-8")
    done = seen(80, *shlex.split(command))
    assert done.code == 0, done.err
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", done.err + done.out)
    if shown:
        assert is_same(plain, shown), plain


def test_outputs_are_compared_by_what_they_mean() -> None:
    """Durations and the widths of bars may differ; words, signs and counts may not."""
    assert is_same("█████ 3 min 20 s left, 12 stages", "███ 40 s left, 12 stages")
    assert not is_same("12 stages failed", "12 stages failed twice")
    assert not is_same("12 stages", "0 stages")
    assert not is_same("12 stages", "120 stages")
    assert not is_same("▒▒✗", "▒▒█")
