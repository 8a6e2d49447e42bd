"""get_document_events: what has changed since somebody looked last, each change once."""

import random
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from processors_v2.local import LocalSupabase

# What the history holds of changes: the start and the end of each run, and that somebody took it back.
HISTORY = """
select r.stage_name, e.change, krai_private.iso_time(e.at), r.attempt
from krai_core.stage_runs r
cross join lateral (values ('started', r.started_at), (r.status, r.finished_at), ('reset', r.reset_at)) e (change, at)
where r.document_id = %s and e.at is not null and (r.started_at is not null or e.change <> 'cancelled')
"""


class Reader:
    """Somebody who follows a document and remembers what was told."""

    def __init__(self, session: Any, document: uuid.UUID) -> None:
        self._session, self._document = session, str(document)
        self._known: dict[str, Any] | None = None
        self.told: list[dict[str, Any]] = []
        self.answer: dict[str, Any] = {}
        assert self.look() == []

    def look(self) -> list[dict[str, Any]] | None:
        """Return the changes since the last look; None where the document was left out."""
        answers = self._session.call("get_document_events", {self._document: self._known})
        if not answers:
            return None
        self.answer = answers[self._document]
        self._known = {name: self.answer[name] for name in ("seen", "version")}
        self.told += self.answer["changes"]
        changes: list[dict[str, Any]] = self.answer["changes"]
        return changes


def names(changes: Any) -> list[tuple[str, str]]:
    """What the changes are, without times."""
    return [(change["stage_name"], change["change"]) for change in changes]


def test_a_stage_that_began_and_ended_meanwhile_is_told_as_both(service) -> None:
    """Changes come oldest first with attempt, time and error, and the state beside them is that of the document."""
    document = service.document()
    reader = Reader(service, document)
    service.call("start_stage", document, "upload")
    service.call("complete_stage", document, "upload")
    service.call("start_stage", document, "text_extraction")
    service.call("fail_stage", document, "text_extraction", "broken")
    changes = reader.look()
    assert names(changes) == [
        ("upload", "started"), ("upload", "completed"), ("text_extraction", "started"), ("text_extraction", "failed"),
    ]  # fmt: skip
    assert [(change["attempt"], change["error"]) for change in changes or []] == [(1, None)] * 3 + [(1, "broken")]
    assert Counter((c["stage_name"], c["change"], c["at"], c["attempt"]) for c in changes or []) == Counter(
        service.rows(HISTORY, document)
    )
    assert reader.answer["state"] == service.call("get_document_status", document)
    assert reader.answer["is_open"] is True


def test_every_kind_of_change_has_its_word(service, bring: Callable) -> None:
    """Skipped, given back, lost, cancelled, retried and reset: each is told by name, behind the last look."""
    document = service.document()
    reader = Reader(service, document)
    (run,) = service.claim("upload")
    service.call("release_stages", [run])
    assert names(reader.look()) == [("upload", "started"), ("upload", "released")]
    bring(document, "upload", "skipped")
    assert names(reader.look()) == [("upload", "started"), ("upload", "skipped")]
    service.claim("text_extraction")
    service.end_lease(document, "text_extraction")
    service.call("reap")
    assert names(reader.look()) == [("text_extraction", "started"), ("text_extraction", "lost")]
    service.call("fail_stage", document, "image_processing", "broken")
    assert names(reader.look()) == [("image_processing", "failed")]
    service.call("retry_stage", document, "image_processing")
    assert names(reader.look()) == [("image_processing", "reset")]
    service.call("reset_stage", document, "upload")
    assert names(reader.look()) == [("upload", "reset")]
    service.claim("upload")
    service.call("cancel_document", document)
    assert ("upload", "cancelled") in names(reader.look())
    assert reader.answer["is_open"] is False


def test_what_was_not_written_since_is_left_out(service) -> None:
    """Nothing is told of it until a write; progress is a write without a change of a stage."""
    document, other = service.document(), service.document()
    reader, bystander = Reader(service, document), Reader(service, other)
    assert reader.look() is None
    service.call("start_stage", document, "upload")
    assert names(reader.look()) == [("upload", "started")]
    assert reader.look() is None
    service.call("update_stage_progress", document, "upload", 50)
    assert reader.look() == []
    assert reader.answer["state"]["stage_status"]["upload"]["progress"] == 50
    assert bystander.look() is None


