"""get_weighted_progress: how far a document is, by the weight of its stages; never backwards without a reset."""

import random
import uuid
from collections.abc import Callable
from typing import Any

import pytest

STAGES = [
    "upload", "text_extraction", "image_processing", "classification", "metadata_extraction", "storage",
    "embedding", "search_indexing",
]  # fmt: skip


def test_stages_count_by_their_weight(alone) -> None:
    """A stage of weight 3 among seven of 1 is 30 percent; skipped ones count as completed ones do."""
    alone.run("update krai_core.stages set weight = 3 where name = 'upload'")
    document = alone.document()
    assert alone.call("get_weighted_progress", document) == 0
    alone.done(document, "upload")
    assert alone.call("get_weighted_progress", document) == 30
    alone.call("skip_stage", document, "image_processing")
    assert alone.call("get_weighted_progress", document) == 40
    assert float(alone.call("get_document_progress", document)) == 25


def test_a_running_stage_counts_in_part(alone) -> None:
    """Half of a stage of weight 3 among ten is 15 percent; get_document_progress says 0."""
    alone.run("update krai_core.stages set weight = 3 where name = 'upload'")
    document = alone.document()
    alone.call("start_stage", document, "upload")
    alone.call("update_stage_progress", document, "upload", 50)
    assert alone.call("get_weighted_progress", document) == 15
    assert alone.call("get_document_progress", document) == 0
    alone.call("update_stage_progress", document, "upload", 62.5)
    assert float(alone.call("get_weighted_progress", document)) == 18.75


def test_a_bar_does_not_go_back_with_its_run(alone) -> None:
    """A processor that reports less than before, as with a new total, leaves the weighted progress where it was."""
    document = alone.document()
    alone.call("start_stage", document, "upload")
    for progress in (80, 40, 60):
        alone.call("update_stage_progress", document, "upload", progress)
        assert alone.call("get_weighted_progress", document) == 10


def test_disabled_stages_do_not_count(alone) -> None:
    """With a stage out of the pipeline the others make up the whole."""
    alone.run("update krai_core.stages set weight = 100 where name = 'storage'")
    alone.call("disable_stage", "storage")
    document = alone.document()
    alone.done(document, *(stage for stage in STAGES if stage != "storage"))
    assert alone.call("get_weighted_progress", document) == 100


def test_a_reset_takes_back_what_was_done(alone) -> None:
    """After reset_stage its share is gone, also that of an attempt before it."""
    document = alone.document()
    alone.done(document, "upload", "text_extraction")
    alone.call("reset_stage", document, "text_extraction")
    assert float(alone.call("get_weighted_progress", document)) == 12.5
    alone.call("start_stage", document, "text_extraction")
    assert float(alone.call("get_weighted_progress", document)) == 12.5


def test_an_edit_to_pending_takes_back_what_was_done(service) -> None:
    """Somebody who sets a completed stage to pending by hand has reset it."""
    document = service.document()
    service.call("start_stage", document, "upload")
    service.call("complete_stage", document, "upload")
    service.edit(document, {"upload": {"status": "pending"}})
    assert service.call("get_weighted_progress", document) == 0


def test_a_new_attempt_begins_where_the_last_one_was(alone) -> None:
    """A stage that failed at 80 percent and runs again stands at 80 until it is further."""
    alone.run("update krai_core.stages set backoff_seconds = 0")
    document = alone.document()
    (run,) = alone.claim()
    ids = {key: run[key] for key in ("document_id", "stage_name", "claim_id")}
    alone.call("update_stage_progress", document, "upload", 80, {}, uuid.UUID(run["claim_id"]))
    alone.finish(ids | {"outcome": "failed", "error": "x", "retry": True})
    assert alone.call("get_weighted_progress", document) == 10
    alone.claim()
    assert alone.call("get_weighted_progress", document) == 10
    alone.call("update_stage_progress", document, "upload", 96)
    assert alone.call("get_weighted_progress", document) == 12


