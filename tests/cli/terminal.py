"""The command as a program of its own, on a terminal or a pipe."""

import errno
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from typing import Self

SECONDS = 30.0
CTRL_C = "\x03"


class Terminal:
    """A program on a terminal of its own, for a ``with`` block, which ends it.

    Args:
        arguments: Of stage-tracker.
        columns: Width of the terminal.
        lines: Its height.
        env: Further variables.
    """

    def __init__(
        self, *arguments: object, columns: int = 80, lines: int = 40, env: Mapping[str, str] | None = None
    ) -> None:
        self.printed = ""
        self._end, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        # A session of its own makes the terminal the one that its Ctrl-C comes from.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *map(str, arguments)],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env={**os.environ, "TERM": "xterm-256color", **(env or {})},
            start_new_session=True,
        )
        os.close(inner)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._end)

    def type(self, keys: str) -> None:
        """Type keys, such as CTRL_C."""
        os.write(self._end, keys.encode())

    def wait_for(self, text: str) -> None:
        """Read until the program has printed a text since it was last waited for."""
        begin = len(self.plain)
        self._read(lambda: text in self.plain[begin:], text)

    def end(self) -> int:
        """Read until the program has ended, and return its exit code."""
        self._read(lambda: False, None)
        return self._process.wait(SECONDS)

    @property
    def plain(self) -> str:
        """What was printed so far, without colours and movements."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.printed).replace("\r", "")

    def _read(self, is_done: object, wanted: str | None) -> None:
        deadline = time.monotonic() + SECONDS
        while not is_done():  # type: ignore[operator]
            if not select.select([self._end], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise AssertionError(f"waited for {wanted!r}, and this was printed: {self.plain!r}")
            try:
                read = os.read(self._end, 65536)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                read = b""
            if not read:
                assert wanted is None, f"ended without {wanted!r}: {self.plain!r}"
                return
            self.printed += read.decode(errors="replace")


# The terminal becomes that of the session, as a shell does it.
_PROGRAM = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from processors_v2.cli import main
sys.exit(main())
"""