def test_a_pipeline_that_changed_is_told(alone) -> None:
    """What a document is counted by may change without a write to it."""
    document = alone.document()
    reader = Reader(alone, document)
    alone.done(document, "upload")
    reader.look()
    assert reader.answer["state"]["progress"] == 12.5
    alone.call("disable_stage", "storage")
    assert reader.look() == []
    assert reader.answer["state"]["progress"] == 14.29


def test_a_mark_outlives_the_pruning_of_what_was_seen(service, bring: Callable) -> None:
    """Runs that are pruned neither hide what comes after them nor bring back what was told."""
    document = service.document()
    for _ in range(3):
        bring(document, "upload", "failed")
    service.call("retry_stage", document, "upload")
    reader = Reader(service, document)
    mark = reader.answer["seen"]
    assert service.call("prune_runs", "0 days", False)["pruned"] > 0
    assert reader.look() is None
    bring(document, "upload", "completed")
    assert names(reader.look()) == [("upload", "started"), ("upload", "completed")]
    late = service.call("get_document_events", {str(document): {"seen": mark}})[str(document)]
    assert names(late["changes"]) == [("upload", "started"), ("upload", "completed")]


def test_a_document_that_is_gone_has_no_state(service) -> None:
    """One that was deleted, or never was, is told once as null and then left out."""
    document = service.document()
    reader = Reader(service, document)
    service.run("delete from krai_core.documents where id = %s", document)
    assert reader.look() == []
    expected = {"version": None, "seen": None, "state": None, "changes": [], "is_open": False}
    assert reader.answer == expected
    never = str(uuid.uuid4())
    assert service.call("get_document_events", {never: None}) == {never: expected}


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ([], "documents are given as array"),
        (None, "documents are given as null"),
        ({"manual.pdf": None}, "'manual.pdf': null"),
        ({str(uuid.UUID(int=1)): {"seen": "x"}}, '{"seen": "x"}'),
        ({str(uuid.UUID(int=1)): {}}, "{}"),
        ({str(uuid.UUID(int=1)): {"seen": "1.x2"}}, '"1.x2"'),
        ({str(uuid.UUID(int=1)): {"seen": "1", "version": 7}}, '"version": 7'),
        ({str(uuid.UUID(int=n)): None for n in range(1001)}, "1001 documents are too many"),
    ],
)  # fmt: skip
def test_what_is_no_question_is_refused(service, documents: Any, said: str) -> None:
    """The error names what cannot be used and says what to pass."""
    refusal = service.refused("get_document_events", documents)
    assert (refusal.sqlstate, refusal.word) == ("22023", "invalid_documents")
    assert said in refusal.message
    assert "at most 1000" in str(refusal.hint)


def test_a_mark_of_many_open_runs_is_understood(service) -> None:
    """A pipeline may have hundreds of stages, and a mark names those that are open."""
    document = service.document()
    mark = "900" + "".join(f".r{number}" for number in range(600))
    assert str(document) in service.call("get_document_events", {str(document): {"seen": mark}})


