"""The quickstart run once as a user runs it, and its processors run once in this process."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from supabase import Client

from processors_v2.local import LocalSupabase
from processors_v2.stage_tracker import StageTracker

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DOCUMENTS = EXAMPLES / "documents"
PASSWORD = "spare-parts"

sys.path.insert(0, str(EXAMPLES))

from pipeline import PROCESSORS, Workspace, register  # noqa: E402

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def documents() -> Path:
    """The folder of the quickstart's own documents."""
    return DOCUMENTS


@pytest.fixture(scope="session")
def quickstart() -> Run:
    """Run examples/quickstart.py with some arguments, its output piped and 80 columns wide."""

    def run(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, EXAMPLES / "quickstart.py", *map(str, arguments)],
            env={**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8", **environment},
            cwd=EXAMPLES.parent,
            capture_output=True,
            encoding="utf-8",
            timeout=90,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def piped(quickstart: Run) -> "subprocess.CompletedProcess[str]":
    """The quickstart over its own documents."""
    return quickstart()


@dataclass
class Pipeline:
    """A stack of its own, as the processors' tables are no part of what other tests look at."""

    work: Workspace
    client: Client
    ids: dict[str, str]

    def query(self, sql: str, name: str) -> list[tuple[Any, ...]]:
        """Run a query whose one parameter is the id of the document with this file name."""
        with psycopg.connect(self.work.database_url) as db:
            return db.execute(sql, [self.ids[name]]).fetchall()

    def stage(self, name: str, stage: str) -> dict[str, Any]:
        """Return the status object of one stage of a document."""
        status: dict[str, Any] = self.work.tracker.get_stage_status(self.ids[name])
        return dict(status[stage])

    def run(self, name: str, stage: str) -> None:
        """Run one processor here and now."""
        PROCESSORS[stage](self.work, self.ids[name])


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """All documents through all stages that can run, one after the other, the password known."""
    with LocalSupabase() as local:
        local.apply([EXAMPLES / "quickstart.sql"])
        client = local.client()
        folder = tmp_path_factory.mktemp("pipeline")
        work = Workspace(StageTracker(client), local.database_url, folder / "scratch", folder / "store")
        ids = {path.name: register(work, client, path) for path in sorted(DOCUMENTS.glob("*.pdf"))}
        work.passwords[ids["halvorn-x900.pdf"]] = PASSWORD
        pipeline = Pipeline(work, client, ids)
        for name in ids:
            if name != "damaged-bulletin.pdf":
                for stage in StageTracker.STAGES:
                    pipeline.run(name, stage)
        yield pipeline
