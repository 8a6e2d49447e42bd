"""PostgREST beside a migration: it goes on running, and serves what is new."""

from typing import Any

import httpx
import pytest

FIRST = "00000000-0000-4000-8000-000000000001"


def _call(local: Any, function: str, **arguments: Any) -> httpx.Response:
    headers = {"Content-Profile": "krai_core", "Authorization": f"Bearer {local.key('service_role')}"}
    return httpx.post(f"{local.url}/rpc/{function}", json=arguments, headers=headers, trust_env=False)


@pytest.mark.parametrize("server", ["16"], indirect=True)
def test_it_serves_the_new_functions_without_a_restart(server: Any, served: Any) -> None:
    """The migration tells PostgREST to read the schema again, so that new functions are there soon after."""
    local = server.local
    served.load("field.sql", "v1.sql")
    local.reload_schema()
    # The void of an earlier tracker has no content.
    assert _call(local, "start_stage", p_document_id=FIRST, p_stage_name="upload").status_code == 204
    assert _call(local, "get_document_status", p_document_id=FIRST).json()["code"] == "PGRST202"
    served.migrate()
    served.wait_for(lambda: _call(local, "get_document_status", p_document_id=FIRST).status_code == 200)
    # What the earlier tracker had started is held, as a start of today is.
    started = [_call(local, "start_stage", p_document_id=FIRST, p_stage_name=stage) for stage in ("upload", "storage")]
    assert [(answer.status_code, answer.json()) for answer in started] == [(200, False), (200, True)]
    assert _call(local, "get_document_status", p_document_id=FIRST).json()["current_stage"] == "upload"
    assert _call(local, "complete_stage", p_document_id=FIRST, p_stage_name="upload").json() is True
    assert _call(local, "get_document_progress", p_document_id=FIRST).json() == 12.5
