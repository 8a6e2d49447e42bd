"""The property tests at full length: 50,000 steps over the SQL functions and 5,000 over the SDK, against the model.

Another seed than the usual one: MODEL_SEED=7 ./dev proof model. It ends with the steps that led there when they differ.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._shared.bench import Bench

ROOT = Path(__file__).resolve().parent.parent
STEPS = {"SQL functions": ("MODEL_SQL_STEPS", 50_000), "SDK": ("MODEL_SDK_STEPS", 5_000)}


def run(bench: Bench) -> None:
    """Run the tests, and tell how many steps they did."""
    wanted = {over: steps // 10 if bench.quick else steps for over, (_, steps) in STEPS.items()}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        report.touch()
        environment = {variable: str(wanted[over]) for over, (variable, _) in STEPS.items()}
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "tests/proof/model"]
        done = subprocess.run(
            command, cwd=ROOT, check=False, env={**os.environ, **environment, "MODEL_REPORT": str(report)}
        )
        reports = {line["over"]: line for line in map(json.loads, report.read_text(encoding="utf-8").splitlines())}
    for over, steps in wanted.items():
        count = reports.get(over, {}).get("steps", 0)
        ok = done.returncode == 0 and count >= steps
        bench.add(f"steps over the {over} as the model says", count, "", target=f"{steps:,}, all of them", ok=ok)
        if count:
            bench.add(f"a step over the {over}, with its check", 1000 * reports[over]["seconds"] / count, "ms")
