"""What OpenAPI tells of the endpoints, and requests made from it at random."""

import uuid
from collections import Counter
from typing import Any, get_type_hints

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from processors_v2 import models
from processors_v2.local import LocalSupabase


@pytest.fixture(scope="module")
def description(api: httpx.Client) -> dict[str, Any]:
    """OpenAPI as it is served."""
    served: dict[str, Any] = api.get("/openapi.json").json()
    return served


def test_every_answer_is_documented(description: dict[str, Any]) -> None:
    """Each endpoint names its statuses, and each error has the one shape and an example."""
    documented = {path: set(methods["get"]["responses"]) for path, methods in description["paths"].items()}
    denied = {"401", "403", "503"}
    assert documented == {
        "/status/{document_id}": {"200", "304", "404", "422"} | denied,
        "/status/{document_id}/events": {"200", "404", "422"} | denied,
        "/stages/statistics": {"200", "304"} | denied,
    }
    for methods in description["paths"].values():
        for status, answer in methods["get"]["responses"].items():
            if status >= "400":
                content = answer["content"]["application/json"]
                assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
                assert set(content["example"]) <= {"detail", "hint", "error"}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("DocumentStatus", models.DocumentStatus),
        ("StageStatus", models.StageStatus),
        ("StageCounts", models.StageCounts),
    ],
)
def test_shapes_are_those_of_the_tracker(description: dict[str, Any], name: str, shape: type) -> None:
    """A model has the fields of the TypedDict, all of which are there in every answer."""
    schema = description["components"]["schemas"][name]
    assert set(schema["properties"]) == set(schema["required"]) == set(get_type_hints(shape))
    assert schema["description"].startswith(str(shape.__doc__).partition("\n")[0])


def names_a_document(case: Any) -> bool:
    """Whether a request may be for a document that is there."""
    try:
        uuid.UUID(str(case.path_parameters["document_id"]))
    except (KeyError, TypeError, ValueError):
        return False
    return True


TOKENS = ["service_role", "authenticated", "anon", None]


def test_1000_requests_at_random_are_no_server_error(alone: httpx.Client, local: LocalSupabase, document: str) -> None:
    """Whatever fits OpenAPI or does not, from whomever, is answered, and with a status that is documented."""
    schema = schemathesis.openapi.from_url(f"{alone.base_url}/openapi.json")
    cases = [schema.as_strategy(generation_mode=mode) for mode in GenerationMode]
    tokens = {role: local.key(role) for role in TOKENS if role}
    answers: Counter[tuple[str, int]] = Counter()
    with requests.Session() as session:

        @settings(max_examples=1000, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(case=st.one_of(cases), role=st.sampled_from(TOKENS), is_known=st.booleans())
        def ask(case: Any, role: str | None, is_known: bool) -> None:
            if is_known and case.path == "/status/{document_id}":
                case.path_parameters = {"document_id": document}
            elif case.path.endswith("/events") and names_a_document(case):
                # The events of a document that is there have no end.
                case.path_parameters = {"document_id": str(uuid.uuid4())}
            headers = {"Authorization": f"Bearer {tokens[role]}"} if role else {}
            answer = case.call(session=session, headers=headers, timeout=30)
            answers[case.path, answer.status_code] += 1
            assert answer.status_code < 500, case.as_curl_command()
            if case.method == "GET":
                documented = set(case.operation.definition.raw["responses"])
                assert str(answer.status_code) in documented | {"400"}, case.as_curl_command()

        ask()
    assert answers.total() >= 1000
    assert {status for _, status in answers} >= {200, 401, 403, 404, 422}
