"""Random calls of the SDK over PostgREST: of a tracker that holds runs, and of another one."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import UUID

import pytest
from hypothesis import note
from hypothesis import strategies as st

from processors_v2 import errors
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageContext, StageTracker
from proof._model.database import Database
from proof._model.machine import picks, step
from proof._model.model import Json, Refused
from proof._model.steps import CallingMachine, claims, endings, names, some_metadata

# Longer than the machine runs: a lease ends when the machine says so, and no heartbeat comes in between.
LEASE_SECONDS = 3600
CLASSES: dict[str, type[errors.StageTrackerError]] = {
    "unknown_document": errors.UnknownDocument,
    "unknown_stage": errors.UnknownStage,
    "stage_disabled": errors.StageConflict,
    "conflict": errors.StageConflict,
    "lease_lost": errors.StageLost,
    "busy": errors.StageBusy,
    "invalid_progress": errors.InvalidArgument,
    "invalid_stage": errors.InvalidArgument,
}
Key = tuple[UUID, str]


class Broken(Exception):
    """What goes wrong in a block."""


def refusal(call: Callable[[], Any]) -> Any:
    """The answer of a call of the SDK, or the word of its refusal, which has to be of the right class."""
    try:
        return call()
    except errors.StageTrackerError as error:
        refused = error
    is_cancelled = refused.error == "lease_lost" and refused.details.get("run") == "cancelled"
    assert refused.error in CLASSES, repr(refused)
    assert type(refused) is (errors.StageCancelled if is_cancelled else CLASSES[refused.error]), repr(refused)
    return Refused(refused.error)


class SdkCalls:
    """The functions of krai_core by the methods of a tracker."""

    def __init__(self, tracker: StageTracker, database: Database) -> None:
        self._tracker = tracker
        self._database = database

    def call(self, function: str, *arguments: Any, **named: Any) -> Any:
        """The answer, in the form of the function."""
        self._database.uses += 1
        answer = refusal(
            lambda: getattr(self, f"_{function}", getattr(self._tracker, function, None))(*arguments, **named)
        )
        note(f"    {function}({', '.join(map(str, (*arguments, *named.values())))}) = {answer!r}")
        return answer

    def _start_stage(self, document: UUID, name: str, claim: UUID | None, worker: str, lease: float | None) -> bool:
        return self._tracker.start_stage(document, name, claim_id=claim, worker=worker, lease_seconds=lease)

    def _update_stage_progress(self, *arguments: Any) -> bool:
        return self._tracker.update_progress(*arguments[:-1], claim_id=arguments[-1])

    def _complete_stage(self, *arguments: Any) -> bool:
        return self._tracker.complete_stage(*arguments[:-1], claim_id=arguments[-1])

    def _fail_stage(self, *arguments: Any) -> bool:
        return self._tracker.fail_stage(*arguments[:-2], claim_id=arguments[-2], retry=arguments[-1])

    def _skip_stage(self, *arguments: Any) -> bool:
        return self._tracker.skip_stage(*arguments[:-1], claim_id=arguments[-1])

    def _retry_failed(self, *arguments: Any) -> Any:
        return self._tracker.retry_failed(*arguments[:-2], dry_run=arguments[-2], actor=arguments[-1])

    def _retry_stage(self, document: UUID, name: str, actor: str) -> bool:
        return self._tracker.retry_stage(document, name, actor=actor)

    def _reset_stage(self, document: UUID, name: str, cascade: bool, force: bool, actor: str) -> bool:
        return self._tracker.reset_stage(document, name, cascade=cascade, force=force, actor=actor)

    def _cancel_document(self, document: UUID, reason: str, actor: str) -> bool:
        return self._tracker.cancel_document(document, reason, actor=actor)

    def _set_priority(self, document: UUID, priority: int | None, actor: str) -> bool:
        return self._tracker.set_priority(document, priority or 0, actor=actor)

    def _pause_stage(self, name: str, actor: str) -> bool:
        return self._tracker.pause_stage(name, actor=actor)

    def _resume_stage(self, name: str, actor: str) -> bool:
        return self._tracker.resume_stage(name, actor=actor)

    def _disable_stage(self, name: str, actor: str) -> bool:
        return self._tracker.disable_stage(name, actor=actor)

    def _register_stage(self, name: str, requires: tuple[str, ...] | None, **named: Any) -> bool:
        return self._tracker.register_stage(
            name, requires, **{key.removeprefix("p_"): value for key, value in named.items()}
        )

    def _get_document_progress(self, document: UUID) -> float:
        return self._tracker.get_progress(document)

    def _get_documents_ready_for(self, name: str, *_: object) -> Any:
        return {"documents": list(self._tracker.get_documents_ready_for(name)), "next": None}


@dataclass
class Held:
    """A run that the first tracker has: a context or a claimed run, and what it knows of its end."""

    run: StageContext
    document: UUID
    name: str
    claim: UUID
    is_claimed: bool
    is_entered: bool
    is_closed: bool = False

    @property
    def key(self) -> Key:
        """What it is a run of."""
        return self.document, self.name

    @property
    def metadata(self) -> dict[str, Json]:
        """What it stores at its end."""
        return self.run.metadata | ({"v1": True} if "v1" in self.run.metadata else {})


class SdkMachine(CallingMachine):
    """Two trackers over PostgREST: ``first`` holds contexts and claims, ``calls`` is another process with claim ids."""

    clients: ClassVar[LocalSupabase]

    def __init__(self) -> None:
        super().__init__()
        self.first = StageTracker(self.clients.client())
        self.held: list[Held] = []
        # For whom the first tracker acts, and what it has to start with.
        self.contexts: dict[Key, Held] = {}
        self.taken: dict[Key, UUID] = {}
        self.unstarted: set[Key] = set()

    def teardown(self) -> None:
        """Nothing is kept alive any more."""
        for held in self.held:
            held.run._pulse.abandon() if held.run._pulse else None
        self.held.clear()
        self.contexts.clear()
        self.first.close()

    def ask_first(self, call: Callable[[], Any]) -> Any:
        """The answer of the first tracker, or the word of its refusal."""
        self.database.uses += 1
        answer = refusal(call)
        note(f"    first tracker: {answer!r}")
        return answer

    # What comes out of the queue.

    def _claim(self, wanted: list[str], limit: int, claim: UUID) -> None:
        answer = self.ask_first(lambda: self.first.claim(wanted if len(wanted) > 1 else wanted[0], limit))
        runs = [] if isinstance(answer, Refused) else answer
        claim = runs[0].claim_id if runs else claim
        got = [(UUID(run.document_id), run.stage_name, run.attempt) for run in runs]
        self.same(lambda: self.model.claim(wanted, limit, claim), answer if isinstance(answer, Refused) else got)
        for run in runs:
            held = Held(run, UUID(run.document_id), run.stage_name, claim, True, False)
            assert run.max_attempts == self.model.named(run.stage_name).max_attempts
            assert run.idempotency_key == f"{held.document}/{held.name}/{run.attempt}"
            assert held.metadata == self.model.at(*held.key).metadata
            self.held.append(held)
            self.contexts[held.key] = held

    @step(1, name=names)
    def claim_again(self, name: str) -> None:
        """The SDK makes a new claim id for each call."""
        self._claim([name], 2, self.new_claim())

    @step(3, name=names)
    def get_next_document(self, name: str) -> None:
        """The first in the queue, and the tracker acts for it from now on."""
        answer = self.ask_first(lambda: self.first.get_next_document(name))
        document = None if not answer else UUID(answer["id"])
        claim = self.first._claims.of(answer["id"], name) if document else self.new_claim()
        self.same(lambda: [one for one, *_ in self.model.claim([name], 1, claim)], [document] if document else [])
        if document:
            self.taken[document, name] = claim
            self.unstarted.add((document, name))

    # Contexts and claimed runs.

    @step(4, pick=picks)
    def enter(self, pick: int) -> None:
        """A context begins."""
        document, name = self.cell(pick)
        key = (document, name)
        context = StageContext(self.first, document, name, lease_seconds=LEASE_SECONDS)
        # Whoever takes the claim of get_next_document starts with it, and forgets it.
        claim = self.taken.pop(key) if key in self.unstarted else None
        self.unstarted.discard(key)
        answer = self.ask_first(context.__enter__)
        if answer == Refused("busy"):
            answer = False
        if not isinstance(answer, Refused | bool):
            assert claim in {None, context.claim_id}
            claim, answer = context.claim_id, True
            self.held.append(Held(context, document, name, claim, False, True))
            self.contexts[key] = self.held[-1]
        self.same(lambda: self.model.start_stage(document, name, claim or self.new_claim()), answer)

    @step(10, pick=picks, ending=st.sampled_from(["ok", "ok", "ok", "broken", "permanent", "skip", "release", "enter"]),
          percent=st.sampled_from([None, None, 40, 75.5]), metadata=some_metadata)  # fmt: skip
    def work(self, pick: int, ending: str, percent: float | None, metadata: Json) -> None:
        """A block goes on to its end, one way or another."""
        if not self.held:
            return
        held = self.held[pick % len(self.held)]
        note(f"    {held}")
        if not held.is_entered:
            if ending == "release" and not held.is_closed:
                self._release(held)
            if held.is_closed:
                self._is_over(held)
                return
            held.run.__enter__()
            held.is_entered = True
        if ending == "enter":
            return
        if ending == "release" and held.is_claimed:
            self._release(held)
        elif percent is not None and not held.is_closed:
            self._report(held, percent, metadata)
        if ending == "skip":
            self._skip_inside(held, has_reported=percent is not None)
        self._leave(held, ending)

    def _is_over(self, held: Held) -> None:
        self.database.uses += 1
        with pytest.raises(errors.StageConflict, match="is over"):
            held.run.__enter__()
        self._forget(held)

    def _release(self, held: Held) -> None:
        runs = [(held.document, held.name, held.claim)]
        answer = self.ask_first(held.run.release)  # type: ignore[attr-defined]
        self.same(lambda: bool(self.model.release_stages(runs)["released"]), answer)
        held.is_closed = True

    def _report(self, held: Held, percent: float, metadata: Json) -> None:
        self.database.uses += 1
        held.run.update_progress(percent, metadata)
        # Written in the background. What is refused there is told by the end of the block, as it is itself refused.
        with contextlib.suppress(Refused):
            self.model.progress(held.document, held.name, percent, metadata, held.claim)

    def _flushed(self, held: Held, *, has_reported: bool = False) -> None:
        if held.metadata or has_reported:
            self.model.progress(held.document, held.name, None, held.metadata, held.claim)

    def _skip_inside(self, held: Held, *, has_reported: bool) -> None:
        def model() -> None:
            if not held.is_closed:
                self._flushed(held, has_reported=has_reported)
            reason = {"reason": "empty"}
            self.model.close(held.document, held.name, "skipped", None, reason, held.claim, False)

        answer = self.ask_first(lambda: held.run.skip("empty"))
        self.same(model, answer)
        held.is_closed = held.is_closed or answer is None

    def _leave(self, held: Held, ending: str) -> None:
        self.database.uses += 1
        error = {"broken": Broken("broken"), "permanent": errors.PermanentError("never")}.get(ending)
        answer = refusal(lambda: held.run.__exit__(type(error) if error else None, error, None))
        note(f"    left: {answer!r}")
        metadata, retry = held.metadata, held.is_claimed and ending == "broken"
        to = "failed" if error else "completed"

        def model() -> None:
            if held.is_closed:
                return
            try:
                self.model.close(
                    held.document, held.name, to, str(error) if error else None, metadata, held.claim, retry
                )
            except Refused:
                # The exception of the block is what the caller gets to see.
                if error is None:
                    raise

        self.same(model, answer)
        self._forget(held)

    def _forget(self, held: Held) -> None:
        self.held.remove(held)
        held.is_closed = True
        if self.contexts.get(held.key) is held:
            del self.contexts[held.key]

    # The first tracker acts for what it holds, where no claim id is named.

    @step(8, pick=picks, verb=st.sampled_from(["start", "progress", "complete", "complete", "fail", "skip"]),
          metadata=some_metadata, held=st.booleans())  # fmt: skip
    def act(self, pick: int, verb: str, metadata: Json, held: bool) -> None:
        """A call without claim id."""
        mine = sorted({*self.contexts, *self.taken}) if held else []
        document, name = mine[pick % len(mine)] if mine else self.cell(pick)
        getattr(self, f"_act_{verb}")((document, name), metadata)

    def _claim_of(self, key: Key) -> UUID | None:
        return self.contexts[key].claim if key in self.contexts else self.taken.get(key)

    def _act_start(self, key: Key, _: Json) -> None:
        claim = self.taken.get(key) if key in self.unstarted else None
        self.unstarted.discard(key)
        answer = self.ask_first(lambda: self.first.start_stage(*key))
        self.same(lambda: self.model.start_stage(*key, claim), answer)
        if answer == Refused("lease_lost"):
            self.taken.pop(key, None)

    def _act_progress(self, key: Key, metadata: Json) -> None:
        answer = self.ask_first(lambda: self.first.update_progress(*key, 30, metadata))
        self.same(lambda: self.model.progress(*key, 30, metadata, self._claim_of(key)), answer)

    def _act_complete(self, key: Key, metadata: Json) -> None:
        self._close(key, "completed", None, metadata, lambda: self.first.complete_stage(*key, metadata))

    def _act_fail(self, key: Key, metadata: Json) -> None:
        fail = lambda: self.first.fail_stage(*key, Broken("broken"), metadata, retry=True)  # noqa: E731
        self._close(key, "failed", "broken", metadata, fail)

    def _act_skip(self, key: Key, _: Json) -> None:
        self._close(key, "skipped", None, {"reason": "empty"}, lambda: self.first.skip_stage(*key, "empty"))

    def _close(self, key: Key, to: str, error: str | None, metadata: Json, call: Callable[[], bool]) -> None:
        claim, held = self._claim_of(key), self.contexts.get(key)

        def model() -> bool:
            if held and not held.is_closed:
                self._flushed(held)
            return self.model.close(*key, to, error, metadata, claim, to == "failed")

        answer = self.ask_first(call)
        self.same(model, answer)
        is_over = not isinstance(answer, Refused) or answer.word == "lease_lost"
        if is_over and self.taken.get(key) == claim:
            # What get_next_document gave.
            self.taken.pop(key, None)
            self.unstarted.discard(key)
        if held and not isinstance(answer, Refused):
            held.is_closed = True
            if held.is_claimed and not held.is_entered:
                del self.contexts[key]

    # Without what the SDK refuses before it asks.

    @step(3, asked=st.lists(st.tuples(picks, claims, endings, st.booleans()), max_size=5))
    def finish(self, asked: list[tuple[int, str, str, bool]]) -> None:
        """Many outcomes from the other process, with repeats and late ones among them."""
        super().finish(asked, 30, {"pages": 4})
