"""What the Supabase CLI has to know of the tracker, in supabase/config.toml."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tomlkit
from tomlkit.exceptions import TOMLKitError

from processors_v2._errors import ConfigurationError
from processors_v2._install.folders import reported

Change = Literal["none", "changed", "created"]

_SCHEMA = "krai_core"
# What the Supabase CLI serves where the file says nothing.
_DEFAULT_SCHEMAS = ["public", "graphql_public"]
_NO_NAME = re.compile(r"[^A-Za-z0-9_.-]+")

_NEW = """\
# The least that `supabase db push` needs.
project_id = "{name}"

[api]
# Hosted projects do not read this: Project Settings > Data API > Exposed schemas.
schemas = ["public", "graphql_public"]
"""


def new_text(path: Path, project_name: str, functions: Mapping[str, Mapping[str, Any]]) -> tuple[Change, bytes]:
    """Return what is to become of config.toml, and its text; comments, order and what is set stay.

    Args:
        path: The file; need not exist.
        project_name: What a new file calls the project.
        functions: Settings of the Edge Functions that the project gets.

    Raises:
        ConfigurationError: It is no TOML, or says something else there than a list of schemas.
    """
    with reported():
        before = path.read_bytes() if path.exists() else None
    name = _NO_NAME.sub("-", project_name).strip("-.") or "project"
    text = _NEW.format(name=name) if before is None else before.decode("utf-8", "replace")
    try:
        document = tomlkit.parse(text)
    except TOMLKitError as error:
        raise ConfigurationError(f"{path}: {error}", hint="Correct it; nothing was changed") from None
    is_changed = _expose(document, path) | _describe(document, functions)
    if before is None:
        return "created", tomlkit.dumps(document).encode()
    return ("changed", tomlkit.dumps(document).encode()) if is_changed else ("none", before)


def _expose(document: tomlkit.TOMLDocument, path: Path) -> bool:
    """Put krai_core among the schemas that the API serves; return whether it was not there."""
    api: Any = document.setdefault("api", tomlkit.table())
    schemas = api.setdefault("schemas", list(_DEFAULT_SCHEMAS)) if isinstance(api, dict) else None
    if not isinstance(schemas, list):
        raise ConfigurationError(
            f"{path}: schemas in [api] is no list", hint=f'Make it one, such as ["public", "{_SCHEMA}"]'
        )
    if _SCHEMA in schemas:
        return False
    schemas.append(_SCHEMA)
    return True


def _describe(document: tomlkit.TOMLDocument, functions: Mapping[str, Mapping[str, Any]]) -> bool:
    """Add the settings of functions that the file does not mention; return whether there were such."""
    if not functions:
        return False
    tables: Any = document.setdefault("functions", tomlkit.table(is_super_table=True))
    missing = {name: settings for name, settings in functions.items() if name not in tables}
    for name, settings in missing.items():
        table = tomlkit.table()
        table.update(settings)
        tables.append(name, table)
    return bool(missing)
