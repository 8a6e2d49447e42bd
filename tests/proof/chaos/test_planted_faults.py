"""The judge of the chaos finds faults that were put into the SQL, each in a scene in which it shows."""

from collections.abc import Callable

import psycopg
import pytest

from processors_v2._calls import upkeep
from proof._chaos.plant import Break
from proof._chaos.scene import ALL, Held, Scene

LOST = "every stage ends, as a worker said"
STORED = "what was acknowledged is stored, once"
TIMES = "times are those of the database, at the moment"
BURNED = "no attempt is burned by a dropped answer"
LATE = "late writes are refused, and leave nothing"
ATTEMPTS = "attempts count what failed or was lost"
WAITS = "no claim waits"
SUMS = "at every instant all stages add up"

SHORT = 0.2

Play = Callable[[Scene], None]
Finds = Callable[[Break, Play, str], bool]


def late_single_call(scene: Scene) -> None:
    """A worker comes back after another has its stage, and completes it by the single call."""
    (document,) = scene.documents(1)
    first, second = scene.hand(), scene.hand()
    (run,) = first.claim(lease_seconds=SHORT)
    first.die()
    scene.until_nothing_runs(second)
    (other,) = second.claim()
    assert other.document == document
    run.complete()
    second.finish([other])


def late_bulk_call(scene: Scene) -> None:
    """A worker comes back after another has its stage, and completes it among many."""
    scene.documents(1)
    first, second = scene.hand(), scene.hand()
    (run,) = first.claim(lease_seconds=SHORT)
    first.die()
    scene.until_nothing_runs(second)
    (other,) = second.claim()
    first.finish([run])
    second.finish([other])


def late_call_that_waited(scene: Scene, late: Callable[[Held], object]) -> None:
    """A worker whose lease is over waits with its outcome for the lock of one who is just taking the stage over."""
    (document,) = scene.documents(1)
    first = scene.hand()
    (run,) = first.claim(["upload"], lease_seconds=SHORT)
    first.die()
    with scene.transaction() as second:
        while not (other := second.start(document, "upload")):
            second.transport.connection.rollback()
        call = scene.beside(lambda: late(run))
        second.transport.connection.commit()
        call.wait()
        second.finish([other])


def late_single_call_that_waited(scene: Scene) -> None:
    """The same by the single call."""
    late_call_that_waited(scene, lambda run: run.complete())


def late_bulk_call_that_waited(scene: Scene) -> None:
    """The same among many."""
    late_call_that_waited(scene, lambda run: run.hand.finish([run]))


def claim_beside_a_lock(scene: Scene) -> None:
    """A worker claims while somebody's transaction holds the document that is first in the queue."""
    first, _ = scene.documents(2)
    worker = scene.hand()
    with psycopg.connect(scene.stack.admin_url) as holder:
        holder.execute("select from krai_core.documents where id = %s for update", [first])
        call = scene.beside(lambda: worker.claim(["upload"]))
        scene.look_for_waiting_claims(call)
    worker.finish(call.wait())


def two_claims_at_once(scene: Scene) -> None:
    """A worker claims while the claim of another is not committed yet."""
    scene.documents(2)
    worker = scene.hand()
    with scene.transaction() as other:
        theirs = other.claim(["upload"])
        call = scene.beside(lambda: worker.claim(["upload"]))
        scene.look_for_waiting_claims(call)
        other.transport.connection.commit()
        worker.finish(call.wait())
        other.finish(theirs)


def two_stages_of_a_document_at_once(scene: Scene) -> None:
    """Two workers end different stages of one document, and one waits for the other."""
    scene.documents(1)
    worker = scene.hand()
    worker.finish(worker.claim(["upload"]))
    (run,) = worker.claim(["image_processing"])
    with scene.transaction() as other:
        (theirs,) = other.claim(["text_extraction"])
        other.transport.connection.commit()
        theirs.complete()
        call = scene.beside(run.complete)
        other.transport.connection.commit()
        call.wait()


def long_transaction(scene: Scene) -> None:
    """A worker claims, starts and ends stages inside a transaction that began long before."""
    first, *_ = scene.documents(4)
    with scene.transaction() as worker:
        while not worker.transport.connection.execute("select clock_timestamp() - now() > '20 ms'").fetchone()[0]:
            pass
        if run := worker.start(first, "upload"):
            run.complete()
        worker.finish(worker.claim(["upload"]))
        worker.finish(worker.claim(["upload"]), "failed", retry=True)


