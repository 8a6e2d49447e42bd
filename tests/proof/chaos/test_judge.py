"""What no fault in a small scene shows: the judge is shown it directly."""

import dataclasses
import time

import pytest

from proof._chaos import judge
from proof._chaos.evidence import Word
from proof._chaos.judge import causes_of_loss
from proof._chaos.scene import Scene
from proof._chaos.watcher import Watcher

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


@pytest.fixture
def story(scene: Scene) -> Scene:
    """A document whose upload was lost once, failed once, and was completed then; all else at the first attempt."""
    scene.documents(1)
    first, second = scene.hand(), scene.hand()
    first.claim(lease_seconds=0.1)
    first.die()
    scene.until_nothing_runs(second)
    second.finish(second.claim(), "failed", retry=True)
    scene.drain()
    return scene


UPLOADS = "update krai_core.stage_runs set {} where stage_name = 'upload' and status = '{}'"
METADATA = "update krai_core.documents set stage_status = jsonb_set(stage_status, '{{upload,metadata,{}}}', '{}')"


def test_a_story_as_it_happened_is_believed(story: Scene) -> None:
    """The judge finds nothing in what was not tampered with."""
    assert story.violations() == {}


@pytest.mark.parametrize(
    ("tampering", "words"),
    [
        (UPLOADS.format("attempt = 4", "completed"), "should be attempt 3"),
        (UPLOADS.format("attempt = 4", "completed"), "was handed out as attempt 3"),
        (UPLOADS.format("attempt = 9", "completed"), "is beyond the last of 5"),
        (UPLOADS.format("closed_by_holder = true", "lost"), "which its holder never said"),
        (UPLOADS.format("closed_by_holder = false", "completed"), "was acknowledged, and is: completed"),
        (UPLOADS.format("status = 'skipped'", "completed"), "is completed, its last run"),
        (
            UPLOADS.format("claim_id = gen_random_uuid()", "completed"),
            "was handed out, and no run carries its claim id",
        ),
        (UPLOADS.format("claim_id = gen_random_uuid()", "completed"), "and no worker said so"),
        (UPLOADS.format("started_at = started_at - interval '1 hour'", "failed"), "began before"),
        (UPLOADS.format("started_at = started_at - interval '1 hour'", "failed"), "before it was asked for"),
        (UPLOADS.format("started_at = finished_at + interval '1 hour'", "failed"), "ended before it began"),
        (UPLOADS.format("finished_at = finished_at + interval '1 hour'", "completed"), "after it was answered"),
        (UPLOADS.format("lease_expires_at = finished_at + interval '1 s'", "lost"), "was lost before its lease ended"),
        (METADATA.format("touched x", "true"), "holds progress of x, which lost it"),
        (METADATA.format("finished", '"x"'), "is completed by x, and its last run is of"),
    ],
)
def test_what_was_tampered_with_is_seen(story: Scene, tampering: str, words: str) -> None:
    """The judge objects to each thing in the database that is not what the workers were told."""
    without_triggers(story, tampering)
    verdicts = judge.judge(story.evidence(drained=False))
    assert any(words in said for verdict in verdicts for said in verdict.violations), verdicts


def test_progress_that_was_taken_too_late_is_seen(story: Scene) -> None:
    """The judge objects when progress of a lost run was acknowledged, which leaves no trace when it is over."""
    found = story.evidence(drained=False)
    lost = next(run for run in found.runs if run.status == "lost")
    identity = (lost.document, lost.stage, str(lost.claim))
    after = (lost.finished_at or 0) + 1
    found.journals.words.append(Word(identity, "progress", "ok", after, after))
    assert not judge.late_writes_are_refused(found).ok


@pytest.mark.parametrize("word", ["pending", "failed", "timed", "microseconds"])
def test_statistics_that_do_not_add_up_are_seen(word: str) -> None:
    """The watcher objects when vw_stage_statistics says something else than the documents, or does not add up."""
    watcher = Watcher("", documents=2)
    truth = {"pending": 1, "completed": 1, "timed": 1, "microseconds": 700}
    said = {"processing": 0, "failed": 0, "skipped": 0, **truth}
    nothing = {"documents": 2, "to be tried again": 0}
    watcher._judge({"upload": truth}, {"upload": said}, {**nothing}, 0)
    assert watcher.seen.wrong == []
    watcher._judge({"upload": truth}, {"upload": {**said, word: said[word] + 1}}, {**nothing}, 0)
    assert watcher.seen.wrong


@pytest.mark.parametrize(
    "statement",
    [
        "insert into krai_core.stage_deltas (stage_name, failed) values ('upload', 1)",
        "insert into krai_core.stage_deltas (documents) values (-1)",
        "insert into krai_core.stage_deltas (stage_name, bucket, timed, duration_us) values ('upload', 5, 0, 1)",
        "update krai_core.stage_runs set is_current = false",
        "update krai_core.stage_runs set is_current = true where status = 'ready'",
    ],
)
def test_figures_and_current_runs_that_are_wrong_are_seen(scene: Scene, statement: str) -> None:
    """Watcher and judge object when a sum is off by one, and when a stage stands on no run, or on a wrong one."""
    scene.documents(2)
    hand = scene.hand()
    hand.finish(hand.claim())
    without_triggers(scene, statement)
    found = scene.evidence(drained=False)
    assert not judge.all_adds_up(found).ok
    assert judge.nothing_to_mend(found).ok == ("stage_deltas" not in statement)


def test_a_sum_that_is_wrong_behind_what_is_shown_is_mended(scene: Scene) -> None:
    """The judge objects when rebuild_statistics() has something to do, also in what no view shows."""
    scene.documents(1)
    without_triggers(scene, "insert into krai_core.stage_deltas (stage_name, completed) values ('no such stage', 1)")
    assert not judge.nothing_to_mend(scene.evidence(drained=False)).ok


def test_documents_and_stages_that_are_gone_are_seen() -> None:
    """The watcher objects when a document or a stage is missing."""
    watcher = Watcher("", documents=2)
    said = {"pending": 2}
    watcher._judge({"upload": said}, {"upload": said}, {"documents": 1, "to be tried again": 0}, 0)
    watcher._judge({"upload": {"pending": 1}}, {"upload": said}, {"documents": 2, "to be tried again": 0}, 0)
    assert "there are 1 documents and not 2" in watcher.seen.wrong
    assert "documents: {'pending': 1} of upload are not 2" in watcher.seen.wrong


def test_a_claim_may_be_undone_by_a_crash_at_its_time_only(story: Scene) -> None:
    """A claim that is gone is forgiven where Postgres crashed between its question and a moment after its answer."""
    without_triggers(story, UPLOADS.format("claim_id = gen_random_uuid()", "lost"))
    found = story.evidence(drained=False)
    gone = found.journals.claimed[0]
    assert not judge.what_was_answered_is_there(found).ok
    found.happened.restarts[:] = [(gone.at + 10, gone.at + 11)]
    assert not judge.what_was_answered_is_there(found).ok
    found.happened.restarts[:] = [(gone.since - 11, gone.since - 10)]
    assert not judge.what_was_answered_is_there(found).ok
    found.happened.restarts[:] = [(gone.at + 0.5, gone.at + 1)]
    assert judge.what_was_answered_is_there(found).ok
    # A worker that is stopped reads the answer long after the crash.
    found.journals.claimed[0] = dataclasses.replace(gone, since=gone.since - 20)
    found.happened.restarts[:] = [(gone.at - 11, gone.at - 10)]
    assert judge.what_was_answered_is_there(found).ok
