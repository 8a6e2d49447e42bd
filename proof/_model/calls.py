"""The calls on documents and stages, as the database must answer them: what it returns, or Refused with its word."""

from collections.abc import Iterator
from uuid import UUID

from proof._model.model import FINISHED, Document, Json, Refused, Run, Settings, Stage

START = UUID(int=0)
Runs = list[tuple[UUID, str, UUID]]


class Model:
    """The pipeline and its documents."""

    def __init__(self, pipeline: dict[str, Settings]) -> None:
        self.pipeline = pipeline
        self.documents: dict[UUID, Document] = {}
        # Documents with a greater id still have to be looked at since the pipeline was changed.
        self.fill_after: UUID | None = None

    def named(self, name: str) -> Settings:
        """The settings of a stage."""
        if name not in self.pipeline:
            raise Refused("unknown_stage")
        return self.pipeline[name]

    def document(self, document: UUID) -> Document:
        """A document."""
        if document not in self.documents:
            raise Refused("unknown_document")
        return self.documents[document]

    def at(self, document: UUID, name: str) -> Stage:
        """A stage of a document; a missing one is pending."""
        self.named(name)
        return self.document(document).stages.setdefault(name, Stage())

    def names(self, *, all_of_them: bool = False) -> list[str]:
        """The enabled stages in pipeline order."""
        ordered = sorted(self.pipeline, key=lambda name: self.pipeline[name].position)
        return [name for name in ordered if all_of_them or self.pipeline[name].enabled]

    def cells(self) -> Iterator[tuple[UUID, str, Stage]]:
        """All stages of all documents, documents in id order."""
        for document in sorted(self.documents):
            for name in self.names(all_of_them=True):
                yield document, name, self.at(document, name)

    def waits_for(self, document: UUID, name: str) -> list[str]:
        """Enabled prerequisites that are not finished."""
        required = [one for one in self.names() if one in self.named(name).requires]
        return [one for one in required if self.at(document, one).status not in FINISHED]

    def is_ready(self, document: UUID, name: str) -> bool:
        """Whether a run of it is to be had: pending, or failed with a retry to come, and nothing to wait for."""
        stage = self.at(document, name)
        wanted = stage.status == "pending" or (stage.status == "failed" and stage.retries)
        return wanted and self.named(name).enabled and not self.waits_for(document, name)

    def is_over(self, name: str, run: Run) -> bool:
        """Whether a run may be taken over."""
        return run.lease_over or (run.is_old and self.pipeline[name].timeout is not None)

    def queue(self, name: str) -> list[UUID]:
        """The documents that are to be had for a stage, in order."""
        settings = self.named(name)
        places = [
            (stage.place, document)
            for document, one, stage in self.cells()
            if one == name and stage.place and not stage.backs_off and self.is_ready(document, name)
        ]
        return [document for _, document in sorted(places)] if settings.enabled and not settings.paused else []

    def start_stage(self, document: UUID, name: str, claim: UUID | None = None) -> bool:
        """A run that lives is in the way, unless it is the caller's."""
        stage = self.at(document, name)
        if stage.of_claim(claim):
            return stage.held(claim) is not None
        if not self.named(name).enabled:
            raise Refused("stage_disabled")
        if stage.running and not self.is_over(name, stage.running):
            return False
        if stage.running:
            stage.running.status = "lost"
        stage.open(claim)
        return True

    def progress(
        self, document: UUID, name: str, percent: float | None, metadata: Json, claim: UUID | None = None
    ) -> bool:
        """Of a running stage; a sign of life."""
        stage = self.at(document, name)
        run = stage.held(claim)
        if run is None or run.status != "running":
            raise Refused("conflict")
        run.lease_over = False
        stage.progress = stage.progress if percent is None else percent
        stage.metadata = stage.metadata | metadata
        return True

    def close(
        self, document: UUID, name: str, to: str, error: str | None, metadata: Json, claim: UUID | None, retry: bool
    ) -> bool:
        """Of complete_stage, fail_stage and skip_stage, which bring a stage ``to`` completed, failed or skipped."""
        stage = self.at(document, name)
        run = stage.held(claim)
        if claim is not None and run and run.status != "running":
            if run.status != to:
                raise Refused("conflict")
            return True
        if (stage.status, to) == ("skipped", "completed"):
            raise Refused("conflict")
        if stage.status in FINISHED and to != stage.status:
            return False
        error = (error or "failed without a message") if to == "failed" else None
        if stage.status == to:
            if to != "skipped":
                stage.metadata, stage.error = stage.metadata | metadata, error
            return True
        run = stage.close(to, error, metadata, to, claim is not None)
        run.retries = stage.retries = retry and to == "failed" and run.attempt < self.named(name).max_attempts
        run.backs_off = self.named(name).backoff > 0
        return True

    def claim(self, names: list[str], limit: int, claim: UUID) -> list[tuple[UUID, str, int]]:
        """Document, stage and attempt of each run that the claim id has then, in the order in which it got them."""
        opened = [(document, name, run) for document, name, stage in self.cells() if (run := stage.of_claim(claim))]
        for _, _, run in opened:
            run.lease_over = False
        for name in [] if opened else [name for name in names if self.named(name)]:
            first = self.queue(name)[: limit - len(opened)]
            opened += [(document, name, self.at(document, name).open(claim)) for document in first]
            is_served = self.named(name).enabled and not self.named(name).paused
            back = self.take_back(name, limit - len(opened))[0] if is_served else []
            then = [document for document in back if self.is_ready(document, name)]
            then.sort(key=lambda document: -self.documents[document].priority)
            opened += [(document, name, self.at(document, name).open(claim)) for document in then]
        return [(document, name, run.attempt) for document, name, run in opened if run.status == "running"]

    def take_back(self, name: str, limit: int) -> tuple[list[UUID], int]:
        """Runs that are over return to the queue, or end as failed when no attempt is left: which, and how many."""
        over = [(stage.running.id, document, stage) for document, at, stage in self.cells()
                if at == name and stage.running and self.is_over(name, stage.running)]  # fmt: skip
        back: list[UUID] = []
        over = sorted(over, key=lambda one: one[0])[:limit]
        for _, document, stage in over:
            run, most = stage.runs[-1], self.named(name).max_attempts
            if run.attempt < most:
                run.status, stage.place = "lost", None
                stage.hold("pending")
                back.append(document)
            else:
                stage.close("failed", f"given up after {run.attempt} of {most} attempts", {}, "lost", False)
        return back, len(over) - len(back)

    def reap(self, limit: int) -> dict[str, int]:
        """What is over, in all stages, and what the pipeline left to do."""
        requeued = failed = 0
        for name in self.names(all_of_them=True):
            back, ended = self.take_back(name, limit - requeued - failed)
            requeued, failed = requeued + len(back), failed + ended
        return {"requeued": requeued, "failed": failed, "filled": self.fill_ready_runs(limit)}

    def heartbeat(self, asked: Runs) -> dict[str, Runs]:
        """Running ones are renewed."""
        answer: dict[str, Runs] = {"alive": [], "lost": [], "cancelled": []}
        for one in asked:
            run = self._run_of(*one)
            status = run.status if run else "lost"
            answer[{"running": "alive", "cancelled": "cancelled"}.get(status, "lost")].append(one)
            if run and status == "running":
                run.lease_over = False
        return answer

    def _run_of(self, document: UUID, name: str, claim: UUID) -> Run | None:
        stages = self.documents[document].stages if document in self.documents else {}
        return stages.get(name, Stage()).of_claim(claim)

    def release_stages(self, asked: Runs) -> dict[str, Runs]:
        """Running ones go back to the queue, with what they hold, and no attempt counts."""
        answer: dict[str, Runs] = {"released": [], "lost": []}
        for one in asked:
            run = self._run_of(*one)
            if run and run.status == "running":
                run.status, run.by_holder = "released", True
                stage = self.at(one[0], one[1])
                stage.hold("pending", metadata=stage.metadata)
            given_back = run and run.status == "released" and run.by_holder
            answer["released" if given_back else "lost"].append(one)
        return answer

    def finish_stages(self, outcomes: list[dict[str, Json]]) -> list[str]:
        """The answer of each: ok, ok with a retry to come, or the word of its refusal."""
        return [self._finish(**one) for one in outcomes]

    def _finish(
        self, document: UUID, name: str, claim: UUID, to: str, percent: float | None, error: str | None, metadata: Json,
        retry: bool,
    ) -> str:  # fmt: skip
        if not isinstance(metadata, dict):
            return "invalid_metadata"
        if to == "progress" and percent is not None and not 0 <= percent <= 100:
            return "invalid_progress"
        try:
            if to == "progress":
                self.progress(document, name, percent, metadata, claim)
                return "ok"
            self.close(document, name, to, error, metadata, claim, retry)
        except Refused as refusal:
            return refusal.word
        run = self._run_of(document, name, claim)
        return "ok, and again" if run and run.retries else "ok"

    def fill_ready_runs(self, limit: int) -> int:
        """The next documents after a change of the pipeline."""
        if self.fill_after is None:
            return 0
        filled = [document for document in sorted(self.documents) if document > self.fill_after][:limit]
        for document in filled:
            self.documents[document].is_behind = False
        self.fill_after = filled[-1] if len(filled) == limit else None
        return len(filled)
