"""list_documents: the documents of a stage in a state, newest first, page by page."""

import datetime as dt
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

KEYS = {"document_id", "filename", "status", "current_stage", "progress", "stage_name", "stage", "run"}
STAGE_KEYS = {"status", "started_at", "completed_at", "duration_seconds", "progress", "error", "metadata"}
RUN_KEYS = {"status", "attempt", "worker", "since", "error"}


def pages(sql: Any, *arguments: object, limit: int, **named: object) -> Iterator[list[dict[str, Any]]]:
    """All pages, as a caller goes through them."""
    after = None
    while True:
        page = sql.call("list_documents", *arguments, p_limit=limit, p_after=after, **named)
        assert set(page) == {"documents", "next"}
        yield page["documents"]
        after = page["next"]
        if after is None:
            return


def listed(sql: Any, *arguments: object, limit: int = 3, **named: object) -> list[str]:
    """The ids of all pages."""
    return [one["document_id"] for page in pages(sql, *arguments, limit=limit, **named) for one in page]


def text(documents: list[uuid.UUID]) -> list[str]:
    """Ids as they are in JSON."""
    return [str(document) for document in documents]


def newest_first(documents: list[uuid.UUID]) -> list[str]:
    """Ids of documents that were brought into a state one after the other."""
    return text(documents[::-1])


@pytest.mark.parametrize("status", ["processing", "completed", "failed", "skipped"])
def test_the_documents_of_a_state_come_newest_first(service, bring: Callable, status: str) -> None:
    """Each document of the state once, the one that came into it last first, over pages of any size."""
    documents = [service.document() for _ in range(7)]
    for document in documents[::-1]:
        bring(document, "storage", status)
    bring(service.document(), "storage", "completed" if status != "completed" else "failed")
    for limit in (1, 2, 3, 7, 50):
        assert listed(service, "storage", status, limit=limit) == text(documents)


def test_waiting_documents_are_those_that_are_pending(service) -> None:
    """Pending in a stage: what is ready, and what waits behind other stages, each once."""
    documents = [service.document() for _ in range(6)]
    service.done(documents[1], "upload")
    service.done(documents[2], "upload", "text_extraction")
    service.call("start_stage", documents[3], "text_extraction")
    service.call("fail_stage", documents[4], "text_extraction", "x")
    found = listed(service, "text_extraction", "pending", limit=2)
    assert sorted(found) == sorted(text([documents[0], documents[1], documents[5]]))
    assert sorted(listed(service, "search_indexing", "pending", limit=4)) == sorted(text(documents))


@pytest.mark.parametrize("limit", [12, 50])
def test_a_page_may_come_from_one_stage_alone(alone, limit: int) -> None:
    """Of the stages that a list is made of, one has nearly all that is new, and others what is older and newer."""
    older, newer = [alone.document() for _ in range(3)], []
    for document in older:
        alone.call("fail_stage", document, "storage", "x")
    thirty = [alone.document() for _ in range(30)]
    for document in thirty[:2]:
        newer.append(document)
        alone.call("start_stage", document, "upload")
    expected = newest_first(newer) + newest_first(thirty[2:])
    found = listed(alone, "search_indexing", "pending", limit=limit)
    # The older ones were inserted before, and failed in another stage after that: they stand by the newer of both.
    assert found == expected[:2] + expected[2:] + newest_first(older)
    assert sorted(listed(alone, limit=limit)) == sorted(text(older + thirty))


def test_what_waits_to_be_tried_again_has_failed(service) -> None:
    """A failed stage with a retry to come is listed as failed, and not as pending."""
    document = service.document()
    service.call("start_stage", document, "upload")
    service.call("fail_stage", document, "upload", "x", p_retry=True)
    assert listed(service, "upload", "failed") == [str(document)]
    assert listed(service, "upload", "pending") == []


def test_all_documents_without_a_stage_and_a_status(service) -> None:
    """Without any filter every document is listed once, whatever its state."""
    documents = [service.document() for _ in range(5)]
    service.done(documents[2], "upload")
    service.call("fail_stage", documents[3], "upload", "x")
    for limit in (1, 2, 50):
        assert sorted(listed(service, limit=limit)) == sorted(text(documents))


