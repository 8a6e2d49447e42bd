"""What a person sees on a terminal, and a program in a pipe."""

import json
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from terminal import CTRL_C, Terminal

from processors_v2._cli.questions_live import screen
from processors_v2.stage_tracker import StageTracker

pytestmark = pytest.mark.usefixtures("direct", "scene")


@pytest.fixture(scope="module")
def scene(db: Any, tracker: StageTracker) -> dict[str, str]:
    """A running, a stalled and a failed document, with long names."""
    made = {name: db.document(f"{name} service manual of a long name.pdf") for name in ("running", "stalled", "failed")}
    for document in made.values():
        tracker.complete_stage(document, "upload")
    tracker.start_stage(made["running"], "text_extraction", claim_id=uuid.uuid4(), worker="gpu-1")
    tracker.update_progress(made["running"], "text_extraction", 50)
    tracker.start_stage(made["stalled"], "metadata_extraction", claim_id=uuid.uuid4(), lease_seconds=0.001)
    tracker.fail_stage(made["failed"], "text_extraction", "a damaged page " * 20)
    return made


def shown(done: Any) -> str:
    """What a person sees of it."""
    assert done.code == 0, done.err
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", done.out + done.err)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", ["stats", "watch --once", "timeline {failed}", "status {failed}", "ls", "forecast"])
def test_nothing_is_wider_than_the_terminal(seen: Any, scene: dict[str, str], columns: int, command: str) -> None:
    """Tables, bars and charts fit on 80 and on 120 columns, and no status, stage, number or id is cut."""
    printed = shown(seen(columns, *command.format(**scene).split()))
    assert max(len(line.rstrip()) for line in printed.splitlines()) <= columns
    assert not re.search(r"_extr\w*…|proces\w*…|\d…|\b[0-9a-f]{8}-[0-9a-f-]*…", printed)


def test_stats_are_one_table_where_there_is_room(seen: Any) -> None:
    """One row for each stage on 120 columns; on 80 two, each with the name of the stage."""
    assert len(re.findall("^search_indexing", shown(seen(120, "stats")), re.MULTILINE)) == 1
    assert len(re.findall("^search_indexing", shown(seen(80, "stats")), re.MULTILINE)) == 2


