"""What every error says: SQLSTATE, machine word, ids, remedy; and that nothing was changed."""

import json
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import httpx
import postgrest
import pytest

from processors_v2.local import LocalSupabase

GHOST = uuid.UUID("00000000-0000-4000-8000-00000000dead")
MUTATORS: dict[str, tuple[Any, ...]] = {
    "start_stage": (),
    "update_stage_progress": (10,),
    "complete_stage": (),
    "fail_stage": ("broken",),
    "skip_stage": (),
    "retry_stage": (),
    "reset_stage": (),
}
READERS_OF_DOCUMENT = ["get_document_progress", "get_current_stage", "get_document_status"]
OF_STAGE = [*MUTATORS.items(), ("can_start_stage", ())]


@pytest.fixture
def document(service, bring: Callable) -> uuid.UUID:
    """A document with one stage in work and one failed."""
    made = service.document()
    bring(made, "text_extraction", "processing")
    bring(made, "upload", "failed")
    return made


def _says(refusal: Any, sqlstate: str, word: str, *in_message: object) -> None:
    assert (refusal.sqlstate, refusal.word) == (sqlstate, word)
    for part in in_message:
        assert str(part) in refusal.message
    assert refusal.hint


@pytest.mark.parametrize(("function", "arguments"), OF_STAGE, ids=[name for name, _ in OF_STAGE])
def test_an_unknown_document_is_pt404(service, function: str, arguments: tuple) -> None:
    """Every function of a stage answers PT404 for a document that is not there, with its id."""
    refusal = service.refused(function, GHOST, "upload", *arguments)
    _says(refusal, "PT404", "unknown_document", GHOST)
    assert refusal.detail["document_id"] == str(GHOST)


@pytest.mark.parametrize("function", READERS_OF_DOCUMENT)
def test_a_reader_of_an_unknown_document_is_pt404(service, function: str) -> None:
    """So does every reader: no zeros, no nulls."""
    _says(service.refused(function, GHOST), "PT404", "unknown_document", GHOST)


@pytest.mark.parametrize(("function", "arguments"), OF_STAGE, ids=[name for name, _ in OF_STAGE])
def test_a_null_document_id_is_a_bad_argument(service, function: str, arguments: tuple) -> None:
    """A null id is 22023, not a document that does not exist."""
    _says(service.refused(function, None, "upload", *arguments), "22023", "invalid_document_id", "null")


@pytest.mark.parametrize("function", READERS_OF_DOCUMENT)
def test_a_reader_with_a_null_document_id_is_a_bad_argument(service, function: str) -> None:
    """Readers say the same."""
    _says(service.refused(function, None), "22023", "invalid_document_id", "null")


@pytest.mark.parametrize("stage", ["embeddings", "", "Upload", "upload ", "'; drop table x; --", None, "ä" * 300])
@pytest.mark.parametrize(("function", "arguments"), OF_STAGE, ids=[name for name, _ in OF_STAGE])
def test_an_unknown_stage_is_a_bad_argument_that_lists_the_stages(
    service, document: uuid.UUID, function: str, arguments: tuple, stage: str | None
) -> None:
    """Every function refuses a name that is no stage, says which it got and names those there are."""
    before = service.everything(document)
    refusal = service.refused(function, document, stage, *arguments)
    _says(refusal, "22023", "unknown_stage", "null" if stage is None else stage.replace("'", "''"))
    assert refusal.detail["stage"] == stage
    assert "upload, text_extraction, image_processing" in refusal.hint
    assert service.everything(document) == before


@pytest.mark.parametrize("progress", ["-1", "-0.0001", "100.001", "101", "1e30", "NaN", "Infinity", "-Infinity"])
def test_progress_outside_of_percent_is_refused(service, document: uuid.UUID, progress: str) -> None:
    """Progress below 0, above 100, infinite or NaN is 22023 and leaves the stage alone."""
    before = service.everything(document)
    refusal = service.refused("update_stage_progress", document, "text_extraction", Decimal(progress))
    _says(refusal, "22023", "invalid_progress")
    assert Decimal(refusal.detail["progress"]).compare_total(Decimal(progress)) == 0 or progress == "1e30"
    assert service.everything(document) == before


@pytest.mark.parametrize("metadata", ["[1, 2]", '"text"', "5", "true"])
@pytest.mark.parametrize("function", ["update_stage_progress", "complete_stage", "fail_stage"])
def test_metadata_that_is_no_object_is_refused(service, document: uuid.UUID, function: str, metadata: str) -> None:
    """Metadata must be a JSON object: anything else is 22023, named by its type."""
    arguments = MUTATORS[function]
    before = service.everything(document)
    with pytest.raises(service.connection.Error) as caught:
        service.run(
            f"select krai_core.{function}(%s, 'text_extraction'{', %s' * len(arguments)}, p_metadata => %s::jsonb)",
            document, *arguments, metadata,
        )  # fmt: skip
    assert caught.value.sqlstate == "22023"
    assert '"invalid_metadata"' in caught.value.diag.message_detail
    assert metadata in caught.value.diag.message_primary
    assert service.everything(document) == before


