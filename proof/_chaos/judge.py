"""The verdicts: what is in the database, held against what the workers were told and what was done to them.

The functions of the tracker are not asked for anything here.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from proof._chaos.evidence import Claimed, Evidence, Run

# A commit that need not wait for the disk is on it after three rounds of the WAL writer, 0.6 s; a busy machine is
# slower.
_UNSAFE_SECONDS = 2.0
# After an outage, the longest pause of a client before it tries again; and then it needs its turn.
_AFTERMATH_SECONDS = 3.0
# A sign of life that was asked for so long before the end of the lease must have counted.
_IN_TIME_SECONDS = 0.5
# Clocks are read on the same machine.
_CLOCK_SECONDS = 0.001
_SHARE_LATE = 0.02

_ENDS = {"completed", "failed", "skipped", "released"}
_UNANSWERED = {"DatabaseUnavailable"}


@dataclass(frozen=True)
class Verdict:
    """What the judge found on one question.

    Attributes:
        name: the rule.
        checked: in so many cases.
        violations: where it was broken, in words.
    """

    name: str
    checked: int
    violations: list[str]

    @property
    def ok(self) -> bool:
        """Whether the rule held, and was put to the test at all."""
        return not self.violations


def nothing_lost(evidence: Evidence) -> Verdict:
    """Every stage ends finished, or failed for a reason that a worker reported."""
    asked = evidence.journals.asked
    wrong = []
    for (document, stage), runs in evidence.runs_of.items():
        status = evidence.documents[document][stage]["status"]
        last = runs[-1] if runs else None
        if status not in {"completed", "skipped", "failed"} or last is None:
            wrong.append(f"{stage} of {document} has not ended: {status}")
        elif status == "failed" and last.status == "lost" and last.attempt == evidence.max_attempts[stage]:
            # Whoever had the last of its attempts died as well.
            continue
        elif last.status != status:
            wrong.append(f"{stage} of {document} is {status}, its last {last} {last.status}")
        elif last.claim is None or ((document, stage, last.claim), status) not in asked:
            wrong.append(f"{stage} of {document} is {status}, and no worker said so: {last.error}")
    open_runs = [f"{run} is {run.status}" for run in evidence.runs if run.status in {"ready", "running"}]
    return Verdict("every stage ends, as a worker said", len(evidence.runs_of), wrong + open_runs)


def nothing_twice(evidence: Evidence) -> Verdict:
    """Nothing is handed out again that was finished; start_stage may start it anew, as it is said to."""
    wrong = []
    for runs in evidence.runs_of.values():
        for earlier, later in itertools.pairwise(runs):
            if earlier.status in {"completed", "skipped"} and later.claim not in evidence.journals.starts:
                wrong.append(f"{earlier} was {earlier.status}, and {later} was opened")
    finished = sum(run.status == "completed" for run in evidence.runs)
    return Verdict("no stage is finished twice", finished, wrong)


def what_was_answered_is_there(evidence: Evidence) -> Verdict:
    """Each acknowledged outcome is that of the one run with its claim id; each run that was handed out is there."""
    wrong, checked = [], 0
    for word in evidence.journals.words:
        if word.word != "ok" or word.outcome not in _ENDS:
            continue
        checked += 1
        run = evidence.run_of.get(word.identity)
        if run is None or run.status != word.outcome or not run.closed_by_holder:
            wrong.append(f"{word.outcome} of {word.identity} was acknowledged, and is: {run and run.status}")
    for claimed in evidence.journals.claimed:
        checked += 1
        run = evidence.run_of.get(claimed.identity)
        if run is None and not _may_be_gone(evidence, claimed):
            when = f"asked for at {claimed.since:.3f}, answered at {claimed.at:.3f}"
            wrong.append(f"{claimed.identity} was handed out, and no run carries its claim id: {when}")
        elif run is not None and claimed.attempt not in {None, run.attempt}:
            wrong.append(f"{run} was handed out as attempt {claimed.attempt}")
    wrong += [
        f"{run} is {run.status}, which its holder never said"
        for run in evidence.runs
        if run.closed_by_holder and (_identity(run), run.status) not in evidence.journals.asked
    ]
    return Verdict("what was acknowledged is stored, once", checked, wrong)


def attempts_count(evidence: Evidence) -> Verdict:
    """Attempts grow by one with each run that failed or was lost, and by nothing else, and never beyond the last."""
    wrong, checked = [], 0
    for (_, stage), runs in evidence.runs_of.items():
        expected = 1
        for run in runs:
            checked += 1
            if run.attempt != expected:
                wrong.append(f"{run} should be attempt {expected}")
            if run.attempt > evidence.max_attempts[stage]:
                wrong.append(f"{run} is beyond the last of {evidence.max_attempts[stage]}")
            expected = {"failed": run.attempt + 1, "lost": run.attempt + 1, "released": run.attempt}.get(run.status, 1)
    return Verdict("attempts count what failed or was lost", checked, wrong)


def losses_have_causes(evidence: Evidence) -> Verdict:
    """A run is lost only where its worker was killed, stopped or cut off by an outage, not by a dropped answer."""
    causes = causes_of_loss(evidence)
    lost = [run for run in evidence.runs if run.status == "lost"]
    wrong = [f"{run} was lost although its worker lived: {causes[run.id]}" for run in lost if " " in causes[run.id]]
    late = sum(causes[run.id] == "late" for run in lost)
    if late > _SHARE_LATE * len(evidence.runs):
        wrong.append(f"{late} runs were lost because their worker gave no sign of life in time")
    return Verdict("no attempt is burned by a dropped answer", len(lost), wrong)


def causes_of_loss(evidence: Evidence) -> dict[int, str]:
    """Return why each lost run was lost, by its id: killed, stopped, outage, late, or what should not be, in words."""
    known = {claimed.identity for claimed in evidence.journals.claimed}
    return {
        run.id: _cause(evidence, run, known=_identity(run) in known) for run in evidence.runs if run.status == "lost"
    }


def _cause(evidence: Evidence, run: Run, *, known: bool) -> str:
    life = evidence.journals.life_of.get(run.claim or "")
    if life is None or run.started_at is None or run.finished_at is None:
        return "no worker made its claim id"
    if life.killed_at is not None and life.killed_at < run.finished_at:
        return "killed"
    if any(began < run.finished_at and ended + _IN_TIME_SECONDS > run.started_at for began, ended in life.stops):
        return "stopped"
    outages = evidence.happened.restarts + evidence.happened.postgrest_kills
    if any(a < run.finished_at and b + _AFTERMATH_SECONDS > run.started_at for a, b in outages):
        return "outage"
    if not known:
        return "its claim was never answered"
    since, until = run.heartbeat_at or run.started_at, (run.lease_expires_at or run.finished_at) - _IN_TIME_SECONDS
    in_vain = [at for at in evidence.journals.beats.get(run.claim or "", []) if since < at < until]
    return "its sign of life did not count" if in_vain else "late"


def late_writes_are_refused(evidence: Evidence) -> Verdict:
    """Whoever lost a run hears it, and nothing of what it wrote later is in the database."""
    wrong, checked = [], 0
    for word in evidence.journals.words:
        run = evidence.run_of.get(word.identity)
        if word.word == "lease_lost":
            checked += 1
            if run is not None and (run.status not in {"lost", "cancelled"} or run.closed_by_holder):
                wrong.append(f"{word.outcome} of {run} was refused, and the run is {run.status}")
        elif word.word != "ok":
            wrong.append(f"{word.outcome} of {word.identity} was answered {word.word}")
        elif run is not None and run.status == "lost" and word.since > (run.finished_at or 0):
            wrong.append(f"{word.outcome} of {run} was taken after another had the stage")
    for (document, stage), runs in evidence.runs_of.items():
        wrong += _foreign_marks(document, stage, evidence.documents[document][stage], runs)
    return Verdict("late writes are refused, and leave nothing", checked, wrong)


def _foreign_marks(document: str, stage: str, stored: dict[str, object], runs: list[Run]) -> list[str]:
    """Look whose word is in the document: every worker leaves its claim id in all that it writes."""
    if not runs or runs[-1].claim is None or (stored["status"] == "failed" and runs[-1].status == "lost"):
        return []
    last = runs[-1].claim
    metadata = stored["metadata"]
    assert isinstance(metadata, dict)
    # What is given back keeps its metadata.
    welcome = {last} | {run.claim for run in runs if run.status == "released"}
    said = {name.removeprefix("touched ") for name in metadata if name.startswith("touched ")}
    wrong = [f"{stage} of {document} holds progress of {claim}, which lost it" for claim in said - welcome]
    by = {
        "completed": metadata.get("finished"),
        "skipped": str(metadata.get("reason")).removeprefix("skipped by "),
        "failed": str(stored["error"]).rpartition("failed by ")[2],
    }.get(str(stored["status"]), last)
    if by != last:
        wrong.append(f"{stage} of {document} is {stored['status']} by {by}, and its last run is of {last}")
    return wrong


def times_are_in_order(evidence: Evidence) -> Verdict:
    """Runs of a stage do not overlap, begin and end when they were asked to, and no lease is cut short."""
    wrong, checked = [], 0
    for runs in evidence.runs_of.values():
        for earlier, later in itertools.pairwise(runs):
            if (later.started_at or 0) < (earlier.finished_at or 0):
                wrong.append(f"{later} began before {earlier} ended")
        for run in runs:
            checked += 1
            if run.started_at is None or (run.finished_at or run.started_at) < run.started_at:
                wrong.append(f"{run} ended before it began")
            if run.status == "lost" and (run.finished_at or 0) < (run.lease_expires_at or 0):
                wrong.append(f"{run} was lost before its lease ended")
    asked = [(c.identity, c.since, c.at, "started_at") for c in evidence.journals.claimed]
    asked += [
        (w.identity, w.since, w.at, "finished_at")
        for w in evidence.journals.words
        if w.word == "ok" and w.outcome in _ENDS
    ]
    for identity, since, at, column in asked:
        run_asked = evidence.run_of.get(identity)
        moment = None if run_asked is None else getattr(run_asked, column)
        if moment is not None and moment < since - _CLOCK_SECONDS:
            wrong.append(f"{run_asked}: {column} is {since - moment:.3f} s before it was asked for")
        elif moment is not None and moment > at + _CLOCK_SECONDS:
            wrong.append(f"{run_asked}: {column} is {moment - at:.3f} s after it was answered")
    return Verdict("times are those of the database, at the moment", checked, wrong)


def all_adds_up(evidence: Evidence) -> Verdict:
    """In every sample the statuses add up, and statistics, runs and queue are what the documents say."""
    return Verdict("at every instant all stages add up", evidence.seen.samples, evidence.seen.wrong)


def claims_never_wait(evidence: Evidence) -> Verdict:
    """No claim waits for somebody's lock."""
    return Verdict("no claim waits", evidence.happened.holds, evidence.seen.waits + evidence.happened.waits)


