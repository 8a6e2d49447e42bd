import hashlib
import math
from contextlib import nullcontext
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pipeline.classification import classify_text
from pipeline.embedding import embed
from pipeline.image_processing import UnreadableImagesError
from pipeline.metadata_extraction import find_facts
from pipeline.search import by_vector, common_word, full_text
from pipeline.storage import put
from pipeline.text_extraction import CHUNK_CHARACTERS, clean, split
from pipeline.upload import UnreadablePdfError, count_pages
from pipeline.workspace import PasswordNeededError, StoppedError
from pypdf import PdfReader, PdfWriter

Pipeline = Any


@pytest.mark.parametrize(
    ("name", "pages"),
    [
        ("adhesion-paper.pdf", 4),
        ("ardelune-m30.pdf", 9),
        ("firmware-notes.pdf", 1),
        ("halvorn-x900.pdf", None),
        ("lease-contract.pdf", 9),
        ("scanned-note.pdf", 2),
        ("tarnwick-c450.pdf", 223),
    ],
)
def test_upload_notes_hash_size_and_pages(pipeline: Pipeline, documents: Path, name: str, pages: int | None) -> None:
    """What upload notes of a file is what the file is; the pages of an encrypted one stay unknown."""
    data = (documents / name).read_bytes()
    metadata = pipeline.stage(name, "upload")["metadata"]
    assert metadata["file_hash"] == hashlib.sha256(data).hexdigest()
    assert metadata["file_size"] == len(data)
    assert (metadata["page_count"], metadata["encrypted"]) == (pages, pages is None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "The file is empty"),
        (b"Dear Sir or Madam", "Not a PDF file"),
        (b"%PDF-1.7\nand nothing else", "Damaged file, no page can be read"),
    ],
)
def test_upload_says_why_a_file_is_no_use(tmp_path: Path, content: bytes, words: str) -> None:
    """Empty, foreign and damaged files are told apart."""
    file = tmp_path / "x.pdf"
    file.write_bytes(content)
    with pytest.raises(UnreadablePdfError, match=words):
        count_pages(file)


def test_a_failed_upload_leaves_its_reason_and_no_row(pipeline: Pipeline) -> None:
    """The exception of a processor reaches its caller and, as text, the table."""
    with pytest.raises(UnreadablePdfError):
        pipeline.run("damaged-bulletin.pdf", "upload")
    assert pipeline.stage("damaged-bulletin.pdf", "upload")["status"] == "failed"
    assert "no page can be read" in pipeline.stage("damaged-bulletin.pdf", "upload")["error"]
    assert pipeline.query("select from manuals.files where document_id = %s", "damaged-bulletin.pdf") == []


def test_text_extraction_keeps_every_page_under_its_number(pipeline: Pipeline) -> None:
    """Page numbers are those of the file, from 1, and the stage tells how many it has read."""
    rows = pipeline.query(
        "select page, body from manuals.pages where document_id = %s order by page", "tarnwick-c450.pdf"
    )
    assert [page for page, _ in rows] == list(range(1, 224))
    assert "Error code C-2557: developer unit" in rows[64][1]
    metadata = pipeline.stage("tarnwick-c450.pdf", "text_extraction")["metadata"]
    assert (metadata["pages_processed"], metadata["total_pages"]) == (223, 223)
    assert metadata["chunks"] > 223


def test_a_second_run_of_a_stage_replaces_what_the_first_left(pipeline: Pipeline) -> None:
    """A retry never doubles rows."""
    counts = """
        select (select count(*) from manuals.pages p where p.document_id = f.document_id),
               (select count(*) from manuals.images i where i.document_id = f.document_id),
               (select count(*) from manuals.facts a where a.document_id = f.document_id),
               (select count(*) from manuals.objects o where o.document_id = f.document_id)
        from manuals.files f where document_id = %s
    """
    before = pipeline.query(counts, "halvorn-x900.pdf")
    for stage in ("text_extraction", "image_processing", "metadata_extraction", "storage"):
        pipeline.run("halvorn-x900.pdf", stage)
    assert pipeline.query(counts, "halvorn-x900.pdf") == before
    for stage in ("embedding", "search_indexing"):
        pipeline.run("halvorn-x900.pdf", stage)