def test_a_terminal_has_colours_unless_they_are_not_wanted(seen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR takes the colours away, and the shapes still tell a failed stage."""
    assert "\x1b[1;31m✗ failed" in seen(80, "ls", "--status", "failed").out
    monkeypatch.setenv("NO_COLOR", "1")
    plain = seen(80, "ls", "--status", "failed").out
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", plain)
    assert "✗ failed" in plain


def test_a_pipe_gets_plain_lines_that_are_not_cut(run: Any, scene: dict[str, str]) -> None:
    """No colours, no rules, one line for each document, with the whole error."""
    for command in (["stats"], ["ls"], ["watch", "--once"], ["timeline", scene["failed"]], ["status", scene["failed"]]):
        done = run(*command)
        assert "\x1b" not in done.out + done.err
        assert "─" not in done.out
        assert all(line == line.rstrip() for line in done.out.splitlines())
    (line,) = [one for one in run("ls", "--status", "failed").out.splitlines() if scene["failed"] in one]
    assert line.endswith(("a damaged page " * 20)[:-1])


def test_a_terminal_that_knows_ascii_only_gets_ascii(
    seen: Any, scene: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Charts, bars and signs have a form without Unicode, and a letter that cannot be shown is a question mark."""
    printed = ""
    for command in (["timeline", scene["failed"]], ["watch", "--once"], ["ls", "--status", "failed"], ["stats"]):
        with open(1, "w", encoding="ascii", closefd=False) as stream:
            monkeypatch.setattr("sys.stdout", stream)
            printed += shown(seen(80, *command))
    assert printed.isascii()
    for sign in ("x failure", "x failed", "#####-----"):
        assert sign in printed


def test_what_is_not_listed_is_told(run: Any) -> None:
    """A list that is cut off says so on standard error, and how to see all of it."""
    cut, whole = run("ls", "--limit", "1"), run("ls", "--limit", "0")
    assert len(cut.out.splitlines()) == 2
    assert cut.err == "The newest 1 are listed; --limit 0 lists all.\n"
    assert len(whole.out.splitlines()) > 3
    assert whole.err == ""


def test_a_name_cannot_steer_the_terminal(run: Any, seen: Any, db: Any, tracker: StageTracker) -> None:
    """Control characters in names and errors are blanks, and what looks like markup is text."""
    document = db.document("\x1b[2J[bold]\x07:smile:\nmanual.pdf")
    tracker.fail_stage(document, "upload", "gone\x1b]0;title\x07")
    for command in (["ls", "--status", "failed"], ["timeline", document], ["status", document]):
        printed = run(*command).out + seen(160, *command).out
        assert not re.search(r"\x1b\[2J|\x1b\]|\x07", printed)
    assert "[bold] :smile: manual.pdf" in printed + seen(160, "ls", "--status", "failed").out
    tracker.cancel_document(document)


@pytest.mark.parametrize(("key", "code", "status"), [("n", 1, "failed"), ("y", 0, "pending")])
def test_a_bulk_change_is_asked_for_with_its_count(
    db: Any, tracker: StageTracker, key: str, code: int, status: str
) -> None:
    """On a terminal retry says how many there are, and does nothing unless the answer is yes."""
    made = [db.document() for _ in range(3)]
    for document in made:
        tracker.fail_stage(document, "upload", f"only {key} of these")
    with Terminal("retry", "--error", f"only {key}") as terminal:
        terminal.wait_for("Retry 3 stages? [y/N]")
        terminal.type(f"{key}\n")
        assert terminal.end() == code
    assert {db.stage(document, "upload")["status"] for document in made} == {status}


def test_watch_is_live_and_ends_on_ctrl_c(db: Any, tracker: StageTracker) -> None:
    """The bars follow what happens; Ctrl-C is how it ends, and no error."""
    document = db.document("live.pdf")
    with Terminal("watch", "--every", "0.1") as terminal:
        terminal.wait_for("at work by")
        claim = uuid.uuid4()
        tracker.start_stage(document, "upload", claim_id=claim)
        terminal.wait_for("live.pdf")
        tracker.update_progress(document, "upload", 73, claim_id=claim)
        terminal.wait_for("73 %")
        tracker.complete_stage(document, "upload", claim_id=claim)
        terminal.type(CTRL_C)
        assert terminal.end() == 0
    assert "Traceback" not in terminal.plain
    # The cursor is there again.
    assert terminal.printed.rindex("\x1b[?25h") > terminal.printed.rindex("\x1b[?25l")


@pytest.mark.parametrize("lines", [24, 40])
def test_the_live_picture_is_no_higher_than_the_screen(tracker: StageTracker, lines: int) -> None:
    """Bars that have no room are counted, and the stages under them stay in sight."""
    running = tracker.get_running_stages()
    console = Console(width=80, height=lines, force_terminal=True)
    picture = screen(console, running * 50, tracker.get_statistics(), lines=lines)
    printed = ["".join(part.text for part in line).rstrip() for line in console.render_lines(picture)]
    assert len(printed) <= lines
    (rest,) = [line for line in printed if re.fullmatch(r"and \d+ more", line)]
    assert int(rest.split()[1]) + sum(" %" in line for line in printed) == len(running) * 50
    assert printed[-1].startswith("search_indexing")


def test_watch_in_a_pipe_prints_a_line_for_each_change(db: Any, tracker: StageTracker) -> None:
    """What began, went on and ended is a line, and what did not change is none."""
    document, claim = db.document(), uuid.uuid4()
    tracker.start_stage(document, "upload", claim_id=claim, worker="gpu-7")
    program = [sys.executable, "-m", "processors_v2", "watch", "--every", "0.1"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        mine = lines_about(document, process.stdout.readline)
        assert next(mine).endswith(f"{document} upload 0 % working by gpu-7")
        tracker.update_progress(document, "upload", 40, claim_id=claim)
        assert next(mine).endswith("upload 40 % working by gpu-7")
        tracker.complete_stage(document, "upload", claim_id=claim)
        assert next(mine).endswith("upload is not at work any more")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


def lines_about(document: str, read: Callable[[], str]) -> Any:
    """The lines that name a document."""
    return (line.rstrip() for line in iter(read, "") if document in line)


def test_json_on_a_terminal_is_json(seen: Any) -> None:
    """Colours and widths are for people only."""
    assert json.loads(seen(40, "stats", "--json").out)["storage"]["failed"] == 0
