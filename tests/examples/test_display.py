import io
from typing import Any

import pytest
from display import LiveStatus, Screen
from rich.console import Console

from processors_v2.stage_tracker import StageTracker

Row = dict[str, Any]


def row(name: str, *statuses: str, progress: float = 0) -> Row:
    """Return a row of vw_documents_by_stage whose stages stand as said, the rest pending."""
    stages = [*statuses, *["pending"] * (len(StageTracker.STAGES) - len(statuses))]
    return {
        "id": name,
        "filename": name,
        "progress_percentage": 12.5,
        **{
            f"{stage}_status": {
                "status": status,
                "progress": progress,
                "error": "Paper jam" if status == "failed" else None,
                "metadata": {"reason": "No images"} if status == "skipped" else {},
            }
            for stage, status in zip(StageTracker.STAGES, stages, strict=True)
        },
    }


def screen(width: int, encoding: str = "utf-8", **options: Any) -> tuple[Screen, io.TextIOWrapper]:
    """Return a screen that writes to memory."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Screen(Console(file=file, width=width, highlight=False, **options)), file


def written(file: io.TextIOWrapper) -> str:
    """Return what has been written to it."""
    file.flush()
    assert isinstance(file.buffer, io.BytesIO)
    return file.buffer.getvalue().decode(file.encoding)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_the_table_fits_its_terminal(width: int) -> None:
    """No line is wider than the terminal, and every stage keeps its column."""
    target, file = screen(width)
    target.show_documents([row("a rather long name of a document, as they come.pdf", "completed", "failed")])
    lines = written(file).splitlines()
    assert max(map(len, lines)) <= width
    assert any(line.count("·") >= 6 for line in lines)


def test_status_is_told_by_sign_and_word() -> None:
    """Whoever sees no colours still tells the five apart; what is at work is a bar."""
    target, file = screen(120)
    target.show_documents([row("x.pdf", "completed", "failed", "skipped", "processing", progress=40)])
    line = next(line for line in written(file).splitlines() if line.startswith("x "))
    assert "12% ✓ done" in line
    assert "✗ FAIL" in line
    assert "- skip" in line
    assert "██░░░  40%" in line
    assert "· wait" in line


def test_reasons_stand_below_the_table() -> None:
    """Errors first, then what was skipped, each with document and stage."""
    target, file = screen(80)
    target.show_documents([row("x.pdf", "completed", "skipped"), row("y.pdf", "failed")])
    text = written(file)
    assert text.index("✗ y.pdf: upload: Paper jam") < text.index("- x.pdf: text_extraction: No images")


def test_a_terminal_without_unicode_gets_plain_signs() -> None:
    """Nothing is written that its encoding cannot carry."""
    target, file = screen(80, "ascii")
    target.show_documents([row("Lüfter.pdf", "completed", "failed", "processing", progress=50)])
    text = written(file)
    assert "+ done" in text
    assert "x FAIL" in text
    assert "###..." in text
    assert "L?fter" in text


def test_more_documents_than_lines_show_those_at_work() -> None:
    """On a low terminal the rows at work come first, and what is done gives way."""
    target, _ = screen(80, height=10)
    live = LiveStatus(target, client=None, document_ids=[])  # type: ignore[arg-type]
    done = [row(f"done{number}.pdf", *["completed"] * 8) for number in range(10)]
    live.rows = [*done, row("waits.pdf", "completed"), row("works.pdf", "processing")]
    assert [shown["filename"] for shown in live.fitting()][:3] == ["works.pdf", "waits.pdf", "done0.pdf"]
    assert len(live.fitting()) == 4
