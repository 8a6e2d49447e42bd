"""Makes worker processes by fork: to import what a worker needs takes a second, to fork milliseconds.

Runs as a program with one thread and nothing open, so that a fork of it is a clean beginning. One line in, one line
out: ``spawn SLOT INCARNATION`` answers the pid, ``signal PID NUMBER`` answers ``ok``, or ``gone STATUS`` where that
process has ended by itself, ``end`` answers ``[[pid, status], ...]`` when all have ended after SIGTERM. The end of the
input ends all.

Signals go through here because a child that has not been waited for keeps its pid: none can hit a stranger.
"""

import contextlib
import gc
import json
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import supabase

from processors_v2._transport.http import certificates
from proof._chaos import worker

_FAILED = 1
_END_SECONDS = 30.0
_LOOK_SECONDS = 0.01


class Zygote:
    """The parent of the workers."""

    def __init__(self, orders: worker.Orders) -> None:
        self._orders = orders
        self._children: set[int] = set()

    def spawn(self, slot: str, incarnation: str) -> str:
        """Fork a worker."""
        pid = os.fork()
        if pid == 0:
            self._be_worker(int(slot), int(incarnation))
        self._children.add(pid)
        return str(pid)

    def _be_worker(self, slot: int, incarnation: int) -> None:
        code = _FAILED
        try:
            os.close(0)
            worker.main(self._orders, slot, incarnation)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else _FAILED
        except BaseException:  # noqa: BLE001 - the process ends here, and its parent reads the exit code
            traceback.print_exc()
        finally:
            os._exit(code)

    def signal(self, pid: str, number: str) -> str:
        """Send a signal to a worker; wait for its end after SIGKILL."""
        child = int(pid)
        if child not in self._children:
            return "gone before"
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            self._children.discard(child)
            return f"gone {status}"
        os.kill(child, int(number))
        if int(number) == signal.SIGKILL:
            os.waitpid(child, 0)
            self._children.discard(child)
        return "ok"

    def end(self) -> str:
        """Let the workers end; those that do not are killed."""
        for child in self._children:
            os.kill(child, signal.SIGTERM)
        deadline = time.monotonic() + _END_SECONDS
        ends = []
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                self._children.discard(pid)
                ends.append((pid, status))
            elif time.monotonic() > deadline:
                self.kill()
                deadline += _END_SECONDS
            else:
                time.sleep(_LOOK_SECONDS)
        return json.dumps(ends)

    def kill(self) -> None:
        """End the workers."""
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def main() -> None:
    """Serve; the first line holds what the workers need to know."""
    # What fails on purpose is in the journals.
    logging.disable()
    given = json.loads(sys.stdin.readline())
    client = supabase.create_client(given.pop("url"), given.pop("key"))
    # Both take long, and serve all children.
    certificates()
    assert client.postgrest
    zygote = Zygote(worker.Orders(client=client, folder=Path(given.pop("folder")), **given))
    gc.freeze()
    try:
        for line in iter(sys.stdin.readline, ""):
            order, *arguments = line.split()
            sys.stdout.write(f"{getattr(zygote, order)(*arguments)}\n")
            sys.stdout.flush()
            if order == "end":
                return
    finally:
        zygote.kill()


if __name__ == "__main__":
    main()
