"""Child processes that end with their owner, and the user that Postgres runs as."""

import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_POLL_SECONDS = 0.01


class LocalStackError(RuntimeError):
    """The embedded stack cannot do what was asked; the message says what to do."""


@dataclass(frozen=True)
class RunAs:
    """An account other than the current one, for programs that refuse to run as root."""

    name: str
    uid: int
    gid: int

    def can(self, *test: str) -> bool:
        """Whether a program ends well as that account; asking the kernel beats computing with mode bits."""
        try:
            return subprocess.run(test, check=False, cwd="/", capture_output=True, **spawn_as(self)).returncode == 0
        except PermissionError:
            return False


def unprivileged_account() -> RunAs | None:
    """The account that Postgres has to run as: None is the current one, which serves unless it is root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return RunAs(name, entry.pw_uid, entry.pw_gid)
    raise LocalStackError(
        "Postgres refuses to run as root, and there is neither a user 'postgres' nor 'nobody' to run it as. "
        "Create one (useradd --system postgres) or run this as an ordinary user."
    )


def spawn_as(account: RunAs | None) -> dict[str, Any]:
    """Arguments for subprocess that switch to an account."""
    return {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": []}


def clean_environment() -> dict[str, str]:
    """The environment without PG* and PGRST_*, which would redirect psql and PostgREST without a word."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PG", "PGRST_"))}


def private_folder(account: RunAs | None) -> Path:
    """Make a temporary folder that the account owns and can reach (TMPDIR may lie where it cannot)."""
    candidates = dict.fromkeys([tempfile.gettempdir(), "/var/tmp", "/tmp"])  # noqa: S108 (fallbacks, used by mkdtemp)
    for parent in candidates:
        if not Path(parent).is_dir() or not os.access(parent, os.W_OK):
            continue
        folder = Path(tempfile.mkdtemp(prefix="stage-tracker-", dir=parent))
        if account is None:
            return folder
        os.chown(folder, account.uid, account.gid)
        if account.can("test", "-w", str(folder)):
            return folder
        folder.rmdir()
    raise LocalStackError(
        f"No temporary folder that the user {account.name if account else 'running this'} can write in "
        f"(tried {', '.join(candidates)}). Set TMPDIR to one, or pass data_dir=."
    )


def free_port() -> int:
    """A loopback port that was free a moment ago: whoever binds it must be ready to try another."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Look at a condition every few milliseconds; False when it did not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


class Watchdog:
    """Sidecar process that cleans up at the end, also when this process is killed before it can say so."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("watchdog.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def tell(self, **order: object) -> None:
        """Give an order (see watchdog.py). A watchdog that somebody killed is no reason to fail."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(order).encode() + b"\n")
                self._process.stdin.flush()

    def close(self) -> None:
        """Let it end what still runs and remove the folders, and wait until it has done so.

        Raises:
            LocalStackError: it could not; its own words are on standard error.
        """
        self.tell(end=True)
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        if (code := self._process.wait()) != 0:
            raise LocalStackError(f"The clean-up ended with exit code {code}: temporary folders may be left.")


class Server:
    """One server process with its log file.

    It gets a session of its own: a Ctrl-C in the terminal must reach the program, which may still want to
    write down that it was interrupted, and not the database under it.
    """

    def __init__(self, name: str, log: Path, watchdog: Watchdog, end_signal: signal.Signals) -> None:
        self.name = name
        self.log = log
        self._watchdog = watchdog
        self._end_signal = end_signal
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._process is None:
            raise LocalStackError(f"{self.name} is not running.")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(
        self, command: Sequence[str | Path], env: Mapping[str, str], cwd: Path, account: RunAs | None = None
    ) -> None:
        """Start the process, its output going to the end of the log file."""
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                start_new_session=True,
                **spawn_as(account),
            )
        self._watchdog.tell(add=self._process.pid, signal=int(self._end_signal))

    def stop(self, *signals: tuple[signal.Signals, float]) -> None:
        """Send each signal in turn, waiting the given seconds for the end, and SIGKILL at last."""
        process = self._process
        if process is None:
            return
        for number, seconds in (*signals, (signal.SIGKILL, None)):
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
                break
        self._watchdog.tell(remove=process.pid)
        self._process = None

    def output(self) -> str:
        """What the server wrote since it was started last."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace").strip()
