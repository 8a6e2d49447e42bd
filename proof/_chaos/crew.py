"""The workers, as the campaign sees them."""

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from proof._chaos.size import Size


@dataclass
class Life:
    """One worker process, from its fork to its end.

    Attributes:
        slot: place in the crew.
        incarnation: number in that place.
        pid: process id.
        killed_at: when it was killed, in seconds since 1970, the moment before; None: it was not.
        stops: from when to when it was stopped.
    """

    slot: int
    incarnation: int
    pid: int = 0
    killed_at: float | None = None
    stops: list[tuple[float, float]] = field(default_factory=list)
    is_stopped: bool = False

    @property
    def name(self) -> str:
        """Of its journal."""
        return f"{self.slot}-{self.incarnation}"


class Crew:
    """So many workers at a time.

    Args:
        size: how many, and their lease.
        url: of the proxy.
        key: for the client.
        folder: for the journals.
        seed: of the draws.

    Attributes:
        lives: all processes that there have been.
        troubles: workers that ended by themselves.
    """

    def __init__(self, size: Size, *, url: str, key: str, folder: Path, seed: int) -> None:
        self.lives: list[Life] = []
        self.troubles: list[str] = []
        self._lock = threading.Lock()
        self._now: dict[int, Life] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "proof._chaos.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
        orders = {"url": url, "key": key, "folder": str(folder), "seed": seed}
        self._write(json.dumps({**orders, "lease_seconds": size.lease_seconds, "plain": size.plain}))
        for slot in range(size.workers):
            self._spawn(slot, 0)

    def present(self) -> list[int]:
        """Slots whose workers are not stopped."""
        with self._lock:
            return [slot for slot, life in self._now.items() if not life.is_stopped]

    def replace(self, slot: int) -> None:
        """Kill a worker, and put another in its place."""
        with self._lock:
            life = self._now[slot]
            life.killed_at = time.time()
            self._signal(life, signal.SIGKILL)
            self._spawn(slot, life.incarnation + 1)

    def stop(self, slot: int, seconds: float) -> None:
        """Stop a worker for so long; returns at once."""
        with self._lock:
            life = self._now[slot]
            life.is_stopped = True
            began = time.time()
            self._signal(life, signal.SIGSTOP)
        timer = threading.Timer(seconds, self._resume, (life, began))
        timer.daemon = True
        timer.start()

    def _resume(self, life: Life, began: float) -> None:
        with self._lock:
            if life.is_stopped:
                self._signal(life, signal.SIGCONT)
                life.is_stopped = False
                life.stops.append((began, time.time()))

    def end(self) -> None:
        """Let all workers end, and look how they did."""
        while len(self.present()) < len(self._now):
            time.sleep(0.05)
        with self._lock:
            ends = json.loads(self._ask("end"))
            names = {life.pid: life.name for life in self._now.values()}
            self.troubles += [f"worker {names[pid]} ended with status {status}" for pid, status in ends if status != 0]

    def close(self) -> None:
        """End whatever still runs."""
        self._process.communicate()

    def _spawn(self, slot: int, incarnation: int) -> None:
        life = Life(slot, incarnation)
        life.pid = int(self._ask(f"spawn {slot} {incarnation}"))
        self._now[slot] = life
        self.lives.append(life)

    def _signal(self, life: Life, number: signal.Signals) -> None:
        answer = self._ask(f"signal {life.pid} {int(number)}")
        if answer != "ok":
            self.troubles.append(f"worker {life.name} ended by itself: {answer}")

    def _ask(self, line: str) -> str:
        self._write(line)
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        if not answer:
            raise RuntimeError("the process that makes the workers has ended")
        return answer

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
