"""What the programs of the peers have in common: each drains in a process of its own and tells how long that took."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable

URL_VARIABLE = "DRAIN_DATABASE_URL"


@dataclasses.dataclass(frozen=True)
class Drained:
    """One drain.

    Attributes:
        seconds: from the first request for jobs until the last one was recorded as done.
        jobs: how many were done.
    """

    seconds: float
    jobs: int


def serve(drain: Callable[[str, int], Drained]) -> None:
    """Drain as many jobs as the first argument says in the database of DRAIN_DATABASE_URL, and print a Drained."""
    # By environment, since the arguments of a process are there for all to read, and the URL holds a password.
    print(json.dumps(dataclasses.asdict(drain(os.environ[URL_VARIABLE], int(sys.argv[1])))))