def test_chunks_hold_all_words_and_overlap() -> None:
    """Chunks stay within their size, lose no word, and each begins with words that end the one before."""
    words = [f"word{number}" for number in range(1000)]
    chunks = list(split(" ".join(words)))
    assert len(chunks) > 5
    assert max(map(len, chunks)) <= CHUNK_CHARACTERS
    assert [word for word in words if not any(word in chunk.split() for chunk in chunks)] == []
    assert all(later.split()[0] in earlier.split() for earlier, later in pairwise(chunks))


def test_a_word_longer_than_a_chunk_ends_the_loop() -> None:
    """Text without white space is one chunk, however long, and a short word before it is not repeated for ever."""
    chunks = islice(split(" ".join(["a", "x" * 5000, "y" * 5000])), 10)
    assert [len(chunk) for chunk in chunks] == [1, 5000, 5000]


def test_clean_drops_what_postgres_refuses() -> None:
    """NUL goes, a lone surrogate becomes a question mark, umlauts stay."""
    assert clean(" a\x00b\ud800 Lüfter\n") == "ab? Lüfter"


@pytest.mark.parametrize(
    ("name", "images"), [("tarnwick-c450.pdf", 11), ("halvorn-x900.pdf", 8), ("scanned-note.pdf", 2)]
)
def test_image_processing_finds_every_image_and_makes_thumbnails(pipeline: Pipeline, name: str, images: int) -> None:
    """Each image is a PNG of its true size, with a thumbnail that fits 160 x 160."""
    rows = pipeline.query("select width, height, path, thumbnail_path from manuals.images where document_id = %s", name)
    assert len(rows) == images
    for width, height, path, thumbnail in rows:
        with Image.open(path) as image, Image.open(thumbnail) as small:
            assert (image.format, image.size) == ("PNG", (width, height))
            assert max(small.size) == 160
            assert math.isclose(small.width / small.height, width / height, rel_tol=0.02)


def test_an_image_on_two_pages_is_kept_once(pipeline: Pipeline, tmp_path: Path) -> None:
    """A logo that is on every page is one image, of the first page that shows it."""
    logo = Image.new("RGB", (40, 30), "navy")
    file = tmp_path / "logo.pdf"
    logo.save(file, save_all=True, append_images=[logo, Image.new("RGB", (40, 30), "red")])
    register_and_run(pipeline, file, "upload", "image_processing")
    pages = pipeline.query("select page from manuals.images where document_id = %s order by page", "logo.pdf")
    assert pages == [(1,), (3,)]


@pytest.mark.parametrize(("broken", "status"), [([2], "completed"), ([1, 2], "failed")])
def test_an_odd_image_is_noted_and_fails_the_stage_only_when_all_are_odd(
    pipeline: Pipeline, tmp_path: Path, broken: list[int], status: str
) -> None:
    """One unreadable image does not cost the others; none readable is no success."""
    file = tmp_path / f"{status}.pdf"
    Image.new("RGB", (40, 30), "navy").save(file, save_all=True, append_images=[Image.new("RGB", (40, 30), "red")])
    writer = PdfWriter(clone_from=PdfReader(file))
    for page in broken:
        (image,) = writer.pages[page - 1]["/Resources"]["/XObject"].values()  # type: ignore[index]
        image.get_object()._data = b"no picture"
    writer.write(file)
    with pytest.raises(UnreadableImagesError) if status == "failed" else nullcontext():
        register_and_run(pipeline, file, "upload", "image_processing")
    stage = pipeline.stage(file.name, "image_processing")
    assert stage["status"] == status
    assert [note.split(":")[0] for note in stage["metadata"]["unreadable_images"]] == [f"page {n}" for n in broken]


def register_and_run(pipeline: Pipeline, file: Path, *stages: str) -> None:
    """Bring one more document into the pipeline."""
    from pipeline import register  # noqa: PLC0415 - importable once conftest.py has set the path

    pipeline.ids[file.name] = register(pipeline.work, pipeline.client, file)
    for stage in stages:
        pipeline.run(file.name, stage)