def no_deadlocks(evidence: Evidence) -> Verdict:
    """Postgres saw no deadlock, by its counter and by its log."""
    found = [line for line in evidence.log.splitlines() if "deadlock detected" in line]
    if evidence.seen.deadlocks and not found:
        found = [f"pg_stat_database counts {evidence.seen.deadlocks}"]
    return Verdict("no deadlocks", evidence.seen.samples, found)


def nothing_to_rebuild(evidence: Evidence) -> Verdict:
    """rebuild_ready_runs() has nothing to do at the end."""
    return Verdict(
        "rebuild_ready_runs() changes nothing", 1, [str(evidence.rebuilt)] if any(evidence.rebuilt.values()) else []
    )


def nothing_to_mend(evidence: Evidence) -> Verdict:
    """rebuild_statistics() has nothing to do at the end."""
    wrong = [f"{evidence.mended} sums were wrong"] if evidence.mended else []
    return Verdict("rebuild_statistics() changes nothing", 1, wrong)


def no_surprises(evidence: Evidence) -> Verdict:
    """Workers end only by being killed, and hear no errors but those that a fault explains."""
    allowed = {"lease_lost", "claim_in_progress"}
    errors = [
        f"worker {error['worker']}, {error['call']}: {error['kind']}: {error['text']}"
        for error in evidence.journals.errors
        if error["word"] not in allowed and error["kind"] not in _UNANSWERED
    ]
    return Verdict("no errors but those of the faults", len(evidence.lives), evidence.troubles + errors)


VERDICTS: tuple[Callable[[Evidence], Verdict], ...] = (
    nothing_lost,
    nothing_twice,
    what_was_answered_is_there,
    attempts_count,
    losses_have_causes,
    late_writes_are_refused,
    times_are_in_order,
    all_adds_up,
    claims_never_wait,
    no_deadlocks,
    nothing_to_rebuild,
    nothing_to_mend,
    no_surprises,
)


def judge(evidence: Evidence) -> list[Verdict]:
    """Return all verdicts."""
    return [verdict(evidence) for verdict in VERDICTS]


def losses(evidence: Evidence) -> Counter[str]:
    """Return how many runs were lost for which cause."""
    return Counter(causes_of_loss(evidence).values())


def _identity(run: Run) -> tuple[str, str, str]:
    return run.document, run.stage, run.claim or ""


def _may_be_gone(evidence: Evidence, claimed: Claimed) -> bool:
    """Whether a crash may have undone the claim, whose commit did not wait for the disk.

    It was some time between question and answer, which may be long: a worker that is stopped reads its answer later.
    """
    return any(
        began - _UNSAFE_SECONDS < claimed.at and claimed.since < ended for began, ended in evidence.happened.restarts
    )
