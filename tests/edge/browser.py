"""A headless Chromium, and where it comes from."""

import os
import shutil
import subprocess

import pytest

# For each of the three tries.
INSTALL_SECONDS = 150
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str:
    """The browser of the machine, from Debian where it is missing and may be installed; else the test is skipped."""
    found, said = _on_path(), ""
    if found is None and (os.geteuid() != 0 or shutil.which("apt-get") is None):
        pytest.skip("there is no Chromium, and only root can install one: apt-get install chromium")
    install = ["install", "--yes", "--no-install-recommends", "chromium"]
    # Lists of packages are there as a rule, and take longer than the package.
    for command in (install, ["update"], install):
        if found is None:
            said = _apt_get(*command)
            found = _on_path()
    if found is None:
        pytest.skip(f"there is no Chromium, and apt-get cannot install it: {said[-200:]}")
    return found


def _apt_get(*command: str) -> str:
    done = subprocess.run(
        ["apt-get", "-qq", "-o", f"DPkg::Lock::Timeout={INSTALL_SECONDS}", *command],
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        check=False,
    )
    return done.stderr.strip()


def _on_path() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((found for name in names if (found := shutil.which(name))), None)
