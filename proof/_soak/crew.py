"""The worker processes of a soak, as the campaign sees them."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import psutil

from processors_v2.local import LocalSupabase
from proof._soak.size import Size

_END_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Done:
    """What a worker did, as it says itself.

    Attributes:
        name: of the worker.
        counts: of runs, by what became of them.
        complaints: warnings and errors in its log that nothing was on purpose for.
        lines: the first of these, or what it died of.
    """

    name: str
    counts: dict[str, int]
    complaints: int
    lines: list[str]


class Crew:
    """The workers.

    Args:
        size: how many.
        stack: for which they work; every other one through PostgREST.
    """

    def __init__(self, size: Size, stack: LocalSupabase) -> None:
        self._processes: dict[str, subprocess.Popen[str]] = {}
        for number in range(size.workers):
            lane = ("direct", "postgrest")[number % 2]
            url = stack.database_url if lane == "direct" else stack.url
            name = f"{lane} {number // 2 + 1}"
            process = subprocess.Popen(
                [sys.executable, "-m", "proof._soak.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[2],
            )
            self._processes[name] = process
            # Not among the arguments, which are there for all to read.
            self._tell(process, json.dumps({"name": name, "lane": lane, "url": url, "key": stack.key()}))

    @staticmethod
    def _tell(process: "subprocess.Popen[str]", line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(f"{line}\n")
        process.stdin.flush()

    def memory(self) -> dict[str, int]:
        """Return the resident bytes of each worker that lives."""
        found = {}
        for name, process in self._processes.items():
            if process.poll() is None:
                found[name] = int(psutil.Process(process.pid).memory_info().rss)
        return found

    def end(self) -> list[Done]:
        """Let all workers end, and return what they did."""
        for process in self._processes.values():
            assert process.stdin is not None
            process.stdin.close()
            # communicate() would flush it.
            process.stdin = None
        return [self._ended(name, process) for name, process in self._processes.items()]

    @staticmethod
    def _ended(name: str, process: "subprocess.Popen[str]") -> Done:
        try:
            output, errors = process.communicate(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            errors += f"\nit did not end within {_END_SECONDS:.0f} s"
        if process.returncode != 0:
            return Done(name, {}, 1, [f"exit code {process.returncode}", *errors.splitlines()[-5:]])
        return Done(name, **json.loads(output))

    def close(self) -> None:
        """End whatever still runs."""
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
                process.communicate()
