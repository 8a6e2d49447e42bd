"""What no fault in a small scene shows: the judge is shown it directly."""

import dataclasses
import time

import pytest

from benchmarks._chaos import judge
from benchmarks._chaos.judge import causes_of_loss
from benchmarks._chaos.scene import Scene

UPLOAD_PENDING = """
update krai_core.documents
set stage_status = jsonb_set(stage_status, '{upload,status}', '"pending"') where id = %s
"""


def without_triggers(scene: Scene, statement: str) -> None:
    """Change something behind the tracker's back."""
    with scene.connection.transaction():
        scene.connection.execute("set local session_replication_role = replica")
        scene.connection.execute(statement)


def test_a_finished_stage_that_is_handed_out_again_is_finished_twice(scene: Scene) -> None:
    """The judge objects when a stage that was completed is claimed again."""
    (document,) = scene.documents(1)
    scene.drain()
    scene.connection.execute(UPLOAD_PENDING, [document])
    assert not judge.nothing_twice(scene.evidence()).ok


def test_a_stage_that_is_not_in_the_queue_is_seen(scene: Scene) -> None:
    """Watcher and rebuild_ready_runs() object when a ready stage is missing in the queue, and it counts as lost."""
    scene.documents(1)
    without_triggers(scene, "delete from krai_core.stage_runs")
    found = scene.evidence()
    assert not judge.all_adds_up(found).ok
    assert not judge.nothing_to_rebuild(found).ok
    assert not judge.nothing_lost(found).ok


def test_a_run_in_the_queue_that_is_not_ready_is_seen(scene: Scene) -> None:
    """The watcher objects when the queue holds what must wait."""
    scene.documents(1)
    without_triggers(
        scene,
        "insert into krai_core.stage_runs (document_id, stage_name, status, available_at)"
        " select id, 'storage', 'ready', 'infinity' from krai_core.documents",
    )
    assert not judge.all_adds_up(scene.evidence(drained=False)).ok


@pytest.mark.parametrize("status", ["processing", "pending"])
def test_a_run_without_its_stage_and_a_stage_without_its_run_are_seen(scene: Scene, status: str) -> None:
    """The watcher objects when a stage is processing without a run, and when a run goes on without its stage."""
    scene.documents(1)
    scene.hand().claim()
    if status == "processing":
        without_triggers(scene, "delete from krai_core.stage_runs where status = 'running'")
    else:
        without_triggers(scene, UPLOAD_PENDING.replace("where id = %s", ""))
    assert not judge.all_adds_up(scene.evidence(drained=False)).ok


def test_a_deadlock_is_seen(scene: Scene) -> None:
    """The judge objects to a deadlock, whether the log or the counter of Postgres tells of it."""
    found = scene.evidence()
    found.seen.deadlocks = 0
    assert judge.no_deadlocks(found).ok
    assert not judge.no_deadlocks(dataclasses.replace(found, log="x\nERROR:  deadlock detected\n")).ok
    found.seen.deadlocks = 1
    assert not judge.no_deadlocks(found).ok


def test_a_worker_that_ends_by_itself_and_an_error_nobody_expects_are_seen(scene: Scene) -> None:
    """The judge objects to workers that end without having been killed, and to errors that no fault explains."""
    found = scene.evidence()
    assert judge.no_surprises(found).ok
    assert not judge.no_surprises(dataclasses.replace(found, troubles=["worker 0-0 ended"])).ok
    found.journals.errors.append({"worker": "0-0", "call": "reap", "kind": "AccessDenied", "word": None, "text": ""})
    assert not judge.no_surprises(found).ok


def test_losses_have_the_causes_that_they_have(scene: Scene) -> None:
    """A loss is put down to a kill, a stop or an outage only where there was one."""
    scene.documents(1)
    hand, other = scene.hand(), scene.hand()
    began = time.time()
    hand.claim(lease_seconds=0.1)
    scene.until_nothing_runs(other)
    ended = time.time()
    found = scene.evidence()

    def cause() -> list[str]:
        return list(causes_of_loss(found).values())

    assert cause() == ["late"]
    found.happened.restarts.append((began, ended))
    assert cause() == ["outage"]
    hand.life.stops.append((began, ended))
    assert cause() == ["stopped"]
    hand.life.killed_at = began
    assert cause() == ["killed"]
    hand.life.killed_at, hand.life.stops = ended + 1, [(ended + 1, ended + 2)]
    found.happened.restarts[:] = [(ended + 1, ended + 2)]
    assert cause() == ["late"]
    found.journals.beats[str(found.runs[0].claim)].append((found.runs[0].heartbeat_at or 0) + 0.001)
    found.runs[0] = dataclasses.replace(found.runs[0], lease_expires_at=ended + 1)
    assert cause() == ["its sign of life did not count"]