def test_a_document_without_images_is_skipped_with_the_reason(pipeline: Pipeline) -> None:
    """The words of the skip are those that the user's documentation shows."""
    stage = pipeline.stage("lease-contract.pdf", "image_processing")
    assert (stage["status"], stage["metadata"]["reason"]) == ("skipped", "No images found in PDF")


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("adhesion-paper.pdf", ("Kestrane", None, "paper", "en")),
        ("ardelune-m30.pdf", ("Ardelune", "M30", "service_manual", "de")),
        ("firmware-notes.pdf", ("Tarnwick", "C550", "release_notes", "en")),
        ("halvorn-x900.pdf", ("Halvorn", "X900", "parts_catalogue", "en")),
        ("lease-contract.pdf", ("Brosevik", "LP-200", "contract", "en")),
        ("scanned-note.pdf", (None, None, None, None)),
        ("tarnwick-c450.pdf", ("Tarnwick", "C450", "service_manual", "en")),
    ],
)
def test_classification_knows_make_product_kind_and_language(
    pipeline: Pipeline, name: str, row: tuple[str | None, ...]
) -> None:
    """The rules fit the real documents."""
    found = pipeline.query(
        "select manufacturer, product, document_type, language from manuals.files where document_id = %s", name
    )
    assert found == [row]


def test_classification_leaves_open_what_no_rule_fits() -> None:
    """An unknown text is not given the nearest name."""
    assert classify_text("lorem ipsum dolor 12345") == (None, None, None, None)


def test_dates_are_no_error_codes(pipeline: Pipeline) -> None:
    """A number such as 30.03.01 is a code only where the text calls it one: the issue dates are left out."""
    codes = pipeline.query(
        "select value from manuals.facts where document_id = %s and kind = 'error_code' order by value",
        "ardelune-m30.pdf",
    )
    expected = ["30.03.01", "30.03.20", "40.08.00", "50.02.11", "57.01.04", "59.05.10"]
    assert [code for (code,) in codes] == expected


def test_facts_name_the_first_page_and_each_value_once() -> None:
    """Codes and versions are told apart; a value that comes again keeps its first page."""
    pages = [(3, "Error C-2557, Firmware 4.20.1"), (4, "C-2557 again in version v2.0"), (9, "Fehler 30.03.01")]
    assert find_facts(pages) == {
        ("error_code", "C-2557"): 3,
        ("version", "4.20.1"): 3,
        ("version", "2.0"): 4,
        ("error_code", "30.03.01"): 9,
    }


def test_the_manual_yields_its_error_codes(pipeline: Pipeline) -> None:
    """All 200 codes that have a page of their own are found."""
    row = pipeline.query(
        "select count(*) from manuals.facts f where document_id = %s and kind = 'error_code' and exists"
        " (select from manuals.pages p where p.document_id = f.document_id and p.page = f.page"
        "  and p.body like '%%Error code ' || f.value || '%%')",
        "tarnwick-c450.pdf",
    )
    assert row[0][0] >= 190


def test_storage_keeps_every_object_under_its_hash(pipeline: Pipeline) -> None:
    """Original, images and thumbnails are in the store, unchanged, under the hash of their bytes."""
    rows = pipeline.query("select object_key, name from manuals.objects where document_id = %s", "halvorn-x900.pdf")
    assert len(rows) == 1 + 2 * 8
    assert "original.pdf" in [name for _, name in rows]
    for key, _ in rows:
        assert hashlib.sha256((pipeline.work.store / key[:2] / key).read_bytes()).hexdigest() == key


def test_the_same_bytes_are_stored_once(tmp_path: Path) -> None:
    """Storing again changes no file and leaves no half-written one."""
    key = put(tmp_path, b"same")
    (path,) = (file for file in tmp_path.rglob("*") if file.is_file())
    written = path.stat().st_mtime_ns
    assert put(tmp_path, b"same") == key
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
    assert path.stat().st_mtime_ns == written


