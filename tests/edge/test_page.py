"""docs/edge_functions.md does what it says."""

import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from typing import Any

import httpx
import psycopg
import pytest
from edge_servers import DENO, ROOT, Gateway, Programs, deno_environment

from processors_v2.local import LocalSupabase

PAGE = (ROOT / "docs/edge_functions.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
CURL = [text for language, text in BLOCKS if text.startswith("curl ")]
DENO_SERVE = next(text for language, text in BLOCKS if text.startswith("deno serve "))
TOML = next(text for language, text in BLOCKS if language == "toml")
STATUS, PROBLEM = (json.loads(text) for language, text in BLOCKS if language == "json")

Shell = Callable[..., str]


@pytest.fixture
def shown(connection: "psycopg.Connection[tuple[Any, ...]]") -> str:
    """The document of the page."""
    connection.execute(
        "insert into krai_core.documents (id, filename, stage_status) values (%s, 'manual.pdf', %s::jsonb)"
        " on conflict (id) do nothing",
        [STATUS["document_id"], json.dumps(STATUS["stage_status"])],
    )
    document: str = STATUS["document_id"]
    return document


@pytest.fixture
def shell(gateway: Gateway, local: LocalSupabase, shown: str) -> Shell:
    """Run a line of the page with the variables that it names."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl, which the lines of the page call")

    def shell(line: str, **variables: str) -> str:
        project = {"SUPABASE_URL": gateway.url, "DOCUMENT_ID": shown, "NO_PROXY": "*"}
        tokens = {"ACCESS_TOKEN": local.key(), "SERVICE_ROLE_KEY": local.key()}
        done = subprocess.run(
            ["bash", "-euc", line.replace("curl ", "curl --silent --show-error ")],
            env=os.environ | project | tokens | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return shell


def test_the_status_is_what_the_page_shows(shell: Shell) -> None:
    """The first line prints the JSON under it, and the stages that are left out there."""
    told = json.loads(shell(CURL[0]))
    others = {name for name, stage in told["stage_status"].items() if stage["status"] == "pending"}
    assert others
    assert {**told, "stage_status": {k: v for k, v in told["stage_status"].items() if k not in others}} == STATUS


def test_the_statistics_are_told(shell: Shell) -> None:
    """The second line prints them."""
    assert set(json.loads(shell(CURL[1]))) == {"timestamp", "stages"}


def test_what_has_not_changed_is_not_told_again(shell: Shell) -> None:
    """The third line prints nothing when it has the tag of the first, and the status when it has another one."""
    head = shell(CURL[0].replace("curl ", "curl --include "))
    tag = re.search(r"^etag: (.*)$", head, re.MULTILINE)
    assert tag is not None
    assert shell(CURL[2], ETAG=tag[1]) == ""
    assert json.loads(shell(CURL[2], ETAG='"other"'))["progress"] == STATUS["progress"]


def test_a_problem_is_told_as_the_page_shows_it(shell: Shell) -> None:
    """The last line prints the JSON under it."""
    assert json.loads(shell(CURL[3])) == PROBLEM
    assert len(CURL) == 4


def test_deno_serves_as_the_page_says(started: Programs, gateway: Gateway, local: LocalSupabase, shown: str) -> None:
    """The command serves the function at the address beside it; here at another port."""
    assert "`http://127.0.0.1:8001/status/{document_id}`" in PAGE
    _, *arguments = shlex.split(DENO_SERVE)
    environment = {"SUPABASE_URL": gateway.url, "SUPABASE_ANON_KEY": local.key("anon"), **deno_environment()}
    url = started.start(
        "page", lambda port: [DENO, *(part.replace("8001", str(port)) for part in arguments)], environment
    )
    answer = httpx.get(f"{url}/status/{shown}", headers={"Authorization": f"Bearer {local.key()}"}, trust_env=False)
    assert answer.json()["document_id"] == shown


def test_the_settings_are_those_of_this_project() -> None:
    """What is to be copied into config.toml is what stands in ours, and names every function."""
    ours = tomllib.loads((ROOT / "supabase/config.toml").read_text(encoding="utf-8"))
    assert tomllib.loads(TOML)["functions"] == ours["functions"]
    folders = {path.parent.name for path in (ROOT / "supabase/functions").glob("*/index.ts")}
    assert set(ours["functions"]) == folders