@pytest.mark.parametrize("status", ["processing", "failed"])
def test_failed_and_processing_in_any_stage(service, bring: Callable, status: str) -> None:
    """Without a stage each document is listed once, under the stage that came into the state last, newest first."""
    documents = [service.document() for _ in range(3)]
    for document, stage in zip(documents, ("upload", "storage", "embedding"), strict=True):
        bring(document, stage, status)
    bring(documents[0], "classification", status)
    first, second, third = text(documents)
    for limit in (1, 2, 10):
        found = [
            (one["document_id"], one["stage_name"])
            for page in pages(service, None, status, limit=limit)
            for one in page
        ]
        assert found == [(first, "classification"), (third, "embedding"), (second, "storage")]
    service.call("reset_stage", documents[0], "classification", p_force=True)
    assert listed(service, None, status) == [third, second, first]


def test_a_row_says_where_the_document_stands(service) -> None:
    """Every field: the document, its progress, the seven keys of the stage, and the run with its worker."""
    document = service.document(filename="service manual.pdf")
    service.call("start_stage", document, "upload", p_claim_id=uuid.uuid4(), p_worker="anna")
    service.call("update_stage_progress", document, "upload", 12.5, {"pages": 3})
    (row,) = service.call("list_documents", "upload", "processing")["documents"]
    assert set(row) == KEYS
    assert set(row["run"]) == RUN_KEYS
    assert (row["document_id"], row["filename"], row["status"]) == (str(document), "service manual.pdf", "processing")
    assert (row["current_stage"], row["progress"], row["stage_name"]) == ("upload", 0, "upload")
    assert row["stage"] == service.stage(document, "upload")
    assert set(row["stage"]) == STAGE_KEYS
    run = row["run"]
    assert (run["status"], run["attempt"], run["worker"], run["error"]) == ("running", 1, "anna", None)
    assert run["since"] == row["stage"]["started_at"]


def test_a_failed_row_has_its_error(service) -> None:
    """The run of a failed stage carries error and attempt; since is when it failed."""
    document = service.document()
    service.call("start_stage", document, "upload")
    service.call("fail_stage", document, "upload", "OCR engine timeout")
    (row,) = service.call("list_documents", None, "failed")["documents"]
    assert (row["status"], row["run"]["status"], row["run"]["error"]) == ("failed", "failed", "OCR engine timeout")
    assert row["run"]["since"] == row["stage"]["completed_at"]


@pytest.mark.parametrize("status", ["completed", "failed", "skipped", "processing", "pending"])
def test_states_that_no_worker_made_are_listed(service, status: str) -> None:
    """Documents that were inserted or edited into a state are listed like the others."""
    inserted = service.document(stage_status={"upload": {"status": status}})
    edited = service.document()
    service.edit(edited, {"upload": {"status": status}})
    assert sorted(listed(service, "upload", status)) == sorted(text([inserted, edited]))


def test_a_finished_document_shows_its_stages(service) -> None:
    """Of a document that was completed before stages were tracked a row says completed and 100."""
    document = service.document(processing_status="completed")
    (row,) = service.call("list_documents", "embedding", "completed")["documents"]
    assert (row["document_id"], row["status"], row["progress"]) == (str(document), "completed", 100)


def test_what_left_the_state_is_not_listed(service) -> None:
    """After reset, retry, a new start and deletion none of them is listed, and each is where it went."""
    documents = [service.document() for _ in range(4)]
    for document in documents:
        service.call("fail_stage", document, "upload", "x")
    service.call("reset_stage", documents[0], "upload")
    service.call("start_stage", documents[1], "upload")
    service.run("delete from krai_core.documents where id = %s", documents[2])
    assert listed(service, "upload", "failed") == [str(documents[3])]
    assert listed(service, "upload", "processing") == [str(documents[1])]
    assert listed(service, "upload", "pending") == [str(documents[0])]