@pytest.mark.parametrize("lease", ["0", "-5", "NaN", "604800.1", "Infinity", "-Infinity"])
def test_a_lease_out_of_range_is_refused(service, document: uuid.UUID, lease: str) -> None:
    """A lease must be more than 0 and at most a week."""
    before = service.everything(document)
    refusal = service.refused("start_stage", document, "storage", p_lease_seconds=Decimal(lease))
    _says(refusal, "22023", "invalid_lease")
    assert service.everything(document) == before


def test_a_disabled_stage_cannot_be_started(alone) -> None:
    """Start of a disabled stage is PT409 stage_disabled; what runs of it may still be reported."""
    document = alone.document()
    alone.call("start_stage", document, "storage")
    alone.run("update krai_core.stages set enabled = false where name in ('storage', 'embedding')")
    before = alone.everything(document)
    refusal = alone.refused("start_stage", document, "embedding")
    _says(refusal, "PT409", "stage_disabled", "embedding")
    assert alone.everything(document) == before
    assert alone.call("complete_stage", document, "storage") is True


_RUN = {"document_id": str(GHOST), "stage_name": "upload", "claim_id": str(GHOST)}


@pytest.mark.parametrize(
    "runs",
    [
        None, {"runs": []}, "x", 5, [5], ["x"], [None], [[]], [{}], [_RUN, 7],
        [{**_RUN, "document_id": "x"}], [{**_RUN, "document_id": None}], [{**_RUN, "claim_id": "5-5"}],
        [{**_RUN, "claim_id": f"{GHOST}\n"}], [{**_RUN, "stage_name": None}], [{"document_id": str(GHOST)}],
    ],
)  # fmt: skip
def test_a_malformed_heartbeat_is_refused(service, runs: object) -> None:
    """heartbeat takes an array of objects with document_id, stage_name and claim_id, and says so otherwise."""
    with pytest.raises(service.connection.Error) as caught:
        service.run("select krai_core.heartbeat(%s::text::jsonb)", runs and json.dumps(runs))
    assert caught.value.sqlstate == "22023"
    assert '"invalid_runs"' in caught.value.diag.message_detail
    assert caught.value.diag.message_hint


HTTP = [
    ("start_stage", {"p_document_id": str(GHOST), "p_stage_name": "upload"}, 404, "PT404", "unknown_document"),
    ("get_document_status", {"p_document_id": str(GHOST)}, 404, "PT404", "unknown_document"),
    ("get_document_status", {"p_document_id": None}, 400, "22023", "invalid_document_id"),
    ("start_stage", {"p_stage_name": "embeddings"}, 400, "22023", "unknown_stage"),
    ("update_stage_progress", {"p_stage_name": "text_extraction", "p_progress": 101}, 400, "22023", "invalid_progress"),
    ("update_stage_progress", {"p_stage_name": "text_extraction", "p_progress": "NaN"}, 400, "22023",
     "invalid_progress"),
    ("complete_stage", {"p_stage_name": "text_extraction", "p_metadata": [1]}, 400, "22023", "invalid_metadata"),
    ("start_stage", {"p_stage_name": "storage", "p_lease_seconds": 0}, 400, "22023", "invalid_lease"),
    ("update_stage_progress", {"p_stage_name": "storage", "p_progress": 1}, 409, "PT409", "conflict"),
    ("complete_stage", {"p_stage_name": "storage", "p_claim_id": str(GHOST)}, 409, "PT409", "lease_lost"),
    ("retry_stage", {"p_stage_name": "text_extraction"}, 409, "PT409", "conflict"),
    ("heartbeat", {"p_runs": {}}, 400, "22023", "invalid_runs"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "body", "status", "code", "word"), HTTP, ids=[f"{row[0]}-{row[4]}" for row in HTTP]
)
def test_errors_through_postgrest(
    local: LocalSupabase, service, document: uuid.UUID,
    function: str, body: dict[str, Any], status: int, code: str, word: str,
) -> None:  # fmt: skip
    """Over HTTP an error has its status, and supabase-py shows code, message, detail and hint."""
    if function != "heartbeat":
        body = {"p_document_id": str(document), **body}
    before = service.everything(document)
    answer = httpx.post(
        f"{local.url}/rpc/{function}", json=body, trust_env=False,
        headers={"Authorization": f"Bearer {local.key()}", "Content-Profile": "krai_core"},
    )  # fmt: skip
    assert answer.status_code == status
    with pytest.raises(postgrest.APIError) as caught:
        local.client().schema("krai_core").rpc(function, body).execute()
    assert caught.value.code == answer.json()["code"] == code
    assert f'"error": "{word}"' in caught.value.details
    assert caught.value.message == answer.json()["message"]
    assert caught.value.hint
    assert service.everything(document) == before
