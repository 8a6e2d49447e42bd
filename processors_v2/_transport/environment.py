"""URL and key of a Supabase project from the environment."""

import base64
import json
import os
from collections.abc import Mapping

import dotenv

from processors_v2._errors import ConfigurationError

_SECRET_KEYS = ("SUPABASE_SECRET_KEYS", "SUPABASE_SECRET_KEY", "SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_KEY")
_PUBLISHABLE_KEYS = ("SUPABASE_PUBLISHABLE_KEYS", "SUPABASE_PUBLISHABLE_KEY", "SUPABASE_ANON_KEY")
_WHERE = "Project Settings > API Keys shows it; locally `supabase status` does"


def project_from_env() -> tuple[str, str]:
    """Return URL and secret key: environment first, then a file .env in the working directory or above it.

    Raises:
        ConfigurationError: One is missing or cannot be used; the message names the variable, never its value.
    """
    values = _environment()
    url, (name, key) = _url(values), _key(values, _SECRET_KEYS, "secret")
    refuse_public_key(key, name)
    return url, key


def publishable_project_from_env() -> tuple[str, str]:
    """Return URL and publishable (or anon) key, as project_from_env does.

    Raises:
        ConfigurationError: One is missing or cannot be used; the message names the variable, never its value.
    """
    values = _environment()
    url, (name, key) = _url(values), _key(values, _PUBLISHABLE_KEYS, "publishable (or anon)")
    if key.startswith("sb_secret_") or _role(key) == "service_role":
        raise ConfigurationError(
            f"{name} is a secret key, and callers without a token would have all rights",
            hint=f"Set the publishable (or anon) key. {_WHERE}",
        )
    return url, key


def _environment() -> dict[str, str | None]:
    file = dotenv.find_dotenv(usecwd=True)
    return {**(dotenv.dotenv_values(file) if file else {}), **os.environ}


def _url(values: Mapping[str, str | None]) -> str:
    url = (values.get("SUPABASE_URL") or "").strip()
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(
            "SUPABASE_URL is missing or not an http(s) URL",
            hint="Set it to the URL of the project, such as https://<ref>.supabase.co",
        )
    return url


def _key(values: Mapping[str, str | None], names: tuple[str, ...], kind: str) -> tuple[str, str]:
    name = next((name for name in names if (values.get(name) or "").strip()), None)
    if name is None:
        raise ConfigurationError(f"no key: none of {', '.join(names)} is set", hint=f"Set the {kind} key. {_WHERE}")
    value = str(values[name]).strip()
    return name, _from_dictionary(value, name) if name.endswith("_KEYS") else value


def refuse_public_key(key: str, name: str) -> None:
    """Raise ConfigurationError for a key that is made for browsers.

    Args:
        key: Key of a Supabase project, of the new or of the legacy kind.
        name: What to call it in the message.
    """
    role = _role(key)
    if key.startswith("sb_publishable_") or role in {"anon", "authenticated"}:
        kind = f"the {role} key" if role else "a publishable key"
        raise ConfigurationError(
            f"{name} is {kind}, which may not write stages",
            hint=f"A worker needs the secret (or service_role) key. {_WHERE}",
        )


def _from_dictionary(text: str, name: str) -> str:
    try:
        keys = json.loads(text)
    except ValueError:
        keys = None
    key = keys.get("default") if isinstance(keys, dict) else None
    if not isinstance(key, str) or not key:
        kind = name.removeprefix("SUPABASE_").removesuffix("_KEYS").lower()
        raise ConfigurationError(
            f'{name} is not a JSON object with an entry "default"', hint=f'Its form is {{"default": "sb_{kind}_..."}}'
        )
    return key


def _role(key: str) -> str | None:
    """Role that a legacy key, a JWT, names; None for other keys."""
    try:
        payload = key.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError):
        return None
    role = claims.get("role") if isinstance(claims, dict) else None
    return role if isinstance(role, str) else None
