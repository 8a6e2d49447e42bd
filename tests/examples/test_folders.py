import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import psutil
import pytest
from pypdf import PdfReader, PdfWriter

Run = Callable[..., CompletedProcess[str]]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path, "There is no folder"),
        (lambda path: path.mkdir(), "No PDF files in"),
        (lambda path: path.write_text("x"), "is a file; give the folder that holds it"),
        (lambda path: (path / "inner").mkdir(parents=True), "folders inside it are not searched"),
    ],
)
def test_a_folder_without_documents_is_refused_in_one_sentence(
    quickstart: Run, tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    """Nothing is started; the sentence names the folder."""
    folder = tmp_path / "Handbücher und mehr"
    make(folder)
    result = quickstart(folder)
    assert (result.returncode, result.stdout) == (1, "")
    assert words in result.stderr
    assert "Handbücher und mehr" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def odd(quickstart: Run, documents: Path, tmp_path_factory: pytest.TempPathFactory) -> CompletedProcess[str]:
    """A run over a folder as users have them."""
    folder = tmp_path_factory.mktemp("odd") / "Meine Prüfberichte [alt]"
    folder.mkdir()
    shutil.copy(documents / "lease-contract.pdf", folder / "Mietvertrag Brösevik (Kopie).PDF")
    shutil.copy(documents / "ardelune-m30.pdf", folder / "[red]M30[bold] 50%.pdf")
    shutil.copy(documents / "halvorn-x900.pdf", folder / "secret.pdf")
    (folder / "empty.pdf").write_bytes(b"")
    (folder / "letter.pdf").write_text("not a PDF at all")
    (folder / "notes.txt").write_text("not asked for")
    (folder / "folder.pdf").mkdir()
    if sys.platform == "linux":
        shutil.copy(documents / "scanned-note.pdf", os.fsencode(folder) + b"/L\xfcfter.pdf")
    writer = PdfWriter(clone_from=PdfReader(documents / "firmware-notes.pdf"))
    writer.encrypt("", "owner", algorithm="AES-256")
    writer.write(folder / "no-printing.pdf")
    return quickstart(folder)


def test_a_users_own_folder_runs_to_the_end(odd: CompletedProcess[str]) -> None:
    """Foreign files are the tables' affair, not the run's."""
    assert (odd.returncode, odd.stderr) == (0, "")
    assert "PDF files in" in odd.stdout
    assert "notes.txt" not in odd.stdout
    assert "folder.pdf" not in odd.stdout


def test_names_are_shown_as_they_are(odd: CompletedProcess[str]) -> None:
    """Umlauts, blanks, capitals and square brackets come through."""
    assert "✓ Mietvertrag Brösevik (Kopie).PDF: search_indexing completed" in odd.stdout
    assert "✓ [red]M30[bold] 50%.pdf: search_indexing completed" in odd.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode there")
def test_a_name_that_is_no_unicode_is_read_all_the_same(odd: CompletedProcess[str]) -> None:
    """An old archive's file name is shown with a question mark, and the file is processed."""
    assert "✓ L?fter.pdf: image_processing completed" in odd.stdout


def test_each_useless_file_says_what_is_wrong_with_it(odd: CompletedProcess[str]) -> None:
    """Empty is told from foreign."""
    assert "✗ empty.pdf: upload: The file is empty" in odd.stdout
    assert "✗ letter.pdf: upload: Not a PDF file" in odd.stdout


def test_a_file_that_only_forbids_printing_needs_no_password(odd: CompletedProcess[str]) -> None:
    """Encrypted with an empty password is open to read."""
    assert "✓ no-printing.pdf: search_indexing completed" in odd.stdout


def test_a_locked_file_without_known_password_says_how_to_give_it(odd: CompletedProcess[str]) -> None:
    """The way out is an option that exists."""
    assert "To read it: ./dev demo FOLDER --password TEXT" in odd.stdout
    assert "✗ secret.pdf: text_extraction: Encrypted: a password is needed to open it" in odd.stdout


def test_unknown_files_are_searched_for_a_word_of_theirs(odd: CompletedProcess[str]) -> None:
    """The search at the end has hits in files that nobody here has read."""
    found = odd.stdout.partition("Full-text search:")[2]
    assert "1. " in found
    assert "Nothing found" not in found


def test_password_and_search_words_can_be_given(quickstart: Run, documents: Path, tmp_path: Path) -> None:
    """--password opens the file in the retry, --search asks for one's own words."""
    shutil.copy(documents / "halvorn-x900.pdf", tmp_path / "geheim.pdf")
    result = quickstart(tmp_path, "--password", "spare-parts", "--search", "pump")
    assert (result.returncode, result.stderr) == (0, "")
    assert "✓ geheim.pdf: search_indexing completed" in result.stdout
    assert "Full-text search: pump" in result.stdout
    assert "«pump»" in result.stdout


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(documents: Path, tmp_path: Path, kind: signal.Signals) -> None:
    """Ctrl-C in the middle of the work ends with one sentence, no traceback, no process and no folder."""
    script = documents.parent / "quickstart.py"
    with subprocess.Popen(
        [sys.executable, "-u", script],
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if "upload completed" in line:
                break
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(kind)
        rest, errors = process.stdout.read(), process.stderr.read()
        assert process.wait(30) == 130
    assert "Stopped." in rest
    assert errors == ""
    assert children
    assert psutil.wait_procs(children, timeout=30)[1] == []
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("quickstart-")] == []
