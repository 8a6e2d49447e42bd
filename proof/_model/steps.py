"""The steps: calls of every kind, on whatever stands there, held against the answers of the model."""

from typing import Any, ClassVar, Protocol
from uuid import UUID

from hypothesis import strategies as st

from proof._model.checking import behind, prove_statistics
from proof._model.machine import NINTH, PIPELINE, Machine, picks, step
from proof._model.model import Json, Refused

names = st.sampled_from(list(PIPELINE))
claims = st.sampled_from(["new", *["own"] * 7, "none", "none", "old"])
percents = st.sampled_from([None, 0, 12.5, 50, 100, -1, 101])
some_metadata = st.sampled_from([{}, {"pages": 2}, {"pages": 3, "tables": 1}])
endings = st.sampled_from(["completed", "completed", "failed", "skipped", "progress"])
outcomes = st.lists(
    st.tuples(picks, claims, endings, st.booleans()),
    min_size=1,
    max_size=6,
)


class Calls(Protocol):
    """A way to call the functions of krai_core."""

    def call(self, function: str, *arguments: object, **named: object) -> Any:
        """The answer, as the function gives it, or Refused with the word of the refusal."""


class CallingMachine(Machine):
    """Calls the functions of krai_core by ``calls``, one way or another."""

    calls: ClassVar[Calls]

    def claim_for(self, document: UUID, name: str, which: str) -> UUID | None:
        """A claim id to call with: of the run at hand or the last one, of the first one, a new one, or none."""
        at = self.model.documents.get(document)
        runs = [run for run in (at.stages[name].runs if at and name in at.stages else []) if run.claim]
        if which == "none":
            return None
        if which == "new" or not runs:
            return self.new_claim()
        return runs[-1 if which == "own" else 0].claim

    # What processors call.

    @step(4, pick=picks, which=claims, has_lease=st.booleans())
    def start(self, pick: int, which: str, has_lease: bool) -> None:
        """Also again with the same claim id, and over a lease that ended."""
        document, name = self.cell(pick)
        claim = self.claim_for(document, name, which)
        answer = self.calls.call("start_stage", document, name, claim, "worker", 900 if has_lease else None)
        self.same(lambda: self.model.start_stage(document, name, claim), answer)

    @step(3, pick=picks, which=claims, percent=percents, metadata=some_metadata)
    def progress(self, pick: int, which: str, percent: float | None, metadata: Json) -> None:
        """In percent, or none, or out of range."""
        document, name = self.cell(pick)
        claim = self.claim_for(document, name, which)
        answer = self.calls.call("update_stage_progress", document, name, percent, metadata, claim)
        if percent is not None and not 0 <= percent <= 100:
            assert answer == Refused("invalid_progress")
        else:
            self.same(lambda: self.model.progress(document, name, percent, metadata, claim), answer)

    @step(4, pick=picks, which=claims, metadata=some_metadata)
    def complete(self, pick: int, which: str, metadata: Json) -> None:
        """Whatever the stage is."""
        document, name = self.cell(pick)
        claim = self.claim_for(document, name, which)
        answer = self.calls.call("complete_stage", document, name, metadata, claim)
        self.same(lambda: self.model.close(document, name, "completed", None, metadata, claim, False), answer)

    @step(
        4,
        pick=picks,
        which=claims,
        metadata=some_metadata,
        retry=st.booleans(),
        error=st.sampled_from(["Broken", "late", "", None]),
    )
    def fail(self, pick: int, which: str, metadata: Json, retry: bool, error: str | None) -> None:
        """For good, or to be tried again."""
        document, name = self.cell(pick)
        claim = self.claim_for(document, name, which)
        answer = self.calls.call("fail_stage", document, name, error, metadata, claim, retry)
        self.same(lambda: self.model.close(document, name, "failed", error, metadata, claim, retry), answer)

    @step(2, pick=picks, which=claims)
    def skip(self, pick: int, which: str) -> None:
        """Whatever the stage is."""
        document, name = self.cell(pick)
        claim = self.claim_for(document, name, which)
        answer = self.calls.call("skip_stage", document, name, "no pages", claim)
        self.same(
            lambda: self.model.close(document, name, "skipped", None, {"reason": "no pages"}, claim, False), answer
        )

    # What workers call.

    @step(5, wanted=st.lists(names, min_size=1, max_size=4), limit=st.integers(1, 6))
    def claim(self, wanted: list[str], limit: int) -> None:
        """Of one stage or of several, in order of preference."""
        self._claim(wanted, limit, self.new_claim())

    @step(3, limit=st.sampled_from([1, 100]))
    def claim_anything(self, limit: int) -> None:
        """Whatever there is."""
        self._claim(self.model.names(all_of_them=True), limit, self.new_claim())

    @step(1, pick=picks, name=names)
    def claim_again(self, pick: int, name: str) -> None:
        """With a claim id that opened runs before."""
        known = [run.claim for *_, stage in self.model.cells() for run in stage.runs if run.claim]
        if known:
            self._claim([name], 2, known[pick % len(known)])

    def _claim(self, wanted: list[str], limit: int, claim: UUID) -> None:
        asked = wanted[0] if len(wanted) == 1 else "[" + ", ".join(f'"{name}"' for name in wanted) + "]"
        answer = self.calls.call("claim_stages", asked, "worker", limit, None, claim)
        got: Any = answer
        # The first answer is in the order of the queue.
        in_order = sorted if any(stage.of_claim(claim) for *_, stage in self.model.cells()) else list
        if not isinstance(answer, Refused):
            got = in_order((UUID(run["document_id"]), run["stage_name"], run["attempt"]) for run in answer)
        self.same(lambda: in_order(self.model.claim(wanted, limit, claim)), got)
        for run in [] if isinstance(answer, Refused) else answer:
            stage = self.model.at(UUID(run["document_id"]), run["stage_name"])
            assert run["claim_id"] == str(claim)
            assert run["max_attempts"] == self.model.named(run["stage_name"]).max_attempts
            assert {**run["metadata"], **({"v1": True} if "v1" in run["metadata"] else {})} == stage.metadata
            assert run["lease_ms"] in {300_000, 900_000, 3_600_000}

    @step(1, name=names)
    def get_next_document(self, name: str) -> None:
        """The first in the queue."""
        claim = self.new_claim()
        answer = self.calls.call("get_next_document", name, "worker", claim)
        got = [] if answer is None else [UUID(answer["id"])]
        self.same(lambda: [document for document, *_ in self.model.claim([name], 1, claim)], got)

    @step(3, asked=st.lists(st.tuples(picks, claims), max_size=6), releases=picks.map(lambda pick: pick % 3 == 0))
    def heartbeat_or_release(self, asked: list[tuple[int, str]], releases: bool) -> None:
        """Of runs of every kind, the same one twice among them."""
        runs = []
        known = [(*cell, run.claim) for *cell, stage in self.model.cells() for run in stage.runs if run.claim]
        for pick, which in asked:
            document, name = self.cell(pick)
            other = (document, name, self.claim_for(document, name, which) or self.new_claim())
            runs.append(known[pick % len(known)] if known and pick % 4 else other)
        sent = [{"document_id": str(one), "stage_name": name, "claim_id": str(claim)} for one, name, claim in runs]
        answer = self.calls.call("release_stages" if releases else "heartbeat", sent)
        got = {
            word: [(UUID(one["document_id"]), one["stage_name"], UUID(one["claim_id"])) for one in said]
            for word, said in answer.items()
        }
        self.same(lambda: (self.model.release_stages if releases else self.model.heartbeat)(runs), got)

    @step(3, asked=outcomes, percent=percents, metadata=st.sampled_from([{}, {"pages": 4}, [1]]))
    def finish(self, asked: list[tuple[int, str, str, bool]], percent: float | None, metadata: Json) -> None:
        """Many outcomes, with repeats and late ones among them."""
        told = []
        for place, (pick, which, to, retry) in enumerate(asked):
            document, name = self.cell(pick)
            claim = self.claim_for(document, name, which) or self.new_claim()
            told.append({
                "document": document, "name": name, "claim": claim, "to": to, "percent": percent, "error": "Broken",
                "retry": retry, "metadata": {"reason": "none"} if to == "skipped" else metadata if place % 2 else {},
            })  # fmt: skip
        self._finish(told)

    @step(
        6,
        to=st.lists(
            st.sampled_from(["completed", "completed", "failed", "skipped", "progress"]), min_size=1, max_size=8
        ),
        retry=st.booleans(),
    )
    def finish_running(self, to: list[str], retry: bool) -> None:
        """What holders usually send."""
        held = [(*cell, run.claim) for *cell, _, run in self.running() if run.claim]
        self._finish([
            {"document": document, "name": name, "claim": claim, "to": one, "percent": 25, "error": "late",
             "retry": retry, "metadata": {"reason": "none"} if one == "skipped" else {"pages": 5}}
            for one, (document, name, claim) in zip(to, held, strict=False)
        ])  # fmt: skip

    def _finish(self, told: list[dict[str, Json]]) -> None:
        sent = [
            {"document_id": str(one["document"]), "stage_name": one["name"], "claim_id": str(one["claim"]),
             "outcome": one["to"], "progress": one["percent"], "error": one["error"], "retry": one["retry"],
             "reason": "none", "metadata": one["metadata"]}
            for one in told
        ]  # fmt: skip
        answer = self.calls.call("finish_stages", sent)
        got = [one.get("error") or ("ok, and again" if "next_retry_at" in one else "ok") for one in answer]
        assert [one["ok"] for one in answer] == [one.startswith("ok") for one in got]
        self.same(lambda: self.model.finish_stages(told), got)

    @step(4, limit=st.sampled_from([1, 2, 1000]))
    def reap(self, limit: int) -> None:
        """What dead workers held comes back."""
        self.same(lambda: self.model.reap(limit), self.calls.call("reap", limit))

    # What people call.

    @step(2, pick=picks)
    def retry(self, pick: int) -> None:
        """Whatever the stage is."""
        document, name = self.cell(pick)
        self.same(lambda: self.model.retry_stage(document, name), self.calls.call("retry_stage", document, name, "me"))

    @step(
        3,
        name=st.none() | names,
        error=st.sampled_from([None, "brok", "given up", "%"]),
        limit=st.sampled_from([1, 2, 100]),
        dry=st.booleans(),
    )
    def retry_failed(self, name: str | None, error: str | None, limit: int, dry: bool) -> None:
        """All failed ones, or some."""
        answer = self.calls.call("retry_failed", name, error, None, limit, dry, "me")
        got = (answer["more"], [(UUID(run["document_id"]), run["stage_name"]) for run in answer["runs"]])
        assert (answer["count"], answer["dry_run"]) == (len(got[1]), dry)
        # Any text, in LIKE: all that have an error.
        self.same(lambda: self.model.retry_failed(name, "" if error == "%" else error, limit, dry), got)

    @step(2, pick=picks, cascade=st.booleans(), force=st.booleans())
    def reset(self, pick: int, cascade: bool, force: bool) -> None:
        """With all that hangs on it, and also what runs."""
        document, name = self.cell(pick)
        answer = self.calls.call("reset_stage", document, name, cascade, force, "me")
        self.same(lambda: self.model.reset_stage(document, name, cascade, force), answer)

    @step(1, pick=picks)
    def cancel(self, pick: int) -> None:
        """A document is given up."""
        document = self.any_document(pick)
        answer = self.calls.call("cancel_document", document, "no more", "me")
        self.same(lambda: self.model.cancel_document(document, "no more"), answer)

    @step(1, pick=picks, priority=st.sampled_from([None, -3, 0, 5, 9]))
    def set_priority(self, pick: int, priority: int | None) -> None:
        """First, or last."""
        document = self.any_document(pick)
        answer = self.calls.call("set_priority", document, priority, "me")
        self.same(lambda: self.model.set_priority(document, priority), answer)

    # The pipeline changes.

    @step(1, name=names, pauses=st.booleans())
    def pause_or_resume(self, name: str, pauses: bool) -> None:
        """Nothing more of a stage, or again."""
        self.is_dirty()
        paused = [one for one, settings in self.model.pipeline.items() if settings.paused]
        name, pauses = (paused[0], False) if paused and not pauses else (name, pauses)
        answer = self.calls.call("pause_stage" if pauses else "resume_stage", name, "me")
        self.same(lambda: self.model.pause(name, pauses), answer)

    @step(1, pick=picks)
    def disable(self, pick: int) -> None:
        """A stage is left out."""
        self.is_dirty()
        name = self.cell(pick)[1]
        self.same(lambda: self.model.disable_stage(name), self.calls.call("disable_stage", name, "me"))

    @step(
        1,
        name=st.sampled_from([*PIPELINE, NINTH, NINTH, NINTH]),
        requires=st.none() | st.lists(names, unique=True, max_size=2),
        position=st.none() | st.integers(1, 9),
        most=st.sampled_from([None, 1, 2]),
    )
    def register(self, name: str, requires: list[str] | None, position: int | None, most: int | None) -> None:
        """A ninth stage, one that was disabled, or other prerequisites."""
        self.is_dirty()
        disabled = [one for one, settings in self.model.pipeline.items() if not settings.enabled]
        if disabled and name != NINTH:
            name, requires = disabled[0], requires if position else None
        backoff = None if name in self.model.pipeline else 1000
        answer = self.calls.call(
            "register_stage", name, None if requires is None else tuple(requires), p_position=position,
            p_max_attempts=most, p_backoff_seconds=backoff,
        )  # fmt: skip
        self.same(lambda: self.model.register_stage(name, requires, position, most), answer)

    @step(2, limit=st.sampled_from([1, 2, 1000]))
    def fill_ready_runs(self, limit: int) -> None:
        """The queue comes after the pipeline."""
        self.same(lambda: self.model.fill_ready_runs(limit), self.calls.call("fill_ready_runs", limit))

    # What is asked.

    @step(3, pick=picks)
    def ask(self, pick: int) -> None:
        """All questions about a stage of a document."""
        document, name = self.cell(pick)
        self.same(
            lambda: self.model.can_start_stage(document, name), self.calls.call("can_start_stage", document, name)
        )
        answer = self.calls.call("get_document_progress", document)
        self.same(lambda: self.model.percent(document), answer if isinstance(answer, Refused) else float(answer))
        self.same(lambda: self.model.current_stage(document), self.calls.call("get_current_stage", document))
        answer = self.calls.call("explain_stage", document, name)
        if isinstance(answer, Refused):
            self.same(lambda: self.model.explain(document, name), answer)
            return
        got = {key: answer[key] for key in ("reason", "waits_for", "attempt", "place")}
        got["waits_for"] = [one["stage"] for one in got["waits_for"]]
        expected = self.model.explain(document, name)
        if behind(self.model.documents):
            # The place is told from what stands in the queue.
            got.pop("place"), expected.pop("place")
        assert got == expected, answer

    @step(2, name=names, limit=st.integers(1, 3))
    def list_ready(self, name: str, limit: int) -> None:
        """Page by page, all that would be handed out, in that order."""
        found: list[UUID] = []
        after = None
        while True:
            page = self.calls.call("get_documents_ready_for", name, limit, after)
            found += [UUID(document["id"]) for document in page["documents"]]
            after = page["next"]
            if after is None:
                break
        if not behind(self.model.documents):
            assert found == self.model.queue(name)

    @step(1, keeps_failures=st.booleans())
    def prune(self, keeps_failures: bool) -> None:
        """Runs that nothing stands on go, and nothing else is changed by it."""
        answer = self.database.call("prune_runs", "0 s", keeps_failures)
        left = dict(self.database.rows("select id, coalesce(progress, 0) from krai_core.stage_runs"))
        self.same(lambda: {"pruned": self.model.prune_runs(keeps_failures, left), "more": False}, answer)

    @step(1)
    def rebuild(self) -> None:
        """There is nothing to mend, neither in the queue nor in what is counted."""
        prove_statistics(self.database)
        answer = self.calls.call("rebuild_ready_runs")
        if behind(self.model.documents):
            for document in self.model.documents.values():
                document.is_behind = False
        else:
            assert answer == {"added": 0, "removed": 0, "adopted": 0}