def dropped_answer_of_a_claim(scene: Scene) -> None:
    """The answer of a claim is dropped, and the worker asks again."""
    scene.documents(2)
    worker = scene.hand()
    scene.proxy.drop_next("claim_stages")
    worker.finish(worker.claim(["upload"], lease_seconds=0.5))
    scene.until_nothing_runs(worker)


def dropped_answer_of_an_outcome(scene: Scene) -> None:
    """The answer of an outcome is dropped, and the worker tells it again."""
    scene.documents(2)
    worker = scene.hand()
    scene.proxy.drop_next("complete_stage")
    scene.proxy.drop_next("finish_stages")
    first, second = worker.claim(["upload"], limit=2)
    first.complete()
    worker.finish([second])


def failure_and_another_try(scene: Scene) -> None:
    """A stage fails, and is tried again."""
    scene.documents(1)
    worker = scene.hand()
    worker.finish(worker.claim(), "failed", retry=True)


def last_attempt_is_lost(scene: Scene) -> None:
    """The worker with the last attempt of a stage dies."""
    scene.connection.execute("update krai_core.stages set max_attempts = 1")
    scene.documents(1)
    scene.drain([stage for stage in ALL if stage != "storage"])
    worker = scene.hand()
    worker.claim(["storage"], lease_seconds=SHORT)
    worker.die()
    scene.until_nothing_runs(scene.hand())


def last_attempt_fails(scene: Scene) -> None:
    """The last attempt of a stage fails."""
    scene.connection.execute("update krai_core.stages set max_attempts = 1")
    scene.documents(1)
    scene.drain([stage for stage in ALL if stage != "storage"])
    worker = scene.hand()
    worker.finish(worker.claim(["storage"]), "failed", retry=True)


def drained(scene: Scene) -> None:
    """A worker does all there is."""
    scene.documents(2)


def folded(scene: Scene) -> None:
    """So much happens that what is counted is folded."""
    scene.documents(2)
    scene.drain()
    scene.connection.execute(
        "insert into krai_core.stage_deltas (stage_name) select 'upload' from generate_series(1, 1100)"
    )
    scene.hand().transport.send(upkeep.reap())


SCENES = [
    late_single_call,
    late_bulk_call,
    late_single_call_that_waited,
    late_bulk_call_that_waited,
    claim_beside_a_lock,
    two_claims_at_once,
    two_stages_of_a_document_at_once,
    long_transaction,
    dropped_answer_of_a_claim,
    dropped_answer_of_an_outcome,
    failure_and_another_try,
    last_attempt_is_lost,
    last_attempt_fails,
    folded,
]


@pytest.mark.parametrize("play", SCENES, ids=lambda play: play.__name__)
def test_the_judge_finds_nothing_without_a_fault(scene: Scene, play: Play) -> None:
    """In no scene does the judge find anything wrong with the functions as they are."""
    play(scene)
    assert scene.violations() == {}


@pytest.fixture
def finds(scene: Scene, plant: Callable[[Break], None]) -> Finds:
    """Plant a fault, play a scene, and see whether the judge objects."""

    def finds(fault: Break, play: Play, verdict: str) -> bool:
        plant(fault)
        play(scene)
        return verdict in scene.violations()

    return finds


def test_no_claim_id_check_is_found_in_single_calls(finds: Finds) -> None:
    """The judge objects when a single call acts on whatever run is running."""
    assert finds(Break("krai_private.held_run", "if p_claim_id is null then", "if true then"), late_single_call, STORED)


def test_no_claim_id_check_is_found_in_bulk_calls(finds: Finds) -> None:
    """The judge objects when finish_stages acts on whatever run is running."""
    assert finds(Break("krai_private.batch_outcomes", r"h\.claim_id = a\.claim_id", "true"), late_bulk_call, STORED)


def test_a_claim_id_checked_before_the_lock_is_found_in_single_calls(finds: Finds) -> None:
    """The judge objects when a single call looks at its run first and waits for the document then."""
    fault = Break(
        "krai_private.close_stage",
        r"(?s)( v_stage_status [^;]*;)(.*?)( v_run [^(]*\()v_call([^;]*;)",
        r"\3'end'\4\n\1\2",
    )
    assert finds(fault, late_single_call_that_waited, STORED)


def test_a_claim_id_checked_before_the_lock_is_found_in_bulk_calls(finds: Finds) -> None:
    """The judge objects when finish_stages looks at its runs in the statement that waits for the documents."""
    fault = Break("finish_stages", r" order by d\.id for no key update", "")
    assert finds(fault, late_bulk_call_that_waited, SUMS)


def test_no_skip_locked_is_found(finds: Finds) -> None:
    """The judge objects when a claim waits for a document that somebody holds."""
    assert finds(Break("krai_private.lock_ready_runs", "skip locked", ""), claim_beside_a_lock, WAITS)