class History:
    """What may happen to a document but a reset."""

    def __init__(self, sql: Any, seed: int) -> None:
        self.sql, self.draw = sql, random.Random(seed)
        self.document = sql.document()
        for stage in STAGES:
            sql.run("update krai_core.stages set weight = %s where name = %s", self.draw.choice([1, 2, 7.5, 40]), stage)
        self.steps: list[tuple[int, Callable[[str], object]]] = [
            (4, self.start),
            (6, self.progress),
            (3, lambda stage: sql.attempt("complete_stage", self.document, stage)),
            (3, lambda stage: sql.attempt("fail_stage", self.document, stage, "x", {}, None, True)),
            (1, lambda stage: sql.attempt("fail_stage", self.document, stage, "x")),
            (1, lambda stage: sql.attempt("skip_stage", self.document, stage)),
            (4, sql.claim),
            (2, self.release),
            (2, self.lose),
            (1, lambda stage: sql.attempt("retry_stage", self.document, stage)),
            (1, lambda _: sql.call("reap")),
        ]

    def start(self, stage: str) -> None:
        """Without a claim id, so that a later call acts on whatever runs."""
        self.sql.attempt("start_stage", self.document, stage)

    def progress(self, stage: str) -> None:
        """Of any kind, downwards as well."""
        self.sql.attempt("update_stage_progress", self.document, stage, round(self.draw.uniform(0, 100), 2))

    def release(self, _: str) -> None:
        """All that is claimed is given back."""
        held = [
            {"document_id": str(document), "stage_name": stage, "claim_id": str(claim)}
            for document, stage, claim in self.sql.rows(
                "select document_id, stage_name, claim_id from krai_core.stage_runs "
                "where status = 'running' and claim_id is not null"
            )
        ]
        self.sql.call("release_stages", held)

    def lose(self, stage: str) -> None:
        """A worker dies, and the run comes back to the queue."""
        self.sql.end_lease(self.document, stage)
        self.sql.call("reap")

    def go_on(self) -> str:
        """One step; returns what it was."""
        number = self.draw.choices(range(len(self.steps)), [weight for weight, _ in self.steps])[0]
        stage = self.draw.choice(STAGES)
        self.steps[number][1](stage)
        return f"{number} of {stage}: {self.sql.stage(self.document, stage)['status']}"


@pytest.mark.parametrize("seed", range(8))
def test_it_never_goes_backwards_without_a_reset(alone, seed: int) -> None:
    """In random histories of starts, progress, failures, losses, releases and retries it only grows."""
    alone.run("update krai_core.stages set backoff_seconds = 0, max_attempts = 3")
    history = History(alone, seed)
    before, told = 0.0, []
    for _ in range(60):
        told.append(history.go_on())
        now = float(alone.call("get_weighted_progress", history.document))
        assert before <= now <= 100, "; ".join(told[-8:])
        before = now
    for stage in STAGES:
        alone.attempt("skip_stage", history.document, stage)
    assert alone.call("get_weighted_progress", history.document) == 100


def test_pruning_takes_nothing_back(alone) -> None:
    """What was reached by attempts that are pruned stays reached."""
    document = alone.document()
    for progress in (80, 40, 10):
        alone.call("start_stage", document, "upload")
        alone.call("update_stage_progress", document, "upload", progress)
        alone.call("fail_stage", document, "upload", "x")
    before = alone.call("get_weighted_progress", document)
    alone.run("update krai_core.stage_runs set finished_at = finished_at - interval '60 days'")
    alone.call("prune_runs", "30 days", p_keep_failures=False)
    assert alone.call("get_weighted_progress", document) == before == 10


def test_an_unknown_document_is_refused(service) -> None:
    """Nobody's id is PT404, null is 22023; without any stage a document is done."""
    assert service.refused("get_weighted_progress", uuid.uuid4()).word == "unknown_document"
    assert service.refused("get_weighted_progress", None).sqlstate == "22023"
