"""How the property tests are run: a short while with the other tests, long when the environment asks for it.

MODEL_SQL_STEPS=50000 and MODEL_SDK_STEPS=5000 ask for so many steps, MODEL_SEED=7 for another seed than the usual one.
``./dev proof model`` does it. What was done is added to the file that MODEL_REPORT names, one JSON object a line.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from processors_v2._local.project import migrations_folder
from processors_v2.local import LocalSupabase

STEPS_OF_AN_EXAMPLE = 100
SEED = 1


@pytest.fixture(scope="session")
def template(local: LocalSupabase) -> Iterator[str]:
    """A migrated database to copy."""
    name = "model_template"
    local.create_database(name)
    local.apply_to(name, migrations_folder())
    yield name
    local.drop_database(name)


@pytest.fixture
def run_machine(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Runs a machine for a number of steps, and tells how many there were."""

    def run(machine: Any, over: str, steps: int, variable: str) -> None:
        wanted = int(os.environ.get(variable) or steps)
        first = int(os.environ.get("MODEL_SEED") or SEED)
        machine.counts = Counter()
        begin, rounds = time.monotonic(), 0
        try:
            # Hypothesis may be done before: with an example that it has seen, or that takes too many choices.
            while (left := wanted - machine.counts.total()) > 0:
                profile = settings(
                    max_examples=-(-left // STEPS_OF_AN_EXAMPLE),
                    stateful_step_count=STEPS_OF_AN_EXAMPLE,
                    deadline=None,
                    database=None,
                    report_multiple_bugs=False,
                    phases=[Phase.generate, Phase.shrink],
                    suppress_health_check=list(HealthCheck),
                )
                run_state_machine_as_test(seed(first + rounds)(machine), settings=profile)
                rounds += 1
        finally:
            done = machine.counts.total()
            with capsys.disabled():
                print(f"\nmodel: {done} steps over the {over}, MODEL_SEED={first}")
            report = {"over": over, "steps": done, "seconds": time.monotonic() - begin, "counts": machine.counts}
            if os.environ.get("MODEL_REPORT"):
                with Path(os.environ["MODEL_REPORT"]).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(report) + "\n")

    return run
