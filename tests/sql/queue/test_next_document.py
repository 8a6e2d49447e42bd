"""get_next_document: hands out one document to a caller that sends no heartbeats."""

import uuid
from collections.abc import Callable

import pytest


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


def test_the_next_document_is_claimed(service, queue: list[str]) -> None:
    """Each call hands out another document, in order, as a whole row that is processing already; then null."""
    handed_out = []
    while (document := service.call("get_next_document", "upload", "w")) is not None:
        assert document == service.value("select to_jsonb(d) from krai_core.documents d where id = %s", document["id"])
        assert document["stage_status"]["upload"]["status"] == "processing"
        handed_out.append(document["id"])
    assert handed_out == queue
    assert service.value("select bool_and(worker = 'w') from krai_core.stage_runs where status = 'running'")


@pytest.mark.parametrize(("of_stage", "seconds"), [(300, 3600), (7200, 7200)])
def test_the_next_document_is_held_for_an_hour(alone, of_stage: int, seconds: int) -> None:
    """For callers that send no heartbeats: the lease of a plain start."""
    alone.run("update krai_core.stages set lease_seconds = %s where name = 'upload'", of_stage)
    alone.document()
    alone.call("get_next_document", "upload")
    assert alone.value("select lease_seconds from krai_core.stage_runs where status = 'running'") == seconds


def test_the_same_claim_id_hands_out_the_same_document(service, connect: Callable) -> None:
    """A lost answer is asked for again; while the first call still runs that is claim_in_progress."""
    for _ in range(2):
        service.document()
    claim, first = uuid.uuid4(), connect()
    first.run("begin")
    document = first.call("get_next_document", "upload", p_claim_id=claim)
    assert service.refused("get_next_document", "upload", p_claim_id=claim).word == "claim_in_progress"
    first.run("commit")
    assert service.call("get_next_document", "upload", p_claim_id=claim)["id"] == document["id"]
    assert service.call("complete_stage", uuid.UUID(document["id"]), "upload", p_claim_id=claim) is True
    assert service.call("get_next_document", "upload", p_claim_id=claim) is None
