"""get_documents_ready_for: the documents that are ready, in the order of the queue. It only reads."""

import uuid

import pytest


def _pages(service, limit: int, stage: str = "upload") -> list[str]:
    """The ids of all documents that are ready, page by page."""
    found: list[str] = []
    after = None
    for _ in range(100):
        page = service.call("get_documents_ready_for", stage, limit, after)
        assert len(page["documents"]) <= limit
        found += [document["id"] for document in page["documents"]]
        after = page["next"]
        if after is None:
            return found
    raise AssertionError("the pages have no end")


@pytest.fixture
def queue(service) -> list[str]:
    """Nine documents in the order in which they are handed out: three priorities, some of one age."""
    documents = [service.document() for _ in range(9)]
    for place, document in enumerate(documents):
        service.call("set_priority", document, 5 - 5 * (place // 3))
    service.run(
        "update krai_core.stage_runs set available_at = '2026-01-01 00:00:00.123456+00' "
        "where document_id = any (%s::uuid[])",
        "{" + ",".join(str(documents[which]) for which in (3, 4, 5, 6, 7)) + "}",
    )
    return [str(document) for document in documents]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 9, 10, 1000])
def test_pages_follow_the_order_of_the_queue(service, queue: list[str], limit: int) -> None:
    """Page by page every ready document comes once, over priorities and equal ages, as a claim would hand it out."""
    assert _pages(service, limit) == queue
    assert [run["document_id"] for run in service.claim(limit=9)] == queue


def test_reading_claims_nothing(service, queue: list[str]) -> None:
    """The pages can be read again, in a transaction that may only read."""
    with service.connection.transaction():
        service.run("set transaction read only")
        assert [_pages(service, 4) for _ in range(2)] == [queue, queue]
    assert service.value("select count(*) from krai_core.stage_runs where status <> 'ready'") == 0


def test_pages_go_on_while_claims_go_on(service, queue: list[str]) -> None:
    """What is claimed between two pages is left out of the later ones; nothing is passed over or comes twice."""
    first = service.call("get_documents_ready_for", "upload", 4)
    claimed = [run["document_id"] for run in service.claim(limit=6)]
    assert claimed == queue[:6]
    service.call("set_priority", uuid.UUID(queue[8]), 99)
    second = service.call("get_documents_ready_for", "upload", 4, first["next"])
    assert [document["id"] for document in first["documents"]] == queue[:4]
    # The last went before the place of the cursor and was not there when the first page was read.
    assert [document["id"] for document in second["documents"]] == queue[6:8]
    assert second["next"] is None


def test_documents_are_whole_rows(service) -> None:
    """Every column of the table, stage_status included, as an object."""
    document = service.document(filename="a.pdf")
    (found,) = service.call("get_documents_ready_for", "upload")["documents"]
    assert found == service.value("select to_jsonb(d) from krai_core.documents d where id = %s", document)
    assert found["filename"] == "a.pdf"


@pytest.mark.parametrize("hide", ["pause_stage", "disable_stage", "not due"])
def test_what_would_not_be_handed_out_is_not_listed(alone, hide: str) -> None:
    """A paused or disabled stage has no documents, nor has one whose runs are not due."""
    alone.document()
    if hide == "not due":
        alone.run("update krai_core.stage_runs set available_at = now() + interval '1 h'")
    else:
        alone.call(hide, "upload")
    assert alone.call("get_documents_ready_for", "upload") == {"documents": [], "next": None}


@pytest.mark.parametrize(
    "cursor", ["x", "", "1", "1 2", "1 2026-01-01T00:00:00Z", "x 2026-01-01T00:00:00Z 5", "1 2026-01-01T00:00:00Z x"]
)
def test_a_cursor_that_is_none_is_refused(service, cursor: str) -> None:
    """invalid_cursor with what was given."""
    refusal = service.refused("get_documents_ready_for", "upload", 10, cursor)
    assert (refusal.sqlstate, refusal.word) == ("22023", "invalid_cursor")
    assert f"'{cursor}'" in refusal.message
    assert "null for the beginning" in (refusal.hint or "")


@pytest.mark.parametrize("limit", [0, 1001, None])
def test_a_page_has_1_to_1000_documents(service, limit: int | None) -> None:
    """Any other limit is refused."""
    assert service.refused("get_documents_ready_for", "upload", limit).word == "invalid_limit"


@pytest.mark.parametrize("function", ["get_documents_ready_for", "get_next_document"])
def test_a_stage_that_is_not_there_is_named(service, function: str) -> None:
    """unknown_stage."""
    assert service.refused(function, "nonsense").word == "unknown_stage"
