"""URL and key of a Supabase project from the environment, or from a file .env.

A key belongs to a URL, and one that is sent to another server is known there. So the two come from one place: a key of
the environment never goes to a URL that only a file names, which may be one of any folder above, and a key of a file
never to another URL than the one beside it.
"""

import base64
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import dotenv

from processors_v2._errors import ConfigurationError

_SECRET_KEYS = ("SUPABASE_SECRET_KEYS", "SUPABASE_SECRET_KEY", "SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_KEY")
_PUBLISHABLE_KEYS = ("SUPABASE_PUBLISHABLE_KEYS", "SUPABASE_PUBLISHABLE_KEY", "SUPABASE_ANON_KEY")
_WHERE = "Project Settings > API Keys shows it; locally `supabase status` does"
_URL = "SUPABASE_URL"
# Those that a value is put into, and those that a word processor makes of them.
_QUOTES = "\"'`\u201c\u201d\u201e\u2018\u2019"


@dataclass(frozen=True)
class Place:
    """Where variables are set.

    Attributes:
        name: What to call it in messages: the environment, or the path of a file.
        values: The variables there; may be secret.
    """

    name: str
    values: Mapping[str, str | None] = field(repr=False)

    def get(self, name: str) -> str:
        """Return the value of a variable, without blanks and quotation marks around it; empty where there is none."""
        value = (self.values.get(name) or "").strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            # Docker's --env-file and systemctl set-environment keep them.
            value = value[1:-1].strip()
        return value


def find_variable(*names: str) -> str | None:
    """Return the value of the first variable that is set, each in the environment or else in a file .env; or None.

    Raises:
        ConfigurationError: The file cannot be read.
    """
    return next((value for name in names for place in _places() if (value := place.get(name))), None)


def project_from_env() -> tuple[str, str]:
    """Return URL and secret key: environment first, then a file .env in the working directory or above it.

    Raises:
        ConfigurationError: One is missing or cannot be used, or they are of two places; the message names the variable,
            never the value of a key.
    """
    url, name, key = _project(_SECRET_KEYS, "secret")
    refuse_public_key(key, name)
    return url, key


def publishable_project_from_env() -> tuple[str, str]:
    """Return URL and publishable (or anon) key, as project_from_env does.

    Raises:
        ConfigurationError: As there.
    """
    url, name, key = _project(_PUBLISHABLE_KEYS, "publishable (or anon)")
    if key.startswith("sb_secret_") or _role(key) == "service_role":
        raise ConfigurationError(
            f"{name} is a secret key, and callers without a token would have all rights",
            hint=f"Set the publishable (or anon) key. {_WHERE}",
        )
    return url, key


def _places() -> Iterator[Place]:
    """The environment, then the nearest file .env, which is not even looked for unless somebody goes on to it."""
    yield Place("the environment", os.environ)
    try:
        file = dotenv.find_dotenv(usecwd=True)
    except FileNotFoundError:
        # The working directory itself is gone.
        return
    if file:
        yield Place(file, dotenv.dotenv_values(stream=io.StringIO(_text_of(Path(file)))))


def _text_of(file: Path) -> str:
    hint = "or take it away and set the variables in the environment"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{file}: {error.strerror}", hint=f"Make it readable for whoever runs this, {hint}"
        ) from error
    text = content.decode("utf-8-sig", "replace")
    # UTF-16 without a mark is UTF-8 with zeros.
    if "\ufffd" in text or "\0" in text:
        # Not from the error of decoding, which holds the whole file.
        raise ConfigurationError(f"{file} is not UTF-8", hint=f"Save it as UTF-8, {hint}")
    return text


def _project(names: tuple[str, ...], kind: str) -> tuple[str, str, str]:
    """Return URL, name of the key, key."""
    at = next((place for place in _places() if place.get(_URL)), None)
    url = _unquoted(at, _URL) if at else ""
    if at is None or not url.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"{_URL} is missing or not an http(s) URL",
            hint="Set it to the URL of the project, such as https://<ref>.supabase.co",
        )
    found = next(((place, name) for place in _places() for name in names if place.get(name)), None)
    if found is None:
        raise ConfigurationError(f"no key: none of {', '.join(names)} is set", hint=f"Set the {kind} key. {_WHERE}")
    place, name = found
    key = _unquoted(place, name)
    if not _belong_together(at, place, name):
        missing = name if at.values is os.environ else _URL
        raise ConfigurationError(
            f"{_URL} comes from {at.name} and {name} from {place.name}, so they may be of two projects",
            hint=f"Set both in one place: {missing} in the environment as well",
        )
    return url, name, _from_dictionary(key, name) if name.endswith("_KEYS") else key


def _unquoted(place: Place, name: str) -> str:
    value = place.get(name)
    if value[0] in _QUOTES or value[-1] in _QUOTES:
        raise ConfigurationError(
            f"{name} in {place.name} begins or ends with a quotation mark",
            hint="Write the value alone, or between two of the same",
        )
    return value


def _belong_together(of_url: Place, of_key: Place, name: str) -> bool:
    if of_url.name == of_key.name:
        return True
    if of_key.values is os.environ:
        # The file alone names a URL, and does so for this key only if it has the key, too.
        return of_url.get(name) == of_key.get(name)
    return of_key.get(_URL).rstrip("/") in {"", of_url.get(_URL).rstrip("/")}


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
