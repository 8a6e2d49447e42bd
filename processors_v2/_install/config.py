"""krai_core among the schemas that the project's API serves, in supabase/config.toml."""

import re
from pathlib import Path
from typing import Any, Literal

import tomlkit
from tomlkit.exceptions import TOMLKitError

from processors_v2._errors import ConfigurationError
from processors_v2._install.folders import reported

Change = Literal["none", "added", "created"]

_SCHEMA = "krai_core"
# What the Supabase CLI serves where the file says nothing.
_DEFAULT_SCHEMAS = ["public", "graphql_public"]
_NO_NAME = re.compile(r"[^A-Za-z0-9_.-]+")

_NEW = """\
# The least that `supabase db push` needs.
project_id = "{name}"

[api]
# Hosted projects do not read this: Project Settings > Data API > Exposed schemas.
schemas = ["public", "graphql_public", "krai_core"]
"""


def with_schema(path: Path, project_name: str) -> tuple[Change, bytes]:
    """Return what is to become of config.toml, and its text; comments and order stay.

    Args:
        path: The file; need not exist.
        project_name: What a new file calls the project.

    Raises:
        ConfigurationError: It is no TOML, or says something else there than a list of schemas.
    """
    with reported():
        text = path.read_bytes().decode() if path.exists() else None
    if text is None:
        return "created", _NEW.format(name=_NO_NAME.sub("-", project_name).strip("-.") or "project").encode()
    try:
        document = tomlkit.parse(text)
    except TOMLKitError as error:
        raise ConfigurationError(
            f"{path}: {error}", hint="Correct it and run this again; nothing was changed"
        ) from None
    api: Any = document.setdefault("api", tomlkit.table())
    schemas = api.setdefault("schemas", list(_DEFAULT_SCHEMAS)) if isinstance(api, dict) else None
    if not isinstance(schemas, list):
        raise ConfigurationError(
            f"{path}: schemas in [api] is no list", hint=f'Make it one, such as ["public", "{_SCHEMA}"]'
        )
    if _SCHEMA in schemas:
        return "none", text.encode()
    schemas.append(_SCHEMA)
    return "added", tomlkit.dumps(document).encode()