def test_vectors_have_length_one_and_come_out_the_same() -> None:
    """The same text gives the same unit vector; a text without words gives none."""
    vector = embed("The fuser unit stays hot")
    assert vector == embed("The fuser unit stays hot")
    assert vector is not None
    assert math.isclose(sum(value * value for value in vector), 1)
    assert embed(" -- ... ") is None


def test_every_chunk_has_a_vector_and_is_indexed(pipeline: Pipeline) -> None:
    """What is completed is there in full."""
    row = pipeline.query(
        "select count(*), count(embedding), count(search), min(vector_dims(embedding))"
        " from manuals.chunks where document_id = %s",
        "tarnwick-c450.pdf",
    )[0]
    assert row[0] == row[1] == row[2] == pipeline.stage("tarnwick-c450.pdf", "embedding")["metadata"]["vectors"]
    assert row[3] == 256


def test_the_search_knows_the_stems_of_both_languages(pipeline: Pipeline) -> None:
    """A plural finds the singular, in German as in English, and the snippet marks it."""
    with pipeline.work.database() as db:
        german = full_text(db, "Heizlampen")
        english = full_text(db, "carriers worn")
    assert {hit.filename for hit in german} == {"ardelune-m30.pdf"}
    assert "«Heizlampe»" in german[0].snippet
    assert (english[0].filename, english[0].page) == ("tarnwick-c450.pdf", 65)


def test_a_page_is_one_hit_and_the_best_comes_first(pipeline: Pipeline) -> None:
    """Hits are ranked, and no page takes two of the places."""
    with pipeline.work.database() as db:
        hits = full_text(db, "replace", limit=1000)
    assert len({(hit.filename, hit.page) for hit in hits}) == len(hits) > 200
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_the_vector_search_forgives_what_full_text_does_not(pipeline: Pipeline) -> None:
    """Other endings and spellings still come near the right page."""
    question = "toner does not stick on recycling papers"
    with pipeline.work.database() as db:
        assert full_text(db, question) == []
        hits = by_vector(db, question)
        assert by_vector(db, "...") == []
    assert (hits[0].filename, hits[0].page) == ("adhesion-paper.pdf", 1)
    assert 0 < hits[1].score <= hits[0].score < 1


def test_a_word_to_search_for_is_found_in_unknown_files(pipeline: Pipeline) -> None:
    """The word that is proposed has hits."""
    with pipeline.work.database() as db:
        word = common_word(db)
        assert word is not None
        assert full_text(db, word)


def test_a_locked_file_needs_its_password(pipeline: Pipeline) -> None:
    """Without it and with a wrong one the sentences differ, and both are recorded."""
    work, name = pipeline.work, "halvorn-x900.pdf"
    password = work.passwords.pop(pipeline.ids[name])
    try:
        with pytest.raises(PasswordNeededError, match="a password is needed"):
            pipeline.run(name, "image_processing")
        work.passwords[pipeline.ids[name]] = "guess"
        with pytest.raises(PasswordNeededError, match="does not open it"):
            pipeline.run(name, "image_processing")
        assert "does not open it" in pipeline.stage(name, "image_processing")["error"]
    finally:
        work.passwords[pipeline.ids[name]] = password
    work.tracker.retry_stage(pipeline.ids[name], "image_processing")
    pipeline.run(name, "image_processing")
    assert pipeline.stage(name, "image_processing")["status"] == "completed"


def test_a_stopped_run_ends_at_the_next_page(pipeline: Pipeline) -> None:
    """Once the operator stops, a stage at work fails instead of going on, and can be run again."""
    pipeline.work.stopped.set()
    try:
        with pytest.raises(StoppedError):
            pipeline.run("tarnwick-c450.pdf", "image_processing")
    finally:
        pipeline.work.stopped.clear()
    assert pipeline.stage("tarnwick-c450.pdf", "image_processing")["error"] == "Stopped by the operator"
    pipeline.run("tarnwick-c450.pdf", "image_processing")
    assert pipeline.stage("tarnwick-c450.pdf", "image_processing")["status"] == "completed"