def test_no_row_lock_is_found_in_claims(finds: Finds) -> None:
    """The judge objects when a claim takes runs without locking them: it waits for another who takes the same."""
    assert finds(
        Break("krai_private.lock_ready_runs", "for no key update[a-z, ]* skip locked", ""), two_claims_at_once, WAITS
    )


def test_no_row_lock_is_found_in_single_calls(finds: Finds) -> None:
    """The judge objects when a single call writes a document that it has not locked."""
    assert finds(Break("krai_private.lock_document", "for no key update", ""), two_stages_of_a_document_at_once, LOST)


@pytest.mark.parametrize(
    "function", ["start_stage", "krai_private.claim_ready", "krai_private.close_stage", "krai_private.finish_batch"]
)
def test_now_for_clock_timestamp_is_found(finds: Finds, function: str) -> None:
    """The judge objects when times are those of the beginning of the transaction."""
    assert finds(Break(function, r"clock_timestamp\(\)", "now()"), long_transaction, TIMES)


def test_no_idempotence_of_claims_is_found(finds: Finds) -> None:
    """The judge objects when a repeated claim gets other runs."""
    fault = Break("claim_stages", r"return krai_private\.runs_json\(p_claim_id\);", "null;")
    assert finds(fault, dropped_answer_of_a_claim, BURNED)


def test_no_idempotence_of_outcomes_is_found(finds: Finds) -> None:
    """The judge objects when a repeated outcome is refused."""
    fault = Break("krai_private.held_run", "and not v_run.closed_by_holder", "")
    assert finds(fault, dropped_answer_of_an_outcome, LATE)


def test_attempts_that_count_double_are_found(finds: Finds) -> None:
    """The judge objects when an attempt counts twice."""
    assert finds(
        Break("krai_private.next_attempt", r"p_attempt \+ 1", "p_attempt + 2"), failure_and_another_try, ATTEMPTS
    )


def test_one_attempt_too_many_after_a_loss_is_found(finds: Finds) -> None:
    """The judge objects when a lost stage is given one attempt more than there are."""
    fault = Break(
        "krai_private.requeue_expired",
        r"v_run\.attempt < p_stage\.max_attempts",
        "v_run.attempt <= p_stage.max_attempts",
    )
    assert finds(fault, last_attempt_is_lost, ATTEMPTS)


def test_one_attempt_too_many_after_a_failure_is_found(finds: Finds) -> None:
    """The judge objects when a failed stage is given one attempt more than there are."""
    fault = Break("krai_private.retry_at", "p_attempt >= v_stage.max_attempts", "p_attempt > v_stage.max_attempts")
    assert finds(fault, last_attempt_fails, ATTEMPTS)


@pytest.mark.parametrize(
    ("fault", "play"),
    [
        (
            Break("krai_private.close_stage", r"perform krai_private\.count_transition\([^;]*;", ""),
            dropped_answer_of_an_outcome,
        ),
        (Break("krai_private.finish_batch", r"perform krai_private\.count_outcomes\([^;]*;", ""), drained),
        (Break("krai_private.begin_ready_runs", r"having count\(\*\) > 0", "having false"), drained),
        (Break("krai_private.fold_deltas", r"sum\(g\.completed\), ", "sum(g.completed) + 1, "), folded),
    ],
    ids=lambda one: one.function if isinstance(one, Break) else one.__name__,
)
def test_a_status_that_is_not_counted_is_found(finds: Finds, fault: Break, play: Play) -> None:
    """The judge objects when a stage changes its status and no delta is appended, or one is folded wrongly."""
    assert finds(fault, play, SUMS)


@pytest.mark.parametrize("function", ["krai_private.close_stage", "krai_private.finish_batch"])
def test_a_run_that_is_not_made_the_current_one_is_found(finds: Finds, function: str) -> None:
    """The judge objects when a stage ends and stands on no run."""
    play = dropped_answer_of_an_outcome if function == "krai_private.close_stage" else drained
    assert finds(Break(function, r"is_current = true,\s", ""), play, SUMS)


def test_a_fault_whose_place_is_gone_is_said_to_be(plant: Callable[[Break], None]) -> None:
    """A fault that cannot be planted any more fails its test, so that a change of the SQL does not make it pass."""
    with pytest.raises(AssertionError, match="plant the fault where it is done now"):
        plant(Break("krai_private.claim_ready", "what was never there", ""))
    with pytest.raises(AssertionError, match="plant the fault where it is done now"):
        plant(Break("what_was_never_there", "", ""))
