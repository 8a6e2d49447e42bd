"""Where the Supabase project of the user is."""

import contextlib
import os
import secrets
import shutil
import stat
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


def content_of(path: Path) -> bytes | None:
    """Return what a file of the project holds, None where there is none; a symbolic link is followed.

    Raises:
        ConfigurationError: It cannot be read, or what has that name is no file, such as a link that leads nowhere.
    """
    with reported():
        if path.is_file():
            return path.read_bytes()
        if not os.path.lexists(path):
            return None
    raise _no_file(path)


def _no_file(path: Path) -> ConfigurationError:
    what = "a symbolic link that leads to no file" if path.is_symlink() else "no file"
    return ConfigurationError(f"{path} is {what}", hint="Move it away; nothing was changed")


def check_folder(path: Path) -> None:
    """Raise ConfigurationError where a folder that is needed, or the one around it, is there as something else."""
    for folder in (path, path.parent):
        if os.path.lexists(folder) and not folder.is_dir():
            raise ConfigurationError(f"{folder} is no folder", hint="Move it away; nothing was changed")


def write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, and the folders that lead to it.

    A file that is there keeps its mode, its owner and its name: behind a symbolic link the target is written.

    Raises:
        ConfigurationError: It cannot be written.
    """
    with reported():
        if path.is_symlink() and not path.exists():
            raise _no_file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        target = path.resolve()
        if target.exists() and not _is_replaceable(target.stat()):
            path.write_bytes(content)
            return
        try:
            _replace(target, content)
        except PermissionError:
            # The folder takes no new file, or the owner of the old one cannot be kept: what is left is the file itself.
            if not target.exists():
                raise
            target.write_bytes(content)


def _is_replaceable(before: os.stat_result) -> bool:
    """Whether another file under the same name is the same to everybody: not where it has further names."""
    return stat.S_ISREG(before.st_mode) and before.st_nlink == 1


def _replace(target: Path, content: bytes) -> None:
    """Put a new file in the place of a regular one, or where there is none."""
    before = target.stat() if target.exists() else None
    mode = 0o666 if before is None else stat.S_IMODE(before.st_mode)
    # A name that nobody can have prepared, and exclusive: nothing is written through somebody else's link.
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        with open(fresh, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(content)
        if before is not None:
            if hasattr(os, "chown"):
                os.chown(fresh, before.st_uid, before.st_gid)
            shutil.copystat(target, fresh)
            os.utime(fresh)
        fresh.replace(target)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turn what the system says about a file into an error with a remedy."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename}: {error.strerror}", hint="Make it readable and writable for whoever runs this"
        ) from error