def test_pages_with_mixed_priorities_are_complete(service) -> None:
    """Pending documents of all priorities, some due later, some behind other stages: each once over small pages."""
    documents = [service.document() for _ in range(40)]
    for place, document in enumerate(documents):
        if place % 3 == 0:
            service.call("set_priority", document, place % 7 - 3)
        if place % 4 == 0:
            service.done(document, "upload")
        if place % 5 == 0:
            service.run(
                "update krai_core.stage_runs set available_at = available_at + interval '1 hour' "
                "where document_id = %s and status = 'ready'",
                document,
            )
    for stage in ("upload", "text_extraction", "search_indexing"):
        waiting = [one for place, one in enumerate(documents) if stage != "upload" or place % 4]
        for limit in (1, 3, 7):
            found = listed(service, stage, "pending", limit=limit)
            assert len(found) == len(set(found))
            assert set(found) == set(text(waiting))


def test_every_priority_may_be_another(service) -> None:
    """Where each of 130 waiting documents has a priority of its own, all of them are listed."""
    documents = [service.document() for _ in range(130)]
    for place, document in enumerate(documents):
        service.call("set_priority", document, place - 65)
    for limit in (25, 1000):
        assert sorted(listed(service, "upload", "pending", limit=limit)) == sorted(text(documents))


def test_pages_of_one_instant_are_complete(service) -> None:
    """Documents that came into a state in one statement, at the same microsecond, are each listed once."""
    service.run(
        "insert into krai_core.documents (filename, stage_status) "
        """select n::text, '{"upload": {"status": "completed", "completed_at": "2025-10-04T08:00:00.000000Z"}}' """
        "from generate_series(1, 25) n"
    )
    found = listed(service, "upload", "completed", limit=4)
    assert len(found) == len(set(found)) == 25
    found = listed(service, "text_extraction", "pending", limit=4)
    assert len(found) == len(set(found)) == 25


def test_pages_stay_complete_while_others_write(service) -> None:
    """What is there from the first page to the last is listed once, while others come to the state and leave it."""
    documents = [service.document() for _ in range(30)]
    for document in documents:
        service.call("fail_stage", document, "upload", "x")
    leaving = text(documents[::5])
    found: list[str] = []
    for number, page in enumerate(pages(service, "upload", "failed", limit=4)):
        found += [one["document_id"] for one in page]
        service.call("fail_stage", service.document(), "upload", "newer")
        service.call("retry_stage", documents[::5][number % 6], "upload")
    assert len(found) == len(set(found))
    assert set(text(documents)) - set(leaving) <= set(found)


def test_pages_of_pending_stay_complete_while_others_write(service) -> None:
    """Of the waiting documents those that nobody touches are each listed once, whatever is claimed meanwhile."""
    documents = [service.document() for _ in range(30)]
    touched: set[str] = set()
    found: list[str] = []
    for page in pages(service, "upload", "pending", limit=4):
        found += [one["document_id"] for one in page]
        touched |= {run["document_id"] for run in service.claim(limit=2)}
        service.document()
    assert len(found) == len(set(found))
    assert set(text(documents)) - touched <= set(found)


def test_errors_are_searched_for(service) -> None:
    """p_error is part of the error, as LIKE in any letter case, over all pages; the status may be left out."""
    errors = ["OCR engine timeout", "ocr Engine crashed", "no such file", "100% full", "timeout of the OCR engine"]
    documents = [service.document() for _ in errors]
    for document, error in zip(documents, errors, strict=True):
        service.call("fail_stage", document, "upload", error)
    first, second, _, _, fifth = text(documents)
    for status in ("failed", None):
        assert listed(service, "upload", status, limit=1, p_error="OCR engine") == [fifth, second, first]
        assert listed(service, None, status, limit=2, p_error="OCR%timeout") == [first]
    assert listed(service, "storage", "failed", p_error="OCR") == []


def test_rare_errors_are_found_behind_many_others(service) -> None:
    """A filter that few match goes through all failures, page after page."""
    for number in range(60):
        service.call("fail_stage", service.document(), "upload", "rare" if number in {3, 31} else "usual")
    assert len(listed(service, "upload", "failed", limit=1, p_error="rare")) == 2


