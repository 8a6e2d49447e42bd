"""What the machines share: the database, documents that come and go, edits by hand, and time that is let pass."""

import functools
import inspect
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar
from uuid import UUID, uuid5

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from proof._model.checking import STATE, Checker
from proof._model.database import Database, as_json
from proof._model.model import STATUSES, Json, Refused, Run, Settings, Stage
from proof._model.operators import Operated

NINTH = "chunking"
LONG_AGO = "2020-01-01T00:00:00.000000Z"
# Attempts, backoffs and a timeout of every kind; long waits, so that none of them ends while a machine runs.
PIPELINE = {
    "upload": Settings(1, set(), max_attempts=2),
    "text_extraction": Settings(2, {"upload"}, max_attempts=1),
    "image_processing": Settings(3, {"upload"}, max_attempts=1),
    "classification": Settings(4, {"text_extraction"}, backoff=0),
    "metadata_extraction": Settings(5, {"text_extraction"}, max_attempts=3),
    "storage": Settings(6, {"image_processing"}, timeout=1000),
    "embedding": Settings(7, {"text_extraction"}, backoff=0, timeout=1000),
    "search_indexing": Settings(8, {"embedding", "metadata_extraction", "classification"}),
}
HAND_MADE = [
    *({"status": status} for status in (*STATUSES, "in_progress", None)),
    {"status": "processing", "started_at": LONG_AGO},
    {"status": "failed", "error": "by hand", "completed_at": LONG_AGO, "metadata": {"by": "hand"}},
    {"status": "pending", "metadata": {"by": "hand"}},
    {"status": "completed", "started_at": LONG_AGO, "completed_at": LONG_AGO, "duration_seconds": 1.5, "progress": 100},
    {"status": "processing", "progress": 40, "metadata": {"by": "hand"}},
    "completed", "in_progress", 7, [], None,
]  # fmt: skip

picks = st.integers(0, 9999)
hand_made = st.sampled_from(HAND_MADE)
columns = st.one_of(
    st.sampled_from([None, {}, [], "completed", 5, [{"status": "completed"}], {"unheard_of": {"status": "failed"}}]),
    st.dictionaries(st.sampled_from(list(PIPELINE)), hand_made, max_size=4),
)


Call = Callable[..., object]
Chosen = tuple[str, dict[str, Any]]


def step(weight: int, **arguments: st.SearchStrategy[Any]) -> Callable[[Call], Call]:
    """Marks a method of a machine as one of its steps, that many times as likely as others."""

    def mark(method: Call) -> Call:
        vars(method)["step"] = (weight, arguments)
        return method

    return mark


def steps_of(machine: type) -> st.SearchStrategy[Chosen]:
    """The name of a step, and its arguments.

    Weighted, and from one strategy: of rules Hypothesis switches off some for a whole example, so that documents get
    nowhere in most of them.
    """
    methods = ((name, getattr(machine, name, None)) for name in dir(machine))
    marked = {name: method.step for name, method in methods if inspect.isfunction(method) and hasattr(method, "step")}
    names = st.sampled_from([name for name, (weight, _) in marked.items() for _ in range(weight)])
    return names.flatmap(lambda name: st.tuples(st.just(name), st.fixed_dictionaries(marked[name][1])))


