"""The files of the Supabase project that ship with this package."""

import tomllib
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
_DEFAULT_MAX_ROWS = 1000


def migrations_folder() -> Path:
    """Find the migrations: inside the package when it was installed from a wheel, else in the clone.

    Raises:
        FileNotFoundError: neither is there.
    """
    for folder in (_PACKAGE / "migrations", _PACKAGE.parent / "supabase" / "migrations"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"The migrations are neither in {_PACKAGE} nor in a clone around it: the install is broken."
    )


def migration_files(folder: Path) -> list[Path]:
    """List the migrations of a folder in the order in which they apply: by file name, as for the CLI."""
    return sorted(folder.glob("*.sql"), key=lambda path: path.name)


def max_rows() -> int:
    """Read from config.toml how many rows PostgREST returns at most; without one 1000, as Supabase."""
    for path in (_PACKAGE / "migrations" / "config.toml", _PACKAGE.parent / "supabase" / "config.toml"):
        if path.is_file():
            settings = tomllib.loads(path.read_text(encoding="utf-8"))
            return int(settings.get("api", {}).get("max_rows", _DEFAULT_MAX_ROWS))
    return _DEFAULT_MAX_ROWS
