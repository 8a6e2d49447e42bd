import re
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Piped = CompletedProcess[str]


def section(output: str, begin: str, end: str | None = None) -> str:
    """Return what stands between two headings, with the line breaks of paragraphs taken out."""
    _, found, rest = output.partition(begin)
    assert found, f"no {begin!r} in:\n{output}"
    return re.sub(r"\n {2,}", " ", rest.partition(end)[0] if end else rest)


def matrix(output: str) -> dict[str, list[str]]:
    """Return the words of the final table, by document."""
    table = section(output, "from vw_documents_by_stage", "Stages, from")
    rows = re.findall(r"^([\w-]+) +(\d+)% (.+)$", table, re.MULTILINE)
    return {name: [progress, *re.findall(r"done|FAIL|skip|wait", cells)] for name, progress, cells in rows}


def test_it_ends_well_although_a_file_stays_failed(piped: Piped) -> None:
    """A damaged file is the user's affair: the run itself succeeds and writes nothing to stderr."""
    assert (piped.returncode, piped.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("adhesion-paper", "100 done done done done done done done done"),
        ("ardelune-m30", "100 done done skip done done done done done"),
        ("damaged-bulletin", "0 FAIL wait wait wait wait wait wait wait"),
        ("firmware-notes", "100 done done skip done done done done done"),
        ("halvorn-x900", "100 done done done done done done done done"),
        ("lease-contract", "100 done done skip done done done done done"),
        ("scanned-note", "100 done skip done skip skip done skip skip"),
        ("tarnwick-c450", "100 done done done done done done done done"),
    ],
)
def test_the_last_table_says_of_each_document_how_each_stage_ended(piped: Piped, name: str, cells: str) -> None:
    """Status is a word per stage, in pipeline order, after the progress of the document."""
    assert matrix(piped.stdout)[name] == cells.split()


def test_the_damaged_file_fails_with_a_sentence(piped: Piped) -> None:
    """Below the table stands why a stage failed, in words for people."""
    reasons = section(piped.stdout, "from vw_documents_by_stage", "Stages, from")
    assert re.search(r"✗ damaged-bulletin.pdf: upload: .*Damaged file, no page can be read", reasons)


def test_a_skip_is_shown_with_its_reason(piped: Piped) -> None:
    """What does not apply to a document is told from what was not done."""
    reasons = section(piped.stdout, "from vw_documents_by_stage", "Stages, from")
    assert "- lease-contract.pdf: image_processing: No images found in PDF" in reasons
    assert "- scanned-note.pdf: text_extraction: No text in PDF: a scan, it would need OCR" in reasons


def test_a_retry_runs_just_what_failed_and_what_waited_for_it(piped: Piped) -> None:
    """After the password is given, the upload is not repeated and no other document is touched."""
    first, _, second = piped.stdout.partition("First run:")
    assert "✗ halvorn-x900.pdf: text_extraction failed" in first
    assert "✗ halvorn-x900.pdf: image_processing failed" in first
    retried = section(second, "The operator gives the password", "Documents x stages")
    lines = [line for line in retried.splitlines() if ".pdf:" in line]
    assert {re.sub(r" in [\d.]+ s$", "", line) for line in lines} == {
        f"✓ halvorn-x900.pdf: {stage} completed"
        for stage in (
            "text_extraction",
            "image_processing",
            "classification",
            "metadata_extraction",
            "storage",
            "embedding",
            "search_indexing",
        )
    }
    assert "Encrypted: a password is needed to open it" in section(second, "halvorn-x900.pdf:", "▸")


def test_the_statistics_count_every_document_once_per_stage(piped: Piped) -> None:
    """Eight rows in pipeline order, whose counts add up to the eight documents."""
    table = section(piped.stdout, "from vw_stage_statistics", "Full-text search")
    rows = re.findall(r"^(\w+) +(\d+) +(\d+) +(\d+) +(\d+) +(\d+) +[\d.]+$", table, re.MULTILINE)
    assert [row[0] for row in rows] == [
        "upload",
        "text_extraction",
        "image_processing",
        "classification",
        "metadata_extraction",
        "storage",
        "embedding",
        "search_indexing",
    ]
    assert all(sum(map(int, row[1:])) == 8 for row in rows)
    assert rows[0][1:] == ("0", "0", "7", "1", "0")


def test_the_searches_find_the_pages_that_answer(piped: Piped) -> None:
    """A code is found on its page, a paraphrase by its vector."""
    by_words = section(piped.stdout, "Full-text search:", "Nearest by vector:")
    assert "1. tarnwick-c450.pdf, page 65" in by_words
    assert "«C-2557»" in by_words
    assert "ardelune-m30.pdf, page" in by_words
    assert "1. adhesion-paper.pdf, page 1 " in section(piped.stdout, "Nearest by vector:")


def test_the_readme_shows_how_it_ends(piped: Piped) -> None:
    """Every line of the block in the README is printed, in that order; durations may differ."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"^```\n(document  .*?)^```$", readme, re.DOTALL | re.MULTILINE)
    assert shown
    expected, printed = ([without_duration(line) for line in text.splitlines()] for text in (shown[1], piped.stdout))
    begin = printed.index(expected[0])
    assert printed[begin : begin + len(expected)] == expected


def without_duration(line: str) -> str:
    """Return a line of a table without the seconds at its end."""
    return re.sub(r"\s+\d+\.\d\d$", "", line.rstrip())


def test_nothing_is_wider_than_the_terminal(piped: Piped) -> None:
    """At 80 columns every line fits, ends without blanks, and carries no control codes in a pipe."""
    assert [line for line in piped.stdout.splitlines() if len(line) > 80 or line != line.rstrip()] == []
    assert "\x1b" not in piped.stdout
