"""Workers that claim and finish through PostgREST, with nothing between them and the socket.

Its orders come as JSON on its standard input: url, key, stages, workers, batch, seconds. Then it says in JSON which
errors it met, and how often PostgREST had no connection free within its ten seconds, after which it asks again. Short
claims and refusals go into the tables that script.sql fills, too.
"""

import http.client
import json
import sys
import threading
import time
import uuid
from typing import Any
from urllib.parse import urlsplit


class Worker(threading.Thread):
    """One worker, with one connection.

    Args:
        number: of it.
        orders: of all.
        until: when it begins no further turn, by time.monotonic.
        errors: where it says what it met; then it ends.

    Attributes:
        turned_away: how often PostgREST had no connection free.
    """

    def __init__(self, number: int, orders: dict[str, Any], until: float, errors: list[str]) -> None:
        super().__init__(daemon=True)
        self._batch = int(orders["batch"])
        self._claim = {"p_stage_name": orders["stages"], "p_worker": f"worker {number}", "p_limit": self._batch}
        self._headers = {
            "Authorization": f"Bearer {orders['key']}",
            "Content-Type": "application/json",
        }
        parts = urlsplit(orders["url"])
        self._connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
        self._until = until
        self._errors = errors
        self.turned_away = 0

    def run(self) -> None:
        """Be the thread."""
        try:
            while time.monotonic() < self._until:
                self._turn()
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._errors.append(f"{type(error).__name__}: {error}")

    def _turn(self) -> None:
        runs = self._post("/rpc/claim_stages", {**self._claim, "p_claim_id": str(uuid.uuid4())})
        if len(runs) < self._batch:
            self._post("/short_claims", {"got": len(runs)}, "public")
        if not runs:
            return
        outcomes = [
            {
                "document_id": run["document_id"],
                "stage_name": run["stage_name"],
                "claim_id": run["claim_id"],
                "outcome": "completed",
            }
            for run in runs
        ]
        answers = self._post("/rpc/finish_stages", {"p_outcomes": outcomes})
        refused = sum(answer["ok"] is not True for answer in answers)
        if refused:
            self._post("/refusals", {"runs": refused}, "public")

    def _post(self, path: str, body: dict[str, Any], schema: str = "krai_core") -> Any:
        content = json.dumps(body, separators=(",", ":"))
        while True:
            self._connection.request("POST", path, content, {**self._headers, "Content-Profile": schema})
            answer = self._connection.getresponse()
            text = answer.read()
            if b'"PGRST003"' not in text[:100]:
                break
            self.turned_away += 1
        if answer.status >= 300:
            raise ValueError(f"{path} was answered {answer.status}: {text[:300].decode(errors='replace')}")
        return json.loads(text) if text else None


def main() -> None:
    """Let all workers work."""
    orders = json.load(sys.stdin)
    errors: list[str] = []
    until = time.monotonic() + orders["seconds"]
    workers = [Worker(number, orders, until, errors) for number in range(orders["workers"])]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(json.dumps({"errors": errors, "turned_away": sum(worker.turned_away for worker in workers)}))


if __name__ == "__main__":
    main()
