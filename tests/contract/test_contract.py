"""GET /status/{document_id} and GET /stages/statistics are the same, whoever serves them.

What differs is said here: PostgREST has keys of its own for errors (message, code, details, hint) and answers 400 to
what is no id; Edge Functions and FastAPI answer 422, and all errors as {detail, hint, error}.
"""

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from json_examples import DOCUMENT_STATUS, STAGE_STATUS, STATISTICS, TIME, means

from processors_v2._local.process import wait_until
from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker

# What the clock alone changes between two questions.
RESTLESS = ("oldest_waiting", "throughput_per_hour")

Prepare = Callable[[StageTracker, Any, str], object]


def as_in_the_example(_: StageTracker, db: Any, document: str) -> None:
    """Upload done, text extraction at 45.5 %, two more stages finished."""
    others = {name: {**STAGE_STATUS["upload"], "status": "skipped"} for name in ("image_processing", "storage")}
    changed = json.dumps({**STAGE_STATUS, **others})
    db.run("update krai_core.documents set stage_status = stage_status || %s::jsonb where id = %s", changed, document)


def completed(tracker: StageTracker, _: Any, document: str) -> None:
    """All stages done."""
    for stage in tracker.STAGES:
        tracker.complete_stage(document, stage, {"pages": 7})


STATES: dict[str, Prepare] = {
    "pending": lambda *_: None,
    "processing": as_in_the_example,
    "failed": lambda tracker, _, document: tracker.fail_stage(document, "upload", 'Größe 0, "leer" \\ \u2028 😀'),
    "completed": completed,
}


def problem_of(answer: httpx.Response, *, is_postgrest: bool) -> tuple[str, str | None, str | None]:
    """What an answer tells about an error: sentence, hint, and the machine word of our SQL functions."""
    told = answer.json()
    if is_postgrest:
        details = json.loads(told["details"]) if (told["details"] or "").startswith("{") else {}
        return told["message"], told["hint"], details.get("error")
    assert set(told) == {"detail", "hint", "error"}
    return told["detail"], told["hint"], told["error"]


@pytest.fixture(scope="session")
def tracker(stack: LocalSupabase) -> StageTracker:
    """A tracker with all rights."""
    return StageTracker(stack.client())


@pytest.mark.parametrize("state", STATES)
def test_a_document_is_answered_with_what_the_function_returns(
    way: Any, stack: LocalSupabase, tracker: StageTracker, db: Any, state: str
) -> None:
    """The body is the JSON of get_document_status, in every state."""
    document = db.document()
    STATES[state](tracker, db, document)
    answer = way.get_status(document, stack.key())
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json()["status"] == state
    assert answer.json() == db.one("select krai_core.get_document_status(%s)", document)


def test_a_document_is_answered_as_in_the_example(
    way: Any, stack: LocalSupabase, tracker: StageTracker, db: Any
) -> None:
    """It has the fields of the example, with its values."""
    document = db.document()
    as_in_the_example(tracker, db, document)
    found = way.get_status(document, stack.key()).json()
    assert set(found) == set(DOCUMENT_STATUS)
    assert means(found, DOCUMENT_STATUS | {"document_id": document})


def test_statistics_are_answered_as_in_the_example(way: Any, stack: LocalSupabase, db: Any) -> None:
    """For every stage they have the fields of the example, with the values of get_stage_statistics."""
    answer = way.get_statistics(stack.key())
    assert answer.status_code == 200
    found, wanted = answer.json(), db.one("select krai_core.get_stage_statistics()")
    assert set(found) == set(STATISTICS)
    assert TIME.fullmatch(found["timestamp"])
    assert set(STATISTICS["stages"]["upload"]) <= set(found["stages"]["upload"])
    for stage in (*found["stages"].values(), *wanted["stages"].values()):
        for name in RESTLESS:
            del stage[name]
    assert found["stages"] == wanted["stages"]


def test_an_unknown_document_is_404(way: Any, stack: LocalSupabase) -> None:
    """The answer names the id and the remedy, in the words of the database."""
    unknown = str(uuid.uuid4())
    answer = way.get_status(unknown, stack.key())
    assert answer.status_code == 404
    detail, hint, word = problem_of(answer, is_postgrest=way.is_postgrest)
    assert detail == f"there is no document {unknown}"
    assert hint.startswith("Insert the row into krai_core.documents first")
    assert word == "unknown_document"


@pytest.mark.parametrize("document", ["42", "not-an-id", "00000000-0000-0000-0000-00000000000g"])
def test_what_is_no_id_is_a_fault_of_the_caller(way: Any, stack: LocalSupabase, document: str) -> None:
    """It is answered by 422, which names the value; by PostgREST with 400."""
    answer = way.get_status(document, stack.key())
    assert answer.status_code == way.malformed
    detail, _, word = problem_of(answer, is_postgrest=way.is_postgrest)
    assert document in detail
    assert way.is_postgrest or word == "invalid_document_id"


def test_without_a_token_nothing_is_told(way: Any, db: Any) -> None:
    """Nobody in particular gets 401, for a document that is there, for one that is not, and for the statistics."""
    answers = [way.get_status(db.document(), None), way.get_status(str(uuid.uuid4()), None), way.get_statistics(None)]
    assert [answer.status_code for answer in answers] == [401, 401, 401]
    assert len({problem_of(answer, is_postgrest=way.is_postgrest)[0] for answer in answers[:2]}) == 1


@pytest.mark.parametrize("fault", ["expired", "signed by somebody else", "no token at all"])
def test_a_token_that_does_not_hold_is_401(way: Any, stack: LocalSupabase, db: Any, fault: str) -> None:
    """It is refused even for what it would be good enough for."""
    head, payload, _ = stack.key().split(".")
    token = {
        "expired": stack.key(exp=int(time.time()) - 3600),
        "signed by somebody else": f"{head}.{payload}.{'A' * 43}",
        "no token at all": "abc",
    }[fault]
    assert way.get_status(db.document(), token).status_code == 401


def test_a_user_sees_own_documents_only(way: Any, stack: LocalSupabase, db: Any) -> None:
    """To a signed-in user somebody else's document does not exist."""
    user = uuid.uuid4()
    token = stack.key("authenticated", sub=str(user))
    own, foreign = db.document(user), db.document(uuid.uuid4())
    assert way.get_status(own, token).json() == db.one("select krai_core.get_document_status(%s)", own)
    answer = way.get_status(foreign, token)
    assert answer.status_code == 404
    assert problem_of(answer, is_postgrest=way.is_postgrest)[0] == f"there is no document {foreign}"


def test_statistics_are_not_for_users(way: Any, stack: LocalSupabase) -> None:
    """A signed-in user gets 403, never the sums of other tenants."""
    assert way.get_statistics(stack.key("authenticated", sub=str(uuid.uuid4()))).status_code == 403


def test_while_the_database_is_away_the_answer_is_503(ways: dict[str, Any], stack: LocalSupabase, db: Any) -> None:
    """All ways say so, in their time, and answer again when it is back."""
    document, key = db.document(), stack.key()
    postgres = stack._postgres
    assert postgres is not None
    postgres.stop()
    try:
        answers = {name: way.get_status(document, key) for name, way in ways.items()}
    finally:
        postgres.start(postgres.port)
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(ways, 503)
    told = [problem_of(answers[name], is_postgrest=False) for name in ways if name != "postgrest"]
    assert told[0] == told[1]
    for way in ways.values():
        assert wait_until(lambda way=way: way.get_status(document, key).status_code == 200, 60)
