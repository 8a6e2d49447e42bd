"""The script dev: how it runs programs and reads its command line."""

import importlib.machinery
import importlib.util
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]

# Runs a program through dev.run, as ./dev test does; the program says when it is there and how it ends.
THROUGH_DEV = """
import importlib.machinery, importlib.util, signal, sys
loader = importlib.machinery.SourceFileLoader("dev", sys.argv[1])
dev = importlib.util.module_from_spec(importlib.util.spec_from_loader("dev", loader))
loader.exec_module(dev)
signal.signal(signal.SIGTERM, dev.on_terminate)
sys.exit(dev.run([sys.executable, "-c", sys.argv[2]]))
"""
WAITING = """
import os, time
try:
    print(os.getpid(), flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("cleaned up", flush=True)
"""


@pytest.fixture
def dev(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = importlib.machinery.SourceFileLoader("dev", str(ROOT / "dev"))
    spec = importlib.util.spec_from_loader("dev", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("number", "everywhere", "code"),
    [(signal.SIGINT, True, 130), (signal.SIGINT, False, 130), (signal.SIGTERM, False, 143)],
)
def test_an_interrupt_ends_the_program_and_then_dev(number: signal.Signals, *, everywhere: bool, code: int) -> None:
    """Whether the whole terminal is interrupted or only dev: the program cleans up once, dev exits with 130 or 143."""
    process = subprocess.Popen(
        [sys.executable, "-c", THROUGH_DEV, str(ROOT / "dev"), WAITING],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        program = os.pidfd_open(int(process.stdout.readline()))
        if everywhere:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.wait(30) == code
        assert select.select([program], [], [], 0)[0], "the program still runs"
        assert process.stdout.read() == "cleaned up\n"
        os.close(program)


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_of_the_program_is_passed_on(dev: ModuleType, code: int) -> None:
    """What fails inside fails outside."""
    assert dev.run([sys.executable, "-c", f"raise SystemExit({code})"]) == code


def test_arguments_for_pytest_are_passed_on_as_they_are(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options of pytest that look like options of dev are not taken for these."""
    monkeypatch.setattr(sys, "argv", ["dev", "test", "-k", "name", "--json", "x", "-h"])
    assert dev.read_arguments() == (dev.test, ["-k", "name", "--json", "x", "-h"])


@pytest.mark.parametrize(("command", "package"), [("bench", "benchmarks"), ("proof", "proof")])
def test_bench_and_proof_take_the_same_options(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, package: str
) -> None:
    """Each passes them on to the modules of its own folder; a file is meant from where the user is."""
    ran: list[list[str]] = []
    monkeypatch.setattr(dev, "run", lambda command, **_: ran.append([str(part) for part in command]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["dev", command, "chaos", "--quick", "--only", "one,two", "--json", "figures"])
    work, options = dev.read_arguments()
    work(options)
    expected = ["-m", package, "chaos", "--quick", "--only", "one,two", "--json", str(tmp_path / "figures")]
    assert [command[1:] for command in ran] == [expected]


def test_without_a_command_dev_says_what_there_is(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The help names the four commands, and nothing is installed for it."""
    monkeypatch.setattr(sys, "argv", ["dev"])
    with pytest.raises(SystemExit) as caught:
        dev.read_arguments()
    assert caught.value.code == 2
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("demo", "test", "bench", "proof"))


def test_an_old_python_is_turned_away_with_a_sentence(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the version that is needed and the one that is there."""
    monkeypatch.setattr(dev, "MINIMUM", (99, 0))
    with pytest.raises(SystemExit, match=r"needs Python 99\.0 or newer; .* is 3\."):
        dev.main()


def test_a_failed_check_names_itself_and_the_others_still_run(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run shows all that fails; the exit code is that of the first failure."""
    monkeypatch.setattr(dev, "PYTHON", sys.executable)
    monkeypatch.setattr(
        dev, "CHECKS", [(f"check {code}", ["-c", f"raise SystemExit({code})"]) for code in (0, 4, 0, 5)]
    )
    assert dev.test([]) == 4
    printed = capsys.readouterr().err
    assert "FAILED: check 4 (exit code 4)" in printed
    assert "FAILED: check 5 (exit code 5)" in printed
    assert "FAILED: check 0" not in printed


def test_another_pyproject_or_another_place_is_another_state(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A clone that was moved, or whose dependencies changed, installs again; otherwise nothing is done."""
    (tmp_path / "pyproject.toml").write_text("one")
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    before = dev.wanted_state()
    assert dev.wanted_state() == before
    (tmp_path / "pyproject.toml").write_text("two")
    assert dev.wanted_state()[:-1] == before[:-1]
    assert dev.wanted_state() != before
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "pyproject.toml").write_text("one")
    monkeypatch.setattr(dev, "ROOT", tmp_path / "moved")
    assert dev.wanted_state()[0] != before[0]


def test_a_peer_that_cannot_be_installed_is_left_out_and_tried_again(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are installed, dev goes on, and once all are there nothing is installed any more."""
    (tmp_path / "pyproject.toml").write_text('[project.optional-dependencies]\nbench = ["one", "two>=2"]\n')
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    monkeypatch.setattr(dev, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(dev, "BENCH_STAMP", tmp_path / "stamp")
    tried: list[str] = []
    broken = {"one"}

    def try_pip(package: str) -> int:
        tried.append(package)
        return int(package in broken)

    monkeypatch.setattr(dev, "try_pip", try_pip)
    dev.install_peers()
    assert "left out, because pip could not install them: one" in capsys.readouterr().err
    broken.clear()
    dev.install_peers()
    dev.install_peers()
    assert tried == ["one", "two>=2"] * 2