class Machine(RuleBasedStateMachine):
    """Documents in a database and in the model. ``counts`` tells how often each step was done, over all examples."""

    database: ClassVar[Database]
    counts: ClassVar[Counter[str]]
    _is_prepared: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        if type(self)._is_prepared:
            self.database.write("truncate krai_core.documents")
        else:
            self.database.prepare(PIPELINE)
        type(self)._is_prepared = True
        self.model = Operated(
            {name: Settings(**(vars(one) | {"requires": set(one.requires)})) for name, one in PIPELINE.items()}
        )
        self.checker = Checker(self.model)
        self.gone: list[UUID] = []
        self._claims = (UUID(int=number) for number in itertools.count(1))
        self._ids = (uuid5(UUID(int=0), str(number)) for number in itertools.count(1))
        self.add(None, with_default=True, processing_status="pending")
        self.add(None, with_default=True, processing_status="pending")

    @invariant()
    def holds(self) -> None:
        """Nothing in the database differs from the model."""
        self.checker.compare(self.database.look(STATE))

    @classmethod
    @functools.cache
    def all_steps(cls) -> st.SearchStrategy[Chosen]:
        """What do() may do."""
        return steps_of(cls)

    @rule(chosen=st.runner().flatmap(lambda machine: machine.all_steps()))
    def do(self, chosen: Chosen) -> None:
        """One of the steps."""
        name, arguments = chosen
        before = self.database.uses
        getattr(self, name)(**arguments)
        if self.database.uses > before:
            type(self).counts[name] += 1

    # What the steps choose from.

    def is_dirty(self) -> None:
        """The next example has to put the pipeline right."""
        type(self)._is_prepared = False

    def new_claim(self) -> UUID:
        """A claim id that nobody has used."""
        return next(self._claims)

    def any_document(self, pick: int) -> UUID:
        """A document; seldom one that is gone, or never was."""
        known = sorted(self.model.documents)
        others = [*self.gone, UUID(int=7)]
        return others[pick % len(others)] if pick % 37 == 36 or not known else known[pick % len(known)]

    def any_stage(self, pick: int) -> str:
        """A stage; seldom one that is not there."""
        names = self.model.names(all_of_them=True)
        return NINTH if pick % 41 == 40 else names[pick // 4 % len(names)]

    def cell(self, pick: int) -> tuple[UUID, str]:
        """A stage of a document, mostly one on which something was done, and most of all one that runs."""
        busy = [(document, name) for document, name, stage in self.model.cells() if stage.runs]
        running = [(document, name) for document, name, *_ in self.running()]
        likely = running if running and pick % 3 else busy
        return likely[pick % len(likely)] if likely and pick % 5 else (self.any_document(pick), self.any_stage(pick))

    def running(self) -> list[tuple[UUID, str, Stage, Run]]:
        """What is at work."""
        return [(*cell, stage, stage.running) for *cell, stage in self.model.cells() if stage.running]  # type: ignore[misc]

    def same(self, expected: Callable[[], Any], answer: Any) -> None:
        """The model answers as the database has."""
        try:
            right = expected()
        except Refused as refusal:
            right = refusal
        assert answer == right, f"answered {answer!r}, should be {right!r}"

    # Documents come and go.

    def add(self, column: Json, *, with_default: bool, processing_status: str) -> None:
        """Insert a document."""
        document = next(self._ids)
        into = "insert into krai_core.documents (id, filename, processing_status, stage_status)"
        values = (document, processing_status)
        if with_default:
            self.database.write(f"{into} values (%s, 'a.pdf', %s, default)", *values)
        else:
            self.database.write(f"{into} values (%s, 'a.pdf', %s, %s)", *values, as_json(column))
        self.model.insert(document, {} if with_default else column, processing_status == "completed")

    @step(2, column=columns, with_default=st.booleans(), is_archived=picks.map(lambda pick: pick % 4 == 0))
    def insert(self, column: Json, with_default: bool, is_archived: bool) -> None:
        """One document, also an odd one and one that was finished before."""
        if len(self.model.documents) < 4:
            self.add(column, with_default=with_default, processing_status="completed" if is_archived else "pending")

    @step(1, column=columns)
    def insert_two(self, column: Json) -> None:
        """Two in one statement, of which one is odd."""
        if len(self.model.documents) > 2:
            return
        first, second = next(self._ids), next(self._ids)
        into = "insert into krai_core.documents (id, filename, stage_status)"
        self.database.write(f"{into} values (%s, 'a.pdf', default), (%s, 'b.pdf', %s)", first, second, as_json(column))
        self.model.insert(first, {}, False)
        self.model.insert(second, column, False)

    @step(1, pick=picks)
    def delete(self, pick: int) -> None:
        """A document goes, and its runs with it; seldom all of them at once."""
        if not self.model.documents:
            return
        if pick % 10 == 9:
            self.database.write("truncate krai_core.documents")
            leaving = list(self.model.documents)
        else:
            leaving = [sorted(self.model.documents)[pick % len(self.model.documents)]]
            self.database.write("delete from krai_core.documents where id = any(%s)", leaving)
        for document in leaving:
            self.gone.append(document)
            del self.model.documents[document]

    # Somebody writes the column.

    @step(3, pick=picks, value=hand_made)
    def edit_stage(self, pick: int, value: Json) -> None:
        """One stage is set by hand."""
        document, name = self.cell(pick)
        if document in self.model.documents and name in self.model.pipeline:
            self._edit(document, self.checker.columns[document] | {name: value})

    @step(1, pick=picks, column=columns)
    def edit_column(self, pick: int, column: Json) -> None:
        """The whole column is replaced."""
        if document := self._known(pick):
            self._edit(document, column)

    def _known(self, pick: int) -> UUID | None:
        known = sorted(self.model.documents)
        return known[pick % len(known)] if known else None

    @step(1, pick=picks, other=picks)
    def write_back(self, pick: int, other: int) -> None:
        """The column of another document, as stale as can be, is written over that of this one."""
        document, source = self._known(pick), self._known(other)
        if document and source:
            self._edit(document, self.checker.columns[source])

    def _edit(self, document: UUID, column: Json) -> None:
        before = self.checker.columns[document]
        values = column.items() if isinstance(column, dict) else [("all of it", column)]
        note(f"    of {document}: {[name for name, value in values if value != before.get(name)]}")
        ((after,),) = self.database.write(
            "update krai_core.documents set stage_status = %s where id = %s returning stage_status",
            as_json(column),
            document,
        )
        self.model.edit(document, column)
        if after != before:
            self.model.documents[document].is_behind = False

    # Time passes.

    @step(6, pick=picks, ends=st.sampled_from(["lease", "lease", "all leases", "timeout"]))
    def end_lease(self, pick: int, ends: str) -> None:
        """A lease ends, or all of them, or a run takes longer than any timeout."""
        running = self.running()
        chosen = running if ends == "all leases" else [running[pick % len(running)]] if running else []
        for *cell, _, run in chosen:
            note(f"    of {cell}")
            if ends == "timeout":
                self._set(run, "started_at = started_at - interval '1 day'")
                run.is_old = True
            else:
                self._set(run, "lease_expires_at = clock_timestamp() - interval '1 s'")
                run.lease_over = True

    def _set(self, run: Run, assignment: str) -> None:
        self.database.write(f"update krai_core.stage_runs set {assignment} where id = %s", run.id)

    @step(2)
    def end_backoffs(self) -> None:
        """What was to be tried again later is due."""
        if not any(stage.backs_off for *_, stage in self.model.cells()):
            return
        self.database.write(
            "update krai_core.stage_runs "
            "set available_at = case when available_at > t.now then t.now else available_at end, "
            "    retry_at = case when retry_at > t.now then t.now else retry_at end "
            "from (select statement_timestamp() as now) t where available_at > t.now or retry_at > t.now"
        )
        for *_, stage in self.model.cells():
            if stage.backs_off:
                stage.place = None
            for run in stage.runs:
                if run.backs_off:
                    run.backs_off, run.retry_at, run.available_at = False, None, None
