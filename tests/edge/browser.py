"""A headless Chromium, and where it comes from."""

import os
import shutil
import subprocess

import pytest

INSTALL_SECONDS = 300
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
    if found := _on_path():
        return found
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("there is no Chromium, and only root can install one by apt-get: apt-get install chromium")
    said = ""
    for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        done = subprocess.run(
            ["apt-get", "-qq", *command],
            env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
        said = done.stderr.strip() or said
    found = _on_path()
    if found is None:
        pytest.skip(f"there is no Chromium, and apt-get cannot install it: {said[-200:]}")
    return found


def _on_path() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((found for name in names if (found := shutil.which(name))), None)
