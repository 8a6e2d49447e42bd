"""Where the Supabase project of the user is."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from processors_v2._errors import ConfigurationError


@dataclass(frozen=True)
class Project:
    """A folder with a Supabase project in it, which may have to be made first.

    Attributes:
        folder: The folder that holds ``supabase``.
        exists: Whether ``supabase`` is there.
    """

    folder: Path
    exists: bool

    @property
    def migrations(self) -> Path:
        """Folder of the migrations."""
        return self.folder / "supabase" / "migrations"

    @property
    def config(self) -> Path:
        """The settings of the Supabase CLI."""
        return self.folder / "supabase" / "config.toml"

    @property
    def functions(self) -> Path:
        """Folder of the Edge Functions."""
        return self.folder / "supabase" / "functions"

    def name_of(self, path: Path) -> str:
        """Return a path as people in the project call it."""
        return path.relative_to(self.folder).as_posix()


def find_project(start: Path, chosen: Path | None = None) -> Project:
    """Find the project that a folder belongs to, as the Supabase CLI does; without one it will be in that folder.

    Args:
        start: The working directory: it and the folders above it are looked at, as far as the repository goes.
        chosen: The folder that holds ``supabase``, or will hold it, where it was named.

    Raises:
        ConfigurationError: The chosen one is no folder.
    """
    if chosen is not None:
        if not chosen.is_dir():
            raise ConfigurationError(f"{chosen} is no folder", hint="Name the folder that holds supabase/")
        return Project(chosen.absolute(), _is_project(chosen))
    for folder in (start, *start.parents):
        if _is_project(folder):
            return Project(folder, exists=True)
        if (folder / ".git").exists():
            break
    return Project(start, exists=False)


def _is_project(folder: Path) -> bool:
    return (folder / "supabase" / "config.toml").is_file() or (folder / "supabase" / "migrations").is_dir()


def write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, and the folders that lead to it.

    Raises:
        ConfigurationError: It cannot be written.
    """
    with reported():
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.new")
        beside.write_bytes(content)
        beside.replace(path)


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turn what the system says about a file into an error with a remedy."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename}: {error.strerror}", hint="Make it readable and writable for whoever runs this"
        ) from error
