"""What people call, what writes the column itself, and what is asked: the rest of the model."""

from uuid import UUID

from proof._model.calls import START, Model
from proof._model.model import ENDED, FINISHED, Document, Json, Refused, Run, Settings, Stage, meaning


class Operated(Model):
    """The model with all of its calls."""

    def retry_stage(self, document: UUID, name: str) -> bool:
        """Of a failed stage; a pending one is there already."""
        stage = self.at(document, name)
        if stage.status not in {"pending", "failed"}:
            raise Refused("conflict")
        if stage.status == "failed":
            stage.again()
        return True

    def retry_failed(self, name: str | None, error: str | None, limit: int, dry_run: bool) -> tuple[bool, list[Json]]:
        """Whether there are more, and document and stage of each."""
        if name is not None:
            self.named(name)
        found = [
            (document, one)
            for document, one, stage in self.cells()
            if stage.status == "failed" and self.pipeline[one].enabled and name in {None, one}
            and (error is None or error.lower() in (stage.error or "").lower())
            and not (error is not None and stage.error is None)
        ]  # fmt: skip
        for document, one in [] if dry_run else found[:limit]:
            self.at(document, one).again()
        return len(found) > limit, found[:limit]

    def dependents(self, name: str) -> set[str]:
        """A stage and all that hangs on it."""
        reached = {name}
        while more := {one for one in self.pipeline if self.pipeline[one].requires & reached} - reached:
            reached |= more
        return reached

    def reset_stage(self, document: UUID, name: str, cascade: bool, force: bool) -> bool:
        """All of them, or none."""
        stages = [self.at(document, one) for one in ([name, *self.dependents(name)] if cascade else [name])]
        if not force and any(stage.status == "processing" for stage in stages):
            raise Refused("conflict")
        for stage in stages:
            if stage.running:
                stage.running.status = "cancelled"
            if stage.status != "pending":
                stage.again()
        return True

    def cancel_document(self, document: UUID, reason: str) -> bool:
        """What is not finished is skipped."""
        self.document(document)
        for name in self.names():
            stage = self.at(document, name)
            if stage.status not in FINISHED:
                stage.close("skipped", None, {"reason": reason}, "cancelled", False)
        return True

    def set_priority(self, document: UUID, priority: int | None) -> bool:
        """Higher is handed out first; 0 is usual."""
        self.document(document).priority = priority or 0
        return True

    def pause(self, name: str, paused: bool) -> bool:
        """Of pause_stage and resume_stage."""
        self.named(name).paused = paused
        return True

    def _pipeline_changed(self) -> None:
        self.fill_after = START
        for document in self.documents.values():
            document.is_behind = True

    def disable_stage(self, name: str) -> bool:
        """It counts as satisfied."""
        if self.named(name).enabled:
            self.named(name).enabled = False
            self._pipeline_changed()
        return True

    def register_stage(
        self, name: str, requires: list[str] | None, position: int | None, max_attempts: int | None
    ) -> bool:
        """Add, enable or change."""
        if name in (requires or []):
            raise Refused("invalid_stage")
        for one in requires or []:
            self.named(one)
        if requires is not None and name in self.pipeline and self.dependents(name) & set(requires):
            raise Refused("invalid_stage")
        before = self.pipeline.get(name)
        last = max((settings.position for settings in self.pipeline.values()), default=0)
        settings = self.pipeline.setdefault(name, Settings(last + 1, set()))
        if not before or not before.enabled or (requires is not None and set(requires) != before.requires):
            self._pipeline_changed()
        settings.enabled = True
        settings.requires = settings.requires if requires is None else set(requires)
        settings.max_attempts = max_attempts or settings.max_attempts
        others = [one for one in self.pipeline.values() if one is not settings]
        if position is not None and any(one.position == position for one in others):
            for one in others:
                one.position += one.position >= position
        settings.position = settings.position if position is None else position
        return True

    def insert(self, document: UUID, column: Json, was_completed: bool) -> None:
        """A new document. ``was_completed``: an earlier tracker says so."""
        self.documents[document] = Document()
        self._write(document, column)
        for name in self.pipeline:
            stage = self.at(document, name)
            is_there = self.pipeline[name].enabled or (isinstance(column, dict) and name in column)
            if was_completed and is_there and stage.status == "pending":
                stage.hold("completed", progress=100, metadata=stage.metadata | {"v1": True})
                stage.runs.append(Run("completed"))

    def edit(self, document: UUID, column: Json) -> None:
        """The whole column is written by hand: it counts as it stands, except for what a worker holds."""
        self.document(document)
        self._write(document, column)

    def _write(self, document: UUID, column: Json) -> None:
        values = column if isinstance(column, dict) else {}
        first = next(iter(self.names()), None)
        for name in self.names(all_of_them=True):
            stage = self.at(document, name)
            if stage.running and stage.running.claim and not stage.running.lease_over:
                continue
            new = meaning(values.get(name))
            if not isinstance(column, dict | None) and name == first:
                new["metadata"] = new["metadata"] | {"v1": True}
            before, retries = stage.status, stage.retries
            stage.hold(**new, retries=retries and new["status"] == "failed")
            self._follow(stage, before, values.get(name), self.pipeline[name].max_attempts)

    def _follow(self, stage: Stage, before: str, value: Json, most: int) -> None:
        last = stage.runs[-1] if stage.runs else Run("none")
        if stage.status == "processing" and not stage.running:
            long_ago = (value.get("started_at") or "").startswith("2020")
            stage.runs.append(Run("running", stage.next_attempt, lease_over=long_ago, is_old=long_ago))
        elif stage.status != "processing" and stage.running:
            stage.running.status = "cancelled"
        elif stage.status not in {before, "failed", "processing"}:
            # A failure that a person has settled, or a stage that was taken back: attempts count from 1.
            last.is_reset |= last.status == "failed" or (last.status == "lost" and last.attempt >= most)
            last.is_reset |= stage.status == "pending" and before in ENDED
        if stage.status in ENDED and stage.status != before:
            # What it stands on from now on.
            stage.runs.append(Run(stage.status))

    def prune_runs(self, keep_failures: bool, left: dict[int, float]) -> int:
        """Of what nothing stands on, and that is not the last of its stage, those that are not left: how many went.

        How far each of those that are left had come only the database knows: what had come some way may stay.
        """
        pruned = 0
        for document, name, stage in self.cells():
            closed = [run for run in stage.runs if run.status != "running"]
            for run in closed[:-1]:
                may_go = not stage.is_current(run) and not (keep_failures and run.status in {"failed", "lost"})
                assert may_go or run.id in left, f"{document} {name}: {run} was pruned"
                assert not may_go or left.get(run.id, 1) > 0, f"{document} {name}: {run} was not pruned"
            before = len(stage.runs)
            stage.runs = [run for run in stage.runs if run.id in left]
            pruned += before - len(stage.runs)
        return pruned

    def explain(self, document: UUID, name: str) -> dict[str, Json]:
        """Of explain_stage: reason, waits_for, attempt, place."""
        stage, settings = self.at(document, name), self.named(name)
        attempt = stage.runs[-1].attempt if stage.runs else None
        place = None
        if stage.status in FINISHED:
            reason = stage.status
        elif stage.running:
            reason = "lease_over" if stage.running.lease_over else "running"
        elif not settings.enabled:
            reason = "disabled"
        elif self.waits_for(document, name):
            reason = "waits_for_stages"
        elif stage.status == "failed" and not stage.place:
            reason = "failed"
        elif settings.paused:
            reason = "paused"
        elif stage.place and stage.backs_off:
            reason = "backoff"
        elif stage.place:
            reason, place = "ready", self.queue(name).index(document) + 1
        else:
            reason = "not_queued"
        if stage.place:
            attempt = stage.next_attempt
        return {"reason": reason, "waits_for": self.waits_for(document, name), "attempt": attempt, "place": place}

    def can_start_stage(self, document: UUID, name: str) -> bool:
        """Pause and backoff do not count."""
        may = self.at(document, name).status in {"pending", "failed"}
        return may and self.named(name).enabled and not self.waits_for(document, name)

    def current_stage(self, document: UUID) -> str:
        """The first enabled one that is not finished."""
        open_ones = (name for name in self.names() if self.at(document, name).status not in FINISHED)
        return next(open_ones, "completed")

    def percent(self, document: UUID) -> float:
        """Finished of the enabled."""
        statuses = self.statuses(document)
        return round(100 * sum(one in FINISHED for one in statuses) / len(statuses), 2) if statuses else 100.0

    def statuses(self, document: UUID) -> list[str]:
        """Of the enabled stages in order."""
        return [self.at(document, name).status for name in self.names()]

    def overall(self, document: UUID) -> str:
        """The status of a document."""
        statuses = set(self.statuses(document))
        if "failed" in statuses:
            return "failed"
        if statuses <= set(FINISHED):
            return "completed"
        return "pending" if statuses == {"pending"} else "processing"
