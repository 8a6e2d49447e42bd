"""The files of the Supabase project that ship with this package."""

import tomllib
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parent.parent
_DEFAULT_MAX_ROWS = 1000


def migrations_folder() -> Path:
    """Find the migrations: inside the package when it was installed from a wheel, else in the clone.

    Raises:
        FileNotFoundError: neither is there.
    """
    return _folder("migrations")


def functions_folder() -> Path:
    """Find the Edge Functions, as the migrations.

    Raises:
        FileNotFoundError: they are nowhere.
    """
    return _folder("functions")


def _folder(name: str) -> Path:
    for folder in (_PACKAGE / name, _PACKAGE.parent / "supabase" / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"The {name} are neither in {_PACKAGE} nor in a clone around it: the install is broken.")


def migration_files(folder: Path) -> list[Path]:
    """List the migrations of a folder in the order in which they apply: by file name, as for the CLI."""
    return sorted(folder.glob("*.sql"), key=lambda path: path.name)


def newest_migrations() -> list[Path]:
    """List our own migrations that a database needs: of each topic the newest, which holds all that came before."""
    newest = {topic_of(path): path for path in migration_files(migrations_folder())}
    return sorted(newest.values(), key=lambda path: path.name)


def topic_of(path: Path) -> str:
    """Tell what a migration is about: its name without the time and the ending."""
    return path.stem.partition("_")[2]


def max_rows() -> int:
    """Read from config.toml how many rows PostgREST returns at most; without one 1000, as Supabase."""
    return int(_settings().get("api", {}).get("max_rows", _DEFAULT_MAX_ROWS))


def function_settings() -> dict[str, dict[str, Any]]:
    """Read from config.toml what the Supabase CLI has to know of each Edge Function."""
    found: dict[str, dict[str, Any]] = _settings().get("functions", {})
    return found


def _settings() -> dict[str, Any]:
    for path in (_PACKAGE / "migrations" / "config.toml", _PACKAGE.parent / "supabase" / "config.toml"):
        if path.is_file():
            return tomllib.loads(path.read_text(encoding="utf-8"))
    return {}