def test_a_group_of_failures_is_listed_by_its_fingerprint(service) -> None:
    """p_fingerprint, as get_failures gives it, lists the documents of that group and no others."""
    for number in range(6):
        error = f"page {number} unreadable" if number % 2 else f"no access to s3://bucket/{number}/x.pdf"
        service.call("fail_stage", service.document(), "upload", error)
    for group in service.call("get_failures")["groups"]:
        found = listed(service, "upload", None, limit=2, p_fingerprint=group["fingerprint"])
        assert len(found) == group["count"] == 3
        assert group["sample"]["document_id"] in found
        assert found == listed(service, None, "failed", p_fingerprint=group["fingerprint"])


@pytest.mark.parametrize(
    ("arguments", "named", "word"),
    [
        (("nonsense",), {}, "unknown_stage"),
        (("upload", "finished"), {}, "invalid_status"),
        ((None, "pending"), {}, "invalid_status"),
        ((None, "completed"), {}, "invalid_status"),
        ((None, "skipped"), {}, "invalid_status"),
        (("upload", "completed"), {"p_error": "x"}, None),
        (("upload", "failed"), {"p_limit": 0}, "invalid_limit"),
        (("upload", "failed"), {"p_limit": 1001}, "invalid_limit"),
        (("upload", "failed"), {"p_limit": None}, "invalid_limit"),
        (("upload", "failed"), {"p_after": "nonsense"}, "invalid_cursor"),
        (("upload", "failed"), {"p_after": ""}, "invalid_cursor"),
        (("upload", "pending"), {"p_after": "1 2 3 4 5 6"}, "invalid_cursor"),
        ((), {"p_after": "nonsense"}, "invalid_cursor"),
        (("upload", "failed"), {"p_fingerprint": "nonsense"}, "invalid_fingerprint"),
        (("upload", "failed"), {"p_fingerprint": "9" * 19}, "invalid_fingerprint"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(service, arguments: tuple, named: dict, word: str | None) -> None:
    """What cannot be meant is 22023 with a word, a sentence and a remedy."""
    refusal = service.refused("list_documents", *arguments, **named)
    assert refusal.sqlstate == "22023"
    assert refusal.hint
    assert word is None or refusal.word == word


def test_a_cursor_of_another_question_is_refused_or_harmless(service) -> None:
    """The next of one question, handed to another one, is refused in words, or goes on."""
    for _ in range(4):
        service.call("fail_stage", service.document(), "upload", "x")
        service.document()
    questions = [("upload", "failed"), ("upload", "pending"), (None, None), (None, "failed"), ("storage", "pending")]
    for question in questions:
        after = service.call("list_documents", *question, p_limit=1)["next"]
        assert after
        for other in questions:
            try:
                service.call("list_documents", *other, p_after=after)
            except psycopg.Error as error:
                if error.sqlstate != "22023":
                    raise


def test_since_is_a_time_of_the_database(service) -> None:
    """since of a pending document is in UTC, in the one form of all times, and not in the future."""
    service.document()
    (row,) = service.call("list_documents", "upload", "pending")["documents"]
    since = dt.datetime.strptime(row["run"]["since"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=dt.UTC)
    assert since <= service.value("select clock_timestamp()")
    assert row["run"]["status"] == "ready"


@pytest.mark.triggers_off
def test_odd_rows_are_listed_once_they_have_runs(alone) -> None:
    """Documents whose columns are odd, and came without triggers, are all listed after rebuild_ready_runs."""
    alone.run("alter table krai_core.documents disable trigger user")
    for value in ([], "completed", 7):
        alone.document(stage_status=Jsonb(value))
    alone.document(stage_status=None)
    archived = alone.document(stage_status={"upload": "completed", "storage": {"status": "failed"}})
    alone.call("rebuild_ready_runs")
    assert len(listed(alone, limit=2)) == 5
    assert listed(alone, "upload", "completed") == listed(alone, "storage", "failed") == [str(archived)]
