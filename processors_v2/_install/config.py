"""What the Supabase CLI has to know of the tracker, in supabase/config.toml."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tomlkit
from tomlkit.exceptions import TOMLKitError

from processors_v2._errors import ConfigurationError
from processors_v2._install.folders import content_of

Change = Literal["none", "changed", "created"]

_SCHEMA = "krai_core"
# What the Supabase CLI serves where the file says nothing.
_DEFAULT_SCHEMAS = ["public", "graphql_public"]
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
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
        ConfigurationError: It is no TOML in UTF-8, or says something else there than a list of schemas.
    """
    before = content_of(path)
    name = _NO_NAME.sub("-", project_name).strip("-.") or "project"
    text = _NEW.format(name=name) if before is None else _text_of(before, path)
    try:
        document = tomlkit.parse(text)
    except TOMLKitError as error:
        raise ConfigurationError(f"{path}: {error}", hint="Correct it; nothing was changed") from None
    is_changed = _expose(document, path) | _describe(document, functions)
    if before is None:
        return "created", tomlkit.dumps(document).encode()
    return ("changed", _as_before(tomlkit.dumps(document), before)) if is_changed else ("none", before)


def _text_of(content: bytes, path: Path) -> str:
    try:
        return content.removeprefix(_BYTE_ORDER_MARK).decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(
            f"{path}: line {line} is not UTF-8, which TOML is", hint="Save it as UTF-8; nothing was changed"
        ) from None


def _as_before(text: str, before: bytes) -> bytes:
    """Encode a text with the byte order mark and the line ends of the file that it comes from."""
    if before.count(b"\n") == before.count(b"\r\n") > 0:
        text = text.replace("\r\n", "\n").replace("\n", "\r\n")
    mark = _BYTE_ORDER_MARK if before.startswith(_BYTE_ORDER_MARK) else b""
    return mark + text.encode()


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
