"""Ends servers and removes their folders when the process that owns them is gone.

Runs as a script in a process and session of its own, without the package and without site-packages, so that
it starts in milliseconds and outlives a Ctrl-C. It gets one JSON object a line on standard input:

    {"add": PID, "signal": NUMBER}    a server to end, and the signal that ends it in an orderly way
    {"remove": PID}                   that server has ended
    {"folder": PATH}                  a folder to remove once the servers are gone

    {"end": true}                     the owner is done: clean up now

The end of the owner is the same order. The end of the input would not do: children that the owner forks hold a
copy of the pipe. So on Linux the owner is watched by a pidfd; elsewhere the end of the input has to serve.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import sys
import time

GRACE_SECONDS = 10.0


def _open(pid: int) -> int | None:
    """A pidfd stays with its process, where a pid may be given to another one."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _is_alive(pid: int, fd: int | None) -> bool:
    if fd is not None:
        return not select.select([fd], [], [], 0)[0]
    if hasattr(os, "pidfd_open"):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _send(pid: int, fd: int | None, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        if fd is not None:
            signal.pidfd_send_signal(fd, number)
        else:
            os.kill(pid, number)


class Ward:
    """What has to be cleaned up."""

    def __init__(self) -> None:
        self.servers: dict[int, tuple[int | None, int]] = {}
        self.folders: list[str] = []
        self.is_over = False

    def obey(self, line: bytes) -> None:
        order = json.loads(line)
        if "add" in order:
            self.servers[order["add"]] = (_open(order["add"]), order["signal"])
        elif "remove" in order:
            fd, _ = self.servers.pop(order["remove"], (None, 0))
            if fd is not None:
                os.close(fd)
        elif "folder" in order:
            self.folders.append(order["folder"])
        elif "end" in order:
            self.is_over = True

    def clean_up(self) -> None:
        alive = {pid: entry for pid, entry in self.servers.items() if _is_alive(pid, entry[0])}
        for pid, (fd, number) in alive.items():
            _send(pid, fd, number)
        deadline = time.monotonic() + GRACE_SECONDS
        while alive and time.monotonic() < deadline:
            alive = {pid: entry for pid, entry in alive.items() if _is_alive(pid, entry[0])}
            time.sleep(0.01)
        for pid, (fd, _) in alive.items():
            _send(pid, fd, signal.SIGKILL)
        for folder in self.folders:
            shutil.rmtree(folder)


def main(owner: int) -> None:
    ward = Ward()
    watched = [0]
    owner_fd = _open(owner)
    if owner_fd is not None:
        watched.append(owner_fd)
    ward.is_over = os.getppid() != owner
    buffer = b""
    while not ward.is_over:
        readable, _, _ = select.select(watched, [], [])
        if 0 in readable:
            chunk = os.read(0, 65536)
            ward.is_over = not chunk
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                ward.obey(line)
        elif owner_fd in readable:
            ward.is_over = True
    ward.clean_up()


if __name__ == "__main__":
    main(int(sys.argv[1]))
