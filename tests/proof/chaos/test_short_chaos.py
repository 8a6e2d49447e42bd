"""A short run of ``./dev proof chaos``: the same faults, fewer of each."""

import os
import random

import pytest

from proof._chaos import chaos, judge
from proof._chaos.size import SHORT

VERDICTS = {verdict.__name__: place for place, verdict in enumerate(judge.VERDICTS)}

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def report(pytestconfig: pytest.Config) -> chaos.Report:
    """What came of it; CHAOS_SEED repeats the draws of an earlier run."""
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1 << 32))
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\nCHAOS_SEED={seed}", flush=True)
    return chaos.run(SHORT, seed)


@pytest.mark.parametrize("rule", VERDICTS)
def test_rule_holds_while_all_goes_wrong(report: chaos.Report, rule: str) -> None:
    """Under kills, stops, restarts and dropped answers each rule of the judge holds."""
    assert report.verdicts[VERDICTS[rule]].violations == [], f"CHAOS_SEED={report.seed}"


@pytest.mark.parametrize(
    ("fact", "count"),
    [
        ("stages ended", SHORT.stage_runs),
        ("workers killed", SHORT.kills),
        ("workers stopped for longer than the lease", SHORT.stops),
        ("Postgres restarted at once", SHORT.restarts),
        ("PostgREST killed", SHORT.postgrest_kills),
    ],
)
def test_all_that_was_to_go_wrong_did(report: chaos.Report, fact: str, count: int) -> None:
    """As many faults of each kind came to pass as were asked for, and all the work was done."""
    assert report.facts[fact] == count


@pytest.mark.parametrize(
    "fact", ["answers dropped after the commit", "late writes refused", "runs lost: worker killed", "snapshots"]
)
def test_the_faults_had_consequences(report: chaos.Report, fact: str) -> None:
    """The faults met work in progress: without consequences nothing would have been judged."""
    assert report.facts[fact] > 0