def _do_something(session: Any, document: uuid.UUID, choice: random.Random, claims: list[dict[str, Any]]) -> None:
    """One call of somebody who works on the document or operates the pipeline, whether it fits or not."""
    stage = choice.choice(["upload", "text_extraction", "image_processing", "storage"])

    def claim() -> None:
        claims.extend(session.claim(stage))

    def finish() -> None:
        if claims:
            run = claims.pop()
            ids = {name: run[name] for name in ("document_id", "stage_name", "claim_id")}
            session.finish(ids | {"outcome": choice.choice(["completed", "failed", "skipped"]), "error": "x"})

    def give_back() -> None:
        if claims:
            session.call("release_stages", [claims.pop()])

    def expire() -> None:
        session.end_lease(document, stage)
        session.call("reap")

    choice.choice(
        [
            claim, claim, finish, finish, give_back, expire,
            lambda: session.attempt("start_stage", document, stage),
            lambda: session.attempt("update_stage_progress", document, stage, 50),
            lambda: session.attempt("complete_stage", document, stage),
            lambda: session.attempt("fail_stage", document, stage, "broken", p_retry=choice.random() < 0.5),
            lambda: session.attempt("skip_stage", document, stage),
            lambda: session.attempt("retry_stage", document, stage),
            lambda: session.attempt("reset_stage", document, stage, p_cascade=choice.random() < 0.5, p_force=True),
            lambda: session.attempt("cancel_document", document) if choice.random() < 0.2 else None,
        ]
    )()  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_under_parallel_writers_each_change_is_told_once(
    service, connect: Callable, background: type, seed: int
) -> None:
    """What a reader was told while four sessions did this and that is the history, nothing missed, nothing twice."""
    document, sessions = service.document(), [connect() for _ in range(4)]
    reader = Reader(connect(), document)

    def work(number: int) -> None:
        session, choice, claims = sessions[number], random.Random(f"{seed} {number}"), list[dict[str, Any]]()
        for _ in range(120):
            _do_something(session, document, choice, claims)

    writers = [background(lambda n=number: work(n)) for number in range(4)]
    while any(writer.is_alive() for writer in writers):
        reader.look()
    for writer in writers:
        writer.outcome()
    reader.look()
    told = Counter((c["stage_name"], c["change"], c["at"], c["attempt"]) for c in reader.told)
    assert told == Counter(service.rows(HISTORY, document))
    assert len(told) > 100
    assert reader.look() is None


@pytest.fixture
def tenants(alone, connect: Callable, local: LocalSupabase, own_database: str) -> Callable[[uuid.UUID], Any]:
    """Documents with owners, each of whom sees his own; opens a session signed in as somebody."""
    alone.run("alter table krai_core.documents add column owner uuid")
    alone.run("grant select on krai_core.documents to authenticated")
    alone.run(
        "create policy own_documents on krai_core.documents "
        "for select to authenticated using (owner = (select auth.uid()))"
    )

    def sign_in(user: uuid.UUID) -> Any:
        session = connect("authenticated", local.url_of(own_database))
        session.run("select set_config('request.jwt.claims', %s, false)", f'{{"sub": "{user}"}}')
        return session

    return sign_in


def test_an_owner_follows_his_documents_alone(alone, tenants: Callable) -> None:
    """He is told of the changes of his own; others' are as unknown as those that are not there; anon is refused."""
    owner = uuid.uuid4()
    mine, theirs = alone.document(owner=owner), alone.document(owner=uuid.uuid4())
    session = tenants(owner)
    reader = Reader(session, mine)
    for document in (mine, theirs):
        alone.call("start_stage", document, "upload", p_worker="anna")
    assert names(reader.look()) == [("upload", "started")]
    assert "anna" not in str(reader.answer)
    hidden = session.call("get_document_events", {str(theirs): {"seen": "0"}})[str(theirs)]
    assert hidden == {"version": None, "seen": None, "state": None, "changes": [], "is_open": False}
    session.run("reset role")
    session.run("set role anon")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.call("get_document_events", {str(mine): None})


@pytest.mark.parametrize("question", ["get_document_events", "get_document_timeline"])
def test_a_plan_for_one_document_does_not_read_all_runs_later(alone: Any, question: str) -> None:
    """A session that planned when there was one document reads the runs of its document alone among 2,000."""
    document = alone.document()
    alone.run("analyze krai_core.documents, krai_core.stage_runs")
    asked = {str(document): None} if question == "get_document_events" else document
    alone.call(question, asked)
    alone.run("insert into krai_core.documents (filename) select 'x.pdf' from generate_series(1, 2000)")
    read = "select sum(idx_tup_read)::int from pg_stat_user_indexes where relname = 'stage_runs'"
    alone.run("select pg_stat_force_next_flush()")
    before = alone.value(read)
    alone.call(question, asked)
    alone.run("select pg_stat_force_next_flush()")
    assert alone.value(read) - before < 100
