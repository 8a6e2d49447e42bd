"""A PostgREST that does not start."""

from pathlib import Path

import pytest

from processors_v2.local import LocalStackError, LocalSupabase


def program(folder: Path, name: str, text: str = "exit 1") -> Path:
    """Make an executable script."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_postgrest_that_does_not_start_shows_its_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A broken binary fails the start at once, with what it printed."""
    monkeypatch.setenv("POSTGREST_BIN", str(program(tmp_path, "broken", "echo cannot load libpq; exit 3")))
    with pytest.raises(LocalStackError, match="cannot load libpq"):
        LocalSupabase(migrations=None).start()
