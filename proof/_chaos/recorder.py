"""What a worker asked of the database and what it was answered, written down.

Each event is one line of JSON, appended by one write: what a process has written stays when it is killed. It is what
the judge holds against the rows of the database; nothing in it comes from the code that is judged but calls and
answers as they were.
"""

import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from processors_v2._calls.call import Call
from processors_v2._errors import StageTrackerError

_OPENS = {"claim_stages": "claim", "start_stage": "start"}
_ENDS = {
    "complete_stage": "completed",
    "fail_stage": "failed",
    "skip_stage": "skipped",
    "update_stage_progress": "progress",
}
_MANY = {"finish_stages": "p_outcomes", "release_stages": "p_runs"}


class Journal:
    """A file of events, one process writing."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, event: str, **values: object) -> None:
        """Append an event with the time of now."""
        line = json.dumps({"event": event, "at": time.time(), **values}, separators=(",", ":"))
        os.write(self._file, line.encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class Recorder:
    """A transport that writes down what passes through it.

    Events: ``claim`` or ``start`` (asked) and ``opened``; ``end`` (asked; all outcomes, releases and progress included)
    and ``ended``; ``beat`` (asked) and ``beaten``; ``error`` for what was not answered, or by an error. What was asked
    several times, as whoever calls may do after an error, has the time of the first in ``since``.
    """

    def __init__(self, inner: Any, journal: Journal) -> None:
        self._inner = inner
        self._journal = journal
        self._first: dict[str, float] = {}
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def send(self, call: Call[Any], **options: Any) -> Any:
        """Send a call, and write down what was asked and answered."""
        name = call.path.partition("?")[0].removeprefix("rpc/")
        arguments = call.arguments or {}
        asked = _asked(name, arguments)
        since = time.time()
        if asked is not None:
            since = self._since(asked, since)
            self._journal.write(asked.pop("event"), **asked, since=since)
        try:
            answer = self._inner.send(call, **options)
        except StageTrackerError as error:
            self._journal.write("error", call=name, kind=type(error).__name__, word=error.error, text=str(error)[:300])
            if asked is not None and name in _ENDS and error.error is not None:
                self._journal.write("ended", since=since, runs=[[*run, error.error] for run in asked["runs"]])
            raise
        answered = _answered(name, arguments, answer)
        if answered is not None:
            self._journal.write(answered.pop("event"), **answered, since=since)
        return answer

    def _since(self, asked: Mapping[str, Any], now: float) -> float:
        """Return when the same was asked first: a call may be sent again by whoever calls, and have worked before."""
        key = json.dumps(asked, sort_keys=True)
        with self._lock:
            return self._first.setdefault(key, now)


def _asked(name: str, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    if name in _OPENS:
        return {"event": _OPENS[name], "claim": arguments["p_claim_id"]}
    if name == "heartbeat":
        return {"event": "beat", "claims": [run["claim_id"] for run in arguments["p_runs"]]}
    if name in _ENDS or name in _MANY:
        return {"event": "end", "runs": _runs(name, arguments)}
    return None


def _answered(name: str, arguments: Mapping[str, Any], answer: Any) -> dict[str, Any] | None:
    if name == "heartbeat":
        said = {word: [run["claim_id"] for run in answer[word]] for word in ("alive", "lost", "cancelled")}
        return {"event": "beaten", **said}
    if name in _OPENS:
        return {"event": "opened", "claim": arguments["p_claim_id"], "runs": _opened(name, arguments, answer)}
    if name in _ENDS or name in _MANY:
        runs = _runs(name, arguments)
        words = _words(name, runs, answer)
        return {"event": "ended", "runs": [[*run, word] for run, word in zip(runs, words, strict=True)]}
    return None


def _runs(name: str, arguments: Mapping[str, Any]) -> list[list[str]]:
    """Return document, stage, claim id and outcome of each run that is reported."""
    if name in _ENDS:
        return [[arguments["p_document_id"], arguments["p_stage_name"], arguments["p_claim_id"], _ENDS[name]]]
    runs = arguments[_MANY[name]]
    return [[r["document_id"], r["stage_name"], r["claim_id"], r.get("outcome", "released")] for r in runs]


def _opened(name: str, arguments: Mapping[str, Any], answer: Any) -> list[list[Any]]:
    if name == "claim_stages":
        return [[run["document_id"], run["stage_name"], run["attempt"]] for run in answer]
    return [[arguments["p_document_id"], arguments["p_stage_name"], None]] if answer else []


def _words(name: str, runs: list[list[str]], answer: Any) -> list[str]:
    if name in _ENDS:
        return ["ok" if answer else "conflict"]
    if name == "finish_stages":
        return ["ok" if said["ok"] else said["error"] for said in answer]
    lost = [[run["document_id"], run["stage_name"], run["claim_id"]] for run in answer["lost"]]
    return ["lease_lost" if run[:3] in lost else "ok" for run in runs]
